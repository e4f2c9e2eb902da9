"""Maps against plain implementations that hold every N x N matrix of attention and its gradient."""

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit.errors import ConfigError
from vit.explain import FOR_A_CLASS, METHODS, methods
from vit.explain.maps import Maps, attention_maps, head_maps
from vit.explain.methods import (
    distances,
    entropies,
    generic_attention_to_context,
    rollout,
    rollout_to_context,
)
from vit.models.architecture import Rope, VisionArchitecture
from vit.models.vision import VisionTransformer
from vit.nn import MLP, Attention, Block, Record, Trace, Transformer

TINY = VisionArchitecture((16, 24), (8, 8), dim=32, depth=3, heads=4, hidden=48, classes=5)
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers": {"registers": 3},
    "mean": {"pool": "mean", "registers": 1},
    "mean without class token": {"pool": "mean", "class_token": False},
    "attention": {"pool": "attention", "class_token": False},
    "attention over all": {"pool": "attention", "registers": 2},
    "attention over patches": {"pool": "attention", "registers": 2, "pool_prefix": False},
    "rope": {"rope": Rope("centred"), "qk_norm": True},
    "distilled": {"distilled": True},
}


@pytest.fixture(autouse=True)
def seeded_and_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(methods, "CHUNK", 2 * 4 * 7 * 4)  # so that there are several


def build(**changes: Any) -> VisionTransformer:
    model = VisionTransformer(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.head.weight.normal_()
    return model.eval()


class Explicit:
    """Attention by its formula, each matrix kept with its gradient."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.matrices: list[Tensor] = []
        # the module, which the function of the same name hides
        monkeypatch.setattr(sys.modules["vit.nn.attention"], "attention", self)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        weights.retain_grad()
        self.matrices.append(weights)
        return weights @ v


@pytest.fixture(params=list(VARIANTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def images(batch: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(batch, 3, height, width)


def plain(
    model: VisionTransformer, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """All matrices of attention, the gradients of the predicted classes' scores by them, and the classes."""
    with monkeypatch.context() as patch:
        explicit = Explicit(patch)
        scores = model(x)
        classes = scores.argmax(dim=1)
        scores.gather(1, classes[:, None]).sum().backward()
    gradients = [m.grad if m.grad is not None else torch.zeros_like(m) for m in explicit.matrices]
    return [m.detach() for m in explicit.matrices], gradients, classes


def plain_start(model: VisionTransformer, matrices: list[Tensor], fused: Tensor | None = None) -> Tensor:
    """Weights of pooling [B, N], of attention pooling its row."""
    a, count = model.architecture, matrices[0].shape[-1]
    start = torch.zeros(len(matrices[0]), count)
    if a.pool == "class":
        start[:, : 2 if a.distilled else 1] = 0.5 if a.distilled else 1.0
    elif a.pool == "mean":
        start[:, a.prefix :] = 1 / (count - a.prefix)
    else:
        row = (matrices[-1] if fused is None else fused).mean(dim=1)[:, 0]
        start[:, count - row.shape[1] :] = row
    return start


def close(maps: Maps, expected: Tensor, prefix: int) -> None:
    torch.testing.assert_close(maps.values.flatten(1), expected[:, prefix:], rtol=1e-5, atol=1e-6)


def test_rollout_equals_the_product_of_all_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(**VARIANTS[name]), images()
    matrices, _, _ = plain(model, x, monkeypatch)
    whole = torch.eye(matrices[0].shape[-1])
    for matrix in matrices[:3]:
        whole = (torch.eye(whole.shape[-1]) + matrix.mean(dim=1)) / 2 @ whole
    start = plain_start(model, matrices)
    close(attention_maps(model, x, method="rollout"), (start[:, None] @ whole)[:, 0], model.architecture.prefix)


def test_generic_attention_equals_the_product_of_all_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(**VARIANTS[name]), images()
    matrices, gradients, classes = plain(model, x, monkeypatch)
    weighed = [(m * g).clamp(min=0) for m, g in zip(matrices, gradients, strict=True)]
    whole = torch.eye(matrices[0].shape[-1]).expand(2, -1, -1)
    for matrix in weighed[:3]:
        whole = whole + matrix.mean(dim=1) @ whole
    start = plain_start(model, matrices, weighed[-1])
    maps = attention_maps(model, x, method="generic")
    close(maps, (start[:, None] @ whole)[:, 0], model.architecture.prefix)
    assert maps.targets == classes.tolist()


def test_gradient_rollout_equals_the_product_of_all_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in vit-explain's `grad_rollout`: the mean of gradient times attention over the heads, then no negatives."""
    model, x = build(**VARIANTS[name]), images()
    matrices, gradients, _ = plain(model, x, monkeypatch)
    fused = [(m * g).mean(dim=1).clamp(min=0) for m, g in zip(matrices, gradients, strict=True)]
    whole = torch.eye(matrices[0].shape[-1]).expand(2, -1, -1)
    for matrix in fused[:3]:
        one = torch.eye(whole.shape[-1]) + matrix
        whole = one / one.sum(dim=-1, keepdim=True) @ whole
    start = plain_start(model, matrices, fused[-1][:, None])
    close(
        attention_maps(model, x, method="gradient-rollout"), (start[:, None] @ whole)[:, 0], model.architecture.prefix
    )


def test_legrad_equals_the_sum_of_every_layers_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(**VARIANTS[name]), images()
    classes = model(x).argmax(dim=1)
    total = torch.zeros(2, 6 + model.architecture.prefix)
    for layer in range(3):
        with monkeypatch.context() as patch:
            explicit, trace = Explicit(patch), Trace()
            model.encode(x, trace=trace)
            score = model.score(model.norm(trace.tokens[layer])).gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, explicit.matrices[layer])
        total += gradient.clamp(min=0).mean(dim=(1, 2))
    close(attention_maps(model, x, method="legrad"), total, model.architecture.prefix)


