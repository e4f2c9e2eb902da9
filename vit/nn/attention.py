"""The one module that holds the weights of attention.

Letters: B batch, H heads, N queries, M keys, D dim, K dim of one head (D / H).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.nn.functional import attention
from vit.nn.rotary import rotate
from vit.nn.state import KeyValues, Record


class Attention(nn.Module):
    """Multi-head attention. Of a sequence to itself, or to another one, its `context`.

    One weight `qkv` [3 D, D] holds the rows of q, then k, then v, each head by head. With a context, q is made
    from x and k, v from the context, by the same rows. Without `key_bias` only queries and values have one, `q_bias`
    and `v_bias` (Bao et al. 2021, BEiT). `qk_norm` makes the norm of one head's queries and of its keys (Henry et al.
    2020), applied after the projection; `norm` is one of the joined heads, before the output projection (Wang et al.
    2022, Magneto).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: Callable[[int], nn.Module] | None = None,
        norm: nn.Module | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim, got dim {dim} and {heads} heads")
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias and key_bias)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if bias and not key_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if bias and not key_bias else None
        self.q_norm = qk_norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(self.head_dim) if qk_norm else nn.Identity()
        self.norm = norm or nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Tensor | None = None,
        cache: KeyValues | None = None,
        trace: list[Record] | None = None,
    ) -> Tensor:
        """x [B, N, D], context [B, M, D] or None for x itself -> [B, N, D].

        Several sequences can share a context, x [B * S, N, D], the S of each beside each other: its keys and values
        are made and kept once.

        `mask` and `causal` as in `attention`. `rotation` turns queries and keys as in `rotate`, those of x alone: a
        context's tokens stand elsewhere. `cache` keeps keys and values between calls: those of x are appended
        to it; those of a context are computed once and reused. `trace` receives one `Record` of this call.
        """
        shape = x.shape
        if context is None:
            q, k, v = self._split(self._project(x, slice(None)))
            q, k = self.q_norm(q), self.k_norm(k)
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            if cache is not None:
                k, v = cache.append(k, v)
        else:
            x = x.reshape(context.shape[0], -1, self.dim)  # the sequences of one context beside each other
            q = self.q_norm(self._split(self._project(x, slice(0, self.dim)))[0])
            k, v = self._context_keys(context, cache)
        x = attention(q, k, v, mask=mask, causal=causal, dropout=self.attention_dropout if self.training else 0.0)
        if trace is not None:
            trace.append(Record(q, k, v, x, mask, causal))
        x = self.norm(x.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(x)).reshape(shape)

    def _context_keys(self, context: Tensor, cache: KeyValues | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.k is not None and cache.v is not None:
            return cache.k, cache.v
        k, v = self._split(self._project(context, slice(self.dim, None)))
        k = self.k_norm(k)
        return (k, v) if cache is None else cache.append(k, v)

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight[rows], None if bias is None else bias[rows])

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, N, P D] -> P tensors [B, H, N, K]."""
        return x.unflatten(-1, (-1, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)

    def value_maps(self) -> tuple[Tensor, Tensor]:
        """What each head writes, as two low-rank factors: down [H, K, D] to values, up [H, D, K] to the output.

        Concatenating the heads and projecting equals summing, head by head, up @ (weights @ x @ down^T): every head
        moves a K-dimensional message into the D-dimensional stream (Elhage et al. 2021, "A Mathematical Framework
        for Transformer Circuits").
        """
        down = self.qkv.weight[2 * self.dim :].unflatten(0, (self.heads, self.head_dim))
        up = self.proj.weight.unflatten(1, (self.heads, self.head_dim)).transpose(0, 1)
        return down, up
