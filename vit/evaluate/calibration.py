"""Calibration: does a model that says 80 % turn out right in 80 % of the cases?

Letters: N samples, B bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ReliabilityTable:
    """Samples sorted into bins of equal width by confidence. Bins without samples hold zeros."""

    edges: NDArray[np.float64]
    """[B + 1], from 0 to 1; bin b takes confidences in (edges[b], edges[b + 1]], the first one 0 as well"""
    counts: NDArray[np.int64]
    """[B] samples in each bin"""
    confidence: NDArray[np.float64]
    """[B] mean confidence in each bin"""
    accuracy: NDArray[np.float64]
    """[B] share of right answers in each bin"""


def reliability(confidences: NDArray[Any], correct: NDArray[Any], bins: int = 15) -> ReliabilityTable:
    """Reliability table (Guo et al. 2017, section 2) of `confidences` [N] in 0..1 and `correct` [N], true where right.

    Raises ValueError without samples, for lengths that differ, and for confidences that are no probabilities.
    """
    confidences = np.asarray(confidences, dtype=np.float64)
    correct = np.asarray(correct, dtype=np.float64)
    if confidences.ndim != 1 or confidences.shape != correct.shape:
        raise ValueError(f"confidences {confidences.shape} and correct {correct.shape} must be 1-D and equally long")
    if len(confidences) == 0:
        raise ValueError("no predictions: calibration needs at least one sample")
    # float32 softmax may end up a rounding above 1; logits handed over by mistake lie far outside
    if not (np.all(confidences >= 0) and np.all(confidences <= 1 + 1e-5)):
        raise ValueError(f"confidences must be in 0..1, got {confidences.min()} to {confidences.max()}")
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    divisor = np.maximum(counts, 1)
    return ReliabilityTable(
        edges=edges,
        counts=counts,
        confidence=np.bincount(bin_of, weights=confidences, minlength=bins) / divisor,
        accuracy=np.bincount(bin_of, weights=correct, minlength=bins) / divisor,
    )


def expected_calibration_error(table: ReliabilityTable) -> float:
    """Mean distance of accuracy and confidence over the bins, weighted by samples (Guo et al. 2017, equation 3)."""
    distance = np.abs(table.accuracy - table.confidence)
    return float((distance * table.counts).sum() / table.counts.sum())
