"""Linear probes: together as alone, against torch's SGD and scikit-learn, and what diverges harms nobody."""

import math
import re
from typing import Any

import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vit.errors import ConfigError
from vit.evaluate import probe as module
from vit.evaluate.probe import Probe, best_probe, fit_probes

Problem = tuple[Tensor, Tensor, tuple[Tensor, Tensor]]


def problem(count: int = 200, dim: int = 32, classes: int = 10, held_out: int = 200) -> Problem:
    """Training features and labels, and those of validation; channels differ in mean and deviation."""
    x, y = make_classification(count + held_out, dim, n_informative=dim // 2, n_classes=classes, random_state=0)
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.rand(dim, generator=generator) + 0.2, torch.randn(dim, generator=generator)
    features, labels = torch.tensor(x, dtype=torch.float32) * scale + shift, torch.tensor(y)
    return features[:count], labels[:count], (features[count:], labels[count:])


@pytest.fixture(params=[2048, 0], ids=["full batch", "minibatches"])
def full_batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with all pictures at every step, once in batches."""
    monkeypatch.setattr(module, "_FULL_BATCH", request.param)


@pytest.mark.usefixtures("full_batch")
def test_heads_fitted_together_are_what_each_would_be_alone() -> None:
    x, y, (seen, truth) = problem()
    x, validation = x.double(), (seen.double(), truth)  # in fp32, threads sum in orders of their own
    rates, decays = [0.01, 0.1, 1.0], [0.0, 0.01]
    together = fit_probes(x, y, 10, validation, rates=rates, decays=decays, epochs=20, batch_size=64)
    assert [(probe.rate, probe.decay) for probe in together] == [(r, d) for r in rates for d in decays]
    for one in together:
        (alone,) = fit_probes(x, y, 10, validation, rates=[one.rate], decays=[one.decay], epochs=20, batch_size=64)
        torch.testing.assert_close(one.weight, alone.weight, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.bias, alone.bias, rtol=1e-9, atol=1e-9)
        assert one.validation_accuracy == alone.validation_accuracy
        assert one.validation_loss == pytest.approx(alone.validation_loss, rel=1e-6)


def by_torch(x: Tensor, y: Tensor, classes: int, *, rate: float, decay: float, smoothing: float) -> nn.Linear:
    """A linear layer on standardised features after 7 epochs of batches of 64, all of it by torch's own parts."""
    layer = nn.Linear(x.shape[1], classes, dtype=x.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7 * math.ceil(len(x) / 64))
    generator = torch.Generator().manual_seed(3)
    for _ in range(7):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[batch]), y[batch], label_smoothing=smoothing).backward()
            optimizer.step()
            schedule.step()
    return layer


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_head_is_what_torchs_sgd_makes_of_it(decay: float, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FULL_BATCH", 0)
    x, y, (x_val, y_val) = problem(dim=8, classes=3)
    x, x_val = x.double(), x_val.double()
    (ours,) = fit_probes(
        x, y, 3, (x_val, y_val), rates=[0.3], decays=[decay], epochs=7, batch_size=64, seed=3, smoothing=smoothing
    )
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    layer = by_torch((x - mean) / deviation, y, 3, rate=0.3, decay=decay, smoothing=smoothing)
    logits = layer((x_val - mean) / deviation).detach()
    # the returned layer sees raw features, so this is also the test of how the standardisation is folded in
    torch.testing.assert_close(x_val @ ours.weight.T + ours.bias, logits, rtol=0, atol=1e-10)
    assert ours.validation_loss == pytest.approx(float(nn.functional.cross_entropy(logits, y_val)))
    assert ours.validation_accuracy == pytest.approx(float((logits.argmax(dim=1) == y_val).double().mean()))


def test_logits_on_raw_features_hold_where_means_are_large() -> None:
    x, y, (x_val, y_val) = problem()
    (plain,) = fit_probes(x, y, 10, (x_val, y_val), rates=[0.1])
    (far,) = fit_probes(x + 100, y, 10, (x_val + 100, y_val), rates=[0.1])
    expected = nn.functional.linear(x_val, plain.weight, plain.bias)
    found = nn.functional.linear(x_val + 100, far.weight, far.bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # 100 keeps five digits behind the point


def test_the_best_of_several_rates_is_as_accurate_as_scikit_learns() -> None:
    x, y = make_classification(3000, 64, n_informative=32, n_redundant=8, n_classes=10, class_sep=2.0, random_state=0)
    scaler = StandardScaler().fit(x[:1000])
    theirs = LogisticRegression(max_iter=2000).fit(scaler.transform(x[:1000]), y[:1000])
    features, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    validation = features[1000:], labels[1000:]
    rates = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    best = best_probe(fit_probes(features[:1000], labels[:1000], 10, validation, rates=rates))
    assert best.validation_accuracy >= theirs.score(scaler.transform(x[1000:]), y[1000:]) - 0.01


def test_the_seed_decides_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FULL_BATCH", 0)
    x, y, validation = problem()

    def weight(seed: int) -> Tensor:
        return fit_probes(x, y, 10, validation, rates=[0.1], epochs=2, batch_size=64, seed=seed)[0].weight

    assert torch.equal(weight(4), weight(4))
    assert not torch.allclose(weight(4), weight(5), atol=1e-3)


@pytest.mark.parametrize(
    ("rates", "decays"),
    [([1e38, 0.1], [0.0]), ([0.1], [1e4, 0.0])],  # the second grows by a factor of a thousand at every step
)
def test_a_head_that_diverges_is_kept_as_such_and_poisons_no_other(rates: list[float], decays: list[float]) -> None:
    x, y, validation = problem()
    wild, calm = fit_probes(x, y, 10, validation, rates=rates, decays=decays, epochs=50)
    assert (wild.validation_accuracy, wild.validation_loss) == (0.0, math.inf)
    (alone,) = fit_probes(x, y, 10, validation, rates=[0.1], epochs=50)
    torch.testing.assert_close(calm.weight, alone.weight, rtol=1e-6, atol=1e-6)
    assert calm.validation_loss == pytest.approx(alone.validation_loss)
    assert best_probe([wild, calm]) is calm
    with pytest.raises(ConfigError, match=re.escape(f"diverged at every learning rate, {wild.rate:g}: smaller ones")):
        best_probe([wild])


def head(number: int, accuracy: float, loss: float) -> Probe:
    return Probe(number, 0.0, torch.zeros(3, 2), torch.zeros(3), accuracy, loss)


def test_the_most_accurate_head_is_best_and_of_equals_the_one_of_lowest_loss() -> None:
    heads = [head(1, 0.5, 2.0), head(2, 0.5, 1.0), head(3, 0.4, 0.1), head(4, 0.0, math.inf)]
    assert best_probe(heads).rate == 2
    assert best_probe(heads[::-1]).rate == 2


@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("value", [0.0, 5.0, 100.3])
def test_a_channel_that_changes_by_rounding_only_gets_no_weight(value: float, noise: float) -> None:
    x, y, (x_val, y_val) = problem()
    x[:, 3] = value * (1 + noise * (torch.arange(len(x)) % 2))  # the last bit, on and off
    x_val[:, 3] = value + 1
    (probe,) = fit_probes(x, y, 10, (x_val, y_val), rates=[0.1])
    assert probe.weight[:, 3].abs().max() < 1e-4
    others = [i for i in range(32) if i != 3]
    (without,) = fit_probes(x[:, others], y, 10, (x_val[:, others], y_val), rates=[0.1])
    assert probe.validation_loss == pytest.approx(without.validation_loss, rel=1e-3)


def test_features_that_were_computed_without_gradients_serve_and_none_come_back() -> None:
    with torch.inference_mode():
        x, y, validation = problem()
    (probe,) = fit_probes(x, y, 10, validation, rates=[0.1], epochs=2)
    assert not probe.weight.requires_grad
    (probe,) = fit_probes(x.clone().requires_grad_(), y, 10, validation, rates=[0.1], epochs=2)
    assert not probe.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 9}, r"labels must be in 0\.\.8, got 0 to 9"),
        ({"labels": torch.arange(-1, 199)}, r"labels must be in 0\.\.9, got -1 to 198"),
        (
            {"labels": torch.zeros(2)},
            r"expected features \[N, D\] and labels \[N\] with N > 0, got \[200, 32\] and \[2\]",
        ),
        ({"features": torch.zeros(200)}, r"got \[200\] and \[200\]"),
        ({"features": torch.full((200, 32), torch.nan)}, "features must be finite, some are NaN or infinity"),
        ({"validation": (torch.zeros(5, 4), torch.zeros(5))}, r"expected validation \[M, 32\], got \[5, 4\]"),
        ({"validation": (torch.zeros(1, 32), torch.tensor([10]))}, r"labels must be in 0\.\.9, got 10 to 10"),
        ({"rates": []}, r"rates must be positive, at least one, got \[\]"),
        ({"rates": [0.1, 0.0]}, r"rates must be positive, at least one, got \[0\.1, 0\.0\]"),
        ({"decays": [-0.1]}, r"decays must not be negative, at least one, got \[-0\.1\]"),
        ({"epochs": 0}, "must be positive: epochs 0, batch_size 1024"),
        ({"batch_size": 0}, "must be positive: epochs 100, batch_size 0"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1\.0"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    x, y, validation = problem()
    arguments = {"features": x, "labels": y, "classes": 10, "validation": validation, "rates": [0.1], **change}
    with pytest.raises(ValueError, match=words):
        fit_probes(**arguments)
