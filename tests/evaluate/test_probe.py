"""Linear probes: together as alone, against torch's SGD and scikit-learn, and what diverges harms nobody."""

import math

import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from torch import nn

from vit.evaluate import probe as module
from vit.evaluate.probe import Probe, best_probe, fit_probes


def problem(count: int = 1000, dim: int = 32, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = make_classification(count, dim, n_informative=dim // 2, n_classes=classes, random_state=0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def split(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    half = len(x) // 2
    return x[:half], y[:half], (x[half:], y[half:])


@pytest.mark.parametrize("full_batch", [2048, 0])
def test_heads_fitted_together_are_what_each_would_be_alone(full_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FULL_BATCH", full_batch)
    x, y, validation = split(*problem(400))
    rates = [0.01, 0.1, 1.0]
    together = fit_probes(x, y, 10, validation, rates=rates, epochs=5, batch_size=64)
    for rate, one in zip(rates, together, strict=True):
        (alone,) = fit_probes(x, y, 10, validation, rates=[rate], epochs=5, batch_size=64)
        torch.testing.assert_close(one.weight, alone.weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.bias, alone.bias, rtol=0, atol=1e-5)
        assert one.rate == rate


def test_a_step_is_torchs_sgd_with_momentum() -> None:
    x, y, validation = split(*problem(200, dim=8, classes=3))
    (ours,) = fit_probes(x, y, 3, validation, rates=[0.3], epochs=7)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    layer = nn.Linear(8, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for _ in range(7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(standard), y).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(x @ ours.weight.T + ours.bias, layer(standard).detach(), rtol=0, atol=1e-4)


def test_the_best_of_several_rates_is_as_accurate_as_scikit_learns() -> None:
    x, y, validation = split(*problem())
    best = best_probe(fit_probes(x, y, 10, validation, rates=[0.01, 0.03, 0.1, 0.3, 1.0]))
    theirs = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy())
    assert best.validation_accuracy >= theirs.score(validation[0].numpy(), validation[1].numpy()) - 0.01


def test_a_head_that_diverges_is_kept_as_such_and_poisons_no_other() -> None:
    x, y, validation = split(*problem(200))
    wild, calm = fit_probes(x, y, 10, validation, rates=[1e38, 0.1], epochs=20)
    assert (wild.validation_accuracy, wild.validation_loss) == (0.0, math.inf)
    (alone,) = fit_probes(x, y, 10, validation, rates=[0.1], epochs=20)
    assert calm.validation_accuracy == alone.validation_accuracy
    assert best_probe([wild, calm]) is calm


def test_of_equally_accurate_heads_the_one_of_lower_loss_is_best() -> None:
    empty = torch.zeros(0)
    probes = [
        Probe(rate, empty, empty, accuracy, loss) for rate, accuracy, loss in ((1, 0.5, 2), (2, 0.5, 1), (3, 0.4, 0))
    ]
    assert best_probe(probes).rate == 2


def test_a_channel_that_never_changes_does_no_harm() -> None:
    x, y, validation = split(*problem(200))
    x[:, 3] = validation[0][:, 3] = 5.0
    (probe,) = fit_probes(x, y, 10, validation, rates=[0.1])
    assert math.isfinite(probe.validation_loss)
    assert probe.validation_accuracy > 0.2


@pytest.mark.parametrize(
    ("labels", "words"), [(torch.tensor([0, 1, 3]), "0 to 2, got 0 to 3"), (torch.zeros(2), r"got \[3, 4\], \[2\]")]
)
def test_what_does_not_fit_is_named(labels: torch.Tensor, words: str) -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=words):
        fit_probes(x, labels, 3, (x, labels), rates=[0.1])
