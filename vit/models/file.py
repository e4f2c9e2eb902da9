"""The model file: one `.safetensors` that holds weights and all that is needed to use them.

Its header carries JSON: format version, kind, architecture, class names, preprocessing, licence and origin of the
weights, and a checksum over the JSON and the tensors. Raw weights keep their names; averaged ones (EMA) stand beside
them under `ema.`. Loading runs no code: safetensors has none, and Lightning checkpoints are read with
`weights_only=True`.
"""

import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import dump_json, whole_file
from vit.models.header import check_header
from vit.models.vision import VisionTransformer
from vit.names import class_name
from vit.nn import merged

FORMAT = 1
EMA = "ema."
Weights = Literal["ema", "raw"]
State = dict[str, Tensor]
_OPTIONAL = ("descriptions", "licence", "origin", "tokenizer")


@dataclass
class ModelFile:
    """A model as it lies in a file. `preprocessing` holds the fields of `vit.data.config.Preprocessing`."""

    kind: str
    architecture: dict[str, Any]
    classes: list[str]
    preprocessing: dict[str, Any]
    raw: State = field(repr=False)
    ema: State | None = field(default=None, repr=False)
    descriptions: list[str] | None = None
    """what the classes are in words, where their names are codes"""
    licence: str | None = None
    origin: str | None = None
    tokenizer: str | None = field(default=None, repr=False)
    """of a model of words: its tokenizer as JSON, as the tokenizers library writes it"""

    def __post_init__(self) -> None:
        self.classes = [class_name(name) if isinstance(name, str) else name for name in self.classes]

    def header(self) -> dict[str, Any]:
        """What is not a tensor, in plain types."""
        described = ("kind", "architecture", "classes", "preprocessing", *_OPTIONAL)
        return {"format": FORMAT, **{name: getattr(self, name) for name in described}}

    def weights(self, which: Weights | None = None) -> State:
        """The raw or averaged weights; None takes the averaged ones where there are any."""
        if which == "raw" or (which is None and self.ema is None):
            return self.raw
        if self.ema is None:
            raise ConfigError("--weights ema: this model keeps no averaged weights; it was trained with train.ema 0")
        return self.ema


def classifier_file(
    network: VisionTransformer,
    classes: list[str],
    preprocessing: dict[str, Any],
    *,
    licence: str | None = None,
    origin: str | None = None,
) -> ModelFile:
    """A classifier's model file without averaged weights."""
    return ModelFile(
        kind="classifier",
        architecture=asdict(network.architecture),
        classes=classes,
        preprocessing=preprocessing,
        raw=network.state_dict(),
        licence=licence,
        origin=origin,
    )


def save_model(model: ModelFile, path: Path) -> None:
    """Write a model file, whole or not at all. Raises VitError where the disk is full or not writable."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.raw.items()}
    for name, tensor in (model.ema or {}).items():
        tensors[EMA + name] = tensor.detach().cpu().contiguous()
    header = dump_json(model.header(), sort_keys=True)
    metadata = {"vit": header, "sha256": _checksum(header, tensors)}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_model(path: Path) -> ModelFile:
    """Read a run folder, a `.safetensors` model file or a `.ckpt` of ours. Raises ModelFileError in words."""
    path = _model_in(path)
    if not path.is_file():
        reason = "not a regular file" if path.exists() else "no such file or folder"
        raise ModelFileError(f"{display_path(path)}: {reason}")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{display_path(path)}: empty file")
    model = _read_checkpoint(path) if path.suffix == ".ckpt" else _read_safetensors(path)
    check_finite(model, path)
    return model


def check_finite(model: ModelFile, source: object) -> None:
    """Raise ModelFileError where a weight is NaN or infinite."""
    for name, tensor in (*model.raw.items(), *(model.ema or {}).items()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelFileError(f"{display_path(source)}: the weights hold NaN or infinity ({display_path(name)})")


def _model_in(path: Path) -> Path:
    """The file to read: of a run folder its model file, or its best checkpoint while the run is unfinished."""
    if not path.is_dir():
        return path
    candidates = ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    for name in candidates:
        if (path / name).is_file():
            return path / name
    raise ModelFileError(f"{display_path(path)}: no model in it, that is none of {', '.join(candidates)}")


def _read_safetensors(path: Path) -> ModelFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no iterator of its own
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{display_path(path)}: cut, damaged, or no model file at all ({first_line(error)})"
        ) from error
    if "vit" not in metadata:
        raise ModelFileError(
            f"{display_path(path)}: a safetensors file that vit did not write; of timm, it is timm:NAME@FILE"
        )
    if metadata.get("sha256") != _checksum(metadata["vit"], tensors):
        raise ModelFileError(f"{display_path(path)}: damaged, its contents do not match its checksum")
    raw = {name: tensor for name, tensor in tensors.items() if not name.startswith(EMA)}
    ema = {name.removeprefix(EMA): tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    try:
        header = json.loads(metadata["vit"])
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{display_path(path)}: its header is not valid JSON ({first_line(error)})") from error
    return _from_header(header, raw, ema or None, path)


_SEAL = b"vit sha256 "
_SEALED = len(_SEAL) + 64


def seal(path: Path) -> None:
    """Give a file that torch saved a SHA-256 of all that is in it, as the comment that zip files may end with.

    In the file itself, so that no crash can part the two.
    """
    with path.open("rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _SEALED))  # the comment's length is the last thing before it
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        file.seek(0, os.SEEK_END)
        file.write(_SEAL + digest.hexdigest().encode())


def _broken_seal(path: Path) -> str | None:
    """Why the file is not what was sealed; of files without a seal, which part does not match zip's own checksum."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SEALED))
        end = file.read()
        if not end.startswith(_SEAL):
            file.seek(0)
            if file.read(2) != b"PK":  # as torch wrote before version 1.6, without checksums
                return None
            with zipfile.ZipFile(file) as parts:
                damaged = parts.testzip()  # torch does not look at the checksums that it writes
            return damaged and f"{damaged} does not match its checksum"
        file.seek(0)
        digest, left = hashlib.sha256(), size - _SEALED
        while left:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
    return None if end[len(_SEAL) :] == digest.hexdigest().encode() else "it does not match its checksum"


