"""Bootstrap intervals: how far a number would move had other samples of the same kind been drawn.

Letters: N samples, M distinct outcomes a sample can have, R resamples, K numbers of each sample.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[Any]], NDArray[np.float64]]
"""counts of each outcome [R, M] -> the number of interest for every row [R], or several at once [R, K]"""

_SMALLEST_STRATUM = 3  # one or two samples say too little about how much a stratum varies

_COUNTS_AT_ONCE = 2_000_000  # 16 MB a chunk: memory stays flat however many samples there are


def bootstrap_interval(
    counts: NDArray[Any], statistic: Statistic, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval (Efron & Tibshirani 1993, chapter 13) of `statistic` over samples summed up in `counts` [M].

    To draw N of N samples with replacement is to draw how often each outcome comes up, which is multinomial over
    `counts`; this is exact, and cheap where outcomes repeat: right or wrong is M = 2. A statistic of values that are
    all different takes every sample as an outcome of its own, counts = 1.

    The interval reflects the choice of samples only, not the training's randomness. Where all samples agree it has
    no width, which is no proof that the true number is exactly that.

    Raises ValueError without samples, with negative counts, or with a level outside (0, 1).
    """
    low, high = _quantiles(counts, statistic, seed, resamples, level)
    return float(low), float(high)


def mean_intervals(
    values: NDArray[Any], *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`bootstrap_interval` of the means of values [N, K], a sample a row: low and high ends [K].

    All columns see the same resamples, so a column of differences is a paired comparison.
    """
    values = np.asarray(values, np.float64)
    ones = np.ones(len(values), np.int64)
    low, high = _quantiles(ones, lambda counts: counts @ values / len(values), seed, resamples, level)
    return low, high


def stratified_intervals(
    counts: NDArray[Any],
    strata: NDArray[Any],
    statistic: Statistic,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intervals of statistics in [0, 1] that average over strata, such as balanced accuracy: low and high ends [K].

    counts [M]; strata [M] is the stratum of each outcome. Every resample holds every stratum at its size, since an
    average over whichever strata a resample happens to hold is another quantity. Of n samples of a stratum n - 1 are
    drawn and weigh n / (n - 1), which makes the variance unbiased (Rao and Wu 1988); strata of fewer than three samples
    are resampled as one (collapsed strata, Cochran 1977, section 5A.12), so `statistic` must take the sizes of strata
    from `counts`, not from the resample. The bias of the resamples is taken off, as in Efron's bias-corrected interval,
    and the ends are clipped to [0, 1] and widened to hold the estimate itself.

    In simulations, 95 % intervals of balanced accuracy and macro F1 covered the true value 0.89 to 0.98 of the time
    with five or more samples per class; with two or three they are too narrow, and covered it 0.77 to 0.95 of the time.
    """
    counts = np.asarray(counts)
    _check(counts, level, resamples)
    sizes = np.bincount(strata, weights=counts)
    pooled = np.where(sizes[strata] < _SMALLEST_STRATUM, len(sizes), strata)
    order = np.argsort(pooled, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(pooled[order])) + 1)
    random = np.random.default_rng(seed)
    rows = max(1, _COUNTS_AT_ONCE // len(counts))
    parts = []
    for start in range(0, resamples, rows):
        drawn = np.empty((min(rows, resamples - start), len(counts)))
        for group in groups:
            n = int(counts[group].sum())
            again = random.multinomial(n - 1, counts[group] / n, size=len(drawn)) * (n / max(1, n - 1))
            drawn[:, group] = again if n > 1 else counts[group]
        parts.append(statistic(drawn))
    values, estimate = np.concatenate(parts), statistic(counts[None].astype(np.float64))[0]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    shift = 2 * (values.mean(axis=0) - estimate)
    return np.minimum(np.clip(low - shift, 0, 1), estimate), np.maximum(np.clip(high - shift, 0, 1), estimate)


def _check(counts: NDArray[Any], level: float, resamples: int) -> None:
    if counts.ndim != 1 or counts.sum() == 0 or counts.min() < 0:
        raise ValueError("a bootstrap needs at least one sample: counts must be 1-D, not negative, and not all zero")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be in (0, 1) and resamples positive, got {level} and {resamples}")


def _quantiles(
    counts: NDArray[Any], statistic: Statistic, seed: int, resamples: int, level: float
) -> NDArray[np.float64]:
    """The low and the high end of the statistic over resamples, [2] or [2, K]."""
    counts = np.asarray(counts)
    _check(counts, level, resamples)
    samples = int(counts.sum())
    shares = counts / samples
    random = np.random.default_rng(seed)
    rows = max(1, _COUNTS_AT_ONCE // len(counts))
    values = np.concatenate(
        [
            statistic(random.multinomial(samples, shares, size=min(rows, resamples - start)))
            for start in range(0, resamples, rows)
        ]
    )
    ends: NDArray[np.float64] = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends
