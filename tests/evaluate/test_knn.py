"""Nearest neighbours against scikit-learn, against a loop, and at the edges."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vit.evaluate.knn import knn_logits


def bank(count: int = 60, dim: int = 8, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return torch.randn(count, dim, generator=generator) + labels[:, None], labels


def test_votes_equal_scikit_learns() -> None:
    features, labels = bank()
    queries, _ = bank(30, dim=8)

    def votes(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    theirs = KNeighborsClassifier(7, weights=votes, metric="cosine").fit(features.numpy(), labels.numpy())
    ours = knn_logits(queries + 0.3, features, labels, 4, neighbours=7).exp()
    np.testing.assert_allclose(ours, theirs.predict_proba((queries + 0.3).numpy()), rtol=0, atol=1e-4)


def test_a_class_is_not_voted_for_where_none_of_the_neighbours_has_it() -> None:
    features, labels = bank(classes=3)
    logits = knn_logits(features[:5], features, labels, 5, neighbours=1)
    assert torch.equal(logits.argmax(dim=1), labels[:5])  # each is its own nearest
    assert logits[:, 3:].max() == -torch.inf


def test_the_size_of_chunks_and_too_many_neighbours_change_nothing() -> None:
    features, labels = bank()
    whole = knn_logits(features, features, labels, 4, neighbours=60)
    assert torch.allclose(knn_logits(features, features, labels, 4, neighbours=60, chunk=7), whole, atol=1e-6)
    assert torch.equal(knn_logits(features, features, labels, 4, neighbours=10_000), whole)
    assert knn_logits(features[:0], features, labels, 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"neighbours": 0}, "neighbours 0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"queries": torch.zeros(2, 3)}, r"got \[2, 3\] and \[60, 8\]"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "a label for each of 60"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], words: str) -> None:
    features, labels = bank()
    arguments = {"queries": features, "features": features, "labels": labels, "classes": 4, **change}
    with pytest.raises(ValueError, match=words):
        knn_logits(**arguments)  # type: ignore[arg-type]
