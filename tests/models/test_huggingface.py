"""transformers' Vision Transformers inside our block: the same outputs, in memory and from the folders it writes.

Small, with random values everywhere. transformers takes seconds to import, so it is imported when first needed.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit.data.config import Preprocessing
from vit.data.normalise import Normalise, as_tensor
from vit.data.transforms import EvaluationTransform
from vit.errors import ConfigError, ModelFileError, VitError
from vit.models.build import build_network
from vit.models.huggingface import DEFAULTS, from_huggingface, preprocessing_of, read_huggingface_folder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TOGETHER = {"text_config": TEXT, "vision_config": SIZES}
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", {}),
    "vit classifier": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3}),
    "vit without biases": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3, "qkv_bias": False}),
    "vit tanh": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3, "hidden_act": "gelu_new"}),
    "vit masked": ("ViTForMaskedImageModeling", "ViTConfig", {"encoder_stride": 8}),
    "vit epsilon": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3, "layer_norm_eps": 0.1}),
    "vit oblong": ("ViTForImageClassification", "ViTConfig", {"num_labels": 3, "image_size": (32, 16)}),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "deit classifier": ("DeiTForImageClassification", "DeiTConfig", {"num_labels": 3}),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {"num_labels": 3}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
    "dinov2 swiglu": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov2 classifier": ("Dinov2ForImageClassification", "Dinov2Config", {"num_labels": 3}),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
    "registers swiglu": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"use_swiglu_ffn": True}),
    "registers classifier": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        {"num_labels": 3, "num_register_tokens": 2},
    ),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "clip projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"projection_dim": 16}),
    "clip whole": ("CLIPModel", "CLIPConfig", {**TOGETHER, "projection_dim": 8}),
    "clip classifier": ("CLIPForImageClassification", "CLIPConfig", {**TOGETHER, "num_labels": 3}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "siglip whole": ("SiglipModel", "SiglipConfig", TOGETHER),
    "siglip classifier": ("SiglipForImageClassification", "SiglipConfig", {**TOGETHER, "num_labels": 3}),
    "siglip without pool": ("SiglipVisionModel", "SiglipVisionConfig", {"vision_use_head": False}),
}
TOWERS = ("vit", "deit", "dinov2", "dinov2_with_registers", "vision_model")
NO_HEAD_OF_OURS = {"dinov2 classifier", "registers classifier", "clip classifier"}


def peer(name: str, **options: Any) -> Any:
    """A module of transformers with random values everywhere."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, config, more = PEERS[name]
    torch.manual_seed(0)
    sizes = {} if "vision_config" in more else SIZES
    module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **more, **options}))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval()


def tower_of(module: Any) -> Any:
    """The part of a module that gives tokens."""
    return next((getattr(module, name) for name in TOWERS if hasattr(module, name)), module)


def tokens_of(module: Any, images: Tensor) -> Tensor:
    """The tokens after the last norm."""
    tower = tower_of(module)
    tokens: Tensor = tower(images).last_hidden_state
    return tower.post_layernorm(tokens) if type(tower).__name__.startswith("CLIP") else tokens


def scores_of(module: Any, images: Tensor) -> Tensor | None:
    """Class scores, or projected vectors, where the module gives any."""
    if hasattr(module, "visual_projection"):
        return module.visual_projection(tower_of(module)(images).pooler_output)
    return getattr(module(images), "logits", None) if "Classification" in type(module).__name__ else None


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def images_for(module: Any) -> Tensor:
    size = tower_of(module).config.image_size
    return torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_outputs_equal_those_of_transformers(name: str) -> None:
    theirs = peer(name)
    ours, images = from_huggingface(theirs), images_for(theirs)
    assert not ours.training
    assert_close(ours.encode(images), tokens_of(theirs, images))
    scores = scores_of(theirs, images)
    if scores is None or name in NO_HEAD_OF_OURS:
        assert ours.architecture.classes == 0
    else:
        assert_close(ours(images), scores)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "deit classifier", "clip", "siglip", "siglip whole"])
def test_the_pooled_vector_equals_that_of_transformers(name: str) -> None:
    theirs = peer(name)
    ours, images = from_huggingface(theirs), images_for(theirs)
    out = tower_of(theirs)(images)
    pooled = out.last_hidden_state[:, 0] if name in ("vit", "deit classifier") else out.pooler_output
    assert_close(ours.features(images), pooled)