@torch.no_grad()
def test_raw_rows_are_those_of_the_softmax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(**VARIANTS[name]), images()
    with monkeypatch.context() as patch, torch.enable_grad():
        explicit = Explicit(patch)
        model(x)
    prefix = model.architecture.prefix
    for layer in range(3):
        for head in range(4):
            maps = attention_maps(model, x, method="raw", layer=layer, head=head, query=(1, 2))
            close(maps, explicit.matrices[layer][:, head, prefix + 5], prefix)
    every = head_maps(model, x, query=(1, 2))
    assert every.shape == (2, 3, 4, 2, 3)
    for layer, matrix in enumerate(explicit.matrices[:3]):
        torch.testing.assert_close(every[:, layer].flatten(2), matrix[:, :, prefix + 5, prefix:], rtol=1e-5, atol=1e-6)
    if model.architecture.pool == "class":
        close(attention_maps(model, x, method="raw"), explicit.matrices[2].mean(dim=1)[:, 0], prefix)
    if name == "mean":
        close(attention_maps(model, x, method="raw"), explicit.matrices[2][:, :, prefix:].mean(dim=(1, 2)), prefix)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_rows_are_exact_in_the_precision_of_the_model(dtype: torch.dtype, tolerance: float) -> None:
    model, trace = build(registers=1).to(dtype), Trace()
    model(images().to(dtype), trace=trace)
    for record in trace.self_attention:
        q, k = record.q.double(), record.k.double()
        exact = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        assert (record.rows() - exact).abs().max().item() <= tolerance


