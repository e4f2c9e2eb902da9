"""Classification metrics, from what a model answered for every sample to a dictionary that goes into JSON.

Letters: N samples, K classes kept a sample (best first), C classes, A classes that occur, M cells, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.evaluate.bootstrap import bootstrap_interval, stratified_intervals
from vit.evaluate.calibration import expected_calibration_error, reliability

_SEED = 0  # of the intervals: the same predictions give the same report


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answered for N samples whose class is known. Raises ValueError for shapes that do not fit."""

    labels: NDArray[np.int64]
    """[N] number of the true class"""
    top: NDArray[np.int64]
    """[N, K] numbers of the likeliest classes, best first"""
    probabilities: NDArray[np.float32]
    """[N, K] their probabilities"""
    losses: NDArray[np.float32]
    """[N] cross-entropy in nats"""

    def __post_init__(self) -> None:
        samples = len(self.labels)
        fits = (
            self.labels.shape == self.losses.shape == (samples,)
            and self.top.ndim == 2
            and len(self.top) == samples
            and self.top.shape == self.probabilities.shape
        )
        if not fits:
            raise ValueError(
                "expected labels [N], top [N, K], probabilities [N, K], losses [N], got "
                f"{self.labels.shape}, {self.top.shape}, {self.probabilities.shape}, {self.losses.shape}"
            )


