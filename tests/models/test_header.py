"""Every field of a model file's header is checked for type and bounds, and the wrong one is named."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vit.data.config import Preprocessing
from vit.errors import ConfigError, ModelFileError
from vit.models.architecture import Rope, VisionArchitecture
from vit.models.file import classifier_file, read_model, save_model
from vit.models.header import architecture_of, check_header, read_fields
from vit.models.text_architecture import EncoderDecoderArchitecture, FusionArchitecture, TextArchitecture
from vit.models.vision import VisionTransformer

IMAGE = VisionArchitecture((16, 24), (8, 8), dim=32, depth=1, heads=4, hidden=48, classes=2, rope=Rope("grid"))
TEXT = TextArchitecture(vocabulary=9, length=8, dim=16, depth=1, heads=2, hidden=16)
WRITER = replace(TEXT, context_dim=32)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("classifier", IMAGE),
        ("language", TEXT),
        ("captioner", EncoderDecoderArchitecture(IMAGE, WRITER)),
        ("translator", EncoderDecoderArchitecture(TEXT, replace(TEXT, context_dim=16))),
        ("fused", FusionArchitecture(IMAGE, TEXT, classes=3)),
    ],
)
def test_an_architecture_comes_back_from_json(kind: str, architecture: Any) -> None:
    assert architecture_of(kind, json.loads(json.dumps(asdict(architecture)))) == architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": "32"}, "architecture.dim: expected an integer, got '32'"),
        ({"dim": True}, "architecture.dim: expected an integer, got True"),
        ({"dim": 32.5}, "architecture.dim: expected an integer, got 32.5"),
        ({"depth": 10**9}, "model.depth: must be at most 1,000, got 1000000000"),
        ({"heads": None}, "architecture.heads: expected an integer, got None"),
        ({"pool": "median"}, "architecture.pool: expected one of class, mean, attention, got 'median'"),
        ({"image_size": [16]}, "architecture.image_size: expected a list of 2, got [16]"),
        ({"image_size": [16, "x"]}, "architecture.image_size: expected an integer, got 'x'"),
        ({"class_token": 1}, "architecture.class_token: expected true or false, got 1"),
        ({"dropout": float("nan")}, "architecture.dropout: must be finite, got nan"),
        ({"rope": []}, "architecture.rope: expected an object, got []"),
        ({"rope": {"kind": "grid", "wings": 2}}, "architecture.rope.wings: unknown field"),
        ({"timm": "x" * 100_000 + "\x1b"}, None),
        ({"timm": ["x" * 100_000]}, "architecture.timm: expected text, got ['xxx"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str | None) -> None:
    values = asdict(IMAGE) | change
    if message is None:
        read_fields(VisionArchitecture, values, "architecture")
        return
    with pytest.raises(ConfigError) as caught:
        read_fields(VisionArchitecture, values, "architecture")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a", 1]}, "classes: expected a list of texts"),
        ({"classes": ["a"]}, "classes: 1 class names for 2 outputs"),
        ({"descriptions": ["x"]}, "descriptions: 1 for 2 classes"),
        ({"licence": {}}, "licence: expected text, got {}"),
        ({"preprocessing": {}}, "preprocessing.size: missing"),
        ({"preprocessing": {"size": [100_000, 100_000]}}, "size: at most 67,108,864 pixels"),
        ({"preprocessing": {"size": [16, 16], "std": [0, 1, 1]}}, "std: must be above 0"),
        ({"architecture": []}, "architecture: expected an object, got []"),
    ],
)
def test_a_wrong_header_is_refused(change: dict[str, Any], message: str) -> None:
    header = {
        "kind": "classifier",
        "architecture": asdict(IMAGE),
        "classes": ["a", "b"],
        "preprocessing": asdict(Preprocessing((16, 24))),
    }
    check_header(header)
    with pytest.raises(ConfigError) as caught:
        check_header(header | change)
    assert str(caught.value).startswith(message)


def test_a_file_with_a_valid_checksum_and_an_absurd_depth_is_refused_before_it_is_built(tmp_path: Path) -> None:
    model = classifier_file(VisionTransformer(IMAGE), ["a", "b"], asdict(Preprocessing((16, 24))))
    model.architecture |= {"depth": 1_000_000_000}
    save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelFileError, match=r"model\.safetensors: model\.depth: must be at most 1,000, got 1000000000"
    ):
        read_model(tmp_path / "model.safetensors")


def test_weights_of_two_types_are_refused(tmp_path: Path) -> None:
    from vit.models.build import build_model

    model = classifier_file(VisionTransformer(IMAGE), ["a", "b"], asdict(Preprocessing((16, 24))))
    model.raw = dict(model.raw) | {"norm.bias": model.raw["norm.bias"].to(torch.float64)}
    save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"one floating-point type, got torch\.float32, torch\.float64"):
        build_model(read_model(tmp_path / "model.safetensors"))
