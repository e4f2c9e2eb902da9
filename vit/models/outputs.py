"""Rank classes by their logits, by one rule in all commands, and refuse outputs that are NaN or inf."""

import torch
from torch import Tensor

from vit.errors import NonFiniteOutput

NON_FINITE = "the model's output is NaN or inf"


def top_classes(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best classes and their probabilities, both [B, K], for logits [B, C]; K = min(count, C).

    Logits decide, not probabilities: a confident model's softmax rounds to 0 for all classes but one, and zeros have
    no order. Of equal logits the lower class index comes first, as in `argmax`; `topk` leaves that order undefined.
    """
    values, indices = logits.topk(min(count + 1, logits.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    if tied.any():  # a stable sort of all rows takes thirty times as long
        indices[tied] = logits[tied].sort(dim=1, descending=True, stable=True).indices[:, : values.shape[1]]
    indices = indices[:, :count]
    return indices, logits.float().softmax(dim=1).gather(1, indices)


def finite_rows(outputs: Tensor) -> Tensor:
    """Return which rows of outputs [B, ...] hold no NaN and no inf, bool [B]."""
    return torch.isfinite(outputs).flatten(1).all(dim=1)


def require_finite(outputs: Tensor) -> Tensor:
    """Return outputs [B, ...] as they are. Raises NonFiniteOutput where a row holds NaN or inf."""
    finite = finite_rows(outputs)
    if not finite.all():
        raise NonFiniteOutput(f"{NON_FINITE} for {int((~finite).sum())} of {len(finite)} inputs; check its weights")
    return outputs
