"""Attention as plain functions: against loops in float64, against torch, and fused against readable."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.nn import attention, attention_weights, causal_mask, padding_mask

B, H, K = 2, 3, 8
SIZES = [(5, 5), (1, 6), (3, 7), (7, 4)]  # queries, keys


def tensors(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, H, n, K), torch.randn(B, H, m, K), torch.randn(B, H, m, K)


def masks(n: int, m: int) -> dict[str, Tensor | None]:
    """One mask of every shape the functions take; the [B, H, N, M] one leaves a query with nothing."""
    each = torch.rand(B, H, n, m) > 0.4
    each[0, 1, 0] = False
    return {
        "none": None,
        "padding": padding_mask(torch.tensor([m, m // 2 + 1]), m),
        "pairs": torch.rand(n, m) > 0.3,
        "samples": torch.rand(B, 1, n, m) > 0.3,
        "heads": each,
    }


def by_loops(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and weights of the formula, a query at a time in float64."""
    n, m = q.shape[2], k.shape[2]
    allowed = torch.ones(B, H, n, m, dtype=torch.bool) if mask is None else mask.expand(B, H, n, m)
    output, weights = torch.zeros(B, H, n, K).double(), torch.zeros(B, H, n, m).double()
    for b in range(B):
        for h in range(H):
            for i in range(n):
                keys = [j for j in range(m) if allowed[b, h, i, j] and (not causal or j <= m - n + i)]
                scores = [math.exp(float(q[b, h, i].double() @ k[b, h, j].double()) / math.sqrt(K)) for j in keys]
                for j, score in zip(keys, scores, strict=True):
                    weights[b, h, i, j] = score / sum(scores)
                    output[b, h, i] += weights[b, h, i, j] * v[b, h, j].double()
    return output.float(), weights.float()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["none", "padding", "pairs", "samples", "heads"])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_fused_and_readable_attention_equal_the_formula_by_loops(n: int, m: int, name: str, causal: bool) -> None:
    q, k, v = tensors(n, m)
    mask = masks(n, m)[name]
    output, weights = by_loops(q, k, v, mask, causal)
    torch.testing.assert_close(attention(q, k, v, mask=mask, causal=causal), output, rtol=0, atol=1e-5)
    torch.testing.assert_close(attention_weights(q, k, mask=mask, causal=causal), weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["none", "padding", "pairs", "samples", "heads"])
def test_without_causal_it_is_torchs_scaled_dot_product_attention(name: str) -> None:
    q, k, v = tensors(4, 6)
    mask = masks(4, 6)[name]
    assert torch.equal(attention(q, k, v, mask=mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_causal_over_a_whole_sequence_is_torchs_is_causal() -> None:
    q, k, v = tensors(6, 6)
    assert torch.equal(attention(q, k, v, causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_causal_queries_are_the_last_of_the_positions() -> None:
    q, k, v = tensors(7, 7)
    whole = attention(q, k, v, causal=True)
    for n in (1, 2, 6):
        torch.testing.assert_close(attention(q[:, :, -n:], k, v, causal=True), whole[:, :, -n:], rtol=0, atol=1e-6)


def test_a_query_that_may_attend_to_nothing_gets_exactly_zero() -> None:
    q, k, v = tensors(4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    for causal in (False, True):
        assert attention(q, k, v, mask=mask, causal=causal)[:, :, 2].count_nonzero() == 0
        weights = attention_weights(q, k, mask=mask, causal=causal)
        assert weights[:, :, 2].count_nonzero() == 0
        torch.testing.assert_close(weights.sum(-1)[:, :, [0, 1, 3]], torch.ones(B, H, 3), rtol=0, atol=1e-6)
    early = attention(*(t[:, :, :n] for t, n in ((q, 4), (k, 2), (v, 2))), causal=True)  # queries before the first key
    assert early[:, :, :2].count_nonzero() == 0


def test_gradients_stay_finite_where_a_query_may_attend_to_nothing() -> None:
    q, k, v = (t.requires_grad_() for t in tensors(3, 3))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    for output in (attention(q, k, v, mask=mask), attention_weights(q, k, mask=mask) @ v):
        for gradient in torch.autograd.grad(output.square().sum(), (q, k, v)):
            assert gradient.isfinite().all()


def test_readable_weights_are_fp32_for_bf16_inputs() -> None:
    q, k, _ = tensors(3, 4)
    weights = attention_weights(q.bfloat16(), k.bfloat16())
    assert weights.dtype == torch.float32
    assert torch.equal(weights, attention_weights(q.bfloat16().float(), k.bfloat16().float()))


def test_causal_mask_lets_a_query_see_itself_and_what_is_before_it() -> None:
    for n, m in SIZES:
        expected = [[j <= m - n + i for j in range(m)] for i in range(n)]
        assert causal_mask(n, m).tolist() == expected


def test_padding_mask_is_true_for_the_first_keys_of_each_sample() -> None:
    mask = padding_mask(torch.tensor([3, 0, 1]), 3)
    assert mask.shape == (3, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, True, True], [False, False, False], [True, False, False]]


def test_attention_dropout_scales_what_it_keeps() -> None:
    q, k, _ = tensors(2, 50)
    dropped = attention(q, k, torch.eye(50).expand(B, H, 50, 50), dropout=0.5)  # identity values show the weights
    weights = attention_weights(q, k)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * weights[kept], rtol=1e-5, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_training_in_bf16_on_the_processor_computes_attention_in_fp32(autocast: bool) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 7, 8).bfloat16().float().requires_grad_() for _ in range(3)]
    coarse = [t.detach().bfloat16().requires_grad_() for t in exact]
    wanted = attention(*exact, causal=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attention(*coarse, causal=True)
    assert found.dtype == torch.bfloat16
    # rounded once, at the end: half a unit in the last of bf16's eight bits
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=0)
    wanted.sum().backward()
    found.float().sum().backward()
    for ours, theirs in zip(coarse, exact, strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=2**-8, atol=1e-6)
