"""Maps of pictures: which patches a prediction came from, by a method of choice.

Letters: B batch, C channels, H W height and width in pixels, N tokens of which the first P stand for no patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.explain import FOR_A_CLASS, FUSIONS, METHODS
from vit.explain.methods import (
    Fusion,
    attention_row,
    clamp_then_mean,
    generic_attention,
    grad_cam,
    gradient_rollout,
    in_chunks,
    legrad_layer,
    mean_then_clamp,
    rollout,
)
from vit.models.outputs import require_finite
from vit.models.vision import VisionTransformer
from vit.nn.state import Record, Trace

Query = Literal["cls"] | tuple[int, int]

ASKED_BY_A_PATCH = ("raw", "rollout", "generic", "gradient-rollout")
"""methods that can start from a patch"""


_CARRIED_BY = {
    "generic": (generic_attention, clamp_then_mean),
    "gradient-rollout": (gradient_rollout, mean_then_clamp),
}


@dataclass(frozen=True)
class Maps:
    """`values` float32 [B, rows, columns], the higher the more a patch mattered; and how they were computed.

    `targets` are the classes that the maps are of, for methods of a class; `settings` the method's own.
    """

    values: Tensor
    method: str
    targets: list[int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def attention_maps(
    model: VisionTransformer,
    images: Tensor,
    *,
    method: str = "generic",
    layer: int | None = None,
    head: int | None = None,
    query: Query = "cls",
    targets: Tensor | None = None,
    fusion: Fusion = "mean",
    discard: float = 0.0,
    steps: int = 32,
) -> Maps:
    """Maps of normalised images [B, C, H, W].

    `layer` and `head` choose for `raw` (None: the last layer, the mean of all heads), `layer` also for `norm`; `query`
    is what asks: "cls" for what the model pools by, or (row, column) of a patch. `targets` [B] are the classes of the
    methods that have one, None for the predicted ones. `fusion` and `discard` are for `rollout`, `steps` for integrated
    gradients. Raises ConfigError for a method, layer, head, query or class that does not exist, a share to discard that
    is not from 0 to below 1; NonFiniteOutput where a map is NaN or inf.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    a = model.architecture
    grid = (images.shape[-2] // a.patch_size[0], images.shape[-1] // a.patch_size[1])
    _check(model, method, layer, head, query, grid)
    if fusion not in FUSIONS:
        raise ConfigError(f"fusion: must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    if not 0 <= discard < 1:
        raise ConfigError(f"discard: must be from 0 to below 1, got {discard}")
    if targets is not None:
        _check_targets(model, images, targets)
    settings: dict[str, Any] = {"query": list(query) if query != "cls" else query}
    settings |= {"layer": layer} if method in ("raw", "norm") else {}
    settings |= {"head": head} if method == "raw" else {}
    training = model.training
    try:
        model.eval()
        with torch.enable_grad() if method in FOR_A_CLASS else torch.no_grad():
            if method == "integrated-gradients":
                settings["steps"] = steps
                values, targets = _integrated_gradients(model, images, targets, steps)
            elif method in FOR_A_CLASS:
                values, targets = _of_a_class(model, images, method, query, targets, grid)
            else:
                if method == "rollout":
                    settings |= {"fusion": fusion, "discard": discard}
                values, targets = _of_no_class(model, images, method, layer, head, query, grid, fusion, discard), None
    finally:
        model.train(training)
    patches = require_finite(values.detach().float()).unflatten(1, grid)
    return Maps(patches, method, None if targets is None else targets.tolist(), settings)


@torch.no_grad()
def head_maps(model: VisionTransformer, images: Tensor, *, query: Query = "cls") -> Tensor:
    """Raw attention of every layer and head, in one pass: images [B, C, H, W] -> [B, layers, heads, rows, columns]."""
    a = model.architecture
    grid = (images.shape[-2] // a.patch_size[0], images.shape[-1] // a.patch_size[1])
    _check(model, "raw", None, None, query, grid)
    trace = Trace(keep_tokens=False)
    model.forward(images, trace=trace)
    rows = [_rows_of_heads(model, record, query, grid)[..., a.prefix :] for record in trace.self_attention]
    return torch.stack(rows, dim=1).unflatten(-1, grid)


def pool_weights(model: VisionTransformer, trace: Trace, fuse: Callable[[Record], Tensor] | None = None) -> Tensor:
    """What the pooled vector is made of, as weights of the tokens [B, N].

    The class token alone; the patches, alike; or the row of attention pooling, which `fuse` reads off its record (None:
    the mean of all heads).
    """
    a, weights = model.architecture, _no_weights(trace)
    if a.pool == "class":
        weights[:, : 1 + int(a.distilled)] = 1 / (1 + int(a.distilled))
    elif a.pool == "mean":
        weights[:, a.prefix :] = 1 / (weights.shape[1] - a.prefix)
    else:
        (record,) = trace.pool
        row = attention_row(record, 0) if fuse is None else fuse(record)
        weights[:, weights.shape[1] - row.shape[1] :] = row
    return weights


def _no_weights(trace: Trace) -> Tensor:
    """Zeros, one a token [B, N]."""
    keys = trace.self_attention[-1].k
    return keys.new_zeros(keys.shape[0], keys.shape[2], dtype=torch.float32)


def _of_no_class(
    model: VisionTransformer,
    images: Tensor,
    method: str,
    layer: int | None,
    head: int | None,
    query: Query,
    grid: tuple[int, int],
    fusion: Fusion,
    discard: float,
) -> Tensor:
    """The map over the patches [B, rows * columns] by a method that needs no gradient."""
    prefix, trace = model.architecture.prefix, Trace(keep_tokens=method == "norm")
    model.forward(images, trace=trace)
    if method == "norm":
        return trace.tokens[-1 if layer is None else layer].norm(dim=-1)[:, prefix:]
    if method == "raw":
        return _raw(model, trace, layer, head, query, grid)[:, prefix:]
    start = _start(model, trace, query, grid)
    return rollout(trace.self_attention, start, fusion=fusion, discard=discard)[:, prefix:]


def _of_a_class(
    model: VisionTransformer,
    images: Tensor,
    method: str,
    query: Query,
    targets: Tensor | None,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The map over the patches [B, rows * columns] by a method of gradients, and the class it is of."""
    prefix, trace = model.architecture.prefix, Trace()
    images = images.detach().requires_grad_()  # there is a graph even where all weights are frozen
    scores = model.forward(images, trace=trace)  # not by call: a compiled graph has no nodes inside
    targets = _chosen(scores, targets)
    score, records = scores.gather(1, targets[:, None]).sum(), trace.self_attention
    if method == "grad-cam":
        tokens = [trace.embedded, *trace.tokens][-2]  # before the last block
        assert tokens is not None
        (gradient,) = torch.autograd.grad(score, tokens)
        return grad_cam(tokens, gradient, prefix)[:, prefix:], targets
    if method == "legrad":
        return _legrad(model, trace, targets)[:, prefix:], targets
    carry, fuse_heads = _CARRIED_BY[method]
    pools = trace.pool if query == "cls" else []
    gradients = torch.autograd.grad(score, [record.output for record in (*records, *pools)])

    def fuse(record: Record) -> Tensor:  # attention pooling is one more layer, of one query
        by_weight = gradients[-1].float() @ record.v.float().transpose(-2, -1)
        return fuse_heads(record.rows(), by_weight)[:, 0]

    start = _start(model, trace, query, grid, fuse)
    return carry(records, gradients[: len(records)], start)[:, prefix:], targets


def _legrad(model: VisionTransformer, trace: Trace, targets: Tensor) -> Tensor:
    """The sum over the layers, each asked for the class score that its own tokens would have."""
    total = torch.zeros(trace.tokens[0].shape[:2], device=trace.tokens[0].device)
    for record, tokens in zip(trace.self_attention, trace.tokens, strict=True):
        scores = model.score(model.norm(tokens))
        score = scores.gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, record.output, retain_graph=True)
        total += legrad_layer(record, gradient)
    return total


def _integrated_gradients(
    model: VisionTransformer, images: Tensor, targets: Tensor | None, steps: int
) -> tuple[Tensor, Tensor]:
    """Integrated gradients (Sundararajan et al. 2017) from a picture of the mean colour, summed within each patch.

    By the midpoints of `steps` pieces; the sum over the patches is the gain in score over the baseline.
    """
    with torch.no_grad():
        targets = _chosen(model(images), targets)
    total = torch.zeros_like(images)
    for step in range(steps):
        point = (images * ((step + 0.5) / steps)).detach().requires_grad_()
        score = model(point).gather(1, targets[:, None]).sum()
        total += torch.autograd.grad(score, point)[0]
    rows, columns = model.architecture.patch_size
    attributed = (images * total / steps).sum(dim=1)
    return attributed.unfold(1, rows, rows).unfold(2, columns, columns).sum(dim=(-1, -2)).flatten(1), targets


def _raw(
    model: VisionTransformer, trace: Trace, layer: int | None, head: int | None, query: Query, grid: tuple[int, int]
) -> Tensor:
    if layer is None and query == "cls" and model.architecture.pool == "attention":
        return pool_weights(model, trace, lambda pool: attention_row(pool, 0, head))
    rows = _rows_of_heads(model, trace.self_attention[-1 if layer is None else layer], query, grid)
    return rows.mean(dim=1) if head is None else rows[:, head]


def _rows_of_heads(model: VisionTransformer, record: Record, query: Query, grid: tuple[int, int]) -> Tensor:
    """What each head attends to [B, H, N]: asked by a patch, the class token, or by all patches alike without one."""
    a = model.architecture
    if query != "cls":
        return record.rows(queries=[_place(query, grid, a.prefix)])[:, :, 0]
    if a.pool == "class":
        return record.rows(queries=[0])[:, :, 0]
    total = record.q.new_zeros(*record.q.shape[:2], record.k.shape[2], dtype=torch.float32)
    for queries in in_chunks(record):
        total += record.rows(queries=queries[queries >= a.prefix].tolist()).sum(dim=2)
    return total / (record.q.shape[2] - a.prefix)


def _start(
    model: VisionTransformer,
    trace: Trace,
    query: Query,
    grid: tuple[int, int],
    fuse: Callable[[Record], Tensor] | None = None,
) -> Tensor:
    if query == "cls":
        return pool_weights(model, trace, fuse)
    start = _no_weights(trace)
    start[:, _place(query, grid, model.architecture.prefix)] = 1.0
    return start


def _place(query: Query, grid: tuple[int, int], prefix: int) -> int:
    assert isinstance(query, tuple)
    return prefix + query[0] * grid[1] + query[1]


def _chosen(scores: Tensor, targets: Tensor | None) -> Tensor:
    return scores.argmax(dim=1) if targets is None else targets.to(scores.device)


def _check_targets(model: VisionTransformer, images: Tensor, targets: Tensor) -> None:
    classes = model.architecture.classes
    if targets.shape != images.shape[:1] or targets.min() < 0 or targets.max() >= classes:
        raise ConfigError(f"targets: must be a class from 0 to {classes - 1} for each picture, got {targets.tolist()}")


def _check(
    model: VisionTransformer, method: str, layer: int | None, head: int | None, query: Query, grid: tuple[int, int]
) -> None:
    a = model.architecture
    if method not in METHODS:
        raise ConfigError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    if method in FOR_A_CLASS and not a.classes:
        raise ConfigError(
            f"method {method}: needs a class score, and the model has no classes; raw, rollout and norm do not"
        )
    if query != "cls" and method not in ASKED_BY_A_PATCH:
        raise ConfigError(f"query: is for {', '.join(ASKED_BY_A_PATCH)}, not for {method}")
    if layer is not None and not -a.depth <= layer < a.depth:
        raise ConfigError(f"layer: must be 0 to {a.depth - 1}, got {layer}")
    if head is not None and not 0 <= head < a.heads:
        raise ConfigError(f"head: must be 0 to {a.heads - 1}, got {head}")
    if query != "cls" and not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
        last = f"0,0 to {grid[0] - 1},{grid[1] - 1}"
        raise ConfigError(f"query: the patches are {last}, got {query[0]},{query[1]}")
