"""What attention did, as one number a token: each method a small function from a trace, exact and without N x N.

A map is a row vector [B, N] over the keys. It starts from what the model pools by (`vit.explain.maps.pool_weights`: the
class token, the mean, attention pooling) and is carried back through the layers, chunk by chunk of each layer's matrix
of attention, which is never held whole, nor kept for a gradient of its own. Letters: B batch, H heads, N tokens, K dim
of one head, C queries of a chunk.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from vit.nn.state import Record

Fusion = Literal["mean", "max", "min"]

CHUNK = 2**22
"""weights of attention worked on at a time, 16 MiB of them"""


@torch.no_grad()
def attention_row(record: Record, query: int, head: int | None = None) -> Tensor:
    """What one token attends to in one layer [B, N]: softmax(q k^T / sqrt(K)), of a head or the mean of all."""
    heads = None if head is None else [head]
    return record.rows(heads=heads, queries=[query])[:, :, 0].mean(dim=1)


@torch.no_grad()
def rollout(records: Sequence[Record], start: Tensor, *, fusion: Fusion = "mean", discard: float = 0.0) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): start [B, N] -> [B, N].

    A layer carries half of the map by attention and half by its residual. Heads are fused by mean, max or min, rows
    sum to one. `discard` leaves out this share of each row's weights, the lowest ones.
    """
    for record in reversed(records):
        start = (start + _attended(record, start, fusion, discard)) / 2
    return start


@torch.no_grad()
def rollout_to_context(
    records: Sequence[Record], cross_records: Sequence[Record], start: Tensor
) -> tuple[Tensor, Tensor]:
    """Rollout of a decoder: start [B, N] over its tokens -> what stays with them [B, N], what the context gets [B, M].

    Cross-attention, as a block has it after self-attention, is one more layer with a residual; both sum to what the
    start sums to. `rollout` of the encoder carries the context's part on to the encoder's own tokens.
    """
    context = start.new_zeros(start.shape[0], cross_records[0].k.shape[2])
    for record, cross in zip(reversed(records), reversed(cross_records), strict=True):
        start = start / 2
        context += _attended(cross, start)
        start = (start + _attended(record, start)) / 2
    return start, context


def _attended(record: Record, start: Tensor, fusion: Fusion = "mean", discard: float = 0.0) -> Tensor:
    """What one layer's attention makes of a map: over the queries [B, N] -> over the keys [B, M]."""
    fuse = {"mean": lambda a: a.mean(dim=1), "max": lambda a: a.amax(dim=1), "min": lambda a: a.amin(dim=1)}[fusion]
    carried = start.new_zeros(start.shape[0], record.k.shape[2])
    for queries, weights in _chunks(record):
        rows = _kept(fuse(weights), discard)
        rows = rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        carried += torch.einsum("bc,bcn->bn", start[:, queries], rows)
    return carried


