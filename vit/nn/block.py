"""The one block: attention to oneself, attention to a context where there is one, and an MLP, each a residual."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vit.nn.attention import Attention
from vit.nn.state import LayerCache, Trace


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016): zero the whole branch of a sample with probability `rate`.

    x [B, N, D] -> [B, N, D], the kept ones divided by 1 - rate, so that the expectation stays.
    """
    keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= rate
    return x * (keep.to(x.dtype) / (1 - rate))


def kept_samples(x: Tensor, rate: float) -> Tensor:
    """Places of the samples of x [B, ...] that a branch is computed for: B - round(B * rate) of them, at random.

    Stochastic depth that does no work for the others (Oquab et al. 2023, DINOv2).
    """
    return torch.randperm(len(x), device=x.device)[round(len(x) * rate) :]


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021, CaiT): x [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attn(norm(x)), then x + cross_attn(norm(x), context) if there is one, then x + mlp(norm(x)).

    Normalised before each branch (pre-norm); with `post_norm` after each sum, norm(x + attn(x)), as in Vaswani et al.
    2017. `norm` makes a norm of the given width; `layer_scale` is the initial value of LayerScale, None leaves it out;
    `drop_path` the rate of stochastic depth. Without a context a block that has cross-attention skips it.
    """

    def __init__(
        self,
        attn: Attention,
        mlp: nn.Module,
        *,
        cross_attn: Attention | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        post_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = attn.dim

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        self.post_norm, self.drop_path = post_norm, drop_path
        self.norm1, self.attn, self.ls1 = norm(dim), attn, scale()
        self.cross_attn = cross_attn
        if cross_attn is not None:
            self.cross_norm, self.cross_ls = norm(dim), scale()
        self.norm2, self.mlp, self.ls2 = norm(dim), mlp, scale()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        causal: bool = False,
        rotation: Tensor | None = None,
        cache: LayerCache | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """x [B, N, D], context [B, M, D] -> [B, N, D]. `mask`, `rotation` are for x, `context_mask` for the context."""
        if context is not None and self.cross_attn is None:
            raise ValueError("a context was given to a block that has no cross-attention")

        # a mask or rotation of the whole batch, a context and a cache belong to all of its samples
        skip = mask is None and context is None and cache is None and trace is None

        def attend(x: Tensor) -> Tensor:
            return self.attn(
                x,
                mask=mask,
                causal=causal,
                rotation=rotation,
                cache=None if cache is None else cache.self_attention,
                trace=None if trace is None else trace.self_attention,
            )

        def attend_to_context(x: Tensor) -> Tensor:
            assert self.cross_attn is not None
            return self.cross_attn(
                x,
                context,
                mask=context_mask,
                cache=None if cache is None else cache.cross_attention,
                trace=None if trace is None else trace.cross_attention,
            )

        x = self._residual(x, attend, self.norm1, self.ls1, skip=skip)
        if self.cross_attn is not None and context is not None:
            x = self._residual(x, attend_to_context, self.cross_norm, self.cross_ls)
        return self._residual(x, self.mlp, self.norm2, self.ls2, skip=skip)

    def _residual(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module, scale: nn.Module, *, skip: bool = False
    ) -> Tensor:
        """x [B, N, D] and what a branch adds to it -> [B, N, D]; with `skip` it need not see samples that drop it."""
        if self.post_norm:
            return norm(x + self._drop(scale(branch(x))))
        if skip and self.training and 0 < round(len(x) * self.drop_path) < len(x):
            kept = kept_samples(x, self.drop_path)
            added = scale(branch(norm(x[kept]))).to(x.dtype)
            return x.index_add(0, kept, added, alpha=len(x) / len(kept))
        return x + self._drop(scale(branch(norm(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_path) if self.training and self.drop_path > 0 else x
