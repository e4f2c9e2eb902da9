"""Every plain Vision Transformer of timm inside our block: the same outputs, and back again bit for bit.

At reduced width, depth and picture size, with random weights: what a name stands for here is its options.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from timm.models import list_modules
from timm.models._registry import _module_to_models
from torch import nn

from vit.errors import ConfigError
from vit.models.architecture import ModelConfig
from vit.models.timm import architecture_of, from_timm, to_timm
from vit.models.vision import VisionTransformer

MODULES = ("vision_transformer", "deit", "eva")
NAMES = sorted(name for module in MODULES for name in _module_to_models[module])
REASONS = {
    "vit_base_patch16_18x2_224": "ParallelThingsBlock",
    "vit_small_patch16_18x2_224": "ParallelThingsBlock",
    "vit_base_patch16_xp_224": "ParallelScalingBlock",
    "vit_huge_patch14_xp_224": "ParallelScalingBlock",
    "vit_large_patch14_xp_224": "ParallelScalingBlock",
    "vit_pwee_patch16_reg1_gap_256": "ParallelScalingBlock",
    "vit_dpwee_patch16_reg1_gap_256": "DiffParallelScalingBlock",
    "vit_base_patch16_rpn_224": "ResPostBlock",
    "eva02_enormous_patch14_clip_224": "EvaBlockPostNorm",
    "vit_dwee_patch16_reg1_gap_256": "DiffAttention",
    "vit_dlittle_patch16_reg1_gap_256": "DiffAttention",
    "vit_base_patch16_sapiens2": "attn_only_layer_scale",
    "vit_large_patch16_sapiens2": "attn_only_layer_scale",
    "vit_huge_patch16_sapiens2": "attn_only_layer_scale",
    "vit_giant_patch16_sapiens2": "attn_only_layer_scale",
    "vit_5b_patch16_sapiens2": "attn_only_layer_scale",
}
"""names of timm whose options our block does not have, and a word of the refusal"""
BROKEN_IN_TIMM = {"vit_base_patch16_224_sam", "vit_base_patch32_224_sam"}
"""names that timm 1.0.31 itself cannot make"""


@pytest.fixture(autouse=True)
def quiet_and_seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, of names it has renamed
        yield


def reduced(name: str, grid: tuple[int, int] = (2, 3), **options: Any) -> nn.Module:
    """timm's model with two blocks, at most three heads, and random values everywhere."""
    with torch.device("meta"):
        full: Any = timm.create_model(name, depth=1)
    rows, columns = full.patch_embed.patch_size
    heads = next(iter(m.num_heads for m in full.modules() if hasattr(m, "num_heads")))
    width = {"num_heads": min(heads, 3), "embed_dim": min(heads, 3) * (full.embed_dim // heads)}
    size = (grid[0] * rows, grid[1] * columns)
    model = timm.create_model(name, img_size=size, depth=2, num_classes=7, **width, **options)
    return randomised(model)


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def images_for(model: Any, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *model.patch_embed.img_size)


def test_every_name_of_timm_is_known_here() -> None:
    assert set(MODULES) <= set(list_modules())
    assert (REASONS.keys() | BROKEN_IN_TIMM) <= set(NAMES)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NAMES if name not in REASONS.keys() | BROKEN_IN_TIMM])
def test_outputs_equal_timms_and_weights_go_back_bit_for_bit(name: str) -> None:
    theirs: Any = reduced(name)
    ours = from_timm(theirs)
    images = images_for(theirs)
    assert not ours.training
    assert ours.architecture.timm == theirs.pretrained_cfg["architecture"]  # some names are old ones of others
    assert difference(ours.encode(images), theirs.forward_features(images)) <= 1e-4
    assert difference(ours(images), theirs(images)) <= 1e-4
    pooled = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert difference(ours.features(images), pooled) <= 1e-4
    back: Any = to_timm(ours)
    assert type(back) is type(theirs)
    assert_same(back.state_dict(), theirs.state_dict())
    assert torch.equal(back(images), theirs(images))


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(("name", "word"), REASONS.items())
def test_what_our_block_does_not_have_is_refused_by_name(name: str, word: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with pytest.raises(ConfigError, match=f"^not supported from timm: .*{word}"):
        from_timm(theirs)


def test_how_many_names_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """Every name loads at its own image size; their outputs are each compared above. The number may not fall."""
    names = [name for name in NAMES if name not in REASONS.keys() | BROKEN_IN_TIMM]
    for name in names:
        with torch.device("meta"):
            theirs: Any = timm.create_model(name, depth=1)
        a = architecture_of(theirs)
        assert (a.image_size, a.grid) == (theirs.patch_embed.img_size, theirs.patch_embed.grid_size), name
    with capsys.disabled():
        print(f"\n{len(names)} of timm's {len(NAMES)} names in {', '.join(MODULES)} load with equal outputs")
    assert len(names) >= 254


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_gap_384"])
def test_pixels_that_do_not_fill_a_patch_are_ignored_as_in_timm(name: str) -> None:
    """384 pixels hold 27 patches of 14 pixels; the last 6 rows and columns belong to none."""
    theirs = randomised(timm.create_model(name, depth=2, num_heads=1, embed_dim=72, num_classes=7))
    ours, images = from_timm(theirs), torch.randn(2, 3, 384, 384)
    assert (ours.architecture.image_size, ours.architecture.grid) == ((384, 384), (27, 27))
    assert difference(ours.encode(images), theirs.forward_features(images)) <= 1e-4
    assert difference(ours(images), theirs(images)) <= 1e-4
    changed = images.clone()
    changed[..., 378:, :], changed[..., 378:] = 0, 0
    assert torch.equal(ours(changed), ours(images))
    back: Any = to_timm(ours)
    assert_same(back.state_dict(), theirs.state_dict())
    assert torch.equal(back(images), theirs(images))
    with pytest.raises(
        ConfigError, match=r"^model.image_size: must be a multiple of the patch size 14 x 14, got 200 x"
    ):
        ours.set_input_size((200, 200))
    ours.set_input_size((224, 224))
    theirs.set_input_size(img_size=(224, 224))  # type: ignore[operator]
    assert difference(ours(images[..., :224, :224]), theirs(images[..., :224, :224])) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",  # learned positions, the class token has one too
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch14_reg4_dinov2",  # learned positions of patches alone
        "flexivit_small",
        "vit_base_patch16_siglip_224",
        "eva02_tiny_patch14_224",  # learned and rotary positions, scaled to the pretraining grid
        "vit_small_patch16_rope_mixed_224",
        "vit_pe_core_base_patch16_224",
    ],
)
def test_other_picture_and_patch_sizes_equal_timms(name: str) -> None:
    theirs: Any = reduced(name, grid=(3, 5))  # a rectangular source
    ours = from_timm(theirs)
    rows, columns = ours.architecture.patch_size
    ours.set_input_size((4 * rows, 4 * columns))
    theirs.set_input_size(img_size=(4 * rows, 4 * columns))
    images = images_for(theirs)
    assert difference(ours(images), theirs(images)) <= 1e-4
    ours.set_input_size((32, 48), (8, 8))
    theirs.set_input_size(img_size=(32, 48), patch_size=(8, 8))
    images = images_for(theirs)
    assert difference(ours(images), theirs(images)) <= 1e-4
    assert ours.architecture.grid == (4, 6)
    back: Any = to_timm(ours)
    assert back.patch_embed.img_size == (32, 48)
    assert difference(back(images), theirs(images)) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_intern300m_patch14_448", "test_vit2"])
