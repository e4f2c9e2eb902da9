"""Weights of Google's JAX code: the `.npz` files of the original ViT, AugReg and big_vision (also SigLIP).

Kernels are [in, out], those of attention [D, heads, K] and, of its output, [heads, K, D], that of the patch embedding
[P, P, C, D]. Two generations of names: flax once numbered the parts of a block all together (LayerNorm_0,
MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3), and now each kind alone.

Letters: D dim, K channels of a head, P patch size, C channels of a picture.
"""

import math
import re
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

Arrays = dict[str, np.ndarray]
State = dict[str, Tensor]

_PREFIXES = ("", "opt/target/", "params/", "params/img/")
_EMBEDDING = "embedding/kernel"
_STACKED = "Transformer/encoderblock/"
_HEADS = ("head/kernel", "head/bias", "pre_logits/kernel", "pre_logits/bias")


def read_jax(path: Path) -> ModelFile:
    """A model file of the weights in an `.npz`. Raises ModelFileError in one line.

    The file says neither how pictures are prepared nor what classes are called. They are prepared as timm does it for
    AugReg: bicubic, mean and spread 0.5, and of the fitted picture 0.9 at 224 pixels, all above. Classes are called by
    their numbers. GELU is exact, as timm takes it for these files; JAX may have trained with its approximation by
    tanh. Left out are a head behind a layer of its own (`pre_logits`) and one that projects next to words.
    """
    arrays = _arrays(path)
    try:
        architecture = architecture_of(arrays)
        state = to_our_names(arrays, architecture)
        with_weights(architecture, state)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().split("\n\t")[-1]
        raise ModelFileError(
            f"{display_path(path)}: no Vision Transformer of Google's: {display_path(reason[:160])}"
        ) from error
    half, size = (0.5, 0.5, 0.5), architecture.image_size
    preprocessing = Preprocessing(size, crop_fraction=0.9 if size[0] <= 224 else 1.0, mean=half, std=half)
    return ModelFile(
        kind="classifier",
        architecture=asdict(architecture),
        classes=[str(number) for number in range(architecture.classes)],
        preprocessing=asdict(preprocessing),
        raw=state,
        origin=path.name,
    )


def architecture_of(arrays: Mapping[str, np.ndarray]) -> VisionArchitecture:
    """The shape that the arrays have. Raises KeyError for an array that is missing, ValueError for an odd shape."""
    if arrays[_EMBEDDING].ndim != 4:
        raise ValueError(f"its {_EMBEDDING} has the shape {arrays[_EMBEDDING].shape}")
    rows, columns, channels, dim = arrays[_EMBEDDING].shape
    tokens, with_class = arrays[_positions(arrays)].size // dim, "cls" in arrays
    class_positions = int(with_class and math.isqrt(tokens) ** 2 != tokens)
    side = math.isqrt(tokens - class_positions)
    if side * side != tokens - class_positions:
        raise ValueError(f"its {tokens} positions form no square")
    numbers = {int(found.group(1)) for name in arrays if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))}
    attention, _, mlp = _parts(arrays)
    pool: Pool = "attention" if "MAPHead_0/probe" in arrays else "class" if with_class else "mean"
    return VisionArchitecture(
        image_size=(side * rows, side * columns),
        patch_size=(rows, columns),
        dim=dim,
        depth=max(numbers, default=0) + 1,
        heads=arrays[f"Transformer/encoderblock_0/{attention}/query/kernel"].shape[1],
        hidden=arrays[f"Transformer/encoderblock_0/{mlp}/Dense_0/kernel"].shape[1],
        classes=arrays["head/bias"].shape[0] if "head/bias" in arrays else 0,
        channels=channels,
        class_token=with_class,
        prefix_positions=bool(class_positions),
        pool=pool,
    )