def test_grad_cam_weighs_channels_by_their_mean_gradient() -> None:
    model, x = build(registers=1), images()
    trace = Trace()
    scores = model(x, trace=trace)
    tokens = trace.tokens[-2]
    torch.testing.assert_close(trace.embedded, model.embed(x))
    (gradient,) = torch.autograd.grad(scores.max(dim=1).values.sum(), tokens)
    expected = torch.zeros(2, tokens.shape[1])
    for b in range(2):
        for n in range(tokens.shape[1]):
            expected[b, n] = max(0.0, (tokens[b, n] * gradient[b, 2:].mean(dim=0)).sum().item())
    close(attention_maps(model, x, method="grad-cam"), expected, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("depth", [1, 2])
def test_no_method_is_blind_to_the_patches_of_a_shallow_model(name: str, method: str, depth: int) -> None:
    """After the last block, patches that are not pooled have no gradient: Grad-CAM must take tokens before it."""
    model = build(depth=depth, **VARIANTS[name])
    values = attention_maps(model, images(8), method=method, steps=4).values.flatten(1)
    assert values.isfinite().all()
    assert (values.amax(dim=1) > values.amin(dim=1)).any()


def test_grad_cam_of_one_block_takes_the_tokens_before_it() -> None:
    model, x = build(depth=1), images(8)
    embedded = model.embed(x).detach().requires_grad_()
    scores = model.score(model.transform(embedded))
    (gradient,) = torch.autograd.grad(scores.max(dim=1).values.sum(), embedded)
    expected = (embedded * gradient[:, 1:].mean(dim=1, keepdim=True)).sum(dim=2).clamp(min=0).detach()
    assert expected[:, 1:].any()
    close(attention_maps(model, x, method="grad-cam"), expected, 1)


def test_integrated_gradients_add_up_to_the_gain_in_score() -> None:
    model, x = build(), images(4)
    maps = attention_maps(model, x, method="integrated-gradients", steps=200)
    assert maps.targets is not None
    with torch.no_grad():
        gain = (model(x) - model(torch.zeros_like(x))).gather(1, torch.tensor(maps.targets)[:, None])[:, 0]
    torch.testing.assert_close(maps.values.sum(dim=(1, 2)), gain, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.45, 0.9])
def test_fusions_add_the_residual_before_rows_are_scaled(fusion: Any, discard: float) -> None:
    """vit-explain's order: fuse the heads, discard, add the identity, scale each row to one; layer by layer."""
    model, trace = build(depth=4), Trace()
    with torch.no_grad():
        model(images(1), trace=trace)
    product = [[float(i == j) for j in range(7)] for i in range(7)]
    for record in trace.self_attention:
        heads = record.rows()[0].tolist()
        layer = []
        for i in range(7):
            row = []
            for j in range(7):
                weights = [head[i][j] for head in heads]
                row.append({"mean": sum(weights) / len(weights), "max": max(weights), "min": min(weights)}[fusion])
            for j in sorted(range(7), key=row.__getitem__)[: int(discard * 7)]:
                row[j] = 0.0
            row[i] += 1.0
            layer.append([value / sum(row) for value in row])
        product = [[sum(layer[i][k] * product[k][j] for k in range(7)) for j in range(7)] for i in range(7)]
    for query in range(7):
        ours = rollout(trace.self_attention, torch.eye(7)[None, query], fusion=fusion, discard=discard)
        torch.testing.assert_close(ours[0], torch.tensor(product[query]), rtol=1e-5, atol=1e-6)
        assert ours.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_row_without_weight_leaves_its_part_of_the_map_with_the_token() -> None:
    """Heads that look at different tokens alone have a minimum of 0 everywhere."""
    q = torch.zeros(1, 2, 3, 4)
    q[..., 0] = 1e4
    k = torch.zeros(1, 2, 3, 4)
    k[:, 0, 1, 0] = k[:, 1, 2, 0] = 1.0
    record = Record(q, k, k, q, None, causal=False)
    assert not record.rows().amin(dim=1).any()
    start = torch.tensor([[0.5, 0.25, 0.25]])
    assert torch.equal(rollout([record, record], start, fusion="min"), start)


def test_equal_weights_are_discarded_together_or_not_at_all() -> None:
    zeros = torch.zeros(1, 2, 4, 4)
    record = Record(zeros, zeros, zeros, zeros, None, causal=False)
    start = torch.eye(4)[None, 0]
    torch.testing.assert_close(rollout([record], start, discard=0.5), rollout([record], start))


