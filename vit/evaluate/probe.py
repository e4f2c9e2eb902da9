"""Linear classifiers on features that stand still, many learning rates at once.

Letters: N pictures, D dim, C classes, R heads, one a learning rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

_MOMENTUM = 0.9
_FULL_BATCH = 2048
"""pictures up to which every step sees all of them"""


@dataclass(frozen=True)
class Probe:
    """A linear layer on raw features: logits = features @ weight.T + bias, weight [C, D], bias [C]."""

    rate: float
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    validation_accuracy: float
    validation_loss: float


def fit_probes(
    features: Tensor,
    labels: Tensor,
    classes: int,
    validation: tuple[Tensor, Tensor],
    *,
    rates: Sequence[float],
    epochs: int = 100,
    batch_size: int = 1024,
    seed: int = 0,
) -> list[Probe]:
    """Fit a linear classifier at each of `rates` on features [N, D] and labels [N]; judge it by `validation`.

    All heads see the same batches in the same order and go their own way, as if each were trained alone (the design of
    DINOv3's linear evaluation). SGD with momentum and a cosine schedule, on features standardised by their own mean and
    spread, which the returned layers contain. A head that diverges gets accuracy 0 and loss infinity. Raises ValueError
    for shapes and labels that do not fit.
    """
    _check(features, labels, classes)
    _check(*validation, classes)
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-6 * spread.max().clamp(min=1e-12), spread, torch.ones_like(spread))
    weight, bias = _descend((features - mean) / spread, labels, classes, rates, epochs, batch_size, seed)
    weight = weight / spread
    bias = bias - weight @ mean
    return [_judged(rate, w, b, *validation) for rate, w, b in zip(rates, weight, bias, strict=True)]


def best_probe(probes: Sequence[Probe]) -> Probe:
    """The most accurate in validation; of equals, the one of lowest loss."""
    return max(probes, key=lambda probe: (probe.validation_accuracy, -probe.validation_loss))


def _descend(
    features: Tensor, labels: Tensor, classes: int, rates: Sequence[float], epochs: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights [R, C, D] and biases [R, C] after training. The gradient of a linear layer is written out."""
    count, dim = features.shape
    rate = torch.tensor(rates)[:, None, None]
    weight, bias = torch.zeros(len(rates), classes, dim), torch.zeros(len(rates), classes)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    targets = F.one_hot(labels, classes).float()
    size = count if count <= _FULL_BATCH else batch_size
    generator = torch.Generator().manual_seed(seed)
    steps, step = epochs * -(-count // size), 0
    for _ in range(epochs):
        order = torch.arange(count) if size == count else torch.randperm(count, generator=generator)
        for chosen in order.split(size):
            x = features[chosen]
            logits = torch.einsum("nd,rcd->rnc", x, weight) + bias[:, None]
            error = (logits.softmax(dim=2) - targets[chosen]) / len(x)
            weight_speed = _MOMENTUM * weight_speed + torch.einsum("rnc,nd->rcd", error, x)
            bias_speed = _MOMENTUM * bias_speed + error.sum(dim=1)
            now = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            weight, bias = weight - now * weight_speed, bias - now[..., 0] * bias_speed
            step += 1
    return weight, bias


def _judged(rate: float, weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> Probe:
    logits = features @ weight.T + bias
    if not torch.isfinite(logits).all():
        return Probe(rate, weight, bias, 0.0, math.inf)
    accuracy = float((logits.argmax(dim=1) == labels).float().mean())
    return Probe(rate, weight, bias, accuracy, float(F.cross_entropy(logits, labels)))


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if features.dim() != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"expected features [N, D] and labels [N], got {list(features.shape)}, {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be in 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
