"""Google's `.npz` weights: random arrays in their layouts, read by timm and by us to the same outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from vit.errors import ModelFileError
from vit.models.file import build_network
from vit.models.sources import load_model

DIM, HEADS, HIDDEN, DEPTH, CLASSES, PATCH = 12, 3, 20, 2, 5, 4


def random(*shape: int) -> np.ndarray:
    return random.rng.normal(0, 0.2, shape).astype(np.float32)  # type: ignore[attr-defined]


random.rng = np.random.default_rng(0)  # type: ignore[attr-defined]


def attention(key: str) -> dict[str, np.ndarray]:
    found = {f"{key}/out/kernel": random(HEADS, DIM // HEADS, DIM), f"{key}/out/bias": random(DIM)}
    for part in ("query", "key", "value"):
        found[f"{key}/{part}/kernel"] = random(DIM, HEADS, DIM // HEADS)
        found[f"{key}/{part}/bias"] = random(HEADS, DIM // HEADS)
    return found


def norm(key: str) -> dict[str, np.ndarray]:
    return {f"{key}/scale": 1 + random(DIM), f"{key}/bias": random(DIM)}


def mlp(key: str) -> dict[str, np.ndarray]:
    found = {f"{key}/Dense_0/kernel": random(DIM, HIDDEN), f"{key}/Dense_0/bias": random(HIDDEN)}
    return found | {f"{key}/Dense_1/kernel": random(HIDDEN, DIM), f"{key}/Dense_1/bias": random(DIM)}


def arrays(*, big_vision: bool, with_class: bool = True, head: str = "head", stacked: bool = False) -> dict[str, Any]:
    """The arrays of a small model, as the two generations of JAX code name them."""
    tokens = 3 * 3 + int(with_class and not big_vision)
    found = {"embedding/kernel": random(PATCH, PATCH, 3, DIM), "embedding/bias": random(DIM)}
    found["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = random(1, tokens, DIM)
    if with_class:
        found["cls"] = random(1, 1, DIM)
    attn, second, inner = ("0", "1", "0") if big_vision else ("1", "2", "3")
    blocks = []
    for _ in range(DEPTH):
        block = attention(f"MultiHeadDotProductAttention_{attn}") | mlp(f"MlpBlock_{inner}")
        blocks.append(block | norm("LayerNorm_0") | norm(f"LayerNorm_{second}"))
    if stacked:
        found |= {f"Transformer/encoderblock/{name}": np.stack([b[name] for b in blocks]) for name in blocks[0]}
    else:
        for number, block in enumerate(blocks):
            found |= {f"Transformer/encoderblock_{number}/{name}": array for name, array in block.items()}
    found |= norm("Transformer/encoder_norm")
    if head == "head":
        found |= {"head/kernel": random(DIM, CLASSES), "head/bias": random(CLASSES)}
    else:
        parts = attention("MultiHeadDotProductAttention_0") | norm("LayerNorm_0") | mlp("MlpBlock_0")
        found |= {f"MAPHead_0/{name}": array for name, array in parts.items()}
        found["MAPHead_0/probe"] = random(1, 1, DIM)
    return found


LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "original": ("", {"big_vision": False}, {}),
    "optimizer state": ("opt/target/", {"big_vision": False}, {}),
    "big_vision": ("params/", {"big_vision": True}, {"no_embed_class": True}),
    "big_vision, stacked": ("params/", {"big_vision": True, "stacked": True}, {"no_embed_class": True}),
    "mean": (
        "params/",
        {"big_vision": True, "with_class": False},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ),
    "siglip": (
        "params/img/",
        {"big_vision": True, "with_class": False, "head": "map"},
        {"class_token": False, "global_pool": "map", "num_classes": 0},
    ),
}


def write(path: Path, prefix: str, found: dict[str, np.ndarray]) -> Path:
    np.savez(path, **{prefix + name: array for name, array in found.items()})  # type: ignore[arg-type]
    return path


@torch.no_grad()
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_outputs_equal_those_of_timm_reading_the_same_file(layout: str, tmp_path: Path) -> None:
    prefix, options, timm_options = LAYOUTS[layout]
    path = write(tmp_path / "weights.npz", prefix, arrays(**options))
    sizes = {"img_size": 12, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    sizes |= {"mlp_ratio": HIDDEN / DIM, "num_classes": CLASSES}
    theirs: Any = timm.models.VisionTransformer(**{**sizes, **timm_options}).eval()
    theirs.load_pretrained(str(path))
    file = load_model(path)
    ours, images = build_network(file), torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    assert file.classes == ([] if layout == "siglip" else ["0", "1", "2", "3", "4"])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = arrays(big_vision=False)
    path = write(tmp_path / "weights.npz", "", whole)
    size = path.stat().st_size

    def complaint(file: Path) -> str:
        with pytest.raises(ModelFileError) as caught:
            load_model(file)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    cut = tmp_path / "cut.npz"
    cut.write_bytes(path.read_bytes()[: size // 2])
    assert "no whole .npz" in complaint(cut)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"embedding/kernel": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    assert "no whole .npz of plain arrays" in complaint(pickled)
    other = write(tmp_path / "other.npz", "", {"conv1/kernel": random(3, 3)})
    assert "it has no embedding/kernel" in complaint(other)
    del whole["Transformer/encoderblock_1/LayerNorm_0/scale"]
    assert "LayerNorm_0/scale" in complaint(write(tmp_path / "gap.npz", "", whole))
    assert "no such file" in complaint(tmp_path / "absent.npz")
