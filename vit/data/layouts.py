"""What a data folder or a list file holds: pictures by split and class, and what had to be left out.

Nothing is decoded here; a file counts as a picture by its ending, and must be regular and not empty.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vit.data.decode import IMAGE_SUFFIXES, file_of
from vit.data.tables import PATH_COLUMNS, fault, read_rows, text_of
from vit.data.tars import members, tars_in
from vit.errors import DataError, display_path

UNSPLIT = "all"
"""the split of pictures that the data does not assign to one"""

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

MANIFEST = "vit.json"
"""what tells of shards, beside their folders"""

_READERS = 8  # folders that are read at a time
_LABEL_COLUMNS = ("label", "class")
_IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}  # what operating systems leave behind; hidden files too


SPLITS = {**SPLIT_NAMES, "dev": "val", "restval": "train"}
"""what splits are called in file names; COCO's "restval" has been trained on since Karpathy and Fei-Fei 2015"""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that cannot serve, with the reason in words."""

    path: str
    reason: str


@dataclass
class Found:
    """Pictures by split and class: `splits[split][class]` lists paths. Empty class folders are kept as empty lists.

    `root` is the folder that all paths are within, or the folder of `table`, a list of pictures.
    """

    root: str
    splits: dict[str, dict[str, list[str]]]
    left_out: list[LeftOut] = field(default_factory=list)
    table: str | None = None

    @property
    def name(self) -> str:
        """What was asked for."""
        return self.table or self.root

    @property
    def training(self) -> dict[str, list[str]]:
        """The pictures to train on, by class: those of the split train, or all where the data names no splits."""
        return self.splits.get(UNSPLIT, self.splits.get("train", {}))


def is_shards(data: str | os.PathLike[str]) -> bool:
    """Whether `data` names shards: an address, or a folder with their manifest."""
    text = os.fspath(data)
    return "://" in text or os.path.isfile(os.path.join(text, MANIFEST))


def find_pictures(data: str | os.PathLike[str]) -> Found:
    """Read a folder of class folders, a folder of such folders by split, or a .csv or .jsonl list.

    The only split is `UNSPLIT` where the data names none. Raises `DataError` for anything else.
    """
    path = os.path.abspath(os.fspath(data))
    if tars := tars_in(path):
        return _find_in_tars(path, tars)
    if os.path.isdir(path):
        return _find_in_folder(path)
    if not os.path.exists(path):
        raise DataError(f"{display_path(path)}: no such folder")
    if not os.path.isfile(path) or not path.lower().endswith((".csv", ".jsonl")):
        raise DataError(
            f"{display_path(path)}: not a folder; expected a folder with one folder a class, or a .csv or .jsonl list"
        )
    return _find_in_list(path)


def split_in(name: str) -> str | None:
    """The split that a file or folder is named after: `captions_train2017` -> train, `Flickr_8k.devImages` -> val."""
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def split_of_tar(path: str, root: str) -> str | None:
    """The split that a tar is named after, or the folder in `root` that it lies in."""
    folder = os.path.dirname(path)
    inside = folder not in (root, os.path.dirname(root))
    return split_in(os.path.splitext(os.path.basename(path))[0]) or (
        split_in(os.path.basename(folder)) if inside else None
    )


def walk(folder: str, barred: Iterable[tuple[int, int]] = ()) -> list[os.DirEntry[str]]:
    """Every entry below `folder` that is no folder, sorted by name within each.

    Links are followed, but no folder is entered twice, nor one whose (device, inode) is in `barred`: a link to a
    parent folder must not multiply the pictures. Raises `DataError` for a folder that cannot be read.
    """
    entered = {*barred, inode(folder)}
    found: list[os.DirEntry[str]] = []

    def enter(folder: str) -> None:
        for entry in entries(folder):
            if not entry.is_dir():
                found.append(entry)
            elif (identity := inode(entry.path)) not in entered:
                entered.add(identity)
                enter(entry.path)

    enter(folder)
    return found


def entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without hidden files and the litter of operating systems."""
    try:
        with os.scandir(folder) as scan:
            kept = [e for e in scan if not e.name.startswith(".") and e.name.lower() not in _IGNORED]
    except OSError as error:
        raise DataError(f"{display_path(folder)}: {(error.strerror or str(error)).lower()}") from error
    return sorted(kept, key=lambda entry: entry.name)


def inode(path: str) -> tuple[int, int]:
    """What is the same for all names of one folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def is_picture(name: str) -> bool:
    """Whether a file name has the ending of a picture, in either case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _find_in_folder(root: str) -> Found:
    inside = entries(root)
    splits = _split_folders(root, [entry for entry in inside if entry.is_dir()])
    found = Found(root, {})
    if splits is None:
        found.splits[UNSPLIT] = _classes(root, found.left_out, barred={inode(root)})
    else:
        barred = {inode(root), *map(inode, splits.values())}
        for split, folder in splits.items():
            found.splits[split] = _classes(folder, found.left_out, barred)
        beside = [entry for entry in inside if entry.path not in splits.values()]
        found.left_out += [
            LeftOut(entry.path, "lies beside the folders of the splits")
            for entry in beside
            if entry.is_dir() or is_picture(entry.name)
        ]
    _summarise_others(found)
    return found


def _find_in_tars(root: str, tars: list[str]) -> Found:
    """Pictures in tars by the class that lies beside each and the split that the file or its folder is named after."""
    found = Found(root if os.path.isdir(root) else os.path.dirname(root), {})
    for path in tars:
        split = split_of_tar(path, root) or UNSPLIT
        for member in members(path):
            if member.label is None:
                found.left_out.append(LeftOut(member.picture, "no .cls beside it, and no class in its .json"))
            else:
                found.splits.setdefault(split, {}).setdefault(member.label, []).append(member.picture)
    if not found.splits:
        raise DataError(f"{display_path(root)}: no picture with a class in {len(tars)} tars")
    _all_or_none(found, root, "some tars have no split in their names")
    return found


def _all_or_none(found: Found, root: str, fault: str) -> None:
    """Raise DataError where some pictures are of a split and others of none: those would be lost in silence."""
    if UNSPLIT in found.splits and len(found.splits) > 1:
        others = " and ".join(sorted(found.splits.keys() - {UNSPLIT}))
        raise DataError(f"{display_path(root)}: {fault}, others are of {others}")


def _split_folders(root: str, folders: list[os.DirEntry[str]]) -> dict[str, str] | None:
    """The folder of each split, or None when the folders of `root` are classes."""
    named = [entry for entry in folders if entry.name.lower() in SPLIT_NAMES]
    # A class of vehicles may be called "train": a split holds folders, a class among other classes holds pictures.
    only_splits = len(named) == len(folders)
    if not any(only_splits or any(inner.is_dir() for inner in entries(entry.path)) for entry in named):
        return None
    if not only_splits and not any(SPLIT_NAMES[entry.name.lower()] == "train" for entry in named):
        return None
    splits: dict[str, str] = {}
    for entry in named:
        split = SPLIT_NAMES[entry.name.lower()]
        if split in splits:
            both = f"{os.path.basename(splits[split])} and {entry.name}"
            raise DataError(f"{display_path(root)}: two folders for one split, {both}; keep one of them")
        splits[split] = entry.path
    return splits


def _classes(folder: str, left_out: list[LeftOut], barred: set[tuple[int, int]]) -> dict[str, list[str]]:
    """The pictures of each class folder in `folder`; what is unfit is added to `left_out`."""
    beside: list[os.DirEntry[str]] = []
    folders: list[os.DirEntry[str]] = []
    for entry in entries(folder):
        (folders if entry.is_dir() else beside).append(entry)
    pictures = [entry for entry in beside if is_picture(entry.name)]
    if pictures and not folders:
        raise DataError(
            f"{display_path(folder)}: pictures lie directly in it; put each class in a folder of its own, "
            f"as {display_path(os.path.join(folder, 'cat', pictures[0].name))}"
        )
    left_out += [LeftOut(entry.path, "lies beside the class folders and so has no class") for entry in pictures]
    left_out += [LeftOut(entry.path, "") for entry in beside if not is_picture(entry.name)]
    # A link from one class to another would give its pictures two labels.
    barred = barred | {inode(entry.path) for entry in folders}
    classes = {}
    with ThreadPoolExecutor(_READERS) as pool:  # on a network file system each question waits for its answer
        for entry, (pictures_of_it, others) in zip(
            folders, pool.map(lambda entry: _fit(walk(entry.path, barred)), folders), strict=True
        ):
            classes[entry.name] = pictures_of_it
            left_out += others
    return classes


def _fit(candidates: list[os.DirEntry[str]]) -> tuple[list[str], list[LeftOut]]:
    """What can be pictures, and what cannot."""
    pictures, others = [], []
    for entry in candidates:
        reason = unfit(entry) if is_picture(entry.name) else ""
        if reason is None:
            pictures.append(entry.path)
        else:
            others.append(LeftOut(entry.path, reason))
    return pictures, others


def unfit(file: os.DirEntry[str] | str) -> str | None:
    """Why a file cannot be a picture, as far as this shows without opening it; None when it can."""
    try:
        status = os.stat(file_of(file)) if isinstance(file, str) else file.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return (getattr(error, "strerror", None) or str(error)).lower()
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return None if status.st_size else "empty file"


def _summarise_others(found: Found) -> None:
    """Replace the files that are no pictures, noted without a reason so far, by one line that counts them."""
    others = [item for item in found.left_out if not item.reason]
    if not others:
        return
    endings = Counter(os.path.splitext(item.path)[1].lower() or "no ending" for item in others)
    counts = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(5))
    found.left_out = [item for item in found.left_out if item.reason]
    found.left_out.append(LeftOut(found.root, f"other files: {len(others)} ({counts})"))


def _find_in_list(path: str) -> Found:
    root = os.path.dirname(path)
    found = Found(root, {}, table=path)
    for line, row in read_rows(path):
        name = text_of(row, PATH_COLUMNS, path, line)
        label = text_of(row, _LABEL_COLUMNS, path, line)
        split = UNSPLIT
        if "split" in row:
            split = SPLIT_NAMES.get(str(row["split"]).strip().lower(), "")
            if not split:
                raise fault(path, line, f"split must be train, val or test, got {row['split']!r}")
        file = os.path.join(root, name)
        pictures = found.splits.setdefault(split, {}).setdefault(label, [])
        reason = unfit(file)
        if reason is None:
            pictures.append(file)
        else:
            found.left_out.append(LeftOut(file, reason))
    _all_or_none(found, path, "some rows name no split")
    return found
