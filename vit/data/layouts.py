"""What a data folder or a list file holds: pictures by split and class, and what had to be left out.

Nothing is decoded here; a file counts as a picture by its ending, and must be regular and not empty.
"""

import os
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vit.data.tables import PATH_COLUMNS, brief, fault, foreign_reason, label_fault, label_of, read_rows, text_of
from vit.data.tars import members, tars_in
from vit.data.walk import RUN_FOLDER, LeftOut, entries, examined, inode, is_folder, is_picture, is_run, walk
from vit.errors import DataError, display_path
from vit.names import class_name

UNSPLIT = "all"
"""the split of pictures that the data does not assign to one"""

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

MANIFEST = "vit.json"
"""what tells of shards, beside their folders"""

_READERS = 8  # folders that are read at a time
_LABEL_COLUMNS = ("label", "class")


SPLITS = {**SPLIT_NAMES, "dev": "val", "restval": "train"}
"""what splits are called in file names; COCO's "restval" has been trained on since Karpathy and Fei-Fei 2015"""


@dataclass
class Found:
    """Pictures by split and class: `splits[split][class]` lists paths. Empty class folders are kept as empty lists.

    `root` is the folder that all paths are within, or the folder of `table`, a list of pictures.
    """

    root: str
    splits: dict[str, dict[str, list[str]]]
    left_out: list[LeftOut] = field(default_factory=list)
    table: str | None = None
    leaks: list[str] = field(default_factory=list)
    """one message per file that is in two splits; evaluating on one of them is possible, training is not"""

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
        raise DataError(f"{display_path(path)}: no such file or folder")
    if not os.path.isfile(path) or not path.lower().endswith((".csv", ".tsv", ".jsonl")):
        found = foreign_reason(path) if os.path.isfile(path) else None
        reason = found or "not a folder; expected a folder with one folder a class, or a .csv, .tsv or .jsonl list"
        raise DataError(f"{display_path(path)}: {reason}")
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


def _find_in_folder(root: str) -> Found:
    found, inside = Found(root, {}), list[os.DirEntry[str]]()
    for entry in entries(root):
        if is_folder(entry) and is_run(entry.path):
            found.left_out.append(LeftOut(entry.path, RUN_FOLDER))
        else:
            inside.append(entry)
    splits = _split_folders(root, [entry for entry in inside if is_folder(entry)])
    keys = array("Q")
    if splits is None:
        found.splits[UNSPLIT] = _classes(inside, root, found.left_out, {inode(root)}, keys)
    else:
        barred = {inode(root), *map(inode, splits.values())}
        for split, folder in splits.items():
            found.splits[split] = _classes(entries(folder), folder, found.left_out, barred, keys)
        beside = [entry for entry in inside if entry.path not in splits.values()]
        found.left_out += [
            LeftOut(entry.path, "lies beside the folders of the splits")
            for entry in beside
            if is_folder(entry) or is_picture(entry.name)
        ]
    _separate(found, keys)
    _summarise_others(found)
    return found


def _find_in_tars(root: str, tars: list[str]) -> Found:
    """Pictures in tars by the class that lies beside each and the split that the file or its folder is named after."""
    found = Found(root if os.path.isdir(root) else os.path.dirname(root), {})
    for path in tars:
        split = split_of_tar(path, root) or UNSPLIT
        for member in members(path, lambda name, reason: found.left_out.append(LeftOut(name, reason))):
            if member.label is None:
                found.left_out.append(LeftOut(member.picture, "no .cls beside it, and no class in its .json"))
            elif (reason := label_fault(member.label)) is not None:
                found.left_out.append(LeftOut(member.picture, f"its label {reason}"))
            else:
                found.splits.setdefault(split, {}).setdefault(member.label, []).append(member.picture)
    if not found.splits:
        first = f"; skipped: {found.left_out[0].path}: {found.left_out[0].reason}" if found.left_out else ""
        raise DataError(f"{display_path(root)}: no picture with a class in {len(tars)} tars{display_path(first)}")
    _all_or_none(found, root, "some tars have no split in their names")
    return found


