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
    bank = unit_vectors(features)
    votes = features.new_empty(len(queries), classes)
    for part, rows in zip(queries.split(chunk), votes.split(chunk), strict=True):
        similarities, nearest = (unit_vectors(part) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        scores, voted = similarities / temperature, labels[nearest]
        # a log-sum-exp per class: at a low temperature the votes themselves would overflow, their shares underflow
        highest = torch.full_like(rows, -torch.inf).scatter_reduce(1, voted, scores, "amax")
        sums = torch.zeros_like(rows).scatter_add(1, voted, (scores - highest.gather(1, voted)).exp())
        rows.copy_((highest + sums.log()).log_softmax(dim=1))
    return votes


def unit_vectors(x: Tensor) -> Tensor:
    """Scale vectors [..., D] to length 1; zeros stay zeros. Squares of values beyond 1e19 would overflow in fp32."""
    return F.normalize(x / x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny), dim=-1)


def check_labelled(features: Tensor, labels: Tensor, classes: int) -> None:
    """Raise ValueError unless features are [N, D] with N > 0, and labels [N] numbers of classes."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"expected features [N, D] and labels [N] with N > 0, got {list(features.shape)} and {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, got {int(labels.min())} to {int(labels.max())}")
