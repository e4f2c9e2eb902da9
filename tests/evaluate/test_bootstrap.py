"""Bootstrap intervals against the normal approximation and the coverage they promise."""

from typing import Any

import numpy as np
import pytest

from vit.evaluate.bootstrap import bootstrap_interval, mean_intervals, stratified_intervals


def share(counts: np.ndarray) -> np.ndarray:
    """Share of the second of two outcomes."""
    return counts[:, 1] / counts.sum(axis=1)


@pytest.mark.parametrize(("right", "samples"), [(800, 1000), (50, 100), (9000, 10_000)])
def test_the_interval_of_a_binomial_is_close_to_the_normal_approximation(right: int, samples: int) -> None:
    rate = right / samples
    error = np.sqrt(rate * (1 - rate) / samples)
    interval = bootstrap_interval(np.array([samples - right, right]), share, seed=0, resamples=4000)
    # 4000 draws place an end to about 0.04 errors, whole samples to at most 0.2
    np.testing.assert_allclose(interval, [rate - 1.96 * error, rate + 1.96 * error], atol=0.35 * error)


def test_the_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for trial in range(400):
        right = random.binomial(400, 0.7)
        low, high = bootstrap_interval(np.array([400 - right, right]), share, seed=trial, resamples=400)
        covered += low <= 0.7 <= high
    assert 0.92 < covered / 400 < 0.98  # 0.95, standard deviation 0.011


def test_single_samples_and_summed_counts_agree() -> None:
    values = np.repeat([0.0, 1.0], [300, 700])
    single = bootstrap_interval(np.ones(1000), lambda counts: counts @ values / 1000, seed=1)
    summed = bootstrap_interval(np.array([300, 700]), share, seed=2)
    np.testing.assert_allclose(single, summed, atol=0.4 * np.sqrt(0.21 / 1000))


def test_intervals_of_several_means_are_those_of_each_alone_from_the_same_resamples() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)) * [1, 2, 3] + [0, 5, -5]
    low, high = mean_intervals(values, seed=4)
    for column in range(3):
        one = values[:, column]
        alone = bootstrap_interval(np.ones(200), lambda counts, one=one: counts @ one / 200, seed=4)
        assert (low[column], high[column]) == pytest.approx(alone)


def test_a_column_of_differences_is_a_paired_comparison() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(0, 10, 300)  # what samples differ in
    better = hard + 1 + random.normal(0, 0.5, 300)
    low, high = mean_intervals(np.stack([hard, better, better - hard], axis=1), seed=0)
    assert low[1] < high[0]  # each by itself, the two overlap
    np.testing.assert_allclose([low[2], high[2]], [1 - 0.057, 1 + 0.057], atol=0.05)  # 1.96 * 0.5 / sqrt(300)


def test_means_of_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="a bootstrap needs at least one sample"):
        mean_intervals(np.empty((0, 2)), seed=0)


def test_a_higher_level_gives_a_wider_interval() -> None:
    counts = np.array([40, 60])
    narrow = bootstrap_interval(counts, share, seed=0, level=0.5)
    wide = bootstrap_interval(counts, share, seed=0, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=300)

    def interval(seed: int) -> tuple[float, float]:
        return bootstrap_interval(np.ones(300), lambda counts: counts @ values / 300, seed=seed)

    assert interval(4) == interval(4)
    assert interval(4) != interval(5)


def test_drawing_in_chunks_gives_the_same_interval_as_drawing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(1, 31)
    values = np.linspace(0, 1, 30)
    rows_seen: list[int] = []

    def mean(drawn: np.ndarray) -> np.ndarray:
        rows_seen.append(len(drawn))
        return drawn @ values

    at_once = bootstrap_interval(counts, mean, seed=0, resamples=100)
    monkeypatch.setattr("vit.evaluate.bootstrap._COUNTS_AT_ONCE", 210)
    in_chunks = bootstrap_interval(counts, mean, seed=0, resamples=100)
    assert rows_seen == [100] + [7] * 14 + [2]
    assert in_chunks == pytest.approx(at_once)


