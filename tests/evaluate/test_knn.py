"""Nearest neighbours against a loop, against scikit-learn, and at the edges."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from vit.evaluate.knn import knn_logits


def problem(queries: int = 30, count: int = 60, dim: int = 8, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, features and labels, all different from each other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = torch.randn(count, dim, generator=generator) + labels[:, None]
    return torch.randn(queries, dim, generator=generator) + 1, features, labels


def shares_by_loops(queries: Tensor, features: Tensor, labels: Tensor, classes: int, k: int, t: float) -> np.ndarray:
    """Wu et al. 2018 as it reads, a query and a neighbour at a time, in float64."""
    bank = features.double().numpy()
    shares = []
    for query in queries.double().numpy():
        cosines = [query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in bank]
        votes = np.zeros(classes)
        for i in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
            votes[labels[i]] += math.exp(cosines[i] / t)
        shares.append(votes / votes.sum())
    return np.stack(shares)


@pytest.mark.parametrize("neighbours", [1, 7, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_equal_those_of_a_loop(neighbours: int, temperature: float) -> None:
    queries, features, labels = problem()
    expected = shares_by_loops(queries, features, labels, 4, neighbours, temperature)
    ours = knn_logits(queries, features, labels, 4, neighbours=neighbours, temperature=temperature)
    np.testing.assert_allclose(ours.exp(), expected, rtol=0, atol=1e-5)
    ours = knn_logits(queries.double(), features.double(), labels, 4, neighbours=neighbours, temperature=temperature)
    np.testing.assert_allclose(ours.exp(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("neighbours", [1, 7, 20])
def test_votes_equal_scikit_learns(neighbours: int) -> None:
    def votes(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    queries, features, labels = (tensor.double() for tensor in problem())
    theirs = KNeighborsClassifier(neighbours, weights=votes, metric="cosine").fit(features.numpy(), labels.numpy())
    ours = knn_logits(queries, features, labels.long(), 4, neighbours=neighbours)
    np.testing.assert_allclose(ours.exp(), theirs.predict_proba(queries.numpy()), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(ours.argmax(dim=1), theirs.predict(queries.numpy()))


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_the_size_of_chunks_changes_nothing(chunk: int) -> None:
    queries, features, labels = problem()
    whole = knn_logits(queries, features, labels, 4)
    torch.testing.assert_close(knn_logits(queries, features, labels, 4, chunk=chunk), whole, rtol=0, atol=1e-5)


def test_more_neighbours_than_pictures_are_all_pictures() -> None:
    queries, features, labels = problem()
    every = knn_logits(queries, features, labels, 4, neighbours=60)
    assert torch.equal(knn_logits(queries, features, labels, 4, neighbours=10_000), every)


def test_a_class_without_a_training_picture_gets_no_vote() -> None:
    queries, features, labels = problem()
    logits = knn_logits(queries, features, labels + (labels > 1), 6)  # no picture is of class 2 or 5
    assert torch.equal(logits.argmax(dim=0)[[2, 5]], torch.zeros(2, dtype=torch.int64))
    assert (logits[:, [2, 5]] == -torch.inf).all()
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(30))


def test_equally_near_pictures_of_two_classes_have_equal_votes_and_the_first_class_wins() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits = knn_logits(torch.tensor([[1.0, 0.2]]), features, torch.tensor([2, 1, 0]), 3, neighbours=2)
    assert logits.exp().tolist() == [[0.0, 0.5, 0.5]]
    assert logits.argmax() == 1


def test_the_length_of_features_does_not_count() -> None:
    queries, features, labels = problem()
    lengths = torch.linspace(0.1, 10, 60)[:, None]
    expected = knn_logits(queries, features, labels, 4)
    torch.testing.assert_close(knn_logits(5 * queries, lengths * features, labels, 4), expected, rtol=0, atol=1e-5)


def test_a_temperature_near_zero_leaves_the_nearest_alone() -> None:
    queries, features, labels = problem()
    nearest = knn_logits(queries, features, labels, 4, neighbours=1)
    cold = knn_logits(queries, features, labels, 4, temperature=1e-6)  # exp(cosine / temperature) is past float64
    torch.testing.assert_close(cold.exp(), nearest.exp())


def test_no_queries_have_no_logits() -> None:
    queries, features, labels = problem()
    assert knn_logits(queries[:0], features, labels, 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"neighbours": 0}, r"must be positive: neighbours 0, temperature 0\.07, chunk 1024"),
        ({"temperature": 0.0}, r"must be positive: neighbours 20, temperature 0\.0, chunk 1024"),
        ({"chunk": -1}, r"must be positive: neighbours 20, temperature 0\.07, chunk -1"),
        ({"queries": torch.zeros(2, 3)}, r"expected queries \[Q, 8\], got \[2, 3\]"),
        ({"queries": torch.zeros(8)}, r"expected queries \[Q, 8\], got \[8\]"),
        (
            {"features": torch.zeros(60)},
            r"expected features \[N, D\] and labels \[N\] with N > 0, got \[60\] and \[60\]",
        ),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"got \[60, 8\] and \[3\]"),
        ({"features": torch.zeros(0, 8), "labels": torch.zeros(0)}, r"with N > 0, got \[0, 8\] and \[0\]"),
        ({"classes": 3}, r"labels must be in 0\.\.2, got 0 to 3"),
        ({"labels": torch.full((60,), -1)}, r"labels must be in 0\.\.3, got -1 to -1"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    queries, features, labels = problem()
    arguments = {"queries": queries, "features": features, "labels": labels, "classes": 4, **change}
    with pytest.raises(ValueError, match=words):
        knn_logits(**arguments)


def test_votes_neither_underflow_at_a_low_temperature_nor_overflow_with_long_features() -> None:
    queries, features, labels = problem()
    expected = knn_logits(queries.double(), features.double(), labels, 4, neighbours=60, temperature=0.005)
    for scale in (1.0, 1e30, 1e-30):
        ours = knn_logits(scale * queries, scale * features, labels, 4, neighbours=60, temperature=0.005)
        assert ours.isfinite().all()  # every class has a vote, if a small one
        assert torch.equal(ours.argsort(dim=1), expected.argsort(dim=1))
