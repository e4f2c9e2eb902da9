"""What a forward pass may be handed to remember: the trace of its attention, and the cache of generation.

Both are arguments, never attributes of a module, so calling a module twice with the same arguments gives the
same result. Letters: B batch, H heads, N queries, M keys, K dim of one head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vit.nn.functional import attention_weights


@dataclass
class Record:
    """One call of attention: what is needed to know its weights without storing them.

    q [B, H, N, K], k and v [B, H, M, K] after their norm; output [B, H, N, K] before the output projection,
    a node of the graph, so that torch.autograd.grad can ask for its gradient.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    mask: Tensor | None
    causal: bool

    def rows(
        self, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None, chunk: int = 1024
    ) -> Tensor:
        """Rows of softmax(q k^T / sqrt(K)) for the heads and queries asked for (all when None).

        -> fp32 [B, len(heads), len(queries), M]. `chunk` queries are worked on at a time, which bounds the memory
        beyond the result itself.
        """
        device = self.q.device
        head_index = torch.tensor(_chosen(heads, self.q.shape[1], "head"), dtype=torch.long, device=device)
        query_index = torch.tensor(_chosen(queries, self.q.shape[2], "query"), dtype=torch.long, device=device)
        n, m = self.q.shape[2], self.k.shape[2]
        q, k = self.q[:, head_index], self.k[:, head_index]
        rows = []
        for part in query_index.split(chunk):
            mask = None if self.mask is None else _mask_part(self.mask, head_index, part)
            if self.causal:
                triangle = torch.arange(m, device=device) <= part[:, None] + (m - n)
                mask = triangle if mask is None else mask & triangle
            rows.append(attention_weights(q[:, :, part], k, mask=mask))
        return torch.cat(rows, dim=2)


@dataclass
class Trace:
    """What attention did in one forward pass, layer by layer: pass an empty one as `trace=` and read it after.

    `tokens` holds the residual stream after every block, [B, N, D], and `embedded` the one before the first block,
    unless `keep_tokens` is off; `pool` the attention pooling's call, if any.
    """

    self_attention: list[Record] = field(default_factory=list)
    cross_attention: list[Record] = field(default_factory=list)
    pool: list[Record] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    embedded: Tensor | None = None
    keep_tokens: bool = True


@dataclass
class KeyValues:
    """Keys and values [B, H, M, K] that one attention layer has seen so far."""

    k: Tensor | None = None
    v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k, v [B, H, N, K] behind what is kept; returns all of it.

        Kept contiguous: as they come from the projection they hold its queries too, and are slower to read again.
        """
        self.k = k.contiguous() if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v.contiguous() if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v

    def select(self, rows: Tensor) -> None:
        """Keep these of the B sequences, in this order; some perhaps several times. rows [any number]."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[rows], self.v[rows]

    @property
    def length(self) -> int:
        """Positions kept."""
        return 0 if self.k is None else self.k.shape[2]


@dataclass
class LayerCache:
    """One block's cache: grows by self-attention; cross-attention's part is computed once."""

    self_attention: KeyValues = field(default_factory=KeyValues)
    cross_attention: KeyValues = field(default_factory=KeyValues)


def new_cache(depth: int) -> list[LayerCache]:
    """An empty cache for a transformer of `depth` blocks."""
    return [LayerCache() for _ in range(depth)]


def _chosen(indices: Sequence[int] | None, count: int, what: str) -> list[int]:
    chosen = list(range(count)) if indices is None else list(indices)
    for index in chosen:
        if not 0 <= index < count:
            raise ValueError(f"{what} {index} does not exist, there are {count}: 0 to {count - 1}")
    return chosen


def _mask_part(mask: Tensor, heads: Tensor, queries: Tensor) -> Tensor:
    """The rows of a broadcastable mask that belong to some heads and queries."""
    if mask.dim() >= 2 and mask.shape[-2] > 1:
        mask = mask[..., queries, :]
    if mask.dim() >= 3 and mask.shape[-3] > 1:
        mask = mask[..., heads, :, :]
    return mask
