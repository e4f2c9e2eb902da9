"""Bootstrap intervals: how far a number would move had other samples of the same kind been drawn.

Letters: N samples, M distinct outcomes a sample can have, R resamples, K numbers of each sample.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""counts of each outcome [R, M] -> the number of interest for every row [R], or several at once [R, K]"""

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


def _quantiles(
    counts: NDArray[Any], statistic: Statistic, seed: int, resamples: int, level: float
) -> NDArray[np.float64]:
    """The low and the high end of the statistic over resamples, [2] or [2, K]."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.sum() == 0 or counts.min() < 0:
        raise ValueError("a bootstrap needs at least one sample: counts must be 1-D, not negative, and not all zero")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be in (0, 1) and resamples positive, got {level} and {resamples}")
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
