"""Blocks as an architecture describes them: what every model of ours is stacked from, for pictures and for words."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.models.architecture import Activation, MLPKind, Norm
from vit.nn import MLP, Attention, Block, SwiGLU, gelu_tanh, quick_gelu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


NORMS: dict[str, Callable[..., nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class BlockShape(Protocol):
    """What `VisionArchitecture` and `TextArchitecture` both say about their blocks."""

    @property
    def dim(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def mlp(self) -> MLPKind: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def norm(self) -> Norm: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def key_bias(self) -> bool: ...
    @property
    def bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def attention_norm(self) -> bool: ...
    @property
    def mlp_norm(self) -> bool: ...
    @property
    def layer_scale(self) -> float | None: ...
    @property
    def dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def drop_path(self) -> float: ...


def make_norm(a: BlockShape) -> Callable[[int], nn.Module]:
    """What makes the norm of a width."""
    return partial(NORMS[a.norm], eps=a.norm_eps)


def make_blocks(a: BlockShape, *, cross: bool = False, post_norm: bool = False) -> list[Block]:
    """All blocks, with cross-attention to a context where `cross`; stochastic depth rises linearly to the last one."""
    norm = make_norm(a)
    rates = torch.linspace(0, a.drop_path, a.depth, device="cpu").tolist()  # numbers, also under a meta device
    return [
        Block(
            _attention(a, norm),
            _mlp(a, norm),
            cross_attn=_attention(a, norm) if cross else None,
            norm=norm,
            post_norm=post_norm,
            layer_scale=a.layer_scale,
            drop_path=rate,
        )
        for rate in rates
    ]


def _attention(a: BlockShape, norm: Callable[[int], nn.Module]) -> Attention:
    return Attention(
        a.dim,
        a.heads,
        bias=a.qkv_bias,
        key_bias=a.key_bias,
        proj_bias=a.bias,
        qk_norm=norm if a.qk_norm else None,
        norm=norm(a.dim) if a.attention_norm else None,
        attention_dropout=a.attention_dropout,
        dropout=a.dropout,
    )


def _mlp(a: BlockShape, norm: Callable[[int], nn.Module]) -> nn.Module:
    inner = norm(a.hidden) if a.mlp_norm else None
    if a.mlp == "swiglu":
        return SwiGLU(a.dim, a.hidden, bias=a.bias, norm=inner, dropout=a.dropout)
    activation = ACTIVATIONS[a.activation]
    return MLP(a.dim, a.hidden, activation=activation, bias=a.bias, norm=inner, dropout=a.dropout)
