"""The model file: one `.safetensors` that holds weights and all that is needed to use them.

Its header carries JSON: format version, kind, architecture, class names, preprocessing, licence and origin of the
weights, and a checksum over the JSON and the tensors. Raw weights keep their names; averaged ones (EMA) stand beside
them under `ema.`. Loading runs no code: safetensors has none, and Lightning checkpoints are read with
`weights_only=True`.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import whole_file
from vit.models.architecture import Rope, VisionArchitecture
from vit.models.vision import VisionTransformer, resampled, with_weights
from vit.nn import merged

FORMAT = 1
EMA = "ema."
Weights = Literal["ema", "raw"]
State = dict[str, Tensor]


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

    def header(self) -> dict[str, Any]:
        """What is not a tensor, in plain types."""
        described = ("kind", "architecture", "classes", "preprocessing", "descriptions", "licence", "origin")
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
    header = json.dumps(model.header(), sort_keys=True)
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
    """Raise ModelFileError where a weight is no number."""
    for name, tensor in (*model.raw.items(), *(model.ema or {}).items()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelFileError(f"{display_path(source)}: the weights hold NaN or infinity ({name})")


def build_network(model: ModelFile, weights: Weights | None = None, *, source: object = "model") -> VisionTransformer:
    """The network of a classifier's file with its weights, in evaluation mode. Raises ModelFileError on a misfit."""
    if model.kind != "classifier":
        raise ModelFileError(f"{display_path(source)}: a model of kind {model.kind!r}, not a classifier")
    try:
        network = with_weights(architecture_from(model.architecture), model.weights(weights))
    except ConfigError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{display_path(source)}: weights and architecture do not fit: {_first(error)}") from error
    if len(model.classes) != network.architecture.classes:
        names, outputs = len(model.classes), network.architecture.classes
        raise ModelFileError(f"{display_path(source)}: {names} class names for {outputs} outputs")
    return network.eval()


def architecture_from(fields: Mapping[str, Any]) -> VisionArchitecture:
    """An architecture from JSON, where tuples have become lists."""
    values = _with_tuples(fields)
    if values.get("rope") is not None:
        values["rope"] = Rope(**_with_tuples(values["rope"]))
    return VisionArchitecture(**values)


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def start_from(model: ModelFile, network: VisionTransformer, classes: Sequence[str]) -> None:
    """Put a file's weights into a network of the same shape but for picture size and `classes`.

    Takes the averaged weights where there are any. Learned positions are resampled to the network's grid; the head
    stays fresh where the class names differ. Raises ConfigError naming the first parameter that does not fit.
    """
    old, new = architecture_from(model.architecture), network.architecture
    state = dict(model.weights())
    if "patch_embed.proj.weight" in state:  # else told below, like everything that is absent
        state = resampled(state, old, new)
    own = network.state_dict()
    if model.classes != list(classes):
        state.update({name: tensor for name, tensor in own.items() if name.startswith("head")})
    for name in sorted(own.keys() | state.keys()):
        there, here = (tuple(s[name].shape) if name in s else None for s in (state, own))
        if there != here:
            raise ConfigError(
                f"model.init: {name} is {there or 'absent'} in the file and {here or 'absent'} in the model"
            )
    network.load_state_dict(state)


def _model_in(path: Path) -> Path:
    """The file to read: of a run folder its model file, or its best checkpoint while the run is unfinished."""
    if not path.is_dir():
        return path
    candidates = ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    for name in candidates:
        if (path / name).is_file():
            return path / name
    raise ModelFileError(f"{display_path(path)}: no run folder, it holds none of {', '.join(candidates)}")


def _read_safetensors(path: Path) -> ModelFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no iterator of its own
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{display_path(path)}: cut, damaged, or no model file at all ({_first(error)})"
        ) from error
    if "vit" not in metadata:
        raise ModelFileError(
            f"{display_path(path)}: a safetensors file that vit did not write; of timm, it is timm:NAME@FILE"
        )
    if metadata.get("sha256") != _checksum(metadata["vit"], tensors):
        raise ModelFileError(f"{display_path(path)}: damaged, its contents do not match its checksum")
    raw = {name: tensor for name, tensor in tensors.items() if not name.startswith(EMA)}
    ema = {name.removeprefix(EMA): tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    return _from_header(json.loads(metadata["vit"]), raw, ema or None, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint of vit holds, without running code. Raises ModelFileError saying what is wrong."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch does not look at the checksums that it writes
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports cut, foreign and unsafe files by many kinds of exception
        if type(error).__name__ == "UnpicklingError":
            reason = "holds objects that could run code; such files are refused"
        else:
            reason = f"cut, damaged, or no checkpoint at all ({_first(error)})"
        raise ModelFileError(f"{display_path(path)}: {reason}") from error
    if damaged is not None:
        raise ModelFileError(f"{display_path(path)}: damaged, {damaged} does not match its checksum")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("vit"), dict):
        raise ModelFileError(f"{display_path(path)}: a checkpoint that vit did not write")
    return checkpoint


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
    described = {name: header[name] for name in kinds}
    described |= {name: header.get(name) for name in ("descriptions", "licence", "origin")}
    return ModelFile(**described, raw=raw, ema=ema)


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first(error: Exception) -> str:
    """The first line of a message, at most 120 characters."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = line if " " in line else f"{type(error).__name__} {line}".strip()
    return line if len(line) <= 120 else line[:117] + "..."
