"""Words by their embeddings: which are near, and what is to one as two others are to each other.

Letters: V vocabulary, D dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vit.evaluate.knn import unit_vectors
from vit.models.outputs import require_finite


def nearest(embeddings: Tensor, token: int, *, top: int = 10) -> list[tuple[int, float]]:
    """The tokens of highest cosine with one, and the cosines; embeddings [V, D]. The token itself is left out."""
    unit = _unit(embeddings)
    return _highest(unit @ unit[token], [token], top)


def analogy(embeddings: Tensor, a: int, b: int, c: int, *, top: int = 10) -> list[tuple[int, float]]:
    """What is to c as b is to a: the highest cosines with b - a + c of unit vectors, those three left out.

    3CosAdd of Mikolov et al. 2013 ("Linguistic regularities in continuous space word representations").
    """
    unit = _unit(embeddings)
    return _highest(unit @ _unit(unit[b] - unit[a] + unit[c]), [a, b, c], top)


def _unit(x: Tensor) -> Tensor:
    return unit_vectors(require_finite(x.float()))


def _highest(cosines: Tensor, left_out: Sequence[int], top: int) -> list[tuple[int, float]]:
    cosines = cosines.clone()
    cosines[list(left_out)] = -torch.inf
    values, tokens = cosines.sort(descending=True, stable=True)
    count = min(top, len(cosines) - len(set(left_out)))
    return list(zip(tokens[:count].tolist(), values[:count].tolist(), strict=True))
