"""Tar files in the manner of WebDataset: the files of a sample are adjacent and share their name up to its first dot.

`000017.jpg`, `000017.cls` (a class, by name or number) and `000017.txt` (a caption) are one sample of the key `000017`;
everything after the first dot of the base name is the suffix. An uncompressed tar is read in place: an image in it is
named by the file, where it starts there and its size, and is as good as a path.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vit.data.decode import IMAGE_SUFFIXES, in_tar, is_regular
from vit.data.tables import text_lines
from vit.data.walk import is_folder
from vit.errors import DataError, display_path
from vit.files import whole_file
from vit.names import class_name

_TEXT_FIELDS = ("txt", "caption", "text")
_BESIDE = (".json", ".txt", ".md", ".idx")  # what may lie beside tars
_CLASS_FIELDS = ("cls", "label", "class")
_FIELDS = (*_TEXT_FIELDS, *_CLASS_FIELDS, "json")
_MAX_FIELD = 1 << 20
"""bytes of a label or of captions"""

Skip = Callable[[str, str], None]
"""called with what is skipped, `TAR: NAME`, and the reason"""


@dataclass(frozen=True, slots=True)
class Member:
    """A sample of a tar: its key, the name of its picture, and the contents of its small files by ending."""

    key: str
    picture: str
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The class that the sample's files tell, as `class_name` spells it; None where it is empty as well."""
        told = self._told(_CLASS_FIELDS, "cls")
        return None if told is None else class_name(told) or None

    @property
    def captions(self) -> list[str]:
        """The captions that the sample's files tell: each line of a text file is one."""
        told = self._told(_TEXT_FIELDS, "caption")
        several = self._json().get("captions")
        if told is None and isinstance(several, list):
            return [str(caption) for caption in several]
        return [] if told is None else [line for line in text_lines(told) if line.strip()]

    def _told(self, names: tuple[str, ...], key: str) -> str | None:
        for name in names:
            if name in self.texts:
                return self.texts[name]
        found = self._json()
        value = next((found[name] for name in (key, *names) if name in found), None)
        return None if value is None or isinstance(value, list | dict) else str(value)

    def _json(self) -> dict[str, object]:
        try:
            found = json.loads(self.texts.get("json", "{}"))
        except (ValueError, RecursionError):
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
    for folder in (path, *sorted(entry.path for entry in os.scandir(path) if is_folder(entry))):
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
            if entry.name.startswith(".") or is_folder(entry) or ending in _BESIDE:
                continue
            if ending != ".tar":
                return None
            found.append(entry.path)
    return sorted(found)


def members(path: str, skip: Skip = lambda name, reason: None) -> list[Member]:
    """Return the samples of a tar that have an image, in order.

    The image of a sample is the file whose suffix is that of an image and nothing else (`0.jpg`, not `0.seg.png`);
    where no sample of the tar has one, it is the only image of each, under one name (`0.rgb.png`). `skip` is called for
    what cannot be used: images without data in the tar, texts without an image, fields of more than 1 MiB, and samples
    whose key occurred before. Raises `DataError` for what is not a tar or is truncated, and for samples with several
    images of which none, or more than one, is the plain one.
    """
    try:
        is_regular(path)
        if not _ends(path):
            raise tarfile.ReadError("it ends early")  # tarfile takes the end of the file for that of the archive
        with open(path, "rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:  # type: ignore[call-overload]
            groups = list(_groups(path, archive, skip))
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        reason = "not enough memory for a header" if isinstance(error, MemoryError) else display_path(error)
        raise DataError(f"{display_path(path)}: not a tar that can be read: {reason}") from error
    named = _image_name(path, groups)
    found, known = [], set[str]()
    for group in groups:
        image = next((picture for suffix, picture in group.images.items() if _stem(suffix) == named), None)
        if image is None:
            if group.images or group.texts:
                suffix = next(iter(group.images or group.texts))
                wanted = f"{named}." if named else ""
                reason = f"no image {group.key}.{wanted}jpg, .png, ... in the sample, whose files must be adjacent"
                skip(f"{path}: {group.key}.{suffix}", reason)
        elif group.key in known:
            skip(f"{path}: {group.key}", "a sample of the same key comes before it in the tar")
        else:
            known.add(group.key)
            found.append(Member(group.key, image, group.texts))
    return found


@dataclass(slots=True)
class _Group:
    """Adjacent files of one key, by suffix."""

    key: str
    images: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def _groups(path: str, archive: tarfile.TarFile, skip: Skip) -> Iterator[_Group]:
    """Group the files of a tar by key. A suffix that comes a second time begins another group of the same key."""
    group = _Group("")
    for entry in archive:
        if entry.size < 0:  # tarfile would step back and never end
            raise tarfile.ReadError(f"{entry.name} has a negative size")
        folder, _, base = entry.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        suffix, key = suffix.lower(), f"{folder}/{stem}".lstrip("./")
        if entry.isdir() or not stem or not dot:
            continue
        image = f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
        if not image and suffix not in _FIELDS:
            continue
        reason = None
        if not entry.isfile():
            reason = "not a regular file"
        elif entry.issparse():
            reason = f"a sparse file: its {entry.size:,} bytes are not stored in the tar"
        elif not image and entry.size > _MAX_FIELD:
            reason = f"{entry.size:,} bytes, more than the {_MAX_FIELD:,} of a label or captions"
        if key != group.key or suffix in group.images or suffix in group.texts:
            yield group
            group = _Group(key)
        if reason is not None:
            skip(f"{path}: {entry.name}", reason)
        elif image:
            group.images[suffix] = in_tar(path, entry.offset_data, entry.size)
        elif (stream := archive.extractfile(entry)) is not None:
            group.texts[suffix] = stream.read().decode("utf-8", "surrogateescape")
    yield group


def _image_name(path: str, groups: list[_Group]) -> str:
    """Return what stands before the image suffix in the suffix of the samples' images: "" for `jpg`, "rgb" for
    `rgb.png`.
    """
    plain = any(not _stem(suffix) for group in groups for suffix in group.images)
    names = [""] if plain else sorted({_stem(suffix) for group in groups for suffix in group.images})
    for group in groups:
        fitting = [suffix for suffix in group.images if _stem(suffix) in names]
        if len(fitting) > 1:
            files = ", ".join(f"{group.key}.{suffix}" for suffix in fitting)
            reason = f"several images of one sample: {files}; name the one to use {group.key}.jpg or .png"
            raise DataError(f"{display_path(path)}: {display_path(reason)}")
    if len(names) > 1:
        reason = f"images of several kinds: {', '.join(names[:5])}; name the one to use of each sample KEY.jpg or .png"
        raise DataError(f"{display_path(path)}: {display_path(reason)}")
    return names[0] if names else ""


def _stem(suffix: str) -> str:
    """What stands before the last dot of a suffix: "seg" of `seg.png`, "" of `png`."""
    return suffix.rpartition(".")[0]


class _Bounded:
    """A file for `tarfile` that never reads beyond its end: a header may claim any size, and memory is taken first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))


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