def load_plain(path: Path) -> Any:
    """Tensors and plain values that torch saved, without running code. Raises ModelFileError saying what is wrong."""
    try:
        damaged = _broken_seal(path)
        saved = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelFileError(f"{display_path(path)}: no such file") from error
    except Exception as error:  # torch reports cut, foreign and unsafe files by many kinds of exception
        if refused := re.search(r"GLOBAL (\S+)|unrecognized function|add_safe_globals", str(error)):
            named = f" ({refused[1]})" if refused[1] else ""
            reason = f"holds objects that could run code; such files are refused{named}"
        elif path.is_file() and path.stat().st_size == 0:
            reason = "empty file"
        else:
            reason = f"cut, damaged, or no checkpoint at all ({first_line(error)})"
        raise ModelFileError(f"{display_path(path)}: {reason}") from error
    if damaged is not None:
        raise ModelFileError(f"{display_path(path)}: damaged, {damaged}")
    return saved


def load_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint of vit holds. Raises ModelFileError saying what is wrong."""
    checkpoint = load_plain(path)
    ours = isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(key), dict) for key in ("vit", "state_dict"))
    if not ours:
        raise ModelFileError(f"{display_path(path)}: a checkpoint that vit did not write")
    if wrong := [name for name, tensor in checkpoint["state_dict"].items() if not isinstance(tensor, Tensor)]:
        raise ModelFileError(f"{display_path(path)}: state_dict: {display_path(wrong[0])} is not a tensor")
    return dict(checkpoint)


def _read_checkpoint(path: Path) -> ModelFile:
    checkpoint = load_checkpoint(path)
    state = checkpoint["state_dict"]
    ema = _below(state, EMA)
    return _from_header(checkpoint["vit"], _below(state, "network."), ema or None, path)


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    """The part of a checkpoint whose names start so, without it; what LoRA trained is added to the weights."""
    return merged({name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})


def _from_header(header: Any, raw: State, ema: State | None, path: Path) -> ModelFile:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else "unknown"
        raise ModelFileError(f"{display_path(path)}: format {found}; this version reads format {FORMAT}")
    kinds = {"kind": str, "architecture": dict, "classes": list, "preprocessing": dict}
    for name, kind in kinds.items():
        if not isinstance(header.get(name), kind):
            raise ModelFileError(f"{display_path(path)}: incomplete header: {name} is missing, or no such thing")
    try:
        check_header(header)
    except ConfigError as error:
        raise ModelFileError(f"{display_path(path)}: {display_path(error)}") from error
    described = {name: header[name] for name in kinds}
    described |= {name: header.get(name) for name in _OPTIONAL}
    return ModelFile(**described, raw=raw, ema=ema)


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """The first line of a message, printable and at most 120 characters."""
    line = display_path((str(error).strip().splitlines() or [""])[0])
    line = line if " " in line else f"{type(error).__name__} {line}".strip()
    return line if len(line) <= 120 else line[:117] + "..."
