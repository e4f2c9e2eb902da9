"""Linear classifiers on features that stand still, many learning rates and weight decays at once.

Letters: N pictures, D dim, C classes, R heads (one a rate and decay), B pictures of a batch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.errors import ConfigError
from vit.evaluate.knn import check_labelled

_MOMENTUM = 0.9
_FULL_BATCH = 2048
"""pictures up to which every step sees all of them"""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear layer on raw features, logits = features @ weight.T + bias, and how it does in validation.

    A head that diverged has accuracy 0 and loss infinity.
    """

    rate: float
    decay: float
    weight: Tensor = field(repr=False)
    """[C, D]"""
    bias: Tensor = field(repr=False)
    """[C]"""
    validation_accuracy: float
    validation_loss: float
    """mean cross-entropy in nats, without smoothing"""


@torch.no_grad()
def fit_probes(
    features: Tensor,
    labels: Tensor,
    classes: int,
    validation: tuple[Tensor, Tensor],
    *,
    rates: Sequence[float],
    decays: Sequence[float] = (0.0,),
    epochs: int = 100,
    batch_size: int = 1024,
    seed: int = 0,
    smoothing: float = 0.0,
) -> list[Probe]:
    """Fit a linear classifier for every rate and decay to features [N, D] and labels [N]; judge it by `validation`.

    The idea is that of DINOv3's linear evaluation (Siméoni et al. 2025): what costs time is to read the features, so
    R heads share every batch. They share nothing else: each goes the way it would go alone. SGD with momentum and a
    cosine schedule starts from zeros; weight decay spares the biases. Up to 2048 pictures make one batch; more are
    shuffled by `seed` into batches of `batch_size`.

    Heads learn on features standardised by the training mean and deviation of every channel, which then become part
    of the returned layers. Probes come rate by rate, each with all decays. Raises ValueError for shapes, labels and
    numbers that do not fit, and for features that are not finite.
    """
    check_labelled(features, labels, classes)
    check_labelled(*validation, classes)
    _check(features, validation[0], rates, decays, epochs, batch_size, smoothing)
    mean, deviation = _moments(features)
    grid = list(product(rates, decays))
    size = batch_size if len(features) > _FULL_BATCH else len(features)
    batches = _batches(len(features), size, epochs, seed)
    examples = _examples((features - mean) / deviation, labels, classes, smoothing, batches)
    start = features.new_zeros(len(grid), classes, features.shape[1])
    weight, bias = _descend(start, features.new_tensor(grid), examples, steps=epochs * math.ceil(len(features) / size))
    weight = weight / deviation
    bias = bias - weight @ mean
    return [_judged(rate, decay, weight[i], bias[i], *validation) for i, (rate, decay) in enumerate(grid)]


def best_probe(probes: Sequence[Probe]) -> Probe:
    """The most accurate in validation; of equals, the one of lowest loss. Raises ConfigError where all diverged."""
    best = max(probes, key=lambda probe: (probe.validation_accuracy, -probe.validation_loss))
    if math.isinf(best.validation_loss):
        rates = ", ".join(f"{rate:g}" for rate in sorted({probe.rate for probe in probes}))
        raise ConfigError(f"linear heads diverged at every learning rate, {rates}: smaller ones are needed")
    return best


def _check(
    features: Tensor,
    validation: Tensor,
    rates: Sequence[float],
    decays: Sequence[float],
    epochs: int,
    batch_size: int,
    smoothing: float,
) -> None:
    if validation.shape[1] != features.shape[1]:
        raise ValueError(f"expected validation [M, {features.shape[1]}], got {list(validation.shape)}")
    if not features.isfinite().all() or not validation.isfinite().all():
        raise ValueError("features must be finite, some are NaN or infinity")
    if len(rates) == 0 or min(rates) <= 0:
        raise ValueError(f"rates must be positive, at least one, got {list(rates)}")
    if len(decays) == 0 or min(decays) < 0:
        raise ValueError(f"decays must not be negative, at least one, got {list(decays)}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"must be positive: epochs {epochs}, batch_size {batch_size}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of features [N, D]; deviation 1 where a channel varies by rounding only."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    varies = deviation > 8 * torch.finfo(features.dtype).eps * mean.abs()
    return mean, deviation.where(varies, torch.ones_like(deviation))


def _batches(count: int, size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Numbers of the pictures of every step, in an order of its own each epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(size)


def _examples(
    inputs: Tensor, labels: Tensor, classes: int, smoothing: float, batches: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs [B, D] and smoothed targets [B, C] of every step."""
    for batch in batches:
        chosen = batch.to(inputs.device)
        targets = F.one_hot(labels[chosen], classes).to(inputs.dtype)
        yield inputs[chosen], targets * (1 - smoothing) + smoothing / classes


def _descend(
    weight: Tensor, grid: Tensor, examples: Iterable[tuple[Tensor, Tensor]], *, steps: int
) -> tuple[Tensor, Tensor]:
    """Train heads from weight [R, C, D] at the rates and decays of `grid` [R, 2] -> weight, bias [R, C]."""
    rate, decay = grid.T[..., None, None]
    bias = weight.new_zeros(*weight.shape[:2], 1)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    for step, (x, targets) in enumerate(examples):
        # the gradient of the cross-entropy by the logits [R, C, B]; nothing here mixes heads, so none spoils another
        error = ((weight @ x.T + bias).softmax(dim=1) - targets.T) / len(x)
        weight_velocity.mul_(_MOMENTUM).add_(error @ x).add_(decay * weight)
        bias_velocity.mul_(_MOMENTUM).add_(error.sum(dim=2, keepdim=True))
        now = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        weight.sub_(now * weight_velocity)
        bias.sub_(now * bias_velocity)
    return weight, bias[..., 0]


def _judged(rate: float, decay: float, weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> Probe:
    logits = F.linear(features, weight, bias)
    loss = float(F.cross_entropy(logits, labels))
    if not (math.isfinite(loss) and weight.isfinite().all() and bias.isfinite().all()):
        return Probe(rate, decay, weight, bias, 0.0, math.inf)
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    return Probe(rate, decay, weight, bias, accuracy, loss)
