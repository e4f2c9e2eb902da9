"""Classification metrics against scikit-learn, against hand-computed cases, and at the edges."""

import json
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as reference

from vit.evaluate.bootstrap import bootstrap_interval
from vit.evaluate.classification import Predictions, classification_metrics, confusion_matrix


def predictions(labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    """What a model with these `probabilities` [N, C] answered."""
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    return Predictions(
        labels=labels.astype(np.int64),
        top=top,
        probabilities=np.take_along_axis(probabilities, top, axis=1).astype(np.float32),
        losses=-np.log(probabilities[np.arange(len(labels)), labels]).astype(np.float32),
    )


def random_predictions(samples: int, classes: int, used: int, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    """Predictions better than chance; labels come from the first `used` classes only."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, used, samples)
    scores = random.normal(size=(samples, classes))
    scores[np.arange(samples), labels] += 1
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return predictions(labels, probabilities), probabilities


def answers(labels: list[int], answered: list[int]) -> Predictions:
    """Two classes, each answer with probability 0.75."""
    top = np.array([[a, 1 - a] for a in answered])
    right = np.array(labels) == np.array(answered)
    probabilities = np.tile(np.array([0.75, 0.25], dtype=np.float32), (len(labels), 1))
    return Predictions(np.array(labels), top, probabilities, np.where(right, 0.25, 1.25).astype(np.float32))


@pytest.mark.parametrize(("samples", "classes", "used"), [(400, 10, 10), (300, 12, 7), (60, 40, 30), (200, 2, 2)])
def test_metrics_equal_those_of_scikit_learn(samples: int, classes: int, used: int) -> None:
    p, probabilities = random_predictions(samples, classes, used)
    names = [f"class {number}" for number in range(classes)]
    report = classification_metrics(p, names)
    labels, answered = p.labels, p.top[:, 0]
    assert report["count"] == samples
    assert report["top1"] == pytest.approx(reference.accuracy_score(labels, answered), abs=1e-9)
    if classes > 2:
        top5 = reference.top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes))
        assert report["top5"] == pytest.approx(top5, abs=1e-9)
    loss = reference.log_loss(labels, probabilities, labels=range(classes))
    assert report["loss"] == pytest.approx(loss, abs=1e-6)
    macro = reference.precision_recall_fscore_support(labels, answered, average="macro", zero_division=0)[:3]
    ours = [report["macro_precision"], report["macro_recall"], report["macro_f1"]]
    assert ours == pytest.approx(macro, abs=1e-9)
    expected = reference.precision_recall_fscore_support(labels, answered, labels=range(classes), zero_division=0)
    rows = [[row["precision"], row["recall"], row["f1"], row["count"]] for row in report["per_class"].values()]
    assert list(report["per_class"]) == names
    np.testing.assert_allclose(rows, np.transpose(expected), atol=1e-9)
    recalls = reference.recall_score(labels, answered, labels=np.unique(labels), average=None)
    assert report["balanced_accuracy"] == pytest.approx(recalls.mean(), abs=1e-9)
    matrix = reference.confusion_matrix(labels, answered, labels=range(classes))
    np.testing.assert_array_equal(confusion_matrix(p, classes), matrix)


def test_balanced_accuracy_equals_that_of_scikit_learn() -> None:
    p, _ = random_predictions(500, 6, 6, seed=3)
    report = classification_metrics(p, list("abcdef"))
    expected = reference.balanced_accuracy_score(p.labels, p.top[:, 0])
    assert report["balanced_accuracy"] == pytest.approx(expected, abs=1e-9)


def test_a_small_case_gives_the_numbers_computed_by_hand() -> None:
    # cat: three samples, two found; dog: one sample, found, and answered once too often
    report = classification_metrics(answers([0, 0, 0, 1], [0, 0, 1, 1]), ["cat", "dog"])
    assert report["top1"] == 0.75
    assert report["top5"] == 1.0
    assert report["loss"] == 0.5
    assert report["per_class"]["cat"] == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 0.8, "count": 3})
    assert report["per_class"]["dog"] == pytest.approx({"precision": 0.5, "recall": 1, "f1": 2 / 3, "count": 1})
    assert report["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert report["balanced_accuracy"] == pytest.approx(5 / 6)
    assert report["ece"] == pytest.approx(0.0)  # 75 % sure and 75 % right
    np.testing.assert_array_equal(
        confusion_matrix(answers([0, 0, 0, 1], [0, 0, 1, 1]), 2), [[2, 1], [0, 1]]
    )  # rows: true class


def test_a_class_without_samples_is_listed_with_zeros_and_left_out_of_the_means() -> None:
    p = Predictions(
        labels=np.array([0, 2]),
        top=np.array([[0, 1, 2, 3], [2, 0, 1, 3]]),
        probabilities=np.array([[0.7, 0.1, 0.1, 0.1]] * 2, dtype=np.float32),
        losses=np.array([0.3, 0.3], dtype=np.float32),
    )
    report = classification_metrics(p, ["a", "b", "c", "d"])
    assert report["per_class"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}
    assert report["macro_f1"] == report["macro_precision"] == report["balanced_accuracy"] == 1.0


def test_a_class_only_answered_counts_in_macro_f1_but_not_in_balanced_accuracy() -> None:
    report = classification_metrics(answers([0, 0], [0, 1]), ["a", "b"])
    assert report["balanced_accuracy"] == 0.5
    assert report["macro_recall"] == 0.25
    assert report["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_one_sample_gives_metrics_and_intervals_without_width() -> None:
    report = classification_metrics(answers([1], [1]), ["a", "b"])
    assert report["top1"] == report["macro_f1"] == report["balanced_accuracy"] == 1.0
    assert report["ece"] == pytest.approx(0.25)
    assert report["intervals"]["top1"] == [1.0, 1.0]
    assert report["intervals"]["loss"] == [0.25, 0.25]


def test_the_report_goes_through_json_unchanged() -> None:
    p, _ = random_predictions(50, 7, 5)
    report = classification_metrics(p, ["a", "b\n", "😀", "$", "e", "\udcff", "g"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_every_interval_holds_its_number_and_is_the_same_each_time() -> None:
    p, _ = random_predictions(500, 6, 6)
    report = classification_metrics(p, list("abcdef"))
    assert set(report["intervals"]) == {"top1", "top5", "balanced_accuracy", "macro_f1", "loss"}
    for name, (low, high) in report["intervals"].items():
        assert low < report[name] < high, name
    assert classification_metrics(p, list("abcdef"))["intervals"] == report["intervals"]


def test_the_intervals_equal_those_of_scikit_learn_on_resampled_predictions() -> None:
    p, _ = random_predictions(200, 4, 4, seed=5)
    report = classification_metrics(p, list("abcd"))
    random = np.random.default_rng(1)
    drawn = [random.integers(0, 200, 200) for _ in range(500)]
    samples = {
        "macro_f1": [reference.f1_score(p.labels[i], p.top[i, 0], average="macro", zero_division=0) for i in drawn],
        "balanced_accuracy": [reference.balanced_accuracy_score(p.labels[i], p.top[i, 0]) for i in drawn],
        "loss": [p.losses[i].mean() for i in drawn],
    }
    for name, values in samples.items():
        expected = np.quantile(values, [0.025, 0.975])
        # the ends of an interval from 500 draws are themselves uncertain by about 0.12 standard deviations
        np.testing.assert_allclose(report["intervals"][name], expected, atol=0.5 * np.std(values), err_msg=name)


def test_a_thousand_resamples_of_ten_thousand_samples_stay_below_200_megabytes() -> None:
    p, _ = random_predictions(10_000, 100, 100)
    tracemalloc.start()
    try:
        classification_metrics(p, [str(number) for number in range(100)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6


def test_no_predictions_are_refused_in_words() -> None:
    empty = Predictions(
        np.zeros(0, np.int64), np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    )
    with pytest.raises(ValueError, match="no predictions: metrics need at least one sample"):
        classification_metrics(empty, ["a", "b"])
    np.testing.assert_array_equal(confusion_matrix(empty, 2), [[0, 0], [0, 0]])


def test_class_numbers_outside_the_class_list_are_refused() -> None:
    p = answers([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"labels must hold class numbers 0\.\.0, got 0 to 1"):
        classification_metrics(p, ["only"])
    with pytest.raises(ValueError, match=r"labels must hold class numbers 0\.\.1, got -1 to 1"):
        confusion_matrix(Predictions(np.array([-1, 1]), p.top, p.probabilities, p.losses), 2)


def test_too_few_classes_kept_a_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="top5 needs the best 3 classes a sample, got 2"):
        classification_metrics(answers([0], [0]), ["a", "b", "c"])


def test_class_names_that_repeat_are_refused() -> None:
    with pytest.raises(ValueError, match="class names must differ"):
        classification_metrics(answers([0], [0]), ["a", "a"])


def test_a_loss_that_is_not_a_number_is_refused_with_its_sample() -> None:
    p = answers([0, 1, 1], [0, 1, 0])
    p.losses[2] = np.nan
    with pytest.raises(ValueError, match="not finite for 1 samples, the first is number 2"):
        classification_metrics(p, ["a", "b"])


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    p = answers([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"expected labels \[N\].*got \(1,\), \(2, 2\)"):
        Predictions(p.labels[:1], p.top, p.probabilities, p.losses)
    with pytest.raises(ValueError, match=r"expected labels \[N\]"):
        Predictions(p.labels, p.top, p.probabilities[:, :1], p.losses)


def test_the_interval_of_top1_is_the_bootstrap_of_right_and_wrong() -> None:
    p, _ = random_predictions(300, 5, 5)
    right = int((p.labels == p.top[:, 0]).sum())
    expected = bootstrap_interval(np.array([300 - right, right]), lambda counts: counts[:, 1] / 300, seed=0)
    assert classification_metrics(p, list("abcde"))["intervals"]["top1"] == list(expected)


def constant(labels: list[int], answer: int, classes: int) -> Predictions:
    """A model that always gives the same class, whatever the label."""
    n, order = len(labels), [answer, *(c for c in range(classes) if c != answer)]
    top = np.tile(np.array(order[: min(5, classes)], np.int64), (n, 1))
    return Predictions(np.array(labels, np.int64), top, np.full(top.shape, 0.1, np.float32), np.ones(n, np.float32))


@pytest.mark.parametrize("labels", [[0] * 4 + [1] * 3 + [2] * 2 + [3], [0] * 3 + [1] * 3 + [2] * 2 + [3] * 2])
def test_the_interval_of_a_constant_predictor_holds_its_balanced_accuracy(labels: list[int]) -> None:
    for answer in range(4):
        report = classification_metrics(constant(labels, answer, 4), list("abcd"))
        low, high = report["intervals"]["balanced_accuracy"]
        assert report["balanced_accuracy"] == 0.25
        if labels.count(answer) >= 3:
            assert low == pytest.approx(0.25)
            assert high == pytest.approx(0.25)  # one class always right, the others never: in no resample otherwise
        assert low <= 0.25 <= high
        low, high = report["intervals"]["macro_f1"]
        assert low <= report["macro_f1"] <= high


@pytest.mark.parametrize(("classes", "samples"), [(3, 5), (10, 20), (100, 300), (1000, 1500)])
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_every_interval_holds_its_estimate(classes: int, samples: int, accuracy: float) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, samples)
    right = random.random(samples) < accuracy
    answers = np.where(right, labels, (labels + random.integers(1, classes, samples)) % classes)
    others = (answers[:, None] + np.arange(min(5, classes))) % classes
    losses = random.exponential(size=samples).astype(np.float32)
    p = Predictions(labels, others, np.full(others.shape, 0.2, np.float32), losses)
    report = classification_metrics(p, [str(c) for c in range(classes)])
    for name, (low, high) in report["intervals"].items():
        assert low <= report[name] + 1e-9, name
        assert high >= report[name] - 1e-9, name
        assert name == "loss" or 0 <= low <= high <= 1
