"""Writing a data set that was made here, not brought: all of it or nothing, and never over anything else."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vit.data.decode import decode
from vit.errors import DataError, UnreadableImage, display_path

Files = Iterable[tuple[str, np.ndarray | bytes]]
"""name below the folder and content: the pixels of a PNG file, uint8 [H, W] or [H, W, 3], or the bytes of any other"""


def write_set(out: str | os.PathLike[str], files: Files) -> bool:
    """Write the files below `out`, which must be new or empty. They appear all at once or not at all.

    Returns False, and touches nothing, where they are all there already, pixel for pixel, and nothing else is.
    Raises `DataError` when `out` holds anything else.
    """
    target = Path(os.path.realpath(os.fspath(out)))  # a symlink stays
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        if _holds(target, files):
            return False
        raise DataError(f"{display_path(target)}: already there and not this set; name a new or empty folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, since a folder can be renamed only within its file system.
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as made:
            _write(Path(made) / "set", files)
            if target.exists():
                target.rmdir()
            os.rename(Path(made) / "set", target)
    except OSError as error:
        raise DataError(f"{display_path(target)}: {(error.strerror or str(error)).lower()}") from error
    return True


def _write(folder: Path, files: Files) -> None:
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)


def _holds(folder: Path, files: Files) -> bool:
    """Whether the folder has these files and no others."""
    names = set()
    for name, content in files:
        names.add(name)
        if not _is(folder / name, content):
            return False
    return names == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _is(path: Path, content: np.ndarray | bytes) -> bool:
    """Pictures are compared by their pixels: other versions of Pillow pack the same pixels into other bytes."""
    try:
        if isinstance(content, bytes):
            return path.read_bytes() == content
        pixels = content if content.ndim == 3 else np.repeat(content[..., None], 3, axis=2)
        return np.array_equal(decode(path), pixels)
    except (OSError, UnreadableImage):
        return False