def test_fusion_and_discard_can_be_asked_for() -> None:
    model, x = build(), images()
    trace = Trace()
    with torch.no_grad():
        model(x, trace=trace)
    start = torch.zeros(2, 7)
    start[:, 0] = 1
    expected = rollout(trace.self_attention, start, fusion="max", discard=0.45)[:, 1:]
    maps = attention_maps(model, x, method="rollout", fusion="max", discard=0.45)
    torch.testing.assert_close(maps.values.flatten(1), expected)
    assert maps.settings["fusion"] == "max"
    assert maps.settings["discard"] == 0.45


def decoder() -> tuple[Transformer, Tensor, Tensor]:
    """Two causal blocks with cross-attention, 5 tokens [1, 5, 16] and a context of 6 [1, 6, 16]."""
    blocks = [Block(Attention(16, 2), MLP(16, 32), cross_attn=Attention(16, 2)) for _ in range(2)]
    model = Transformer(blocks, nn.LayerNorm(16)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model, torch.randn(1, 5, 16).double(), torch.randn(1, 6, 16).double()


def test_through_a_decoder_rollout_equals_the_product_of_all_layers() -> None:
    model, x, context = decoder()
    trace = Trace()
    with torch.no_grad():
        model(x, context, causal=True, trace=trace)
    tokens, seen = torch.eye(5).double(), torch.zeros(5, 6).double()
    for own, cross in zip(trace.self_attention, trace.cross_attention, strict=True):
        own_matrix, cross_matrix = own.rows()[0].mean(dim=0), cross.rows()[0].mean(dim=0)
        mixed = (torch.eye(5) + own_matrix) / 2
        tokens, seen = mixed @ tokens, mixed @ seen
        tokens, seen = tokens / 2, seen / 2 + cross_matrix / 2
    for query in (0, 4):
        start = torch.eye(5).double()[None, query]
        ours = rollout_to_context(trace.self_attention, trace.cross_attention, start)
        torch.testing.assert_close(ours[0][0], tokens[query], rtol=0, atol=1e-12)
        torch.testing.assert_close(ours[1][0], seen[query], rtol=0, atol=1e-12)
        assert (ours[0].sum() + ours[1].sum()).item() == pytest.approx(1)


def test_through_a_decoder_generic_attention_equals_the_product_of_all_layers() -> None:
    model, x, context = decoder()
    trace = Trace()
    score = model(x, context, causal=True, trace=trace)[0, 3].sum()
    records = [*trace.self_attention, *trace.cross_attention]
    gradients = torch.autograd.grad(score, [record.output for record in records])
    weighed = [
        (record.rows()[0] * (gradient[0] @ record.v[0].transpose(-2, -1))).clamp(min=0).mean(dim=0).detach()
        for record, gradient in zip(records, gradients, strict=True)
    ]
    tokens, seen = torch.eye(5).double(), torch.zeros(5, 6).double()
    for own, cross in zip(weighed[:2], weighed[2:], strict=True):
        tokens, seen = tokens + own @ tokens, seen + own @ seen
        seen = seen + cross @ torch.eye(6).double()
    start = torch.eye(5).double()[None, 3]
    ours = generic_attention_to_context(
        trace.self_attention, gradients[:2], trace.cross_attention, gradients[2:], start
    )
    torch.testing.assert_close(ours[0][0], tokens[3], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(ours[1][0], seen[3], rtol=1e-6, atol=1e-12)
    assert not ours[0][0, 4]  # the word after


@pytest.mark.parametrize("method", FOR_A_CLASS)
def test_frozen_weights_have_the_same_maps(method: str) -> None:
    model, x = build(), images()
    expected = attention_maps(model, x, method=method, steps=4).values
    torch.testing.assert_close(attention_maps(model.requires_grad_(False), x, method=method, steps=4).values, expected)


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_compiled_model_and_in_bf16_are_near_those_of_the_model(method: str) -> None:
    model, x = build(), images()
    expected = attention_maps(model, x, method=method, steps=4).values
    reach = expected.abs().max().item()
    compiled = torch.compile(model, backend="eager")  # capturing is ours, code generation is torch's
    torch.testing.assert_close(attention_maps(compiled, x, method=method, steps=4).values, expected)  # type: ignore[arg-type]
    model.compile(backend="eager")
    torch.testing.assert_close(attention_maps(model, x, method=method, steps=4).values, expected)
    low = attention_maps(model.bfloat16(), x.bfloat16(), method=method, steps=4).values
    torch.testing.assert_close(low, expected, rtol=0, atol=0.05 * reach)


def test_distance_and_entropy_equal_loops() -> None:
    model, trace = build(registers=1), Trace()
    with torch.no_grad():
        model(images(1), trace=trace)
    places = torch.tensor([[8.0 * row, 8.0 * column] for row in range(2) for column in range(3)])
    record = trace.self_attention[0]
    matrix = record.rows()[0]
    for head in range(4):
        far, spread = 0.0, 0.0
        for i in range(6):
            row = matrix[head, 2 + i, 2:] / matrix[head, 2 + i, 2:].sum()
            far += sum(float(row[j]) * math.dist(places[i], places[j]) for j in range(6)) / 6
        for row in matrix[head]:
            spread -= sum(float(w) * math.log(w) for w in row) / len(row)
        assert distances(record, places, 2)[0, head].item() == pytest.approx(far, abs=1e-4)
        assert entropies(record)[0, head].item() == pytest.approx(spread, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_has_the_grid_of_its_picture_and_leaves_the_model_as_it_was(method: str) -> None:
    model = build().train()
    maps = attention_maps(model, images(2, 24, 40), method=method, steps=2)
    assert (maps.values.shape, maps.values.dtype) == ((2, 3, 5), torch.float32)
    assert not maps.values.requires_grad
    assert (maps.targets is not None) == (method in FOR_A_CLASS)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_class_can_be_asked_for() -> None:
    model, x = build(), images()
    asked = attention_maps(model, x, targets=torch.tensor([3, 1]))
    assert asked.targets == [3, 1]
    assert not torch.equal(asked.values, attention_maps(model, x, targets=torch.tensor([0, 2])).values)


def test_a_patch_that_alone_changes_the_score_is_found() -> None:
    """A model whose attention copies one bright patch to the class token."""
    model = build(depth=1)
    x = torch.zeros(1, 3, 16, 24)
    x[..., 8:, 16:] = 3.0
    for method in ("integrated-gradients",):
        values = attention_maps(model, x, method=method).values[0].abs()
        assert values.flatten().argmax() == 5, method


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "nope"}, "method: must be one of raw, rollout"),
        ({"method": "raw", "layer": 3}, "layer: must be 0 to 2, got 3"),
        ({"method": "raw", "head": 4}, "head: must be 0 to 3, got 4"),
        ({"query": (2, 0)}, "query: the patches are 0,0 to 1,2, got 2,0"),
        ({"targets": torch.tensor([0, 5])}, "targets: must be a class from 0 to 4"),
        ({"fusion": "sum"}, "fusion: must be one of mean, max, min, got 'sum'"),
        ({"discard": 1.0}, "discard: must be from 0 to below 1, got 1.0"),
        ({"targets": torch.tensor([0])}, "targets: must be a class from 0 to 4 for each picture"),
    ],
)
def test_what_does_not_exist_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attention_maps(build(), images(), **arguments)


def test_a_model_without_a_head_has_no_maps_of_a_class() -> None:
    model = VisionTransformer(replace(TINY, classes=0))
    assert isinstance(model.head, nn.Identity)
    with pytest.raises(ConfigError, match="needs a class score, and the model has no classes"):
        attention_maps(model, images(), method="generic")
    assert attention_maps(model, images(), method="rollout").values.shape == (2, 2, 3)
