"""transformers' Vision Transformers inside our block: randomly initialised peers, in memory and from disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit.errors import ConfigError, ModelFileError, VitError
from vit.models.file import build_network
from vit.models.huggingface import from_huggingface, preprocessing_of
from vit.models.sources import load_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"image_size": 32, "patch_size": 8}
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", {}),
    "vit classifier": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3}),
    "vit without biases": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3, "qkv_bias": False}),
    "vit, tanh": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3, "hidden_act": "gelu_new"}),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "deit classifier": ("DeiTForImageClassification", "DeiTConfig", {"num_labels": 3}),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {"num_labels": 3}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
    "dinov2 swiglu": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov2 classifier": ("Dinov2ForImageClassification", "Dinov2Config", {"num_labels": 3}),
    "dinov2 registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "clip projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"projection_dim": 16}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
}


@pytest.fixture
def peer() -> Callable[[str], nn.Module]:
    """A module of transformers with random values everywhere."""

    def make(name: str) -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        model, config, options = PEERS[name]
        torch.manual_seed(0)
        module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **options)).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return module

    return make


def tokens_and_scores(module: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The tokens after the last norm, and class scores, projection or pooled vector where the module gives one."""
    tower = next((getattr(module, name) for name in ("vit", "deit", "dinov2") if hasattr(module, name)), module)
    out = module(images)
    if type(module).__name__.startswith("CLIP"):
        inner = getattr(module, "vision_model", module)
        norm = inner.post_layernorm
        return norm(inner(images).last_hidden_state), getattr(out, "image_embeds", None)
    if type(module).__name__.startswith("Siglip"):
        return out.last_hidden_state, out.pooler_output
    return tower(images).last_hidden_state, getattr(out, "logits", None)


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_outputs_equal_those_of_transformers(name: str, peer: Callable[[str], nn.Module]) -> None:
    theirs = peer(name)
    ours = from_huggingface(theirs)
    images = torch.randn(2, 3, 32, 32)
    tokens, scores = tokens_and_scores(theirs, images)
    torch.testing.assert_close(ours.encode(images), tokens, rtol=0, atol=1e-5)
    if scores is not None and name != "dinov2 classifier":  # whose head has no counterpart
        torch.testing.assert_close(ours(images), scores, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_folders_that_transformers_saved_give_the_same(
    name: str, peer: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    theirs: Any = peer(name)
    theirs.save_pretrained(tmp_path)
    file = load_model(f"hf:{tmp_path}")
    ours = build_network(file)
    images = torch.randn(2, 3, 32, 32)
    tokens, scores = tokens_and_scores(theirs, images)
    torch.testing.assert_close(ours.encode(images), tokens, rtol=0, atol=1e-5)
    if file.classes:
        assert file.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
        torch.testing.assert_close(ours(images), scores, rtol=0, atol=1e-5)
    else:
        assert ours.architecture.classes == 0
    assert load_model(tmp_path).architecture == file.architecture  # the folder alone says whose it is


@torch.no_grad()
def test_the_image_side_of_a_whole_clip_is_read(tmp_path: Path) -> None:
    import transformers

    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=8)
    theirs: Any = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, images = build_network(load_model(tmp_path)), torch.randn(1, 3, 32, 32)
    vectors = theirs.vision_model(images).pooler_output
    torch.testing.assert_close(ours.features(images), vectors, rtol=0, atol=1e-5)


@torch.no_grad()
def test_several_files_with_an_index_are_one_model(peer: Callable[[str], nn.Module], tmp_path: Path) -> None:
    theirs: Any = peer("vit classifier")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(build_network(load_model(tmp_path))(images), theirs(images).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({}, ((32, 48), "squash", 1.0, "bilinear", (0.5, 0.5, 0.5))),
        ({"size": 224, "resample": 3}, ((224, 224), "squash", 1.0, "bicubic", (0.5, 0.5, 0.5))),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            ((224, 224), "crop", 0.875, "bilinear", (0.5, 0.5, 0.5)),
        ),
        (
            {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224, "image_mean": [0.4] * 3},
            ((224, 224), "squash", 0.875, "bilinear", (0.4, 0.4, 0.4)),
        ),
        ({"do_normalize": False}, ((32, 48), "squash", 1.0, "bilinear", (0.0, 0.0, 0.0))),
    ],
)
def test_preprocessing_is_what_the_folder_says(described: dict[str, Any], expected: tuple[Any, ...]) -> None:
    p = preprocessing_of(described, (32, 48))
    assert (p.size, p.resize, p.crop_fraction, p.interpolation, p.mean) == expected


def test_the_same_pixels_as_the_processor_of_transformers(tmp_path: Path) -> None:
    """To a rounding step of a byte: its resizing works on tensors, ours is Pillow's."""
    import numpy as np
    from transformers import ViTImageProcessor

    from vit.data.normalise import Normalise, as_tensor
    from vit.data.transforms import EvaluationTransform

    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    ours = preprocessing_of(described, (32, 32))
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    pixels = Normalise(ours)(as_tensor(EvaluationTransform(ours)(picture))[None])
    assert (pixels - theirs).abs().max() <= 2.01 / 255 / 0.5


def saved(peer: Callable[[str], nn.Module], folder: Path) -> Path:
    module: Any = peer("vit classifier")
    module.save_pretrained(folder)
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_cannot_be_read_is_named(peer: Callable[[str], nn.Module], tmp_path: Path) -> None:
    folder = saved(peer, tmp_path)

    def complaint(kind: type[VitError] = ModelFileError) -> str:
        with pytest.raises(kind) as caught:
            load_model(f"hf:{folder}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    config, weights = folder / "config.json", folder / "model.safetensors"
    original, tensors = config.read_text(), load_file(weights)
    change(config, model_type="swin")
    assert "model_type 'swin'; supported are vit, deit" in complaint(ConfigError)
    config.write_text(original)
    change(config, hidden_act="relu")
    assert "activation 'relu' (hidden_act)" in complaint(ConfigError)
    config.write_text(original)
    change(config, num_hidden_layers=3)
    assert "weights and config do not fit" in complaint()
    config.write_text(original)
    save_file({name: t for name, t in tensors.items() if not name.endswith("layernorm.weight")}, weights)
    assert "weights and config do not fit" in complaint()
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "no whole safetensors file" in complaint()
    weights.unlink()
    assert "no model.safetensors in it" in complaint()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "pickled weights are not read" in complaint()
    config.write_text("{")
    assert "not valid JSON" in complaint()
    config.write_text("[]")
    assert "not a JSON object" in complaint()
