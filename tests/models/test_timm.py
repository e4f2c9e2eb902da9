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
from vit.models.timm import from_timm, to_timm

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
    """The number that may not fall; the names behind it are each tested above."""
    passing = len(NAMES) - len(REASONS) - len(BROKEN_IN_TIMM)
    with capsys.disabled():
        print(f"\n{passing} of timm's {len(NAMES)} names in {', '.join(MODULES)} load with equal outputs")
    assert passing >= 254
