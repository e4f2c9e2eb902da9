"""Tar files in the manner of WebDataset: the files of a sample beside each other, told apart by their endings.

`000017.jpg`, `000017.cls` (a class, by name or number) and `000017.txt` (a caption) are one sample. An uncompressed tar
is read in place: a picture in it is named by the file, where it starts there and its size, and is as good as a path.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vit.data.decode import IMAGE_SUFFIXES, in_tar, is_regular
from vit.errors import DataError, display_path
from vit.files import whole_file

_TEXT_FIELDS = ("txt", "caption", "text")
_BESIDE = (".json", ".txt", ".md", ".idx")  # what may lie beside tars
_CLASS_FIELDS = ("cls", "label", "class")


@dataclass(frozen=True, slots=True)
class Member:
    """A sample of a tar: its key, the name of its picture, and the contents of its small files by ending."""

    key: str
    picture: str
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The class that the sample's files tell."""
        return self._told(_CLASS_FIELDS, "cls")

    @property
    def captions(self) -> list[str]:
        """The captions that the sample's files tell: each line of a text file is one."""
        told = self._told(_TEXT_FIELDS, "caption")
        several = self._json().get("captions")
        if told is None and isinstance(several, list):
            return [str(caption) for caption in several]
        return [] if told is None else [line for line in told.splitlines() if line.strip()]

    def _told(self, names: tuple[str, ...], key: str) -> str | None:
        for name in names:
            if name in self.texts:
                return self.texts[name].strip()
        found = self._json()
        value = next((found[name] for name in (key, *names) if name in found), None)
        return None if value is None or isinstance(value, list | dict) else str(value)

    def _json(self) -> dict[str, object]:
        try:
            found = json.loads(self.texts.get("json", "{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def tars_in(data: str | os.PathLike[str]) -> list[str]:
    """The tars that DATA is made of: itself, or all of a folder or of the folders in it; none where it is no such data.

    A folder with pictures beside its tars is not.
    """
    path = os.path.abspath(os.fspath(data))
    if path.lower().endswith(".tar"):
        return [path] if os.path.isfile(path) else []
    if not os.path.isdir(path):
        return []
    found = list[str]()
    for folder in (path, *sorted(entry.path for entry in os.scandir(path) if entry.is_dir())):
        tars = _only_tars(folder)
        if tars is None:
            return []
        found += tars
    return found


def _only_tars(folder: str) -> list[str] | None:
    """The tars of a folder; None at the first file that shows that it holds something else."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.is_dir() or ending in _BESIDE:
                continue
            if ending != ".tar":
                return None
            found.append(entry.path)
    return sorted(found)


def members(path: str) -> Iterator[Member]:
    """The samples of a tar that have a picture, in order. Raises DataError for what is no tar, or is cut short."""
    try:
        is_regular(path)
        if not _ends(path):
            raise tarfile.ReadError("it ends early")  # tarfile takes the end of the file for that of the archive
        with tarfile.open(path, "r:") as archive:
            key, picture, texts = "", "", dict[str, str]()
            for entry in archive:
                folder, _, base = entry.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if not entry.isfile() or not stem or not dot:
                    continue
                if (name := f"{folder}/{stem}") != key:
                    if picture:
                        yield Member(key.lstrip("./"), picture, texts)
                    key, picture, texts = name, "", {}
                if os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES:
                    picture = in_tar(path, entry.offset_data, entry.size)
                elif entry.size < 1 << 20 and (stream := archive.extractfile(entry)) is not None:
                    texts[ending.lower()] = stream.read().decode("utf-8", "surrogateescape")
            if picture:
                yield Member(key.lstrip("./"), picture, texts)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{display_path(path)}: not a tar that can be read: {display_path(error)}") from error


def _ends(path: str) -> bool:
    """Whether a tar has its end mark: a block of zeros."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < tarfile.BLOCKSIZE:
            return False
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not any(file.read())


def write_tars(samples: Iterable[tuple[bytes, str, dict[str, str]]], folder: Path, *, megabytes: int) -> int:
    """Write samples (the bytes of a picture, its ending, texts by ending) as tars of about so many megabytes each.

    FOLDER/000000.tar and so on, each whole or not there. Returns how many samples there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, number, waiting = 0, 0, iter(samples)
    sample = next(waiting, None)
    while sample is not None:
        with whole_file(folder / f"{number:06}.tar") as temporary, tarfile.open(temporary, "w") as archive:
            size = 0
            while sample is not None and size < megabytes << 20:
                data, ending, texts = sample
                for name, content in {
                    ending: data,
                    **{name: os.fsencode(text) for name, text in texts.items()},
                }.items():
                    _add(archive, f"{count:09}.{name}", content)
                size, count, sample = size + len(data), count + 1, next(waiting, None)
        number += 1
    return count


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