@torch.no_grad()
def gradient_rollout(records: Sequence[Record], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """Rollout of attention times its positive gradient (Gildenblat 2020): start [B, N] -> [B, N], for a class.

    `gradients` are those of the class score by each record's output [B, H, N, K].
    """
    for record, gradient in zip(reversed(records), reversed(gradients), strict=True):
        carried, total = torch.zeros_like(start), torch.zeros_like(start)
        for queries, weights, by_weight in _chunks_with_gradient(record, gradient):
            rows = (weights * by_weight).clamp(min=0).mean(dim=1)
            total[:, queries] = 1 + rows.sum(dim=-1)  # the residual counts one
            carried += torch.einsum("bc,bcn->bn", start[:, queries] / total[:, queries], rows)
        start = start / total + carried
    return start


@torch.no_grad()
def generic_attention(records: Sequence[Record], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """Generic attention explainability (Chefer et al. 2021, ICCV): start [B, N] -> [B, N], for a class.

    Relevance passes a layer as it is, and adds what attention, weighed by its positive gradient, brings.
    """
    for record, gradient in zip(reversed(records), reversed(gradients), strict=True):
        start = start + _brought(record, gradient, start)
    return start


@torch.no_grad()
def generic_attention_to_context(
    records: Sequence[Record],
    gradients: Sequence[Tensor],
    cross_records: Sequence[Record],
    cross_gradients: Sequence[Tensor],
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same through a decoder: start [B, N] over its tokens -> relevance of them [B, N], of the context [B, M].

    Each block's cross-attention adds to the context what the tokens brought to it. The paper's rule 10 multiplies by
    the transposed, normalised relevance of the tokens instead, which in a causal decoder credits a word with what later
    words looked at; here a word is credited with what it and the words before it looked at. `generic_attention` of the
    encoder carries the context's part on.
    """
    context = start.new_zeros(start.shape[0], cross_records[0].k.shape[2])
    layers = zip(records, gradients, cross_records, cross_gradients, strict=True)
    for record, gradient, cross, cross_gradient in reversed(list(layers)):
        context += _brought(cross, cross_gradient, start)
        start = start + _brought(record, gradient, start)
    return start, context


def _brought(record: Record, gradient: Tensor, start: Tensor) -> Tensor:
    """What attention times its positive gradient makes of a map: over the queries [B, N] -> over the keys [B, M]."""
    added = start.new_zeros(start.shape[0], record.k.shape[2])
    for queries, weights, by_weight in _chunks_with_gradient(record, gradient):
        added += torch.einsum("bc,bcn->bn", start[:, queries], (weights * by_weight).clamp(min=0).mean(dim=1))
    return added


@torch.no_grad()
def legrad_layer(record: Record, gradient: Tensor) -> Tensor:
    """One layer's part of LeGrad (Bousselham et al. 2024): the mean positive gradient by each key's weights [B, N].

    `gradient` is that of the class score of this layer's own tokens, by the record's output.
    """
    total = torch.zeros(record.k.shape[0], record.k.shape[2], device=record.k.device)
    for _, _, by_weight in _chunks_with_gradient(record, gradient):
        total += by_weight.clamp(min=0).mean(dim=1).sum(dim=1)
    return total / record.q.shape[2]


@torch.no_grad()
def grad_cam(tokens: Tensor, gradient: Tensor, prefix: int) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) on tokens: tokens and gradient of the class score [B, N, D] -> [B, N].

    Channels are weighed by the mean of their gradient over the patches.
    """
    weights = gradient[:, prefix:].mean(dim=1, keepdim=True)
    return (tokens * weights).sum(dim=-1).clamp(min=0)


@torch.no_grad()
def distances(record: Record, places: Tensor, prefix: int) -> Tensor:
    """Mean attention distance of each head [B, H]: how far from themselves patches look (Dosovitskiy et al. 2020).

    places [N, 2] are where patches stand, in the unit of the result. Prefix tokens are left out, and each row's weights
    of the patches made to sum to one.
    """
    total = torch.zeros(record.q.shape[:2], device=record.q.device)
    for queries, weights in _chunks(record):
        patches = queries[queries >= prefix]
        rows = weights[:, :, queries >= prefix, prefix:]
        rows = rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        apart = torch.cdist(places[patches - prefix].float(), places.float())
        total += torch.einsum("bhcn,cn->bh", rows, apart)
    return total / len(places)


@torch.no_grad()
def entropies(record: Record) -> Tensor:
    """Entropy of each head's rows in nats, their mean [B, H]: 0 looks at one token, log N at all alike."""
    total = torch.zeros(record.q.shape[:2], device=record.q.device)
    for _, weights in _chunks(record):
        total += torch.special.entr(weights).sum(dim=(-1, -2))
    return total / record.q.shape[2]


def _kept(rows: Tensor, discard: float) -> Tensor:
    count = int(discard * rows.shape[-1])
    if not count:
        return rows
    lowest = rows.topk(count, dim=-1, largest=False).indices
    return rows.scatter(-1, lowest, 0.0)


def in_chunks(record: Record) -> Iterator[Tensor]:
    """All queries of a record, [C] at a time."""
    batch, heads, count, _ = record.q.shape
    size = max(1, CHUNK // (batch * heads * record.k.shape[2]))
    yield from torch.arange(count, device=record.q.device).split(size)


def _chunks(record: Record) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries [C] and their rows [B, H, C, N] of a record, a chunk at a time."""
    for queries in in_chunks(record):
        yield queries, record.rows(queries=queries.tolist())


def _chunks_with_gradient(record: Record, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same with the gradient by the rows: output = rows @ v, so it is gradient @ v^T."""
    for queries, weights in _chunks(record):
        yield queries, weights, gradient[:, :, queries].float() @ record.v.float().transpose(-2, -1)