@torch.no_grad()
@pytest.mark.parametrize("name", list(PEERS))
def test_folders_that_transformers_saved_give_the_same(name: str, tmp_path: Path) -> None:
    theirs, folder = peer(name), tmp_path / "saved"
    theirs.save_pretrained(folder)
    file = read_huggingface_folder(folder)
    ours, images = build_network(file), images_for(theirs)
    assert_close(ours.encode(images), tokens_of(theirs, images))
    if file.classes:
        assert file.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert_close(ours(images), scores_of(theirs, images))  # type: ignore[arg-type]
    else:
        assert name in NO_HEAD_OF_OURS or "classifier" not in name
        assert ours.architecture.classes == 0
    assert (file.kind, file.origin) == ("classifier", "hf:saved")


@torch.no_grad()
def test_both_generations_of_names_are_read(tmp_path: Path) -> None:
    """Files keep the names of old, which modules no longer have."""
    for name in ("vit classifier", "deit distilled", "dinov2 swiglu", "registers"):
        theirs, folder = peer(name), tmp_path / name
        theirs.save_pretrained(folder)
        in_file, in_module = set(load_file(folder / "model.safetensors")), set(theirs.state_dict())
        assert any(".attention.attention.query." in key for key in in_file)
        assert any(".attention.q_proj." in key for key in in_module)
        before = read_huggingface_folder(folder)
        save_file(theirs.state_dict(), folder / "model.safetensors")
        after = read_huggingface_folder(folder)
        assert after.architecture == before.architecture
        assert all(torch.equal(after.raw[key], before.raw[key]) for key in before.raw)


@torch.no_grad()
def test_several_files_with_an_index_are_one_model(tmp_path: Path) -> None:
    theirs = peer("vit classifier")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    images = images_for(theirs)
    assert_close(build_network(read_huggingface_folder(tmp_path))(images), theirs(images).logits)
    next(tmp_path.glob("model-00002*")).unlink()
    assert "no model-00002" in complaint(tmp_path)


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    peer("clip").half().save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in read_huggingface_folder(tmp_path).raw.values()} == {torch.float32}
    assert from_huggingface(peer("clip").half()).cls_token.dtype == torch.float16


