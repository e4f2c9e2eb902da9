"""Calibration against torchmetrics and against hand-computed tables."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from vit.evaluate.calibration import expected_calibration_error, reliability


@pytest.mark.parametrize("bins", [5, 15])
def test_the_calibration_error_equals_that_of_torchmetrics(bins: int) -> None:
    torch.manual_seed(0)
    probabilities = (2 * torch.randn(2000, 8)).softmax(dim=1)
    labels = torch.randint(0, 8, (2000,))
    confidences, answered = probabilities.max(dim=1)
    table = reliability(confidences.numpy(), (answered == labels).numpy(), bins=bins)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=8, n_bins=bins, norm="l1")
    assert expected_calibration_error(table) == pytest.approx(float(expected), abs=1e-6)


def test_a_small_table_gives_the_numbers_computed_by_hand() -> None:
    table = reliability(np.array([0.1, 0.3, 0.6, 0.7, 0.9]), np.array([0, 1, 1, 0, 1]), bins=4)
    np.testing.assert_allclose(table.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(table.counts, [1, 1, 2, 1])
    np.testing.assert_allclose(table.confidence, [0.1, 0.3, 0.65, 0.9])
    np.testing.assert_allclose(table.accuracy, [0, 1, 0.5, 1])
    assert expected_calibration_error(table) == pytest.approx((0.1 + 0.7 + 2 * 0.15 + 0.1) / 5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_zero_to_the_first() -> None:
    table = reliability(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    np.testing.assert_array_equal(table.counts, [2, 1])


def test_bins_without_samples_hold_zeros() -> None:
    table = reliability(np.array([0.95]), np.array([True]))
    assert table.counts.tolist() == [0] * 14 + [1]
    assert table.accuracy.tolist() == [0.0] * 14 + [1.0]
    assert expected_calibration_error(table) == pytest.approx(0.05)


def test_a_confidence_one_rounding_above_one_counts_as_one() -> None:
    table = reliability(np.array([np.nextafter(np.float32(1), np.float32(2))]), np.array([True]))
    assert table.counts[-1] == 1


def test_no_predictions_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="no predictions: calibration needs at least one sample"):
        reliability(np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("confidence", [-0.1, 3.0, np.nan])
def test_confidences_that_are_no_probabilities_are_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidences must be in 0\.\.1"):
        reliability(np.array([0.5, confidence]), np.array([True, True]))


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"confidences \(2,\) and correct \(1,\)"):
        reliability(np.array([0.5, 0.5]), np.array([True]))
