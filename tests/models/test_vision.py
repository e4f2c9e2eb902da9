"""The vision transformer by itself: it learns, compiles, takes any size and precision, and starts as the paper says."""

import re
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit.errors import ConfigError
from vit.models.architecture import Rope, VisionArchitecture
from vit.models.vision import VisionTransformer, some_patches
from vit.nn import Attention, Trace

TINY = VisionArchitecture((16, 24), (8, 8), dim=32, depth=2, heads=4, hidden=48, classes=5)

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"pool": "mean"},
    "mean without class token": {"pool": "mean", "class_token": False},
    "attention": {"pool": "attention", "class_token": False},
    "attention with class token": {"pool": "attention", "registers": 1},
    "registers": {"registers": 3},
    "sincos": {"positions": "sincos"},
    "sincos mean": {"positions": "sincos", "pool": "mean", "class_token": False},
    "no positions": {"positions": "none"},
    "swiglu": {"mlp": "swiglu"},
    "qk norm": {"qk_norm": True},
    "layer scale": {"layer_scale": 0.1},
    "no qkv bias": {"qkv_bias": False},
    "no key bias": {"key_bias": False},
    "no biases": {"qkv_bias": False, "bias": False, "norm": "rms", "patch_norm": True},
    "norms inside": {"attention_norm": True, "mlp_norm": True},
    "swiglu with a norm": {"mlp": "swiglu", "mlp_norm": True, "bias": False},
    "norm first": {"pre_norm": True},
    "norm of the pooled": {"pool": "mean", "final_norm": "pooled"},
    "no final norm": {"final_norm": "none"},
    "positions of patches alone": {"registers": 2, "prefix_positions": False},
    "distilled": {"distilled": True},
    "attention of patches alone": {"pool": "attention", "registers": 1, "pool_prefix": False, "pool_heads": 2},
    "rope": {"rope": Rope("grid", reference=(4, 4), offset=1.0, order="xy")},
    "rope from the middle": {"rope": Rope("centred"), "positions": "none", "registers": 2},
    "learned rope": {"rope": Rope("mixed"), "qk_norm": True},
    "all": {"registers": 2, "mlp": "swiglu", "qk_norm": True, "layer_scale": 1.0, "pool": "attention", "dropout": 0.1},
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def build(**changes: Any) -> VisionTransformer:
    """A tiny model whose head is not zero, so that scores depend on the picture."""
    model = VisionTransformer(replace(TINY, **changes))
    if isinstance(model.head, nn.Linear):
        nn.init.normal_(model.head.weight, std=0.5)
    return model


