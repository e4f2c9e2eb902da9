"""Classification by the nearest neighbours in the space of features: how good they are without any training.

Letters: Q queries, N training pictures, D dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """queries [Q, D], features [N, D], labels [N] -> the logarithm of each class's share of the votes [Q, classes].

    The `neighbours` nearest by cosine vote with exp(cosine / temperature) for their class (Wu et al. 2018, Caron et al.
    2021); all of them where there are fewer. `chunk` queries are worked on at a time, which bounds the memory. Raises
    ValueError for shapes that do not fit.
    """
    if neighbours < 1 or temperature <= 0 or chunk < 1:
        raise ValueError(f"must be positive: neighbours {neighbours}, temperature {temperature}, chunk {chunk}")
    if queries.dim() != 2 or features.dim() != 2 or queries.shape[1] != features.shape[1]:
        raise ValueError(f"expected [Q, D] and [N, D], got {list(queries.shape)} and {list(features.shape)}")
    if labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"expected a label for each of {len(features)} features, got {list(labels.shape)}")
    bank = F.normalize(features.float(), dim=1)
    neighbours = min(neighbours, len(bank))
    parts = []
    for part in F.normalize(queries.float(), dim=1).split(chunk):
        cosines, nearest = (part @ bank.T).topk(neighbours, dim=1)
        weights = (cosines / temperature).softmax(dim=1)
        votes = torch.zeros(len(part), classes, device=part.device)
        parts.append(votes.scatter_add_(1, labels[nearest], weights).log())
    return torch.cat(parts) if parts else torch.empty(0, classes)