def test_a_module_that_trains_gives_a_model_of_its_own_that_trains() -> None:
    theirs = peer("dinov2", drop_path_rate=0.2, hidden_dropout_prob=0.1).train()
    ours = from_huggingface(theirs)
    assert ours.training
    assert (ours.architecture.drop_path, ours.architecture.dropout) == (0.2, 0.1)
    assert ours.cls_token.data_ptr() != theirs.embeddings.cls_token.data_ptr()
    assert all(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("kind", list(DEFAULTS))
def test_what_a_config_leaves_out_is_what_transformers_takes(kind: str) -> None:
    import transformers

    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    assert {key: theirs[key] for key in DEFAULTS[kind]} == DEFAULTS[kind]


@torch.no_grad()
def test_an_image_side_that_says_only_what_differs_is_read(tmp_path: Path) -> None:
    """As in the `config.json` of SigLIP's smaller models."""
    theirs = peer("siglip whole")
    theirs.save_pretrained(tmp_path)
    usual = DEFAULTS["siglip_vision_model"]
    told = {key: value for key, value in SIZES.items() if usual.get(key) != value}
    change(tmp_path / "config.json", vision_config=told)
    images = images_for(theirs)
    assert_close(build_network(read_huggingface_folder(tmp_path)).encode(images), tokens_of(theirs, images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["siglip", "vit classifier", "clip"])
def test_pixels_that_do_not_fill_a_patch_are_ignored_as_in_transformers(name: str, tmp_path: Path) -> None:
    """As in SigLIP So400m, 27 patches of 14 pixels in 384: the model sees the upper left."""
    theirs = peer(name, image_size=36)
    ours, images = from_huggingface(theirs), torch.randn(2, 3, 36, 36)
    assert (ours.architecture.image_size, ours.architecture.grid) == ((36, 36), (4, 4))
    assert_close(ours.encode(images), tokens_of(theirs, images))
    assert_close(ours.encode(images[..., :32, :32]), tokens_of(theirs, images))
    theirs.save_pretrained(tmp_path)
    save_json(tmp_path / "preprocessor_config.json", size={"height": 36, "width": 36}, resample=3)
    file = read_huggingface_folder(tmp_path)
    prepared = file.preprocessing
    assert (prepared["size"], prepared["resize"], prepared["crop_fraction"]) == ((36, 36), "squash", 1.0)
    assert_close(build_network(file).encode(images), tokens_of(theirs, images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "registers", "clip", "siglip"])
@pytest.mark.parametrize("size", [(48, 48), (24, 40), (36, 36)])
def test_positions_are_resampled_as_transformers_does_for_an_image_size(name: str, size: tuple[int, int]) -> None:
    theirs, images = peer(name), torch.randn(2, 3, *size)
    tower, options = tower_of(theirs), {} if name in ("dinov2", "registers") else {"interpolate_pos_encoding": True}
    expected = tower(images, **options).last_hidden_state
    expected = tower.post_layernorm(expected) if name == "clip" else expected
    assert_close(from_huggingface(theirs, image_size=size).encode(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2", "registers"])
def test_pictures_of_another_size_give_what_transformers_gives(name: str, tmp_path: Path) -> None:
    """DINOv2's positions are for 518 pixels, its pictures are prepared at 224."""
    theirs = peer(name, image_size=72)
    theirs.save_pretrained(tmp_path)
    crop = {"height": 32, "width": 32}
    save_json(tmp_path / "preprocessor_config.json", size={"shortest_edge": 40}, do_center_crop=True, crop_size=crop)
    file, images = read_huggingface_folder(tmp_path), torch.randn(2, 3, 32, 32)
    assert file.architecture["image_size"] == file.preprocessing["size"] == (32, 32)
    assert file.preprocessing["crop_fraction"] == 0.8
    assert_close(build_network(file).encode(images), tokens_of(theirs, images))


def test_classes_are_called_as_the_config_says(tmp_path: Path) -> None:
    def classes(**labels: str) -> list[str]:
        change(tmp_path / "config.json", id2label=labels)
        return read_huggingface_folder(tmp_path).classes

    peer("vit classifier").save_pretrained(tmp_path)
    assert classes(**{"2": "tench", "0": "crane", "1": "hen"}) == ["crane", "hen", "tench"]
    assert classes(**{"0": "crane", "1": "hen", "2": "crane"}) == ["crane (0)", "hen", "crane (2)"]
    assert classes() == ["LABEL_0", "LABEL_1", "LABEL_2"]
    change(tmp_path / "config.json", id2label={"0": "crane", "1": "hen"}, _name_or_path="someone/birds")
    assert "2 names in id2label for 3 classes" in complaint(tmp_path)
    change(tmp_path / "config.json", id2label={})
    assert read_huggingface_folder(tmp_path).origin == "hf:someone/birds"


HALF = (0.5, 0.5, 0.5)
USUAL = Preprocessing((32, 48), "squash", 1.0, "bilinear", HALF, HALF)
KEPT = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


@pytest.mark.parametrize(
    ("described", "changes"),
    [
        ({}, {}),
        ({"resample": 3}, {"interpolation": "bicubic"}),
        ({"size": 224}, {"size": (224, 224)}),
        ({"size": {"height": 224, "width": 160}}, {"size": (224, 160)}),
        ({"size": {"shortest_edge": 256}, **KEPT}, {"size": (224, 224), "resize": "crop", "crop_fraction": 0.875}),
        ({"size": {"height": 256, "width": 256}, **KEPT}, {"size": (224, 224), "crop_fraction": 0.875}),
        ({"size": 256, **KEPT, "do_center_crop": False}, {"size": (256, 256)}),
        ({"image_mean": [0.4, 0.3, 0.2]}, {"mean": (0.4, 0.3, 0.2)}),
        ({"image_std": [0.4, 0.3, 0.2]}, {"std": (0.4, 0.3, 0.2)}),
        ({"do_normalize": False, "image_mean": [0.4, 0.3, 0.2]}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
    ],
)
def test_preprocessing_is_what_the_folder_says(described: dict[str, Any], changes: dict[str, Any]) -> None:
    assert preprocessing_of(described, USUAL) == replace(USUAL, **changes)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"resample": 1}, r"interpolation 1 \(resample\); 2 and 3 are"),
        ({"do_rescale": False}, "values other than 0 to 1"),
        ({"rescale_factor": 1 / 127.5}, "values other than 0 to 1"),
        ({"size": {"longest_edge": 224}}, "size by longest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 256}}, "size by longest_edge, shortest_edge"),
        ({"size": 160, **KEPT}, r"a picture of 160 x 160 \(size\) cut to 224 x 224 \(crop_size\)"),
        ({"size": 256, "do_center_crop": True, "crop_size": [224, 160]}, "cut to 224 x 160"),
        ({"image_mean": [0.5]}, "image_mean of 1 channels"),
    ],
)
def test_preparation_that_we_do_not_have_is_named(described: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^not supported from transformers: .*{words}"):
        preprocessing_of(described, USUAL)


@pytest.mark.parametrize("size", [None, 40, "mapping"])
@pytest.mark.parametrize("name", ["ViT", "DeiT", "CLIP", "Bit", "Siglip"])
def test_the_same_pixels_as_the_processors_of_transformers(name: str, size: Any, tmp_path: Path) -> None:
    """To two steps of a byte: they resize tensors, we Pillow's pictures. One number means one thing to some of them."""
    import transformers

    processor = getattr(transformers, f"{name}ImageProcessor")()
    processor.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    if size == 40:
        described |= {"size": 40, "crop_size": 32}
        processor = type(processor).from_dict(described)
    elif size == "mapping":
        described |= {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}
        processor = type(processor).from_dict(described)
    ours = preprocessing_of(described, USUAL)
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    height, width = theirs.shape[-2:]
    pixels = Normalise(ours)(as_tensor(EvaluationTransform(ours)(picture))[None])
    left = (width - pixels.shape[-1]) // 2  # SigLIP's, of one number, are as wide as the picture
    assert height == pixels.shape[-2]
    assert (pixels - theirs[..., left : left + pixels.shape[-1]]).abs().max() <= 2.01 / 255 / min(ours.std)


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "registers", "clip", "siglip"])
def test_a_folder_that_does_not_say_is_prepared_as_is_usual_for_its_kind(name: str, tmp_path: Path) -> None:
    peer(name).save_pretrained(tmp_path)
    untold = read_huggingface_folder(tmp_path).preprocessing
    assert untold["size"] == (32, 32)
    assert untold["resize"] == ("squash" if name in ("vit", "deit", "siglip") else "crop")
    assert untold["interpolation"] == ("bilinear" if name == "vit" else "bicubic")
    assert untold["crop_fraction"] == (1.0 if name in ("vit", "clip", "siglip") else 0.875)
    assert (untold["mean"] == HALF) == (name in ("vit", "siglip"))


def test_the_preparation_of_a_whole_processor_is_found(tmp_path: Path) -> None:
    peer("clip").save_pretrained(tmp_path)
    inner = asdict(Preprocessing((32, 32), "crop", 0.8, "bilinear", HALF, HALF))
    described = {"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True, "resample": 2}
    save_json(tmp_path / "processor_config.json", image_processor={**described, "image_mean": HALF, "image_std": HALF})
    assert read_huggingface_folder(tmp_path).preprocessing == inner


def save_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def change(path: Path, **values: Any) -> None:
    save_json(path, **(json.loads(path.read_text()) | values))


def complaint(folder: Path, kind: type[VitError] = ModelFileError) -> str:
    with pytest.raises(kind) as caught:
        read_huggingface_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "swin"}, "model_type 'swin'; supported are vit, deit, dinov2, dinov2_with_registers, clip_"),
        ({"model_type": None}, "model_type 'None'; supported are"),
        ({"hidden_act": "relu"}, "activation 'relu' (hidden_act)"),
        ({"num_attention_heads": 5}, "model.heads: must divide dim 32, got 5"),
    ],
)
def test_options_that_are_not_supported_are_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    peer("vit").save_pretrained(tmp_path)
    change(tmp_path / "config.json", **changes)
    assert words in complaint(tmp_path, ConfigError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "blocks: expected 3, found 2"),
        ({"num_hidden_layers": 1}, "blocks.1.attn.proj.bias: not expected, found 32 values"),
        ({"patch_size": 4}, "pos_embed: expected 1 x 65 x 32, found 1 x 17 x 32"),
        ({"hidden_size": 24}, "cls_token: expected 1 x 1 x 24, found 1 x 1 x 32"),
        ({"image_size": "large"}, "invalid literal"),
        ({"image_size": [32]}, "index out of range"),
        ({"model_type": "clip"}, "blocks: expected 12, found 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    peer("vit").save_pretrained(tmp_path)
    change(tmp_path / "config.json", **changes)
    said = complaint(tmp_path)
    assert "weights and config do not fit: " in said
    assert words in said


def test_pictures_of_one_channel_are_refused(tmp_path: Path) -> None:
    peer("vit", num_channels=1).save_pretrained(tmp_path)
    assert "pictures of 1 channels (num_channels)" in complaint(tmp_path, ConfigError)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    peer("vit classifier").save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    tensors = load_file(weights)
    kept = {name: tensor for name, tensor in tensors.items() if ".attention.key." not in name}
    save_file(kept, weights)
    assert "no tensor or entry 'blocks.0.attn.k.weight'" in complaint(tmp_path)
    save_file({}, weights)
    assert "no tensor or entry 'blocks.0.mlp.fc2.weight'" in complaint(tmp_path)
    save_file(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    assert complaint(tmp_path).startswith(f"{weights}: not a valid safetensors file (truncated or corrupt? ")
    weights.unlink()
    assert complaint(tmp_path) == f"{tmp_path}: no model.safetensors in it"
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert complaint(tmp_path).startswith(f"{tmp_path / 'pytorch_model.bin'}: cut, damaged, or no checkpoint at all")
    config.write_text("{")
    assert "not valid JSON" in complaint(tmp_path)
    config.write_text("[]")
    assert "not a JSON object" in complaint(tmp_path)
    config.unlink()
    assert str(config) in complaint(tmp_path)
