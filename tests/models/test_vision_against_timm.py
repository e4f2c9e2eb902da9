"""The vision transformer against timm's: the same weights give the same scores, tokens and features to 1e-5."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import QuickGELU, SwiGLUPacked
from torch import nn

from vit.models.architecture import SIZES, ModelConfig, VisionArchitecture
from vit.models.vision import VisionTransformer


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def timm_model(*, img_size: tuple[int, int] = (32, 32), **arguments: Any) -> nn.Module:
    """timm's ViT-Ti/16 with two blocks and random values everywhere."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=img_size, depth=2, **{"num_classes": 7, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def ours_with(theirs: nn.Module, **changes: Any) -> VisionTransformer:
    shape = VisionArchitecture((32, 32), (16, 16), dim=192, depth=2, heads=3, hidden=768, classes=7)
    model = VisionTransformer(replace(shape, **changes)).eval()
    weights = theirs.state_dict()
    for part in ("weight", "bias"):  # timm keeps the pool's query apart from its keys and values
        if f"attn_pool.q.{part}" in weights:
            q_and_kv = [weights.pop(f"attn_pool.{name}.{part}") for name in ("q", "kv")]
            weights[f"attn_pool.attn.qkv.{part}"] = torch.cat(q_and_kv)
            weights[f"attn_pool.attn.proj.{part}"] = weights.pop(f"attn_pool.proj.{part}")
    model.load_state_dict(weights, strict=True)
    return model


TWINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "class token": ({}, {}),
    "rectangle": ({"img_size": (32, 48)}, {"image_size": (32, 48)}),
    "registers": ({"reg_tokens": 4}, {"registers": 4}),
    "mean": ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
    "mean of patches alone": (
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
        {"pool": "mean", "class_token": False},
    ),
    "mean beside registers": (
        {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2},
        {"pool": "mean", "registers": 2},
    ),
    "attention pool": ({"global_pool": "map", "class_token": False}, {"pool": "attention", "class_token": False}),
    "attention pool over all": (
        {"global_pool": "map", "reg_tokens": 2, "pool_include_prefix": True},
        {"pool": "attention", "registers": 2},
    ),
    "qk norm": ({"qk_norm": True}, {"qk_norm": True}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "layer scale": ({"init_values": 0.1}, {"layer_scale": 0.1}),
    "no positions": ({"pos_embed": "none"}, {"positions": "none"}),
    "tanh gelu": ({"act_layer": "gelu_tanh"}, {"activation": "gelu_tanh"}),
    "quick gelu": ({"act_layer": QuickGELU}, {"activation": "quick_gelu"}),
    "swiglu": ({"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}, {"mlp": "swiglu", "hidden": 384}),
    "one channel": ({"in_chans": 1}, {"channels": 1}),
    "no head": ({"num_classes": 0}, {"classes": 0}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", list(TWINS))
def test_scores_and_tokens_equal_timms(name: str) -> None:
    arguments, changes = TWINS[name]
    theirs = timm_model(**arguments)
    ours = ours_with(theirs, **changes)
    images = torch.randn(2, ours.architecture.channels, *ours.architecture.image_size)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.encode(images), theirs.forward_features(images), rtol=0, atol=1e-5)
    features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(ours.features(images), features, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (16, 64), (64, 16)])
def test_other_sizes_than_the_architectures_equal_timms(size: tuple[int, int]) -> None:
    theirs = timm_model(dynamic_img_size=True, reg_tokens=2)
    ours = ours_with(theirs, registers=2)
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_stochastic_depth_rises_as_timms() -> None:
    shape = VisionArchitecture((32, 32), (16, 16), dim=24, depth=5, heads=3, hidden=48, classes=2, drop_path=0.2)
    ours, single = VisionTransformer(shape), VisionTransformer(replace(shape, depth=1))
    theirs = timm.create_model("vit_tiny_patch16_224", depth=5, drop_path_rate=0.2)
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert [block.drop_path for block in ours.blocks] == pytest.approx(expected)
    assert [block.drop_path for block in single.blocks] == [0.0]


@pytest.mark.parametrize(
    ("name", "twin", "millions"),
    [
        ("Ti/16", "vit_tiny_patch16_224", 5.7),
        ("S/16", "vit_small_patch16_224", 22.1),
        ("B/16", "vit_base_patch16_224", 86.6),
        ("L/16", "vit_large_patch16_224", 304.3),
        ("H/14", "vit_huge_patch14_224", 632.0),
        ("So400m/14", "vit_so400m_patch14_siglip_224", 428.8),  # SigLIP's 427.7 and a head of 1000 classes
    ],
)
def test_named_sizes_have_timms_and_the_published_number_of_parameters(name: str, twin: str, millions: float) -> None:
    pool = {"pool": "attention", "class_token": False} if "siglip" in twin else {}
    architecture = ModelConfig(name=name, image_size=224, **pool).resolve(classes=1000, picture_size=500)
    with torch.device("meta"):
        ours, theirs = VisionTransformer(architecture), timm.create_model(twin, num_classes=1000)
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("size", ["micro", "mini", "lite"])
def test_small_sizes_have_the_parameters_of_their_formula(size: str) -> None:
    dim, depth, _, hidden = SIZES[size]
    block = 4 * dim * dim + 4 * dim + 2 * dim * hidden + hidden + dim + 4 * dim
    patches = 3 * 4 * 4 * dim + dim
    expected = depth * block + patches + (64 + 1) * dim + dim + 2 * dim + 10 * dim + 10
    architecture = ModelConfig(name=f"{size}/4").resolve(classes=10, picture_size=32)
    with torch.device("meta"):
        assert sum(p.numel() for p in VisionTransformer(architecture).parameters()) == expected
