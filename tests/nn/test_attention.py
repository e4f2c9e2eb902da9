"""The attention module against nn.MultiheadAttention with the same weights, to 1e-5."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vit.nn import Attention, KeyValues, Record

B, N, M, D, H = 2, 5, 7, 24, 3


def with_twin(bias: bool, randomise: Callable[[nn.Module], None]) -> tuple[Attention, nn.MultiheadAttention]:
    """Ours and torch's with the same weights. Torch's `bias` is also that of the output projection, ours is not."""
    ours, theirs = Attention(D, H, bias=bias), nn.MultiheadAttention(D, H, bias=bias, batch_first=True)
    randomise(ours)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.out_proj.weight.copy_(ours.proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(ours.qkv.bias)
            theirs.out_proj.bias.copy_(ours.proj.bias)
        else:
            ours.proj.bias.zero_()
    return ours, theirs


def case(name: str, m: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Our arguments and torch's, whose masks are True where attention is forbidden."""
    if name == "padding":
        padded = torch.zeros(B, m, dtype=torch.bool)
        padded[1, m // 2 :] = True
        return {"mask": ~padded[:, None, None]}, {"key_padding_mask": padded}
    forbidden = torch.rand(B * H, N, m) > 0.6
    forbidden[..., 0] = False  # torch gives NaN where nothing may be attended to
    if name == "pairs":
        return {"mask": ~forbidden[0]}, {"attn_mask": forbidden[0]}
    if name == "heads":
        return {"mask": ~forbidden.unflatten(0, (B, H))}, {"attn_mask": forbidden}
    if name == "causal":
        return {"causal": True}, {"attn_mask": torch.ones(N, m, dtype=torch.bool).triu(1 + m - N)}
    return {}, {}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("name", ["plain", "padding", "pairs", "heads", "causal"])
def test_output_and_weights_equal_torchs_multihead_attention(
    name: str, cross: bool, bias: bool, randomise: Callable[[nn.Module], None]
) -> None:
    ours, theirs = with_twin(bias, randomise)
    x, context = torch.randn(B, N, D), torch.randn(B, M, D) if cross else None
    key = x if context is None else context
    mine, torchs = case(name, key.shape[1])
    expected, weights = theirs(x, key, key, average_attn_weights=False, **torchs)
    trace: list[Record] = []
    torch.testing.assert_close(ours(x, context, trace=trace, **mine), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(trace[0].rows(), weights, rtol=0, atol=1e-5)


def test_gradients_equal_torchs_multihead_attention(randomise: Callable[[nn.Module], None]) -> None:
    ours, theirs = with_twin(True, randomise)
    x, context = torch.randn(B, N, D), torch.randn(B, M, D)
    ours(x, context).square().sum().backward()
    theirs(x, context, context)[0].square().sum().backward()
    torch.testing.assert_close(ours.qkv.weight.grad, theirs.in_proj_weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.qkv.bias.grad, theirs.in_proj_bias.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.proj.weight.grad, theirs.out_proj.weight.grad, rtol=1e-4, atol=1e-5)


def test_the_sequence_itself_as_context_is_self_attention(randomise: Callable[[nn.Module], None]) -> None:
    attn = Attention(D, H, qk_norm=nn.LayerNorm)
    randomise(attn)
    x = torch.randn(B, N, D)
    torch.testing.assert_close(attn(x, x), attn(x), rtol=0, atol=1e-6)


def test_qk_norm_makes_the_weights_blind_to_the_scale_of_the_input() -> None:
    x = torch.randn(B, N, D)
    for context in (None, torch.randn(B, M, D)):
        trace: list[Record] = []
        attn = Attention(D, H, bias=False, qk_norm=lambda dim: nn.LayerNorm(dim, eps=0))
        for scale in (1.0, 100.0):
            attn(scale * x, context if context is None else scale * context, trace=trace)
        torch.testing.assert_close(trace[0].rows(), trace[1].rows(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_value_maps_sum_over_heads_to_the_output(bias: bool, randomise: Callable[[nn.Module], None]) -> None:
    attn = Attention(D, H, bias=bias)
    randomise(attn)
    x = torch.randn(B, N, D)
    trace: list[Record] = []
    output = attn(x, trace=trace)
    down, up = attn.value_maps()
    assert down.shape == (H, D // H, D)
    assert up.shape == (H, D, D // H)
    weights = trace[0].rows()
    written = sum(weights[:, h] @ x @ down[h].T @ up[h].T for h in range(H))
    constant = attn.proj.bias  # weights sum to one, so the bias of v goes through as a constant
    if bias:
        constant = constant + attn.proj.weight @ attn.qkv.bias[2 * D :]
    torch.testing.assert_close(written + constant, output, rtol=0, atol=1e-5)


def test_value_maps_are_views_of_the_weights() -> None:
    attn = Attention(D, H)
    down, up = attn.value_maps()
    down.sum().backward(retain_graph=True)
    assert attn.qkv.weight.grad is not None
    assert up.data_ptr() == attn.proj.weight.data_ptr()


def test_keys_of_a_context_are_made_once_and_reused(randomise: Callable[[nn.Module], None]) -> None:
    attn = Attention(D, H)
    randomise(attn)
    x, context, cache = torch.randn(B, N, D), torch.randn(B, M, D), KeyValues()
    first = attn(x, context, cache=cache)
    k, v = cache.k, cache.v
    assert k is not None
    assert cache.length == M
    assert torch.equal(first, attn(x, context))
    again = attn(x, torch.zeros_like(context), cache=cache)  # the cache answers, the context is not looked at
    assert torch.equal(again, first)
    assert cache.k is k
    assert cache.v is v


def test_dropout_acts_in_training_alone() -> None:
    x = torch.randn(B, N, D)
    for rates in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        attn = Attention(D, H, **rates)
        assert not torch.equal(attn(x), attn(x))
        attn.eval()
        assert torch.equal(attn(x), attn(x))


def test_heads_that_do_not_divide_dim_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must divide dim, got dim 24 and 5 heads"):
        Attention(24, 5)