def classification_metrics(p: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Every number of the report: those of `point_metrics`, and how sure they are.

    `intervals`: 95 % bootstrap intervals, [low, high], from 1000 resamples of the samples, within the classes for means
    over classes. Raises as `point_metrics`.
    """
    points = point_metrics(p, classes)
    return {**points, "intervals": {name: list(interval) for name, interval in _intervals(p, _pairs(p)).items()}}


def point_metrics(p: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """The numbers themselves, cheap enough for every epoch; `classes` are the C class names by number.

    - `count`, `loss` (mean cross-entropy in nats), `top1`; `top5` looks at the best min(5, C) classes, so that it is
      1 where C <= 5.
    - `per_class`: `precision`, `recall`, `f1` and `count` (samples of the class) by name. A ratio over no samples at
      all is 0, as scikit-learn's `zero_division=0`.
    - `macro_precision`, `macro_recall`, `macro_f1`: means over the classes that occur, be it as label or as answer;
      `balanced_accuracy`: mean recall over the classes that have samples. Both as scikit-learn takes them.
    - `ece`: expected calibration error of the best class, 15 bins of equal width (Guo et al. 2017).

    Raises ValueError without predictions, for class numbers outside 0..C-1, for fewer than min(5, C) classes kept a
    sample, for class names that repeat, and for losses or probabilities that are not finite.
    """
    _check(p, classes)
    pairs = _pairs(p)
    tally = _tally(pairs, pairs.counts[None])
    precision, recall, f1 = _precision_recall_f1(tally)
    occurs = tally.true + tally.answered > 0
    return {
        "count": len(p.labels),
        "loss": float(p.losses.mean(dtype=np.float64)),
        "top1": float(_right(p, 1).mean()),
        "top5": float(_right(p, 5).mean()),
        "macro_precision": float(_mean(precision, occurs)[0]),
        "macro_recall": float(_mean(recall, occurs)[0]),
        "macro_f1": float(_mean(f1, occurs)[0]),
        "balanced_accuracy": float(_mean(recall, tally.true > 0)[0]),
        "ece": expected_calibration_error(reliability(p.probabilities[:, 0], _right(p, 1))),
        "per_class": _per_class(classes, pairs.present, precision[0], recall[0], f1[0], tally.true[0]),
    }


def confusion_matrix(p: Predictions, classes: int) -> NDArray[np.int64]:
    """Samples by true class (row) and answered class (column), [C, C]. Raises ValueError for other class numbers."""
    _check_range(p, classes)
    cells = p.labels.astype(np.int64) * classes + p.top[:, 0]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _check(p: Predictions, classes: Sequence[str]) -> None:
    if len(p.labels) == 0:
        raise ValueError("no predictions: metrics need at least one sample")
    if len(set(classes)) != len(classes):
        raise ValueError("class names must differ from each other")
    _check_range(p, len(classes))
    if p.top.shape[1] < min(5, len(classes)):
        raise ValueError(f"top5 needs the best {min(5, len(classes))} classes a sample, got {p.top.shape[1]}")
    bad = np.flatnonzero(~(np.isfinite(p.losses) & np.isfinite(p.probabilities).all(axis=1)))
    if len(bad):
        raise ValueError(f"loss or probability is not finite for {len(bad)} samples, the first is number {bad[0]}")


def _check_range(p: Predictions, classes: int) -> None:
    for name, numbers in (("labels", p.labels), ("top", p.top)):
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < classes):
            raise ValueError(f"{name} must hold class numbers 0..{classes - 1}, got {numbers.min()} to {numbers.max()}")


def _right(p: Predictions, width: int) -> NDArray[np.bool_]:
    """Whether the label is among the best `width` classes, [N]."""
    right: NDArray[np.bool_] = (p.top[:, :width] == p.labels[:, None]).any(axis=1)
    return right


class _Pairs(NamedTuple):
    """The cells of the confusion matrix that are not empty: it may have 20 000 x 20 000, but never more than N such."""

    present: NDArray[np.int64]
    """[A] numbers of the classes that occur, as label or as answer"""
    true: NDArray[np.int64]
    """[M] position in `present`"""
    answered: NDArray[np.int64]
    """[M] position in `present`"""
    counts: NDArray[np.int64]
    """[M] samples"""


def _pairs(p: Predictions) -> _Pairs:
    present, positions = np.unique(np.concatenate([p.labels, p.top[:, 0]]), return_inverse=True)
    true, answered = np.split(positions, 2)
    cells, counts = np.unique(true * len(present) + answered, return_counts=True)
    return _Pairs(present, cells // len(present), cells % len(present), counts)


class _Tally(NamedTuple):
    """Samples by class for R resamples, each [R, A]."""

    true: NDArray[np.float64]
    answered: NDArray[np.float64]
    right: NDArray[np.float64]


def _tally(pairs: _Pairs, counts: NDArray[Any]) -> _Tally:
    """Sum `counts` [R, M] of the cells up by class."""
    classes = len(pairs.present)
    diagonal = pairs.true == pairs.answered
    return _Tally(
        true=_sum_by(counts, pairs.true, classes),
        answered=_sum_by(counts, pairs.answered, classes),
        right=_sum_by(counts[:, diagonal], pairs.true[diagonal], classes),
    )


def _sum_by(counts: NDArray[Any], group: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
    """Sum the columns of `counts` [R, M] that share a `group` [M] -> [R, groups]."""
    rows = len(counts)
    flat = np.arange(rows)[:, None] * groups + group
    sums = np.bincount(flat.ravel(), weights=counts.ravel(), minlength=rows * groups)
    return sums.astype(np.float64, copy=False).reshape(rows, groups)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def _mean(values: NDArray[np.float64], included: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of each row over the classes included, [R, A] -> [R]; a resample always holds one class at least."""
    return np.where(included, values, 0).sum(axis=1) / included.sum(axis=1)


def _precision_recall_f1(tally: _Tally) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Each [R, A]. F1 = 2 right / (true + answered) is the harmonic mean of the other two, defined also for 0 and 0."""
    return (
        _ratio(tally.right, tally.answered),
        _ratio(tally.right, tally.true),
        _f1(tally),
    )


def _f1(tally: _Tally) -> NDArray[np.float64]:
    return _ratio(2 * tally.right, tally.true + tally.answered)


def _per_class(
    classes: Sequence[str],
    present: NDArray[np.int64],
    precision: NDArray[np.float64],
    recall: NDArray[np.float64],
    f1: NDArray[np.float64],
    count: NDArray[np.float64],
) -> dict[str, dict[str, float]]:
    """A row for every class, in the order of `classes`; zeros for those that do not occur."""
    rows: dict[str, dict[str, float]] = {
        name: {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0} for name in classes
    }
    for position, number in enumerate(present):
        rows[classes[number]] = {
            "precision": float(precision[position]),
            "recall": float(recall[position]),
            "f1": float(f1[position]),
            "count": int(count[position]),
        }
    return rows


def _intervals(p: Predictions, pairs: _Pairs) -> dict[str, tuple[float, float]]:
    samples = len(p.labels)
    losses = p.losses.astype(np.float64)

    def share_right(width: int) -> tuple[float, float]:
        wrong_right = np.bincount(_right(p, width), minlength=2)
        return bootstrap_interval(wrong_right, lambda counts: counts[:, 1] / samples, seed=_SEED)

    true = _tally(pairs, pairs.counts[None]).true
    occurs = np.ones(true.shape, np.bool_)

    def class_means(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Balanced accuracy and macro F1 [R, 2] over the classes of all samples, not those of a resample."""
        tally = _tally(pairs, counts)._replace(true=true)
        return np.stack([_mean(_ratio(tally.right, true), true > 0), _mean(_f1(tally), occurs)], axis=1)

    low, high = stratified_intervals(pairs.counts, pairs.true, class_means, seed=_SEED)
    return {
        "top1": share_right(1),
        "top5": share_right(5),
        "balanced_accuracy": (float(low[0]), float(high[0])),
        "macro_f1": (float(low[1]), float(high[1])),
        "loss": bootstrap_interval(
            np.ones(samples, dtype=np.int64), lambda counts: counts @ losses / samples, seed=_SEED
        ),
    }