def _all_or_none(found: Found, root: str, fault: str) -> None:
    """Raise DataError where some pictures are of a split and others of none: those would be lost in silence."""
    if UNSPLIT in found.splits and len(found.splits) > 1:
        others = " and ".join(sorted(found.splits.keys() - {UNSPLIT}))
        raise DataError(f"{display_path(root)}: {fault}, others are of {others}")


def _split_folders(root: str, folders: list[os.DirEntry[str]]) -> dict[str, str] | None:
    """Return the folder of each split, or None when the folders of `root` are classes.

    A class of vehicles may be called "train": a split holds folders, a class among other classes holds images. Raises
    DataError where both readings are possible.
    """
    named = [entry for entry in folders if entry.name.lower() in SPLIT_NAMES]
    nested = {entry.path: [inner.name for inner in entries(entry.path) if is_folder(inner)] for entry in named}
    if not any(nested.values()) and (not named or len(named) < len(folders)):
        return None
    others = [entry.name for entry in folders if entry not in named and _has_image(entry.path)]
    of_splits = [entry for entry in named if nested[entry.path]]
    kinds = {SPLIT_NAMES[entry.name.lower()] for entry in of_splits}
    if of_splits and others and not ("train" in kinds and len(kinds) > 1):
        first = of_splits[0]
        as_split = f"{first.name} is a split with the classes {few(nested[first.path])}"
        raise DataError(
            f"{display_path(root)}: ambiguous: either {display_path(as_split)}, or "
            f"{display_path(few([first.name, *others]))} are the classes; move or rename the folders of one reading"
        )
    has_train = any(SPLIT_NAMES[entry.name.lower()] == "train" for entry in named)
    return _by_split(root, named) if has_train or len(named) == len(folders) else None


