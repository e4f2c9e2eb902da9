"""Classification by the nearest neighbours in the space of features: how good they are without any training.

Letters: Q queries, N training pictures, D dim, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_logits(
    queries: Tensor,
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """queries [Q, D], features [N, D], labels [N] -> the logarithm of each class's share of the votes [Q, C].

    The nearest `neighbours` pictures by cosine similarity vote for their class with exp(similarity / temperature)
    (Wu et al. 2018, section 3.4; the default temperature is theirs and that of Caron et al. 2021); all N vote where
    there are fewer. A class without a vote gets -inf. Which of several equally near pictures takes the last place is
    not defined. `chunk` queries are compared at a time, so that memory holds [chunk, N] similarities, never [Q, N].

    Raises ValueError for shapes that do not fit, labels outside 0..C-1, and arguments that are not positive.
    """
    check_labelled(features, labels, classes)
    if queries.ndim != 2 or queries.shape[1] != features.shape[1]:
        raise ValueError(f"expected queries [Q, {features.shape[1]}], got {list(queries.shape)}")
    if neighbours < 1 or temperature <= 0 or chunk < 1:
        raise ValueError(f"must be positive: neighbours {neighbours}, temperature {temperature}, chunk {chunk}")
    bank = F.normalize(features, dim=1)
    votes = features.new_zeros(len(queries), classes)
    for part, rows in zip(queries.split(chunk), votes.split(chunk), strict=True):
        similarities, nearest = (F.normalize(part, dim=1) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        # the softmax makes shares of the votes, and overflows at no temperature, where exp(1 / 0.01) would
        rows.scatter_add_(1, labels[nearest], (similarities / temperature).softmax(dim=1))
    return votes.log()


def check_labelled(features: Tensor, labels: Tensor, classes: int) -> None:
    """Raise ValueError unless features are [N, D] with N > 0, and labels [N] numbers of classes."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"expected features [N, D] and labels [N] with N > 0, got {list(features.shape)} and {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, got {int(labels.min())} to {int(labels.max())}")
