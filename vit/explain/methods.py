"""What attention did, as one number a token: each method a small function from a trace, exact and without N x N.

A map is a row vector [B, N] over the keys. It starts from what the model pools by (`vit.explain.maps.pool_weights`: the
class token, the mean, attention pooling) and is carried back through the layers, chunk by chunk of each layer's matrix
of attention, which is never held whole, nor kept for a gradient of its own. Letters: B batch, H heads, N tokens, K dim
of one head, C queries of a chunk.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from vit.nn.state import Record

Fusion = Literal["mean", "max", "min"]

CHUNK = 2**22
"""weights of attention worked on at a time, 16 MiB of them"""

_FUSE: dict[Fusion, Callable[[Tensor], Tensor]] = {
    "mean": lambda weights: weights.mean(dim=1),
    "max": lambda weights: weights.amax(dim=1),
    "min": lambda weights: weights.amin(dim=1),
}


@torch.no_grad()
def attention_row(record: Record, query: int, head: int | None = None) -> Tensor:
    """What one token attends to in one layer [B, N]: softmax(q k^T / sqrt(K)), of a head or the mean of all."""
    heads = None if head is None else [head]
    return record.rows(heads=heads, queries=[query])[:, :, 0].mean(dim=1)


@torch.no_grad()
def rollout(records: Sequence[Record], start: Tensor, *, fusion: Fusion = "mean", discard: float = 0.0) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): start [B, N] -> [B, N].

    In the order of vit-explain (Gildenblat 2020): fuse the heads by mean, max or min, set the lowest `discard` of the
    weights to zero, add the identity for the residual, scale each row to sum to one. Its code discards from the whole
    matrix and divides columns by the sums of rows; here each row is treated by itself, so that every query keeps as
    many keys and the map keeps its sum.
    """
    for record in reversed(records):
        parts = ((queries, _kept(_FUSE[fusion](weights), discard)) for queries, weights in _chunks(record))
        start = _with_residual(start, parts)
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


def _attended(record: Record, start: Tensor) -> Tensor:
    """Carry a map through one layer's mean attention: over the queries [B, N] -> over the keys [B, M]."""
    carried = start.new_zeros(start.shape[0], record.k.shape[2])
    for queries, weights in _chunks(record):
        carried += torch.einsum("bc,bcn->bn", start[:, queries], weights.mean(dim=1))
    return carried


def _with_residual(start: Tensor, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Carry a map [B, N] through rows + identity, each row scaled to sum to one.

    `parts` are queries [C] and their rows [B, C, N]. A row of zeros leaves its token's part of the map with the token.
    """
    carried, total = torch.zeros_like(start), torch.ones_like(start)
    for queries, rows in parts:
        total[:, queries] += rows.sum(dim=-1)
        carried += torch.einsum("bc,bcn->bn", start[:, queries] / total[:, queries], rows)
    return start / total + carried


@torch.no_grad()
def gradient_rollout(records: Sequence[Record], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """Rollout of attention times its gradient (Gildenblat 2020, vit-explain): start [B, N] -> [B, N], for a class.

    As there, the mean over the heads is taken before negative values are set to zero; each layer is paired with its own
    gradient. `gradients` are those of the class score by each record's output [B, H, N, K].
    """
    for record, gradient in zip(reversed(records), reversed(gradients), strict=True):
        chunks = _chunks_with_gradient(record, gradient)
        start = _with_residual(start, ((queries, mean_then_clamp(a, by_a)) for queries, a, by_a in chunks))
    return start


def mean_then_clamp(weights: Tensor, by_weight: Tensor) -> Tensor:
    """Weights times their gradient, fused as gradient rollout fuses heads: [B, H, C, N] -> [B, C, N]."""
    return (weights * by_weight).mean(dim=1).clamp(min=0)


def clamp_then_mean(weights: Tensor, by_weight: Tensor) -> Tensor:
    """The same as generic attention explainability fuses heads: [B, H, C, N] -> [B, C, N]."""
    return (weights * by_weight).clamp(min=0).mean(dim=1)


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
        added += torch.einsum("bc,bcn->bn", start[:, queries], clamp_then_mean(weights, by_weight))
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

    Channels are weighed by the mean of their gradient over the patches. Take tokens from before the last block: with a
    class token, the patches after it have no gradient.
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
    """Set the lowest `discard` of each row [B, C, N] to zero; of equal weights either all are kept or none."""
    count = int(discard * rows.shape[-1])
    if not count:
        return rows
    threshold = rows.topk(count + 1, dim=-1, largest=False).values[..., -1:]
    return rows.masked_fill(rows < threshold, 0.0)


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
