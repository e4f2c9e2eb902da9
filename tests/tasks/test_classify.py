"""The losses of classification, each against a formula of its own, and batches with pictures that cannot be read."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny
from torch import Tensor

from vit.data.config import Preprocessing
from vit.data.dataset import Batch
from vit.errors import ConfigError
from vit.models.vision import VisionTransformer
from vit.tasks.classify import Classify

CLASSES = ("a", "b", "c")
LABELS = torch.tensor([0, 2, 2, 1])
COUNTS = [10, 1, 4]


def classify(*, loss: dict[str, Any] | None = None, **parts: Any) -> Classify:
    torch.manual_seed(0)
    config = tiny(loss=loss or {}, **parts)
    network = VisionTransformer(config.model.resolve(classes=3, picture_size=16))
    torch.nn.init.normal_(network.head.weight)
    task = Classify(network, CLASSES, Preprocessing((16, 16)), config, counts=COUNTS)
    # as much of a Trainer as a step asks for
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=5))
    task._trainer = SimpleNamespace(current_epoch=0, global_rank=0, fit_loop=loop)
    return task


def batch(count: int = 4) -> Batch:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8))
    failures = [(9, "cut"), (7, "empty file")]
    return Batch(images, LABELS[:count], torch.arange(count), failures)


def log_probabilities(task: Classify) -> Tensor:
    pixels = (batch().images.double() / 255 - torch.tensor(task.preprocessing.mean).view(1, 3, 1, 1)) / torch.tensor(
        task.preprocessing.std
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        return task.network.double()(pixels).log_softmax(dim=1)


def sigmoid_losses(task: Classify, targets: Tensor) -> Tensor:
    """-t log s(z) - (1 - t) log(1 - s(z)), [B, C]"""
    with torch.no_grad():
        chances = torch.sigmoid(task.network(task.normalise(batch().images).double()))
    return -(targets * chances.log() + (1 - targets) * (1 - chances).log())


def test_cross_entropy_is_the_mean_negative_log_probability() -> None:
    task = classify(loss={"smoothing": 0.0})
    found = task.losses(batch())["loss"].mean.detach()
    expected = -sum(row[label] for row, label in zip(log_probabilities(task), LABELS, strict=True)) / 4
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    task = classify(loss={"smoothing": 0.3})
    found = task.losses(batch())["loss"].mean.detach()
    logs = log_probabilities(task)
    expected = sum(-0.7 * row[label] - 0.3 * row.mean() for row, label in zip(logs, LABELS, strict=True)) / 4
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_balanced_weights_are_inverse_to_the_share_of_the_training_pictures() -> None:
    task = classify(loss={"smoothing": 0.0, "class_weights": "balanced"})
    found = task.losses(batch())["loss"].mean.detach()
    weights = [15 / (3 * count) for count in COUNTS]  # 1 for a class of average size
    logs = log_probabilities(task)
    weighted = sum(-weights[label] * row[label] for row, label in zip(logs, LABELS.tolist(), strict=True))
    assert found.item() == pytest.approx(float(weighted / 4), rel=1e-5)  # the weights' mean over the data is 1


def test_balanced_weights_act_on_a_batch_of_one_image() -> None:
    plain, balanced = (
        classify(loss={"smoothing": 0.0, "class_weights": kind}).losses(batch(1))["loss"].mean.item()
        for kind in ("none", "balanced")
    )
    assert balanced == pytest.approx(plain * 15 / (3 * COUNTS[LABELS[0]]), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "loss", [{"name": "cross-entropy"}, {"name": "bce"}, {"name": "bce", "whole": True}], ids=lambda loss: str(loss)
)
def test_a_class_index_and_its_one_hot_vector_have_the_same_weighted_loss(
    loss: dict[str, Any], smoothing: float
) -> None:
    """Else the loss would jump where mixing ends (`augment.mix_off_epochs`)."""
    task = classify(loss={**loss, "smoothing": smoothing, "class_weights": "balanced"})
    logits = 3 * torch.randn(4, 3)
    hard, soft = task._loss(logits, LABELS), task._loss(logits, torch.eye(3)[LABELS])
    torch.testing.assert_close(hard, soft, rtol=1e-6, atol=0)


def test_a_class_without_training_pictures_gets_a_finite_weight() -> None:
    config = tiny(loss={"class_weights": "balanced"})
    network = VisionTransformer(config.model.resolve(classes=3, picture_size=16))
    task = Classify(network, CLASSES, Preprocessing((16, 16)), config, counts=[6, 0, 3])
    assert task.class_weights is not None
    assert task.class_weights.isfinite().all()
    assert float(task.class_weights @ torch.tensor([6.0, 0.0, 3.0])) == pytest.approx(9)  # mean 1 over the data


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bce_asks_every_class_by_itself(smoothing: float) -> None:
    task = classify(loss={"name": "bce", "smoothing": smoothing})
    found = task.losses(batch())["loss"].mean.detach()
    targets = torch.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3
    assert found.item() == pytest.approx(float(sigmoid_losses(task.double(), targets).mean()), rel=1e-5)


def test_bce_weighs_the_classes() -> None:
    task = classify(loss={"name": "bce", "smoothing": 0.0, "class_weights": "balanced"})
    found = task.losses(batch())["loss"].mean.detach()
    weights = torch.tensor([15 / (3 * count) for count in COUNTS])
    expected = (sigmoid_losses(task.double(), torch.eye(3)[LABELS]).mean(dim=1) * weights[LABELS]).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_bce_can_take_every_class_of_a_mixed_picture_for_a_whole_yes() -> None:
    task = classify(loss={"name": "bce", "smoothing": 0.0, "whole": True}, augment={"mixup": 0.8})
    found = task.losses(batch())["loss"].mean.detach()
    images, targets = task.inputs(batch())
    assert ((targets > 0) & (targets < 1)).any()
    with torch.no_grad():
        chances = torch.sigmoid(task.double().network(images.double()))
    yes = (targets > 0).double()
    expected = -(yes * chances.log() + (1 - yes) * (1 - chances).log()).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_classes_are_balanced_by_weights_or_by_sampling_and_not_by_both() -> None:
    """The weights' mean is 1 over the images as they are, not as balanced sampling draws them."""
    with pytest.raises(ConfigError, match=r"^loss.class_weights: must be none with data.balanced, which balances too"):
        classify(loss={"class_weights": "balanced"}, data={"balanced": True})