def test_other_picture_sizes_at_run_time_equal_timms(name: str) -> None:
    theirs: Any = reduced(name, dynamic_img_size=True)
    ours = from_timm(theirs)
    rows, columns = ours.architecture.patch_size
    for grid in ((3, 4), (1, 5), (4, 4)):
        images = torch.randn(2, 3, grid[0] * rows, grid[1] * columns)
        assert difference(ours(images), theirs(images)) <= 1e-4


def test_a_module_that_trains_gives_a_model_that_trains_with_the_same_rates() -> None:
    theirs: Any = reduced("vit_tiny_patch16_224", drop_path_rate=0.2, proj_drop_rate=0.1, pos_drop_rate=0.1).train()
    ours = from_timm(theirs)
    assert ours.training
    assert [block.drop_path for block in ours.blocks] == pytest.approx([0.0, 0.2])
    assert ours.architecture.dropout == 0.1
    own = dict(ours.named_parameters())
    assert own["blocks.0.attn.qkv.weight"].data_ptr() != theirs.blocks[0].attn.qkv.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in own.values())


def test_a_key_bias_that_eva_fixes_at_zero_stays_there_in_training() -> None:
    ours = from_timm(reduced("eva02_tiny_patch14_224")).train()
    names = {name for name, _ in ours.named_parameters() if name.startswith("blocks.0.attn.")}
    assert names == {f"blocks.0.attn.{n}" for n in ("qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias")}


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"registers": 3, "pool": "mean", "layer_scale": 0.1, "qk_norm": True},
        {"positions": "sincos", "pool": "attention"},
        {"rope": "grid"},
        {"rope": "centred", "registers": 2, "layer_scale": 0.1},
        {"rope": "mixed", "positions": "none"},
        {"mlp": "swiglu"},
        {"norm": "rms", "activation": "gelu_tanh"},
    ],
)
def test_models_of_our_own_go_to_timm_with_the_same_outputs(changes: dict[str, Any]) -> None:
    config = ModelConfig(name="micro/8", image_size=(16, 24), heads=2, dim=32, depth=2, **changes)
    ours = VisionTransformer(config.resolve(classes=5, picture_size=16)).eval()
    randomised(ours)
    theirs: Any = to_timm(ours)
    images = images_for(theirs)
    assert difference(theirs(images), ours(images)) <= 1e-5
    again = from_timm(theirs)
    if ours.architecture.positions != "sincos":
        assert_same(again.state_dict(), ours.state_dict())


def test_what_timm_does_not_have_is_named() -> None:
    config = ModelConfig(name="micro/8", image_size=16, rope="grid", activation="quick_gelu")
    with pytest.raises(ConfigError, match=r"^timm has no model like this: activation quick_gelu$"):
        to_timm(VisionTransformer(config.resolve(classes=5, picture_size=16)))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avgmax"}, r"pooling by 'avgmax' \(global_pool\)"),
        ("vit_tiny_patch16_224", {"global_pool": ""}, r"pooling by 'nothing' \(global_pool\)"),
        ("vit_tiny_patch16_224", {"act_layer": "relu"}, "activation of the class ReLU"),
        ("vit_tiny_patch16_224", {"norm_layer": "layernorm2d"}, "norm of the class LayerNorm2d"),
        ("resnet18", {}, "model of the class ResNet"),
        ("vit_tiny_r_s16_p8_224", {}, "patch embedding of the class HybridEmbed"),
    ],
)
def test_options_that_are_not_supported_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, **options)
    with pytest.raises(ConfigError, match=f"^not supported from timm: {words}$"):
        from_timm(theirs)
