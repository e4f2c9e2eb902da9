"""Ranking by logits: the same order at any scale, one rule for ties, no NaN or inf."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vit.api import Classifier
from vit.data.config import Preprocessing
from vit.errors import NonFiniteOutput
from vit.evaluate.classification import point_metrics
from vit.models.outputs import finite_rows, require_finite, top_classes
from vit.tasks.rows import Rows


def fifth_best() -> tuple[Tensor, Tensor]:
    """Logits [200, 20] and labels [200] that have the fifth highest logit of each row."""
    logits = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    return logits, logits.argsort(dim=1, descending=True)[:, 4]


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 100.0, 1e6, 1e30])
def test_the_order_is_that_of_the_logits_at_any_scale(scale: float) -> None:
    logits, labels = fifth_best()
    indices, probabilities = top_classes(logits * scale, 5)
    assert torch.equal(indices, (-logits).argsort(dim=1)[:, :5])
    assert (probabilities.diff(dim=1) <= 0).all()
    rows = Rows()
    rows.add(logits * scale, labels, torch.arange(200), [])
    metrics = point_metrics(rows.gather(20).predictions, [str(i) for i in range(20)])
    assert (metrics["top1"], metrics["top5"]) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_of_equal_logits_the_lower_class_index_comes_first(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 1000, dtype=dtype)
    logits[1, [999, 500, 7]] = 2.0
    indices, _ = top_classes(logits, 5)
    assert indices.tolist() == [[0, 1, 2, 3, 4], [7, 500, 999, 0, 1], [0, 1, 2, 3, 4]]
    assert indices[:, 0].tolist() == logits.argmax(dim=1).tolist()


def test_a_constant_predictor_has_the_accuracy_of_its_class_alone() -> None:
    rows, labels = Rows(), torch.arange(40) % 20
    rows.add(torch.full((40, 20), 0.25), labels, torch.arange(40), [])
    metrics = point_metrics(rows.gather(20).predictions, [str(i) for i in range(20)])
    assert (metrics["top1"], metrics["top5"]) == (0.05, 0.25)


class Fixed(nn.Module):
    """A network that gives the logits it was given, whatever the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def classifier(logits: Tensor) -> Classifier:
    names = [f"class {i}" for i in range(logits.shape[1])]
    return Classifier(Fixed(logits), names, Preprocessing((8, 8)))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e10])
def test_predict_ranks_by_logits(scale: float) -> None:
    logits = torch.tensor([[3.0, 5.0, 4.0, 1.0, 2.0, 6.0]])
    (prediction,) = classifier(logits * scale).predict(np.zeros((8, 8, 3), np.uint8), top=4)
    assert prediction.classes == ("class 5", "class 1", "class 2", "class 0")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_refused(bad: float) -> None:
    outputs = torch.zeros(3, 2, 2)
    outputs[1, 0, 1] = bad
    assert finite_rows(outputs).tolist() == [True, False, True]
    with pytest.raises(NonFiniteOutput, match="the model's output is NaN or inf for 1 of 3 inputs"):
        require_finite(outputs)
    with pytest.raises(NonFiniteOutput, match="NaN or inf"):
        classifier(torch.tensor([[0.0, bad]])).predict(np.zeros((8, 8, 3), np.uint8))


def test_rows_of_an_evaluation_list_non_finite_images_as_failures() -> None:
    logits = torch.randn(4, 3)
    logits[0, 1], logits[2, 0] = float("nan"), float("inf")
    logits[3] = torch.tensor([3e38, -3e38, 0.0])  # finite, but the loss of class 1 is not
    for refuse in (True, False):
        rows = Rows(refuse_non_finite=refuse)
        rows.add(logits, torch.tensor([0, 1, 2, 1]), torch.tensor([7, 5, 6, 4]), [(1, "empty file")])
        gathered = rows.gather(3)
        assert gathered.indices.tolist() == ([5] if refuse else [4, 5, 6, 7])
        reason = "the model's output is NaN or inf"
        expected = [(1, "empty file"), *((index, reason) for index in (4, 6, 7) if refuse)]
        assert gathered.failures == expected
