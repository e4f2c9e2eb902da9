"""Google's `.npz` weights: random arrays in their layouts, read by timm and by us to the same outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from vit.errors import ModelFileError
from vit.models.build import build_network
from vit.models.file import ModelFile
from vit.models.jax import read_jax

DIM, HEADS, HIDDEN, DEPTH, CLASSES, PATCH, GRID = 12, 3, 20, 2, 5, 4, 3
GENERATOR = np.random.default_rng(0)

Arrays = dict[str, np.ndarray]


def random(*shape: int) -> np.ndarray:
    return GENERATOR.normal(0, 0.2, shape).astype(np.float32)


def linear(key: str, inputs: int, outputs: int) -> Arrays:
    return {f"{key}/kernel": random(inputs, outputs), f"{key}/bias": random(outputs)}


def norm(key: str) -> Arrays:
    return {f"{key}/scale": 1 + random(DIM), f"{key}/bias": random(DIM)}


def mlp(key: str) -> Arrays:
    return linear(f"{key}/Dense_0", DIM, HIDDEN) | linear(f"{key}/Dense_1", HIDDEN, DIM)


def attention(key: str) -> Arrays:
    found = {f"{key}/out/kernel": random(HEADS, DIM // HEADS, DIM), f"{key}/out/bias": random(DIM)}
    for part in ("query", "key", "value"):
        found[f"{key}/{part}/kernel"] = random(DIM, HEADS, DIM // HEADS)
        found[f"{key}/{part}/bias"] = random(HEADS, DIM // HEADS)
    return found


def arrays(*, big_vision: bool, with_class: bool = True, pool_head: bool = False, stacked: bool = False) -> Arrays:
    """The arrays of a small model, as the two generations of JAX code name them."""
    positions = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    found = {
        "embedding/kernel": random(PATCH, PATCH, 3, DIM),
        "embedding/bias": random(DIM),
        positions: random(1, GRID * GRID + int(with_class and not big_vision), DIM),
        **norm("Transformer/encoder_norm"),
    }
    if with_class:
        found["cls"] = random(1, 1, DIM)
    attn, second, inner = ("0", "1", "0") if big_vision else ("1", "2", "3")
    blocks = []
    for _ in range(DEPTH):
        block = attention(f"MultiHeadDotProductAttention_{attn}") | mlp(f"MlpBlock_{inner}")
        blocks.append(block | norm("LayerNorm_0") | norm(f"LayerNorm_{second}"))
    if stacked:
        found |= {f"Transformer/encoderblock/{name}": np.stack([b[name] for b in blocks]) for name in blocks[0]}
    for number, block in enumerate([] if stacked else blocks):
        found |= {f"Transformer/encoderblock_{number}/{name}": array for name, array in block.items()}
    if not pool_head:
        return found | linear("head", DIM, CLASSES)
    parts = attention("MultiHeadDotProductAttention_0") | norm("LayerNorm_0") | mlp("MlpBlock_0")
    return found | {f"MAPHead_0/{name}": part for name, part in {**parts, "probe": random(1, 1, DIM)}.items()}


def written(path: Path, found: Arrays, prefix: str = "") -> Path:
    np.savez(path, **{prefix + name: array for name, array in found.items()})  # type: ignore[arg-type]
    return path


def through_timm(path: Path, **options: Any) -> Any:
    sizes = {"img_size": GRID * PATCH, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    model: Any = timm.models.VisionTransformer(
        **{**sizes, "mlp_ratio": HIDDEN / DIM, "num_classes": CLASSES, **options}
    ).eval()
    model.load_pretrained(str(path))
    return model


NO_CLASS = {"big_vision": True, "with_class": False}
MEAN = {"class_token": False, "global_pool": "avg", "fc_norm": False}
SIGLIP = {"class_token": False, "global_pool": "map", "num_classes": 0}


@torch.no_grad()
@pytest.mark.parametrize(
    ("prefix", "layout", "options"),
    [
        pytest.param("", {"big_vision": False}, {}, id="AugReg"),
        pytest.param("opt/target/", {"big_vision": False}, {}, id="optimizer state"),
        pytest.param("params/", {"big_vision": True}, {"no_embed_class": True}, id="big_vision"),
        pytest.param("params/", {"big_vision": True, "stacked": True}, {"no_embed_class": True}, id="stacked"),
        pytest.param("params/", NO_CLASS, MEAN, id="mean"),
        pytest.param("params/img/", {**NO_CLASS, "pool_head": True}, SIGLIP, id="SigLIP"),
        pytest.param("", {**NO_CLASS, "pool_head": True, "stacked": True}, SIGLIP, id="SigLIP, stacked"),
    ],
)
def test_outputs_equal_those_of_timm_reading_the_same_file(
    prefix: str, layout: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    path = written(tmp_path / "weights.npz", arrays(**layout), prefix)
    theirs, file, images = through_timm(path, **options), read_jax(path), torch.randn(2, 3, 12, 12)
    ours = build_network(file)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.encode(images), theirs.forward_features(images), rtol=0, atol=1e-5)
    assert file.classes == ([] if "num_classes" in options else ["0", "1", "2", "3", "4"])
    assert file.origin == "weights.npz"


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "params/img/"])
def test_heads_that_are_no_classifier_of_ours_are_left_out(prefix: str, tmp_path: Path) -> None:
    found = arrays(big_vision=True) | ({} if prefix else linear("pre_logits", DIM, DIM))
    path = written(tmp_path / "weights.npz", found, prefix)
    theirs, file, images = (
        through_timm(path, no_embed_class=True, num_classes=0),
        read_jax(path),
        torch.randn(1, 3, 12, 12),
    )
    torch.testing.assert_close(build_network(file)(images), theirs(images), rtol=0, atol=1e-5)
    assert file.classes == []


def test_what_else_the_file_holds_is_not_read(tmp_path: Path) -> None:
    """Such as the state of the optimizer, and a text encoder."""
    path = tmp_path / "weights.npz"
    found = {f"params/img/{name}": array for name, array in arrays(big_vision=True).items()}
    np.savez(path, **found, **{"params/txt/head/bias": random(3), "opt/0/mu": random(3)})  # type: ignore[arg-type]
    assert build_network(read_jax(path)).architecture.depth == DEPTH


@pytest.mark.parametrize("side", [224, 384])
def test_pictures_are_prepared_as_timm_does_it_for_augreg(side: int, tmp_path: Path) -> None:
    found = arrays(big_vision=False)
    found["Transformer/posembed_input/pos_embedding"] = random(1, (side // PATCH) ** 2 + 1, DIM)
    ours = read_jax(written(tmp_path / "weights.npz", found)).preprocessing
    theirs = timm.models.get_pretrained_cfg(f"vit_base_patch16_{side}.augreg_in21k_ft_in1k")
    assert ours["size"] == theirs.input_size[1:]
    assert ours["crop_fraction"] == theirs.crop_pct
    assert (ours["interpolation"], ours["mean"], ours["std"]) == (theirs.interpolation, theirs.mean, theirs.std)
    assert ours["resize"] == "crop" == theirs.crop_mode.replace("center", "crop")


def complaint(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_jax(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "weights.npz", arrays(big_vision=False))
    whole = path.read_bytes()
    assert complaint(tmp_path / "absent.npz") == "no such file"
    for contents in (b"", b"no npz at all", whole[: len(whole) // 2], whole[:-40]):
        path.write_bytes(contents)
        assert complaint(path).startswith("no whole .npz of plain arrays: ")
    with path.open("wb") as stream:
        np.save(stream, random(3))
    assert complaint(path).startswith("no whole .npz of plain arrays: ")
    np.savez(path, **{"embedding/kernel": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    assert complaint(path) == ("no whole .npz of plain arrays: Object arrays cannot be loaded when allow_pickle=False")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_noticed_or_harmless(compressed: bool, tmp_path: Path) -> None:
    path, found = tmp_path / "weights.npz", arrays(big_vision=False)
    (np.savez_compressed if compressed else np.savez)(path, **found)  # type: ignore[arg-type]
    whole, before, noticed = path.read_bytes(), read_jax(path), 0
    for place in GENERATOR.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert same(read_jax(path), before)  # a byte that nothing depends on, such as the date
        except ModelFileError:
            noticed += 1
    assert noticed >= 30


def same(a: ModelFile, b: ModelFile) -> bool:
    return a.architecture == b.architecture and all(torch.equal(a.raw[name], b.raw[name]) for name in b.raw)


def test_arrays_of_other_models_are_refused_by_name(tmp_path: Path) -> None:
    whole = arrays(big_vision=False)

    def without(name: str) -> Arrays:
        return {key: array for key, array in whole.items() if not key.startswith(name)}

    def refused(found: Arrays) -> str:
        return complaint(written(tmp_path / "weights.npz", found)).removeprefix("no Vision Transformer of Google's: ")

    assert refused({"conv1/kernel": random(3, 3)}) == "it has no embedding/kernel"
    assert refused(whole | {"conv_root/kernel": random(7, 7, 3, 8)}) == "it has 'conv_root/kernel' besides"
    gone = "Transformer/encoderblock_1/LayerNorm_0/scale"
    assert refused(without(gone)) == f"it has no '{gone}'"
    assert "it has no 'Transformer/encoderblock_0/" in refused(without("Transformer/encoderblock_0/"))
    assert "it has no 'Transformer/encoderblock_0/" in refused(without("Transformer/encoderblock"))
    positions = "Transformer/posembed_input/pos_embedding"
    assert refused(whole | {positions: random(1, 7, DIM)}) == "its 7 positions form no square"
    assert "norm.weight: expected 12 values, found 3 values" in refused(
        whole | {"Transformer/encoder_norm/scale": random(3)}
    )
    assert refused(whole | {"embedding/kernel": random(3, DIM)}) == "its embedding/kernel has the shape (3, 12)"
    assert "could not convert" in refused(whole | {"cls": np.array("text")})
