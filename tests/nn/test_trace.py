"""What a forward pass remembers when asked: records of attention and the residual stream."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vit.nn import Attention, LatentPool, Record, Trace, Transformer, attention, attention_weights

B, H, N, M, K = 2, 4, 5, 7, 8


def masks() -> dict[str, Tensor | None]:
    padding = torch.ones(B, 1, 1, M, dtype=torch.bool)
    padding[1, ..., 3:] = False
    shapes = {"pairs": (N, M), "one row": (1, M), "samples": (B, 1, N, M), "heads": (B, H, N, M)}
    drawn = {name: torch.rand(shape) > 0.4 for name, shape in shapes.items()}
    for mask in drawn.values():
        mask[..., :3] = True  # with causal, query 0 sees keys 0 to 2
    return {"none": None, "padding": padding, **drawn, "head rows": drawn["heads"][:, :, :1]}


def record(name: str, causal: bool) -> Record:
    q, k, v = torch.randn(B, H, N, K), torch.randn(B, H, M, K), torch.randn(B, H, M, K)
    mask = masks()[name]
    return Record(q, k, v, attention(q, k, v, mask=mask, causal=causal), mask, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["none", "padding", "pairs", "one row", "samples", "heads", "head rows"])
def test_rows_are_the_weights_for_every_choice(name: str, causal: bool) -> None:
    r = record(name, causal)
    weights = attention_weights(r.q, r.k, mask=r.mask, causal=causal)
    torch.testing.assert_close(weights @ r.v, r.output, rtol=0, atol=1e-5)
    for heads in (None, [0], [3, 1], [2, 2]):
        for queries in (None, [4], [3, 0, 1]):
            expected = weights[:, heads or slice(None)][:, :, queries or slice(None)]
            for chunk in (1, 2, 1024):
                rows = r.rows(heads=heads, queries=queries, chunk=chunk)
                torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
                torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:3]), rtol=0, atol=1e-6)


def test_no_heads_or_no_queries_give_no_rows() -> None:
    r = record("heads", True)
    assert r.rows(heads=[]).shape == (B, 0, N, M)
    assert r.rows(queries=[]).shape == (B, H, 0, M)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"heads": [0, 4]}, "head 4 does not exist, there are 4: 0 to 3"),
        ({"heads": [-1]}, "head -1 does not exist"),
        ({"queries": [5]}, "query 5 does not exist, there are 5: 0 to 4"),
        ({"queries": [-2]}, "query -2 does not exist"),
    ],
)
def test_a_head_or_query_that_is_not_there_is_named(choice: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record("none", False).rows(**choice)


@pytest.mark.parametrize("cross", [False, True])
def test_a_trace_holds_every_layer_and_changes_nothing(
    cross: bool, make_transformer: Callable[..., Transformer]
) -> None:
    model = make_transformer(cross=cross)
    x, context = torch.randn(B, N, 32), torch.randn(B, M, 32) if cross else None
    trace = Trace()
    assert torch.equal(model(x, context, trace=trace), model(x, context))
    assert len(trace.self_attention) == len(trace.tokens) == 3
    assert len(trace.cross_attention) == (3 if cross else 0)
    assert trace.pool == []
    assert all(r.rows().shape == (B, 4, N, M) for r in trace.cross_attention)
    stream = x
    for block, tokens in zip(model.blocks, trace.tokens, strict=True):
        stream = block(stream, context)
        assert torch.equal(tokens, stream)
    assert torch.equal(model.norm(stream), model(x, context))


def test_rows_of_a_traced_layer_rebuild_its_output(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer(qk_norm=True)
    mask = torch.ones(B, 1, 1, N, dtype=torch.bool)
    mask[0, ..., 3:] = False
    trace = Trace()
    model(torch.randn(B, N, 32), mask=mask, causal=True, trace=trace)
    for r in trace.self_attention:
        torch.testing.assert_close(r.rows() @ r.v, r.output, rtol=0, atol=1e-5)


def test_the_gradient_of_a_recorded_output_is_its_slope(make_transformer: Callable[..., Transformer]) -> None:
    model = make_transformer().double()
    trace = Trace()
    loss = model(torch.randn(B, N, 32).double(), trace=trace).square().sum()
    outputs = [r.output for r in trace.self_attention]
    gradients = torch.autograd.grad(loss, outputs)
    assert all(g.shape == o.shape and g.abs().sum() > 0 for g, o in zip(gradients, outputs, strict=True))
    # the last layer's once more, by moving the recorded output a little and running the rest of the model
    step = 1e-4 * torch.randn_like(outputs[-1])
    ahead, behind = (
        model.norm(_from_heads(model.blocks[-1], trace.tokens[-2], outputs[-1] + s * step)).square().sum()
        for s in (0.5, -0.5)
    )
    assert (ahead - behind).item() == pytest.approx((gradients[-1] * step).sum().item(), rel=1e-4)


def _from_heads(block: nn.Module, x: Tensor, heads: Tensor) -> Tensor:
    """The rest of a block from the attention's output before its projection."""
    x = x + block.ls1(block.attn.proj(heads.transpose(1, 2).flatten(2)))
    return x + block.ls2(block.mlp(block.norm2(x)))


def test_pooling_attention_is_recorded(randomise: Callable[[nn.Module], None]) -> None:
    pool = LatentPool(Attention(32, 4), nn.Linear(32, 32), nn.LayerNorm(32))
    randomise(pool)
    x, trace = torch.randn(B, N, 32), []
    assert torch.equal(pool(x, trace=trace), pool(x))
    assert trace[0].rows().shape == (B, 4, 1, N)
