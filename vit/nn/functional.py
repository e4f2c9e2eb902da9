"""Scaled dot-product attention as plain functions: fused, readable, and the masks both take.

Letters: B batch, H heads, N queries, M keys, K dim of one head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v by torch's fused kernel (Vaswani et al. 2017).

    q [B, H, N, K], k [B, H, M, K], v [B, H, M, K] -> [B, H, N, K]. `mask` is boolean, broadcastable to
    [B, H, N, M], True where a query may attend. With `causal` the N queries are the last N of the M positions, so
    that a cached pass and a full pass agree. A query that may attend to nothing gets zeros.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad:
        # torch's CPU kernel takes four times as long for a backward pass in bf16 as in fp32
        with torch.autocast("cpu", enabled=False):
            y = attention(q.float(), k.float(), v.float(), mask=mask, causal=causal, dropout=dropout)
        return y.to(q.dtype)
    n, m = q.shape[-2], k.shape[-2]
    if not causal or (mask is None and n == 1):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    if mask is None and n == m:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    mask = _allowed(n, m, mask, causal, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def attention_weights(q: Tensor, k: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """The same formula, readable: softmax(q k^T / sqrt(K)), q [B, H, N, K], k [B, H, M, K] -> [B, H, N, M].

    In fp32, or fp64 where the inputs are. Rows sum to one, or to zero where a query may attend to nothing.
    """
    precision = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(precision) @ k.to(precision).transpose(-2, -1) / math.sqrt(q.shape[-1])
    allowed = _allowed(q.shape[-2], k.shape[-2], mask, causal, q.device)
    if allowed is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
    return weights.masked_fill(~allowed, 0.0)  # a row of -inf alone is NaN in softmax


def causal_mask(n: int, m: int, device: torch.device | None = None) -> Tensor:
    """Boolean [n, m]: query i, the last n of m positions, may attend to key j when j is not in its future."""
    return torch.ones(n, m, dtype=torch.bool, device=device).tril(diagonal=m - n)


def padding_mask(lengths: Tensor, m: int) -> Tensor:
    """Boolean [B, 1, 1, m]: True for the first lengths[b] keys. lengths [B]."""
    return (torch.arange(m, device=lengths.device) < lengths[:, None])[:, None, None]


def _allowed(n: int, m: int, mask: Tensor | None, causal: bool, device: torch.device) -> Tensor | None:
    if not causal:
        return mask
    triangle = causal_mask(n, m, device)
    return triangle if mask is None else mask & triangle
