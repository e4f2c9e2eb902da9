"""Checkpoints that are whole or absent, and the ones before them."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from vit.errors import ModelFileError, VitError, display_path
from vit.files import whole_file
from vit.models.file import load_checkpoint, seal
from vit.models.tensors import misfit


class WholeCheckpoints(TorchCheckpointIO):
    """Writes to the folder of the checkpoint, seals with a checksum, syncs, renames.

    Lightning writes to the folder for temporary files and moves: across file systems that is a copy over the old
    file, and a full disk then costs the only good checkpoint. `storage_options` may say how many to `keep`: then NAME
    stays as NAME-1, that as NAME-2, and so on, and at no moment is NAME missing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(path) as temporary:
                torch.save(checkpoint, temporary)
                seal(temporary)
                _keep(path, (storage_options or {}).get("keep", 1))
        except VitError as error:
            if "no space" not in str(error):
                raise
            needed, free = _bytes(checkpoint), shutil.disk_usage(path.parent).free
            raise VitError(f"{error}; it needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def earlier(path: Path, age: int) -> Path:
    """Where the checkpoint lies that was `path` so many writings ago."""
    return path.with_stem(f"{path.stem}-{age}") if age else path


def newest_whole(path: Path, state: Mapping[str, Tensor] | None = None) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint of `path` and those before it that can be read; and what is wrong with newer ones.

    `state` holds the weights of the run that resumes: a checkpoint must have the same names and shapes. Raises
    ModelFileError, of the newest, where there is none.
    """
    faults: list[ModelFileError] = []
    older = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"), key=lambda p: (len(p.name), p.name))
    for candidate in (path, *older):
        try:
            checkpoint = load_checkpoint(candidate)
            require_finite(checkpoint["state_dict"], candidate)
            if state is not None and (reason := misfit(checkpoint["state_dict"], state)):
                raise ModelFileError(f"{display_path(candidate)}: not a checkpoint of this run: {reason}")
            if not _counts(checkpoint.get("loops")):
                raise ModelFileError(f"{display_path(candidate)}: damaged, its progress is not in whole numbers")
        except ModelFileError as error:
            faults.append(error)
        else:
            return candidate, checkpoint, [str(fault) for fault in faults]
    raise faults[0]


def _counts(loops: Any) -> bool:
    """Whether all counters of Lightning's loops are whole numbers."""
    if not isinstance(loops, dict):
        return True
    counters = [loops[name] for name in ("ready", "started", "processed", "completed") if name in loops]
    return all(type(count) is int and count >= 0 for count in counters) and all(map(_counts, loops.values()))


def require_finite(state: dict[str, Tensor], path: Path) -> None:
    """Raise ModelFileError where a weight is no number."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelFileError(f"{display_path(path)}: the weights hold NaN or infinity ({display_path(name)})")


def _keep(path: Path, keep: int) -> None:
    """Make room for a new `path`: what stands there gets one older name as well."""
    # the first age that is free, or the last one, which is overwritten
    missing = next(age for age in range(keep) if age == keep - 1 or not earlier(path, age).exists())
    for age in range(missing, 0, -1):
        newer, older = earlier(path, age - 1), earlier(path, age)
        if age > 1:
            os.replace(newer, older)
            continue
        link = older.with_name(f".{older.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            link.unlink()
        try:
            os.link(newer, link)
            os.replace(link, older)
        except OSError:  # a file system without hard links: for a moment there is only the older name
            os.replace(newer, older)
    for old in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        written = old.stem.rpartition("-")[2]
        if written.isdecimal() and int(written) >= keep:  # more were kept before
            old.unlink()


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists, about what a checkpoint takes."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
