"""Step by step with a cache against all at once: the same numbers to 1e-5, and no look into the future."""

from collections.abc import Callable

import pytest
import torch

from vit.nn import Transformer, new_cache

B, N, M, D = 2, 9, 5, 32


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("chunks", [[1] * N, [4, 1, 3, 1], [N], [1, N - 1]])
def test_a_cached_pass_equals_the_full_pass(
    chunks: list[int], cross: bool, qk_norm: bool, make_transformer: Callable[..., Transformer]
) -> None:
    model = make_transformer(cross=cross, qk_norm=qk_norm)
    x, context = torch.randn(B, N, D), torch.randn(B, M, D) if cross else None
    full = model(x, context, causal=True)
    cache = new_cache(len(model.blocks))
    parts = [model(part, context, causal=True, cache=cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-5)
    assert [layer.self_attention.length for layer in cache] == [N] * len(model.blocks)
    assert [layer.cross_attention.length for layer in cache] == [M if cross else 0] * len(model.blocks)


def test_a_cached_pass_equals_the_full_pass_under_masks(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(cross=True)
    x, context = torch.randn(B, N, D), torch.randn(B, M, D)
    mask = torch.ones(B, 1, 1, N, dtype=torch.bool)
    mask[1, ..., :3] = False  # the second sample is padded on the left
    context_mask = torch.ones(B, 1, 1, M, dtype=torch.bool)
    context_mask[0, ..., 2:] = False
    full = model(x, context, mask=mask, context_mask=context_mask, causal=True)
    cache = new_cache(len(model.blocks))
    for end in range(1, N + 1):
        step = model(
            x[:, end - 1 : end], context, mask=mask[..., :end], context_mask=context_mask, causal=True, cache=cache
        )
        torch.testing.assert_close(step[:, 0], full[:, end - 1], rtol=0, atol=1e-5)


def test_keys_of_the_context_are_computed_once(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(cross=True)
    x, context = torch.randn(B, 2, D), torch.randn(B, M, D)
    cache = new_cache(len(model.blocks))
    model(x[:, :1], context, causal=True, cache=cache)
    kept = [(layer.cross_attention.k, layer.cross_attention.v) for layer in cache]
    second = model(x[:, 1:], torch.randn(B, M, D), causal=True, cache=cache)  # another context changes nothing
    for layer, (k, v) in zip(cache, kept, strict=True):
        assert layer.cross_attention.k is k
        assert layer.cross_attention.v is v
    torch.testing.assert_close(second[:, 0], model(x, context, causal=True)[:, 1], rtol=0, atol=1e-5)


def test_a_pass_without_cache_leaves_no_state_behind(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(cross=True)
    x, context = torch.randn(B, N, D), torch.randn(B, M, D)
    first = model(x, context, causal=True)
    model(torch.randn(B, 3, D), torch.randn(B, 4, D), causal=True, cache=new_cache(len(model.blocks)))
    assert torch.equal(model(x, context, causal=True), first)


def test_every_layer_of_a_new_cache_is_its_own() -> None:
    first, second = new_cache(2)
    first.self_attention.append(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    assert first.self_attention.length == 3
    assert second.self_attention.length == 0


def test_selected_sequences_go_on_as_they_were(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    x, rows = torch.randn(3, N, D), torch.tensor([2, 0, 0, 2])
    cache = new_cache(len(model.blocks))
    model(x[:, :4], causal=True, cache=cache)
    for layer in cache:
        layer.self_attention.select(rows)
        layer.cross_attention.select(rows)  # still empty
        assert layer.cross_attention.length == 0
    rest = model(x[rows, 4:], causal=True, cache=cache)
    torch.testing.assert_close(rest, model(x, causal=True)[rows, 4:], rtol=0, atol=1e-5)


def test_kept_keys_hold_no_memory_but_their_own(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(cross=True)
    cache = new_cache(len(model.blocks))
    model(torch.randn(B, N, D), torch.randn(B, M, D), causal=True, cache=cache)
    for kept in (cache[0].self_attention, cache[0].cross_attention):
        for tensor in (kept.k, kept.v):
            assert tensor is not None
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_past_does_not_change_when_the_future_does(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    x = torch.randn(B, N, D)
    before = model(x, causal=True)
    for t in (1, 4, N - 1):
        changed = x.clone()
        changed[:, t:] = torch.randn(B, N - t, D)
        after = model(changed, causal=True)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


def test_the_past_has_exactly_zero_gradient_to_the_future(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    x = torch.randn(B, N, D, requires_grad=True)
    y = model(x, causal=True)
    for t in range(N):
        (gradient,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        assert gradient[:, t + 1 :].count_nonzero() == 0
        assert (gradient[:, : t + 1].abs().amax(-1) > 0).all()


def test_padded_tokens_have_exactly_zero_gradient(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer()
    x = torch.randn(B, N, D, requires_grad=True)
    mask = torch.ones(B, 1, 1, N, dtype=torch.bool)
    mask[1, ..., 6:] = False
    (gradient,) = torch.autograd.grad(model(x, mask=mask)[:, :6].square().sum(), x)
    assert gradient[1, 6:].count_nonzero() == 0
    assert (gradient[0].abs().amax(-1) > 0).all()
