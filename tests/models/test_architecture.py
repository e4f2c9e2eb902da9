"""Shapes and sizes: what is refused and in which words, and how a configuration becomes an architecture."""

import re
from dataclasses import replace
from typing import Any

import pytest

from vit.errors import ConfigError
from vit.models.architecture import SIZES, ModelConfig, VisionArchitecture, parse_name, pick

TINY = VisionArchitecture((32, 48), (16, 8), dim=24, depth=2, heads=3, hidden=40, classes=5)

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dim": 0}, "model.dim: must be at least 1, got 0"),
    ({"depth": -1}, "model.depth: must be at least 1, got -1"),
    ({"heads": 0}, "model.heads: must be at least 1, got 0"),
    ({"hidden": 0}, "model.hidden: must be at least 1, got 0"),
    ({"channels": 0}, "model.channels: must be at least 1, got 0"),
    ({"dim": 10**30}, "model.dim: must be at most 65,536, got 1000000000000000000000000000000"),
    ({"depth": 10**9}, "model.depth: must be at most 1,000, got 1000000000"),
    ({"image_size": (16_384, 16_384), "patch_size": (1, 1)}, "model.image_size: must make at most 134,217,728 values"),
    ({"classes": -2}, "model.classes: must be at least 0, got -2"),
    ({"registers": -1}, "model.registers: must be at least 0, got -1"),
    ({"image_size": (0, 32)}, "model.image_size: must be at least 1, got 0"),
    ({"patch_size": (16, 0)}, "model.patch_size: must be at least 1, got 0"),
    ({"image_size": (15, 48)}, "model.image_size: must be at least one patch, 16 x 8, got 15 x 48"),
    ({"image_size": (32, 7)}, "model.image_size: must be at least one patch, 16 x 8, got 32 x 7"),
    ({"heads": 5}, "model.heads: must divide dim 24, got 5"),
    ({"dropout": 1.0}, "model.dropout: must be in [0, 1), got 1.0"),
    ({"attention_dropout": -0.1}, "model.attention_dropout: must be in [0, 1), got -0.1"),
    ({"drop_path": 1.5}, "model.drop_path: must be in [0, 1), got 1.5"),
    ({"drop_path": float("nan")}, "model.drop_path: must be in [0, 1), got nan"),
    ({"norm_eps": 0.0}, "model.norm_eps: must be positive, got 0.0"),
    ({"class_token": False}, "model.pool: needs model.class_token, got class"),
    ({"dim": 30, "positions": "sincos"}, "model.dim: must be a multiple of 4 for sincos positions, got 30"),
    ({"dim": 4, "heads": 1, "positions": "sincos"}, "model.dim: must be"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_a_shape_that_cannot_be_is_refused_with_key_value_and_rule(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        replace(TINY, **change)
    assert "\n" not in str(caught.value)


def test_grid_and_prefix_follow_from_the_shape() -> None:
    assert TINY.grid == (2, 6)
    assert TINY.prefix == 1
    assert replace(TINY, registers=4).prefix == 5
    assert replace(TINY, class_token=False, pool="mean").prefix == 0


def test_an_image_size_that_patches_do_not_fill_is_representable_and_refused_where_a_user_chooses_it() -> None:
    partial = replace(TINY, image_size=(47, 55))
    assert (partial.grid, partial.has_whole_patches, TINY.has_whole_patches) == ((2, 6), False, True)
    TINY.require_whole_patches()
    with pytest.raises(
        ConfigError, match=r"^model.image_size: must be a multiple of the patch size 16 x 8, got 47 x 55$"
    ):
        partial.require_whole_patches()


@pytest.mark.parametrize("size", list(SIZES))
def test_every_named_size_is_an_architecture(size: str) -> None:
    architecture = ModelConfig(name=f"{size}/14").resolve(classes=10, picture_size=500)
    assert (architecture.dim, architecture.depth, architecture.heads, architecture.hidden) == SIZES[size]
    assert architecture.patch_size == (14, 14)
    assert architecture.image_size == (224, 224)
    assert architecture.classes == 10


@pytest.mark.parametrize(
    ("picture_size", "name", "side"),
    [
        (1, "mini/4", 32),
        (28, "mini/4", 32),
        (40, "mini/4", 32),
        (41, "mini/8", 64),
        (96, "mini/8", 64),
        (97, "Ti/16", 224),
        (4000, "Ti/16", 224),
    ],
)
def test_auto_picks_by_the_size_of_the_pictures(picture_size: int, name: str, side: int) -> None:
    assert pick(picture_size) == (name, side)
    automatic = ModelConfig().resolve(classes=3, picture_size=picture_size)
    assert automatic == ModelConfig(name=name, image_size=side).resolve(classes=3, picture_size=224)


@pytest.mark.parametrize("image_size", [28, (28, 28), (28, 64)])
def test_auto_picks_by_the_image_size_where_one_is_given(image_size: int | tuple[int, int]) -> None:
    for picture_size in (28, 500):
        architecture = ModelConfig(image_size=image_size).resolve(classes=3, picture_size=picture_size)
        assert architecture.patch_size == (4, 4)
        assert architecture.image_size == (image_size if isinstance(image_size, tuple) else (28, 28))


@pytest.mark.parametrize(("patch", "side"), [(4, 32), (7, 56), (8, 224), (14, 224), (15, 225), (16, 224), (32, 224)])
def test_the_default_image_size_is_a_multiple_of_the_patch(patch: int, side: int) -> None:
    assert ModelConfig(name=f"Ti/{patch}").resolve(classes=2, picture_size=500).image_size == (side, side)


@pytest.mark.parametrize(
    ("patch", "pictures", "side"), [(8, 32, 32), (4, 28, 28), (16, 64, 64), (16, 30, 32), (7, 50, 49)]
)
def test_small_pictures_keep_their_size(patch: int, pictures: int, side: int) -> None:
    assert ModelConfig(name=f"micro/{patch}").resolve(classes=2, picture_size=pictures).image_size == (side, side)


def test_keys_that_are_given_go_before_the_named_size() -> None:
    config = ModelConfig(
        name="S/16", image_size=(32, 48), dim=64, heads=4, registers=2, pool="mean", qk_norm=True, drop_path=0.1
    )
    assert config.resolve(classes=7, picture_size=500) == VisionArchitecture(
        (32, 48),
        (16, 16),
        dim=64,
        depth=12,
        heads=4,
        hidden=1536,
        classes=7,
        registers=2,
        pool="mean",
        qk_norm=True,
        drop_path=0.1,
    )


@pytest.mark.parametrize("name", ["S", "S/", "/16", "s/16", "XL/16", "S/0", "S/-16", "S/16/2", "S/a", "S/1.5", ""])
def test_a_name_that_is_none_is_refused_with_the_names_there_are(name: str) -> None:
    for refused in (lambda: parse_name(name), lambda: ModelConfig(name=name)):
        with pytest.raises(ConfigError, match=re.escape(f"got {name!r}")) as caught:
            refused()
        assert str(caught.value).startswith("model.name: must be SIZE/PATCH")
        assert all(size in str(caught.value) for size in SIZES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "S/16", "heads": 5}, "model.heads: must divide dim 384, got 5"),
        ({"name": "S/16", "image_size": 100}, "model.image_size: must be a multiple of the patch size 16 x 16"),
        ({"image_size": 30}, "model.image_size: must be a multiple of the patch size 4 x 4, got 30 x 30"),
        ({"image_size": -32}, "model.image_size: must be at least 1, got -32"),
        ({"class_token": False}, "model.pool: needs model.class_token, got class"),
        ({"dropout": 2}, "model.dropout: must be in [0, 1), got 2"),
    ],
)
def test_a_wrong_configuration_is_refused_before_any_data_is_read(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig(**config)


def test_the_patches_of_first_weights_decide_about_the_image_size() -> None:
    assert ModelConfig(image_size=98, init="timm:vit_small_patch14_dinov2.lvd142m").image_size == 98
    with pytest.raises(ConfigError, match="must be a multiple of the patch size"):
        ModelConfig(image_size=98, name="S/16")