def pictures(count: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(count, 3, height, width)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build(**VARIANTS[name])
    model(pictures()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.count_nonzero() > 0, key


@torch.no_grad()
@pytest.mark.parametrize("name", list(VARIANTS))
def test_any_size_the_patch_divides_is_taken(name: str) -> None:
    model = build(**VARIANTS[name]).eval()
    prefix = model.architecture.prefix
    for height, width in ((16, 24), (8, 8), (24, 40)):
        images = pictures(2, height, width)
        assert model(images).shape == (2, 5)
        assert model.features(images).shape == (2, 32)
        assert model.encode(images).shape == (2, prefix + height * width // 64, 32)
    with pytest.raises(ValueError, match="17 x 24 pixels cannot be cut into patches of 8 x 8"):
        model(pictures(2, 17, 24))


def test_one_batch_can_be_learned_by_heart() -> None:
    model = VisionTransformer(TINY)
    images, labels = pictures(10), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(5.0).log().item(), abs=1e-6)  # a head of zeros knows nothing
    assert losses[-1] < 0.01
    assert torch.equal(model(images).argmax(1), labels)


@pytest.mark.parametrize("name", ["class token", "attention", "all"])
def test_a_trace_changes_nothing_and_holds_every_layer(name: str) -> None:
    model = build(**VARIANTS[name]).eval()
    images, trace = pictures(), Trace()
    assert torch.equal(model(images, trace=trace), model(images))
    tokens = 6 + model.architecture.prefix
    assert [r.rows().shape for r in trace.self_attention] == [(2, 4, tokens, tokens)] * 2
    pools = [(2, 4, 1, tokens)] if model.architecture.pool == "attention" else []
    assert [r.rows().shape for r in trace.pool] == pools
    assert torch.equal(model.norm(trace.tokens[-1]), model.encode(images))


def test_dropout_and_stochastic_depth_act_in_training_alone() -> None:
    for rate in ("dropout", "attention_dropout", "drop_path", "patch_dropout"):
        model = build(**{rate: 0.5})
        images = pictures(8)
        assert not torch.equal(model(images), model(images)), rate
        model.eval()
        assert torch.equal(model(images), model(images)), rate


@pytest.mark.parametrize("name", ["class token", "sincos mean", "qk norm", "rope", "learned rope", "distilled", "all"])
def test_bf16_autocast_is_close_to_fp32_and_keeps_the_stream_in_fp32(name: str) -> None:
    model = build(**VARIANTS[name]).eval()
    images, trace = pictures(), Trace()
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(images, trace=trace)
        assert all(tokens.dtype == torch.float32 for tokens in trace.tokens)
    torch.testing.assert_close(scores.float(), exact, rtol=0, atol=0.03 * exact.abs().max().item())
    scores.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_model_in_bf16_runs_at_any_size(name: str) -> None:
    model = build(**VARIANTS[name]).eval().bfloat16()
    for size in ((16, 24), (24, 24)):
        scores = model(pictures(2, *size).bfloat16())
        assert scores.dtype == torch.bfloat16
        assert scores.isfinite().all()


@pytest.mark.parametrize("name", ["all", "learned rope"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    model, images = build(**VARIANTS[name], drop_path=0.3), pictures(4)
    gradients = []
    for model.checkpointing in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # torch's advice beside a GPU
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_in_one_graph_it_equals_eager() -> None:
    model, images = build(registers=1, layer_scale=0.5), pictures()
    compiled = torch.compile(model, fullgraph=True)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        scores = run(images)
        scores.square().mean().backward()
        gradients.append([scores.detach(), *(p.grad.clone() for p in model.parameters())])
    for eager, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("mean", "sincos", "registers")])
def test_the_graph_is_whole_also_with_a_trace(name: str) -> None:
    torch.compiler.reset()
    model = build(**VARIANTS[name]).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # capturing is ours, code generation is torch's
    images, mine, theirs = pictures(), Trace(), Trace()
    torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled(images, trace=mine), model(images, trace=theirs), rtol=0, atol=1e-6)
    for a, b in zip(mine.self_attention + mine.pool, theirs.self_attention + theirs.pool, strict=True):
        torch.testing.assert_close(a.rows(), b.rows(), rtol=0, atol=1e-6)


def test_fresh_weights_have_the_spread_of_the_paper() -> None:
    model = VisionTransformer(replace(TINY, image_size=(64, 64), dim=256, hidden=512, registers=8, pool="attention"))
    expected = {"patch_embed.proj.weight": (1 / (3 * 8 * 8)) ** 0.5, "pos_embed": 0.02, "reg_token": 0.02}
    expected |= {"blocks.1.attn.qkv.weight": (2 / (256 + 256)) ** 0.5, "blocks.1.attn.proj.weight": (2 / 512) ** 0.5}
    expected |= {"blocks.0.mlp.fc1.weight": (2 / 768) ** 0.5, "blocks.0.mlp.fc2.weight": (2 / 768) ** 0.5}
    expected |= {"attn_pool.attn.qkv.weight": (2 / 512) ** 0.5, "attn_pool.mlp.fc1.weight": (2 / 768) ** 0.5}
    parameters = dict(model.named_parameters())
    for key, std in expected.items():
        values = parameters[key]
        assert values.std().item() == pytest.approx(std, rel=0.05), key
        assert values.mean().item() == pytest.approx(0, abs=5 * std / values.numel() ** 0.5), key
        if key.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            # a normal is cut at two deviations, a uniform ends at the root of three
            widest = 2 / 0.8796 if "patch" in key else 3**0.5
            assert 0.95 * widest * std < values.abs().max() <= 1.001 * widest * std, key
    for key in ("cls_token", "head.weight", "head.bias", "patch_embed.proj.bias", "blocks.0.attn.qkv.bias"):
        assert parameters[key].count_nonzero() == 0, key
    assert 0 < parameters["blocks.0.mlp.fc1.bias"].abs().max() < 1e-5
    assert (parameters["norm.weight"] == 1).all()


def test_fresh_weights_follow_from_the_seed_alone() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(VisionTransformer(TINY).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert not torch.equal(models[0]["pos_embed"], models[2]["pos_embed"])


def test_a_new_head_leaves_everything_else() -> None:
    model = build().double()
    before = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("head")}
    images = pictures().double()
    features = model.features(images)
    for classes in (9, 0, 2):
        model.reset_head(classes)
        assert model.architecture == replace(TINY, classes=classes)
        after = {key: value for key, value in model.state_dict().items() if not key.startswith("head")}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        expected = torch.zeros(2, classes).double() if classes else features
        assert torch.equal(model(images), expected)
    with pytest.raises(ConfigError, match=re.escape("model.classes: must be at least 0, got -1")):
        model.reset_head(-1)
    assert model.architecture.classes == 2


def test_a_new_head_is_where_the_model_is() -> None:
    model = VisionTransformer(TINY).to("meta")
    model.reset_head(3)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
def test_dropout_reaches_every_place(mlp: str) -> None:
    model = build(mlp=mlp, pool="attention", dropout=0.3, attention_dropout=0.2)
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.3] * (1 + 3 * 2)  # after the positions; after attention and MLP of each block and the pool
    assert [m.attention_dropout for m in model.modules() if isinstance(m, Attention)] == [0.2] * 3


