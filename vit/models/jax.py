"""Weights of Google's JAX code: the `.npz` files of the original ViT, AugReg and big_vision.

Two generations of the same layout; kernels are [in, out], those of attention [D, heads, K], of the patch embedding
[P, P, C, D].
"""

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit.data.config import Preprocessing
from vit.errors import ModelFileError, display_path
from vit.models.architecture import Pool, VisionArchitecture
from vit.models.file import ModelFile
from vit.models.vision import with_weights

Arrays = Mapping[str, np.ndarray]
State = dict[str, Tensor]

_PREFIXES = ("", "opt/target/", "params/", "params/img/")
_EMBEDDING = "embedding/kernel"


def read_jax(path: Path) -> ModelFile:
    """A model file of the weights in an `.npz`. Raises ModelFileError saying what is wrong with it.

    The file says neither how pictures are prepared nor what classes are called: they are prepared as for AugReg (0.9 of
    the centre, bicubic, mean and spread 0.5), and called by their numbers.
    """
    try:
        arrays = _arrays(path)
        architecture = architecture_of(arrays)
        state = to_our_names(arrays, architecture)
        with_weights(architecture, state)
    except (KeyError, RuntimeError, IndexError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelFileError(f"{display_path(path)}: no Vision Transformer of Google's: {lines[-1][:160]}") from error
    half = (0.5, 0.5, 0.5)
    return ModelFile(
        kind="classifier",
        architecture=asdict(architecture),
        classes=[str(number) for number in range(architecture.classes)],
        preprocessing=asdict(Preprocessing(architecture.image_size, crop_fraction=0.9, mean=half, std=half)),
        raw=state,
        origin=path.name,
    )


def architecture_of(arrays: Arrays) -> VisionArchitecture:
    """The shape that the arrays, without their common prefix, have."""
    rows, columns, channels, dim = arrays[_EMBEDDING].shape
    positions = arrays[_positions(arrays)]
    with_class = "cls" in arrays
    tokens = positions.shape[-2] if positions.ndim == 3 else math.prod(positions.shape[:-1])
    side = math.isqrt(tokens)
    positioned = with_class and side * side != tokens
    grid = math.isqrt(tokens - positioned)
    attention, _, mlp = _parts(arrays)
    layers = _layers(arrays)
    pool: Pool = "attention" if "MAPHead_0/probe" in arrays else "class" if with_class else "mean"
    return VisionArchitecture(
        image_size=(grid * rows, grid * columns),
        patch_size=(rows, columns),
        dim=dim,
        depth=len(layers),
        heads=layers[0][f"{attention}/query/kernel"].shape[1],
        hidden=layers[0][f"{mlp}/Dense_0/kernel"].shape[1],
        classes=arrays["head/bias"].shape[0] if "head/bias" in arrays else 0,
        channels=channels,
        class_token=with_class,
        prefix_positions=positioned,
        pool=pool,
    )


def to_our_names(arrays: Arrays, a: VisionArchitecture) -> State:
    """The arrays, without their common prefix, as tensors by our names."""
    state = {
        "patch_embed.proj.weight": _tensor(arrays[_EMBEDDING]).permute(3, 2, 0, 1).contiguous(),
        "patch_embed.proj.bias": _tensor(arrays["embedding/bias"]),
        "pos_embed": _tensor(arrays[_positions(arrays)]).reshape(1, -1, a.dim),
        "norm.weight": _tensor(arrays["Transformer/encoder_norm/scale"]),
        "norm.bias": _tensor(arrays["Transformer/encoder_norm/bias"]),
    }
    if a.class_token:
        state["cls_token"] = _tensor(arrays["cls"]).reshape(1, 1, -1)
    if a.classes:
        state |= _linear("head", arrays, "head")
    attention, second_norm, mlp = _parts(arrays)
    for number, layer in enumerate(_layers(arrays)):
        block = f"blocks.{number}."
        state |= _norm(f"{block}norm1", layer, "LayerNorm_0")
        state |= _attention(f"{block}attn", layer, attention)
        state |= _norm(f"{block}norm2", layer, second_norm)
        state |= _mlp(f"{block}mlp", layer, mlp)
    if a.pool == "attention":
        head = _below(arrays, "MAPHead_0/")
        state["attn_pool.latent"] = _tensor(head["probe"]).reshape(1, 1, -1)
        state |= _attention("attn_pool.attn", head, "MultiHeadDotProductAttention_0")
        state |= _norm("attn_pool.norm", head, "LayerNorm_0")
        state |= _mlp("attn_pool.mlp", head, "MlpBlock_0")
    return state


def _arrays(path: Path) -> Arrays:
    """The arrays of a file by their names without the common prefix."""
    if not path.is_file():
        raise ModelFileError(f"{display_path(path)}: no such file")
    try:
        with path.open("rb") as stream, np.load(stream) as file:  # which reads no pickles unless told to
            arrays = {name: file[name] for name in file.files}
    except (AttributeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{display_path(path)}: no whole .npz of plain arrays: {error}") from error
    for prefix in _PREFIXES:
        if prefix + _EMBEDDING in arrays:
            return _below(arrays, prefix)
    raise ModelFileError(f"{display_path(path)}: no Vision Transformer of Google's: it has no {_EMBEDDING}")


def _below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _positions(arrays: Arrays) -> str:
    return "pos_embedding" if "pos_embedding" in arrays else "Transformer/posembed_input/pos_embedding"


def _layers(arrays: Arrays) -> list[dict[str, np.ndarray]]:
    """The arrays of each block; big_vision may stack those of all blocks."""
    stacked = _below(arrays, "Transformer/encoderblock/")
    if stacked:
        depth = len(stacked["LayerNorm_0/scale"])
        return [{name: array[number] for name, array in stacked.items()} for number in range(depth)]
    numbers = {int(found.group(1)) for name in arrays if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))}
    return [_below(arrays, f"Transformer/encoderblock_{number}/") for number in sorted(numbers)]


def _parts(arrays: Arrays) -> tuple[str, str, str]:
    """What attention, the second norm and the MLP of a block are called: flax counts each kind, or all together."""
    if any("MultiHeadDotProductAttention_1/" in name for name in arrays):
        return "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
    return "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _linear(name: str, arrays: Arrays, key: str) -> State:
    weight = _tensor(arrays[f"{key}/kernel"]).T.contiguous()
    return {f"{name}.weight": weight, f"{name}.bias": _tensor(arrays[f"{key}/bias"])}


def _norm(name: str, arrays: Arrays, key: str) -> State:
    return {f"{name}.weight": _tensor(arrays[f"{key}/scale"]), f"{name}.bias": _tensor(arrays[f"{key}/bias"])}


def _mlp(name: str, arrays: Arrays, key: str) -> State:
    return _linear(f"{name}.fc1", arrays, f"{key}/Dense_0") | _linear(f"{name}.fc2", arrays, f"{key}/Dense_1")


def _attention(name: str, arrays: Arrays, key: str) -> State:
    kernels = [_tensor(arrays[f"{key}/{part}/kernel"]).flatten(1).T for part in ("query", "key", "value")]
    biases = [_tensor(arrays[f"{key}/{part}/bias"]).flatten() for part in ("query", "key", "value")]
    return {
        f"{name}.qkv.weight": torch.cat(kernels),
        f"{name}.qkv.bias": torch.cat(biases),
        f"{name}.proj.weight": _tensor(arrays[f"{key}/out/kernel"]).flatten(0, 1).T.contiguous(),
        f"{name}.proj.bias": _tensor(arrays[f"{key}/out/bias"]),
    }