def test_every_resample_has_as_many_samples_as_the_original() -> None:
    sizes: list[np.ndarray] = []

    def keep(drawn: np.ndarray) -> np.ndarray:
        sizes.append(drawn.sum(axis=1))
        return drawn[:, 0] / 17

    bootstrap_interval(np.array([5, 0, 12]), keep, seed=0, resamples=50)
    assert np.concatenate(sizes).tolist() == [17] * 50


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1]])
def test_counts_without_samples_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="a bootstrap needs at least one sample"):
        bootstrap_interval(np.array(counts), share, seed=0)


def test_a_level_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\) and resamples positive, got 95 and 1000"):
        bootstrap_interval(np.array([1, 1]), share, seed=0, level=95)


def class_mean(counts: np.ndarray, classes: np.ndarray, right: np.ndarray) -> Any:
    """A function from resampled counts to the mean share of right ones over the classes [R, 1]."""
    sizes = np.bincount(classes, weights=counts)

    def mean(drawn: np.ndarray) -> np.ndarray:
        of_each = np.stack([drawn[:, right & (classes == c)].sum(axis=1) / sizes[c] for c in range(len(sizes))], axis=1)
        return of_each.mean(axis=1, keepdims=True)

    return mean


def outcomes(hits: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, class and correctness of the outcomes right and wrong of every class."""
    counts = np.stack([hits, sizes - hits], axis=1).ravel()
    return counts, np.repeat(np.arange(len(sizes)), 2), np.tile([True, False], len(sizes))


def test_the_interval_of_a_mean_over_classes_has_the_width_of_its_standard_error() -> None:
    sizes, rates = np.array([400, 100, 50]), np.array([0.9, 0.7, 0.4])
    counts, classes, right = outcomes((sizes * rates).astype(int), sizes)
    (low,), (high,) = stratified_intervals(counts, classes, class_mean(counts, classes, right), seed=0, resamples=4000)
    error = np.sqrt((rates * (1 - rates) / (sizes - 1)).sum()) / 3
    np.testing.assert_allclose([low, high], rates.mean() + error * np.array([-1.96, 1.96]), atol=0.15 * error)


@pytest.mark.parametrize(("classes", "samples"), [(4, 40), (10, 300), (60, 300)])
def test_the_interval_of_a_mean_over_classes_covers_the_true_mean(classes: int, samples: int) -> None:
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        rates = np.linspace(0.5, 0.9, classes)
        sizes = random.multinomial(samples, np.full(classes, 1 / classes))
        present = sizes > 0
        sizes, rates = sizes[present], rates[present]
        counts, strata, right = outcomes(random.binomial(sizes, rates), sizes)
        statistic = class_mean(counts, strata, right)
        (low,), (high,) = stratified_intervals(counts, strata, statistic, seed=trial, resamples=200)
        assert low <= statistic(counts[None])[0, 0] <= high
        covered += low <= rates.mean() <= high
    assert 0.89 < covered / 200 < 0.99  # 0.95, standard deviation 0.015; less for few samples


def test_strata_keep_their_sizes_and_small_ones_are_drawn_together() -> None:
    counts, strata = np.array([5, 3, 1, 1, 2]), np.array([0, 0, 1, 2, 3])
    seen: list[np.ndarray] = []

    def keep(drawn: np.ndarray) -> np.ndarray:
        seen.append(drawn)
        return drawn[:, :1] / 12

    stratified_intervals(counts, strata, keep, seed=0, resamples=200)
    drawn = np.concatenate(seen)
    np.testing.assert_allclose(drawn[:, :2].sum(axis=1), 8)
    np.testing.assert_allclose(drawn[:, 2:].sum(axis=1), 4)
    assert (drawn[:, 2:] == 0).any(axis=0).all()
    np.testing.assert_allclose(np.unique(drawn[:-1, 0] / (8 / 7)) % 1, 0, atol=1e-9)  # seven draws of weight 8 / 7