def test_whole_labels_are_for_bce() -> None:
    with pytest.raises(ConfigError, match=r"^loss.whole: needs loss.name bce, got True$"):
        classify(loss={"whole": True})


@pytest.mark.parametrize("name", ["cross-entropy", "bce"])
@pytest.mark.parametrize("augment", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixed_pictures_are_learned_with_mixed_labels(name: str, augment: dict[str, float]) -> None:
    task = classify(loss={"name": name, "smoothing": 0.0}, augment=augment)
    found = task.losses(batch())["loss"].mean.detach()
    images, targets = task.inputs(batch())  # the same step draws the same
    assert not torch.equal(images, task.normalise(batch().images))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    assert (targets.max(dim=1).values < 1).any()
    logits = task.network(images).detach().double()  # the logarithm of a small rest loses digits in fp32
    if name == "bce":
        chances = logits.sigmoid()
        expected = -(targets * chances.log() + (1 - targets) * (1 - chances).log()).mean()
    else:
        expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_mixing_ends_before_the_last_epochs() -> None:
    task = classify(augment={"mixup": 0.8, "mix_off_epochs": 1}, train={"epochs": 3})
    task._trainer.current_epoch = 1
    assert task.inputs(batch())[1].dim() == 2
    task._trainer.current_epoch = 2
    assert task.inputs(batch())[1].dim() == 1


@pytest.mark.parametrize("name", ["cross-entropy", "bce"])
@pytest.mark.parametrize("augment", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_batch_of_unreadable_pictures_alone_changes_nothing(name: str, augment: dict[str, float]) -> None:
    task = classify(loss={"name": name, "class_weights": "balanced"}, augment=augment)
    loss = task.losses(batch(0))["loss"].total
    loss.backward()
    assert loss.item() == 0
    for key, parameter in task.network.named_parameters():
        assert parameter.grad is not None, key
        assert not parameter.grad.any(), key


def test_unreadable_pictures_are_collected_once_each() -> None:
    task = classify()
    for _ in range(2):
        task.losses(batch())
    assert task.unreadable == {("train", 9): "cut", ("train", 7): "empty file"}


def test_pictures_are_half_as_large_in_the_first_epochs() -> None:
    task = classify(augment={"half_size": 0.5}, train={"epochs": 4}, model={"patch_size": 4})
    full = task.normalise(batch().images)
    for epoch, side in enumerate((8, 8, 16, 16)):
        task._trainer.current_epoch = epoch
        seen, _ = task.inputs(batch())
        assert seen.shape == (4, 3, side, side)
        assert torch.equal(seen, full if side == 16 else torch.nn.functional.avg_pool2d(full, 2))
        assert task.losses(batch())["loss"].mean.isfinite()