def test_sine_positions_are_neither_learned_nor_saved() -> None:
    model = build(positions="sincos")
    assert not [key for key in model.state_dict() if "pos" in key or "sincos" in key]
    assert "sincos" not in dict(model.named_parameters())


def test_qk_norm_has_the_epsilon_of_the_other_norms() -> None:
    model = build(qk_norm=True, norm_eps=1e-3)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-3}
    assert all(isinstance(m.q_norm, nn.LayerNorm) for m in model.modules() if isinstance(m, Attention))


def test_patch_dropout_keeps_some_patches_of_each_picture_in_random_order() -> None:
    tokens = torch.arange(13.0).view(1, 13, 1).expand(400, 13, 2)
    kept = some_patches(tokens, 3, 0.6)
    assert kept.shape == (400, 3 + 4, 2)
    assert torch.equal(kept[:, :3], tokens[:, :3])
    patches = kept[:, 3:, 0]
    assert all(len(set(row.tolist())) == 4 for row in patches)
    counts = patches.long().flatten().bincount(minlength=13)[3:]
    assert counts.min() > 110
    assert counts.max() < 210
    assert some_patches(tokens, 3, 0.99).shape[1] == 4
    with pytest.raises(ConfigError, match="patch_dropout: must be 0 with rope"):
        replace(TINY, patch_dropout=0.5, rope=Rope("grid"))


def test_tables_of_other_grids_are_kept_but_not_of_all_sizes_there_are() -> None:
    model = build(rope=Rope("mixed"))
    rows, columns = model.architecture.patch_size
    model(torch.zeros(1, 3, rows, columns))
    (table,) = model._tables.values()
    model(torch.zeros(1, 3, rows, columns))
    assert next(iter(model._tables.values())) is table
    for count in range(2, 70):
        model(torch.zeros(1, 3, rows, count * columns))
    assert len(model._tables) <= 64