def _by_split(root: str, named: Iterable[os.DirEntry[str]]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for entry in named:
        split = SPLIT_NAMES[entry.name.lower()]
        if split in splits:
            both = f"{os.path.basename(splits[split])} and {entry.name}"
            raise DataError(f"{display_path(root)}: two folders for one split, {both}; keep one of them")
        splits[split] = entry.path
    return splits


def _has_image(folder: str) -> bool:
    """Return whether there is an image in a folder, at any depth, run folders of vit not counted."""
    return any(is_picture(entry.name) for entry in walk(folder))


def few(names: Sequence[str]) -> str:
    """Up to five of the names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


class _Scan(NamedTuple):
    """What a class folder holds: images with the 64-bit key of each file, and what is not one."""

    images: list[str]
    keys: "array[int]"
    others: list[LeftOut]


def _classes(
    inside: list[os.DirEntry[str]],
    folder: str,
    left_out: list[LeftOut],
    barred: set[tuple[int, int]],
    keys: "array[int]",
) -> dict[str, list[str]]:
    """Return the images of each class folder among the entries of `folder`, and add the key of each to `keys`.

    What is unusable goes to `left_out`.
    """
    # Two spellings of one class name come one after the other, so that `keys` follows the listing.
    folders = sorted((entry for entry in inside if is_folder(entry)), key=lambda entry: class_name(entry.name))
    beside = [entry for entry in inside if not is_folder(entry)]
    pictures = [entry for entry in beside if is_picture(entry.name)]
    if pictures and not folders:
        raise DataError(
            f"{display_path(folder)}: pictures lie directly in it; put each class in a folder of its own, "
            f"as {display_path(os.path.join(folder, 'cat', pictures[0].name))}"
        )
    left_out += [LeftOut(entry.path, "lies beside the class folders and so has no class") for entry in pictures]
    left_out += [LeftOut(entry.path, "") for entry in beside if not is_picture(entry.name)]
    # A link from one class to another would give its images two labels.
    barred = barred | {inode(entry.path) for entry in folders}
    classes: dict[str, list[str]] = {}
    with ThreadPoolExecutor(_READERS) as pool:  # on a network file system each question waits for its answer
        for entry, scan in zip(folders, pool.map(lambda entry: _scanned(entry.path, barred), folders), strict=True):
            left_out += scan.others
            if not scan.images and any(item.reason == RUN_FOLDER for item in scan.others):
                continue  # a folder of runs
            classes.setdefault(class_name(entry.name), []).extend(scan.images)
            keys.extend(scan.keys)
    return classes


def _scanned(folder: str, barred: Collection[tuple[int, int]]) -> _Scan:
    """Sort what is below a class folder into what can be an image and what cannot."""
    if is_run(folder):
        return _Scan([], array("Q"), [LeftOut(folder, RUN_FOLDER)])
    scan = _Scan([], array("Q"), [])
    for entry in walk(folder, barred, scan.others):
        reason, key = examined(entry) if is_picture(entry.name) else ("", 0)
        if reason is None:
            scan.images.append(entry.path)
            scan.keys.append(key)
        else:
            scan.others.append(LeftOut(entry.path, reason))
    return scan


def _separate(found: Found, keys: "array[int]") -> None:
    """Skip files that are listed again under another name in their class and split; note those of two splits.

    `keys` has the key of each image in the order of the listing. Raises DataError for a file that has two labels.
    """
    values, counts = np.unique(np.array(keys, np.uint64), return_counts=True)
    again = set(values[counts > 1].tolist())
    if not again:
        return
    first: dict[int, _Place] = {}
    waiting = iter(keys)
    for split, classes in found.splits.items():
        for label, paths in classes.items():
            kept = []
            for path in paths:
                if (key := next(waiting)) not in again or _is_new(_Place(path, label, split, ""), first, key, found):
                    kept.append(path)
            paths[:] = kept


class _Place(NamedTuple):
    """Where a file is listed: `where` names the line of a list, or is empty."""

    path: str
    label: str
    split: str
    where: str


def _is_new(place: _Place, first: dict[int, _Place], key: int, found: Found) -> bool:
    """Return whether a file is listed for the first time; a repetition is noted in `found`.

    Raises DataError where its label is another one there: which of the two is right is for the user to say.
    """
    before = first.setdefault(key, place)
    if before is place:
        return True
    here, there = place.where or display_path(place.path), before.where or display_path(before.path)
    if place.label != before.label:
        labels = f"labeled {place.label}, but {before.label} {'in' if before.where else 'as'} "
        name = f": {display_path(place.path)}" if place.where else ""
        raise DataError(f"{here}{name}: {display_path(labels)}{there}; keep one of the two")
    if place.split != before.split:
        found.leaks.append(f"{here}: the same file is in {before.split} ({there}) and in {place.split}; remove one")
    else:
        line = f"{place.where}: " if place.where else ""
        found.left_out.append(LeftOut(place.path, f"{line}the same file as {there}"))
    return place.split != before.split


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
    found, first = Found(root, {}, table=path), dict[int, _Place]()
    for line, row in read_rows(path):
        name = text_of(row, PATH_COLUMNS, path, line)
        label = label_of(row, _LABEL_COLUMNS, path, line)
        split = UNSPLIT
        if "split" in row:
            split = SPLIT_NAMES.get(str(row["split"]).strip().lower(), "")
            if not split:
                raise fault(path, line, f"split must be train, val or test, got {brief(row['split'])}")
        file = os.path.join(root, name)
        if name != name.strip() and not os.path.lexists(file):  # blanks beside a comma, as those around a label
            file = os.path.join(root, name.strip())
        pictures = found.splits.setdefault(split, {}).setdefault(label, [])
        reason, key = examined(file)
        if reason is not None:
            found.left_out.append(LeftOut(file, reason))
        elif _is_new(_Place(file, label, split, f"{display_path(path)}, line {line}"), first, key, found):
            pictures.append(file)
    _all_or_none(found, path, "some rows name no split")
    return found
