"""The stack of blocks: final norm, recomputed activations, and pooling by a learned query."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vit.nn import MLP, Attention, Block, LatentPool, Trace, Transformer, new_cache

B, N, M, D = 2, 5, 4, 32


def gradients(model: Transformer, x: torch.Tensor, context: torch.Tensor | None) -> list[torch.Tensor]:
    torch.manual_seed(1)  # the same dropout in both passes
    model.zero_grad()
    model(x, context, causal=True).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("cross", [False, True])
def test_checkpointing_gives_the_same_gradients(cross: bool, make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(cross=cross)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
        elif isinstance(module, Block):
            module.drop_path = 0.3
    x, context = torch.randn(B, N, D, requires_grad=True), torch.randn(B, M, D) if cross else None
    plain = gradients(model, x, context)
    model.checkpointing = True
    recomputed = gradients(model, x, context)
    assert len(plain) == len(recomputed) == len(list(model.parameters()))
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_checkpointing_keeps_fewer_tensors(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    x = torch.randn(B, N, D, requires_grad=True)
    counts = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            model(x)
        counts.append(len(kept))
    assert counts[1] < counts[0] / 4


def test_trace_and_cache_are_filled_also_with_checkpointing(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    model.checkpointing = True
    trace, cache = Trace(), new_cache(3)
    model(torch.randn(B, N, D), causal=True, trace=trace, cache=cache)
    assert len(trace.tokens) == 3
    assert [layer.self_attention.length for layer in cache] == [N] * 3


def test_tokens_without_positions_may_come_in_any_order(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    x, order = torch.randn(B, N, D), torch.randperm(N)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], rtol=0, atol=1e-5)


def test_a_masked_token_is_as_good_as_absent(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(cross=True)
    x, context = torch.randn(B, N, D), torch.randn(B, M, D)
    mask = torch.arange(N)[None, None, None] < 3
    context_mask = torch.arange(M)[None, None, None] < 2
    masked = model(x, context, mask=mask, context_mask=context_mask)[:, :3]
    torch.testing.assert_close(masked, model(x[:, :3], context[:, :2]), rtol=0, atol=1e-5)


def test_latent_pool_equals_torchs_attention_of_the_latent(randomise: Callable[[nn.Module], None]) -> None:
    pool = LatentPool(Attention(D, 4), MLP(D, D), nn.LayerNorm(D))
    randomise(pool)
    theirs = nn.MultiheadAttention(D, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": pool.attn.qkv.weight,
            "in_proj_bias": pool.attn.qkv.bias,
            "out_proj.weight": pool.attn.proj.weight,
            "out_proj.bias": pool.attn.proj.bias,
        }
    )
    x = torch.randn(B, N, D)
    y = theirs(pool.latent.expand(B, 1, D), x, x, need_weights=False)[0]
    torch.testing.assert_close(pool(x), (y + pool.mlp(pool.norm(y)))[:, 0], rtol=0, atol=1e-5)
