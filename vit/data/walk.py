"""Walk a data folder: its files, without hidden ones, folders entered twice, and run folders of vit."""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from vit.data.decode import IMAGE_SUFFIXES, file_of
from vit.errors import DataError, display_path

RUN_FOLDER = "a run or report folder of vit, not data"
_IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}  # what operating systems leave behind; hidden files too
_RUN_FILES = {"classes.json", "split.csv", "data.json", "model.safetensors", "checkpoints"}
_REPORT_FILES = ("predictions.csv", "predictions.jsonl", "captions.jsonl")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that cannot serve, with the reason in words."""

    path: str
    reason: str


def walk(
    folder: str, barred: Iterable[tuple[int, int]] = (), runs: list[LeftOut] | None = None
) -> list[os.DirEntry[str]]:
    """Return every entry below `folder` that is not a folder, sorted by name within each folder.

    Links are followed, but no folder is entered twice, nor one whose (device, inode) is in `barred`: a link to a
    parent folder must not multiply the images. Run folders of vit below `folder` are skipped and added to `runs`.
    Raises `DataError` for a folder that cannot be read.
    """
    entered = {*barred, inode(folder)}
    found: list[os.DirEntry[str]] = []

    def enter(folder: str) -> None:
        for entry in entries(folder):
            if not is_folder(entry):
                found.append(entry)
            elif (identity := inode(entry.path)) not in entered:
                entered.add(identity)
                if not is_run(entry.path):
                    enter(entry.path)
                elif runs is not None:
                    runs.append(LeftOut(entry.path, RUN_FOLDER))

    enter(folder)
    return found


def is_run(folder: str) -> bool:
    """Return whether a folder is that of a run of `vit train` or a report of `vit evaluate`: its plots are not data."""

    def has(name: str) -> bool:
        return os.path.exists(os.path.join(folder, name))

    report = has("metrics.json") and any(map(has, _REPORT_FILES))
    return report or (has("config.yaml") and any(map(has, _RUN_FILES)))


def entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without hidden files and the litter of operating systems."""
    try:
        with os.scandir(folder) as scan:
            kept = [e for e in scan if not e.name.startswith(".") and e.name.lower() not in _IGNORED]
    except OSError as error:
        raise DataError(f"{display_path(folder)}: {(error.strerror or str(error)).lower()}") from error
    return sorted(kept, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that cannot be followed, as to itself, is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a regular file or a link to one, as `is_folder` does."""
    try:
        return entry.is_file()
    except OSError:
        return False


def inode(path: str) -> tuple[int, int]:
    """What is the same for all names of one folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def is_picture(name: str) -> bool:
    """Whether a file name has the ending of a picture, in either case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def unfit(file: os.DirEntry[str] | str) -> str | None:
    """Why a file cannot be a picture, as far as this shows without opening it; None when it can."""
    return examined(file)[0]


def examined(file: os.DirEntry[str] | str) -> tuple[str | None, int]:
    """Return why a file cannot be an image, None when it can, and a key that all names of one file share.

    The key is of 64 bits, from device and inode: links of any kind and other spellings of a path have the same one.
    It holds within this process.
    """
    try:
        status = os.stat(file_of(file)) if isinstance(file, str) else file.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return (getattr(error, "strerror", None) or str(error)).lower(), 0
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file", 0
    if not status.st_size:
        return "empty file", 0
    path = os.fspath(file)
    member = path[len(file_of(path)) :]  # many images are in one tar
    file_id = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
    return None, hash((file_id, member)) & 0xFFFFFFFFFFFFFFFF