def to_our_names(arrays: Mapping[str, np.ndarray], a: VisionArchitecture) -> State:
    """The arrays as tensors by our names. Raises KeyError for one that is missing, ValueError for one too many."""
    left = dict(arrays)
    state = {
        "patch_embed.proj.weight": _tensor(left.pop(_EMBEDDING)).permute(3, 2, 0, 1).contiguous(),
        "patch_embed.proj.bias": _tensor(left.pop("embedding/bias")),
        "pos_embed": _tensor(left.pop(_positions(arrays))).reshape(1, -1, a.dim),
        **_norm("norm", left, "Transformer/encoder_norm"),
    }
    if a.class_token:
        state["cls_token"] = _tensor(left.pop("cls")).reshape(1, 1, -1)
    if a.classes:
        state |= _linear("head", left, "head")
    attention, second_norm, mlp = _parts(arrays)
    for number in range(a.depth):
        ours, theirs = f"blocks.{number}", f"Transformer/encoderblock_{number}"
        state |= _norm(f"{ours}.norm1", left, f"{theirs}/LayerNorm_0")
        state |= _attention(f"{ours}.attn", left, f"{theirs}/{attention}")
        state |= _norm(f"{ours}.norm2", left, f"{theirs}/{second_norm}")
        state |= _mlp(f"{ours}.mlp", left, f"{theirs}/{mlp}")
    if a.pool == "attention":
        state["attn_pool.latent"] = _tensor(left.pop("MAPHead_0/probe")).reshape(1, 1, -1)
        state |= _attention("attn_pool.attn", left, "MAPHead_0/MultiHeadDotProductAttention_0")
        state |= _norm("attn_pool.norm", left, "MAPHead_0/LayerNorm_0")
        state |= _mlp("attn_pool.mlp", left, "MAPHead_0/MlpBlock_0")
    if left:  # such as the convolutions of a hybrid
        raise ValueError(f"it has {min(left)!r} besides")
    return state


def _arrays(path: Path) -> Arrays:
    """The arrays of a file by their names without the common prefix, block by block."""
    if not path.is_file():
        raise ModelFileError(f"{display_path(path)}: no such file")
    try:
        with path.open("rb") as stream, np.load(stream) as file:  # which reads no pickles unless told to
            prefix = next((prefix for prefix in _PREFIXES if prefix + _EMBEDDING in file.files), None)
            names = [name for name in file.files if prefix is not None and name.startswith(prefix)]
            arrays = {name[len(prefix or "") :]: np.asarray(file[name]) for name in names}
    except Exception as error:  # zipfile, zlib and numpy report cut and foreign files by many kinds of exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{display_path(path)}: no whole .npz of plain arrays: {display_path(reason)}") from error
    if prefix is None:
        raise ModelFileError(f"{display_path(path)}: no Vision Transformer of Google's: it has no {_EMBEDDING}")
    if prefix == "params/img/" or "pre_logits/kernel" in arrays:
        arrays = {name: array for name, array in arrays.items() if name not in _HEADS}
    return _unstacked(arrays)


def _unstacked(arrays: Arrays) -> Arrays:
    """Each block's arrays by themselves: big_vision may keep those of all blocks as one."""
    found: Arrays = {}
    for name, array in arrays.items():
        if name.startswith(_STACKED) and array.ndim:
            part = name.removeprefix(_STACKED)
            found |= {f"Transformer/encoderblock_{number}/{part}": one for number, one in enumerate(array)}
        else:
            found[name] = array
    return found


def _positions(arrays: Mapping[str, np.ndarray]) -> str:
    return "pos_embedding" if "pos_embedding" in arrays else "Transformer/posembed_input/pos_embedding"


def _parts(arrays: Mapping[str, np.ndarray]) -> tuple[str, str, str]:
    """What attention, the second norm and the MLP of a block are called."""
    if "Transformer/encoderblock_0/LayerNorm_2/scale" in arrays:
        return "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
    return "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _linear(name: str, left: Arrays, key: str) -> State:
    weight = _tensor(left.pop(f"{key}/kernel")).T.contiguous()
    return {f"{name}.weight": weight, f"{name}.bias": _tensor(left.pop(f"{key}/bias"))}


def _norm(name: str, left: Arrays, key: str) -> State:
    return {f"{name}.weight": _tensor(left.pop(f"{key}/scale")), f"{name}.bias": _tensor(left.pop(f"{key}/bias"))}


def _mlp(name: str, left: Arrays, key: str) -> State:
    return _linear(f"{name}.fc1", left, f"{key}/Dense_0") | _linear(f"{name}.fc2", left, f"{key}/Dense_1")


def _attention(name: str, left: Arrays, key: str) -> State:
    kernels = [_tensor(left.pop(f"{key}/{part}/kernel")).flatten(1).T for part in ("query", "key", "value")]
    biases = [_tensor(left.pop(f"{key}/{part}/bias")).flatten() for part in ("query", "key", "value")]
    return {
        f"{name}.qkv.weight": torch.cat(kernels),
        f"{name}.qkv.bias": torch.cat(biases),
        f"{name}.proj.weight": _tensor(left.pop(f"{key}/out/kernel")).flatten(0, 1).T.contiguous(),
        f"{name}.proj.bias": _tensor(left.pop(f"{key}/out/bias")),
    }
