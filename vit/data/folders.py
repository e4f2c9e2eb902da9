"""Listings: which pictures there are, of which class, in which split.

The classes are those of the training pictures. Every other split, and every later evaluation, is read through that
one list by name, so that a class that is missing or new somewhere can never shift the labels of the others.
"""

import contextlib
import csv
import gc
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from vit.data.config import MAX_PIXELS, DataConfig, GroupDuplicates
from vit.data.decode import decode
from vit.data.layouts import SPLIT_NAMES, UNSPLIT, Found, few, find_pictures, is_shards
from vit.data.splitting import hold_out
from vit.data.tables import brief, fault, label_of, read_rows, text_of
from vit.data.walk import LeftOut, entries, is_folder, is_picture, walk
from vit.errors import DataError, UnreadableImage, display_path
from vit.files import open_text
from vit.names import class_name

__all__ = [
    "LeftOut",
    "Listing",
    "Sample",
    "find_images",
    "list_evaluation",
    "list_for_training",
    "list_training",
    "path_of",
    "read_image",
    "read_split",
    "write_split",
]

T = TypeVar("T")

SHARDS = "shards:"
"""what stands before the place of a picture in shards, where others have an absolute path"""


class Sample(NamedTuple):
    """One picture: its absolute path, and its class as a place in the list of classes."""

    path: str
    label: int


@dataclass
class Listing:
    """The pictures of a data set by split ("train", "val", "test"), and what was left out of it."""

    root: str
    classes: tuple[str, ...]
    splits: dict[str, list[Sample]]
    left_out: list[LeftOut] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    """pictures of each class in the data that `classes` lacks; they are in no split"""
    table: str | None = None
    """the list that names the pictures, where they do not come by folders"""
    notes: list[str] = field(default_factory=list)
    """what to know about the split that was made, one sentence each"""

    @property
    def name(self) -> str:
        """What was asked for."""
        return self.table or self.root


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Python looks for garbage again and again while objects are made: among a million pictures a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def list_for_training(data: str | os.PathLike[str], config: DataConfig, seed: int) -> Listing:
    """List images as `list_training` does, with the settings of a run, and make sure that each class can be read.

    Raises DataError also for a class without a readable training image, and where no validation image is readable.
    """
    listing = list_training(
        data,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=seed,
        group_duplicates=config.group_duplicates,
        max_pixels=config.max_pixels,
    )
    if not is_shards(data):
        _require_readable(listing, config.max_pixels)
    return listing


@_uncollected()
def list_training(
    data: str | os.PathLike[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    group_duplicates: GroupDuplicates = False,
    max_pixels: int = MAX_PIXELS,
) -> Listing:
    """List images to train on, and hold out a fraction of each class for the splits that the data does not have.

    `data` is a folder DATA/CLASS/..., a folder DATA/train/CLASS/... with val and test beside train if there are any,
    or a .csv or .jsonl list of path, label and perhaps split. What is held out depends on the seed and the paths
    within `data` alone; an image added later moves few of the others. With `group_duplicates` the images are also
    decoded where something is held out: exact and near-duplicates are kept within one split, and unreadable files are
    skipped. Raises `DataError` when there are not two classes with images, or a split has a class that the training
    images lack.
    """
    if is_shards(data):
        from vit.data.shards import list_shards  # builds on this module

        return list_shards(data)
    found = _found(data)
    problems = training_problems(found)
    if problems:
        raise DataError(problems[0])
    train = found.training
    classes = tuple(sorted(train))
    tables = {"train": train} | {split: found.splits[split] for split in ("val", "test") if split in found.splits}
    wanted = {"val": val_fraction, "test": test_fraction}
    fractions = {split: fraction for split, fraction in wanted.items() if fraction > 0 and split not in tables}
    groups, notes = list[list[str]](), list[str]()
    if fractions:
        from vit.data.grouping import group_training  # builds on what this module imports

        groups, notes = group_training(found, group_duplicates, max_pixels)
    held = hold_out({name: train[name] for name in classes}, fractions, found.root, seed, groups)
    notes += without_images(held)
    tables |= held
    splits: dict[str, list[Sample]] = {
        split: [Sample(path, label) for label, name in enumerate(classes) for path in tables[split].get(name, [])]
        for split in sorted(tables, key=("train", "val", "test").index)
    }
    return Listing(found.root, classes, splits, found.left_out, table=found.table, notes=notes)


def without_images(held: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """Name the classes of which a split got no image because all of them are duplicates of one another."""
    for split, classes in held.items():
        none = [label for label, paths in classes.items() if not paths and len(held["train"][label]) > 1]
        if none:
            yield f"{split} has no image of {few(none)}: the images of such a class are all duplicates of one another"


def _require_readable(listing: Listing, max_pixels: int) -> None:
    """Raise DataError for a class whose training images are all unreadable, and for validation images that all are.

    As a rule one image per class is decoded.
    """
    paths: dict[str, list[str]] = {name: [] for name in listing.classes}
    for sample in listing.splits["train"]:
        paths[listing.classes[sample.label]].append(sample.path)
    require_readable_classes(listing.name, paths, max_pixels)
    val = [sample.path for sample in listing.splits.get("val", [])]
    if val and (reason := _unreadable(val, max_pixels)):
        raise DataError(f"{display_path(listing.name)}: no readable image in val, for example {display_path(reason)}")


def require_readable_classes(data: str, paths: Mapping[str, Sequence[str]], max_pixels: int) -> None:
    """Raise DataError for classes whose images, `paths` by class, are all unreadable; `data` names them."""
    with ThreadPoolExecutor() as pool:
        reasons = pool.map(lambda name: _unreadable(paths[name], max_pixels), paths)
        gone = {name: reason for name, reason in zip(paths, reasons, strict=True) if reason}
    if gone:
        from vit.data.grouping import unreadable_classes  # builds on what this module imports

        raise unreadable_classes(data, [*gone], next(iter(gone.values())))


def _unreadable(paths: Sequence[str], max_pixels: int) -> str:
    """Return the first file and the reason where none of the images can be decoded, else an empty string."""
    first = ""
    for path in paths:
        try:
            decode(path, max_pixels)
            return ""
        except UnreadableImage as error:
            first = first or f"{path}: {error.reason}"
    return first


@_uncollected()
def list_evaluation(data: str | os.PathLike[str], classes: Sequence[str], *, split: str | None = None) -> Listing:
    """List pictures to measure a model of the given classes on, in exactly one split.

    Without `split` it is test, else val; a folder DATA/CLASS/... or a list without splits has but one, all.
    Labels go by class name; pictures of other classes are left out and counted in `unknown`. Raises `DataError` when
    the split is not there, or holds no picture of any of the classes.
    """
    if is_shards(data):
        from vit.data.shards import list_shards  # builds on this module

        shards = list_shards(data, classes)
        chosen = choose_split(shards.root, shards.splits, split)
        return replace(shards, splits={chosen: shards.splits[chosen]})
    found = _found(data)
    chosen = choose_split(found.name, found.splits, split)
    pictures = {name: paths for name, paths in found.splits[chosen].items() if paths}
    root, classes = display_path(found.name), [class_name(name) for name in classes]
    if not pictures:
        raise DataError(f"{root}: no pictures{'' if chosen == UNSPLIT else f' in {chosen}'}")
    unknown = {name: len(pictures[name]) for name in sorted(pictures) if name not in classes}
    if len(unknown) == len(pictures):
        there, expected = display_path(few(list(unknown))), display_path(few(classes))
        raise DataError(f"{root}: has none of the model's classes; it has {there}, the model knows {expected}")
    samples = [Sample(path, label) for label, name in enumerate(classes) for path in pictures.get(name, [])]
    return Listing(found.root, tuple(classes), {chosen: samples}, found.left_out, unknown, found.table)


def write_split(listing: Listing, path: str | os.PathLike[str]) -> None:
    """Write which picture went where, as CSV with the columns split, class, path; `list_training` reads it back.

    The file is UTF-8; bytes of file names that are no UTF-8 are written as they are ("surrogateescape").
    """
    with open_text(Path(path)) as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "class", "path"])
        for split, samples in listing.splits.items():
            writer.writerows([split, listing.classes[sample.label], sample.path] for sample in samples)


def read_split(path: str | os.PathLike[str], classes: Sequence[str]) -> Listing:
    """What `write_split` wrote, each picture at its place, those as well that are gone since: draws go by the place.

    Raises DataError for what is no such list, or knows other classes.
    """
    name, labels = os.fspath(path), {class_name(name): label for label, name in enumerate(classes)}
    splits: dict[str, list[Sample]] = {}
    for line, row in read_rows(name):
        label, split = label_of(row, ("class",), name, line), text_of(row, ("split",), name, line)
        if label not in labels or split not in ("train", "val", "test"):
            raise fault(name, line, f"no class {brief(label)}, or no split {brief(split)}")
        file = os.path.join(os.path.dirname(name), text_of(row, ("path",), name, line))
        splits.setdefault(split, []).append(Sample(file, labels[label]))
    if "train" not in splits:
        raise DataError(f"{display_path(name)}: no pictures to train on")
    return Listing(os.path.dirname(name), tuple(classes), splits, table=name)


def find_images(paths: Iterable[str]) -> Iterator[str | UnreadableImage]:
    """Yield files as given, the images below folders, sorted in each, and the images that patterns match.

    A pattern such as `photos/*.jpg` is one only where no file has that very name. A folder without images and a
    pattern without a match are yielded as the error that `read_image` raises, so that each fails alone.
    """
    for path in paths:
        yield from _images_at(path)


def path_of(entry: str | UnreadableImage) -> str:
    """Return the path of an entry of `find_images`."""
    return entry.path if isinstance(entry, UnreadableImage) else entry


def read_image(read: Callable[[str], T], entry: str | UnreadableImage) -> T:
    """Read an entry of `find_images`. Raises UnreadableImage."""
    if isinstance(entry, UnreadableImage):
        raise entry
    return read(entry)


def training_problems(found: Found) -> list[str]:
    """Why the pictures found cannot train a classifier, a line a reason; nothing when they can."""
    root = display_path(found.name)
    train = found.training
    if found.splits and not {UNSPLIT, "train"} & found.splits.keys():
        return [f"{root}: has {' and '.join(sorted(found.splits))} but no train"]
    if not any(train.values()):
        first = found.left_out[0] if found.left_out else None
        example = f"; skipped: {display_path(first.path)}: {display_path(first.reason)}" if first else ""
        return [f"{root}: no pictures{example}"]
    problems = []
    empty = sorted(name for name, paths in train.items() if not paths)
    if empty:
        problems.append(f"{root}: no pictures of {display_path(few(empty))}; remove the class or add pictures")
    if len(train) == 1:
        problems.append(f"{root}: only one class, {display_path(_only_class(found))}")
    for split, pictures in found.splits.items():
        foreign = sorted(name for name, paths in pictures.items() if paths and name not in train)
        if foreign:
            problems.append(f"{root}: {split} has pictures of {display_path(few(foreign))}, which train lacks")
    return problems + found.leaks


def _only_class(found: Found) -> str:
    """The name of the only class, and what may be amiss."""
    name = next(iter(found.training))
    inner = os.path.join(found.root, name)
    if UNSPLIT in found.splits and os.path.isdir(inner) and sum(is_folder(entry) for entry in entries(inner)) > 1:
        return f"{name}; did you mean {inner}?"
    return f"{name}; a classifier needs two"


def _images_at(path: str) -> list[str] | list[UnreadableImage]:
    """The images that one argument of a command stands for."""
    if os.path.isdir(path):
        images = [entry.path for entry in walk(path) if is_picture(entry.name)]
        return images or [UnreadableImage(path, "no images in this folder")]
    if os.path.lexists(path):
        return [path]
    # Links between folders let `**` find one picture under many names; the shortest stands for all.
    found: dict[tuple[str, str], str] = {}
    for match in sorted(glob.glob(path, recursive=True), key=len):
        if is_picture(match) and not os.path.isdir(match):
            folder, name = os.path.split(match)
            found.setdefault((os.path.realpath(folder), name), match)
    if found:
        return sorted(found.values())
    return [
        UnreadableImage(path, "no image matches this pattern" if glob.has_magic(path) else "no such file or folder")
    ]


def _found(data: str | os.PathLike[str]) -> Found:
    """What `data` holds; of a large folder as it is remembered, while that holds true."""
    from vit.data.remembered import now, recall, remember  # builds on what this module does

    root, started = os.path.abspath(os.fspath(data)), now()
    if not os.path.isdir(root):
        return find_pictures(data)
    found = recall(root)
    if found is None:
        found = find_pictures(data)
        remember(found, started)
    return found


def choose_split(root: str, splits: Collection[str], split: str | None) -> str:
    """The one of `splits` that was asked for, or else the one to measure on: all, test, val. Raises `DataError`."""
    names = ", ".join(sorted(splits)) if UNSPLIT not in splits else "none"
    if split is not None:
        wanted = SPLIT_NAMES.get(split, split)
        if wanted not in splits:
            raise DataError(f"{display_path(root)}: no split called {display_path(split)}; it has {names}")
        return wanted
    for choice in (UNSPLIT, "test", "val"):
        if choice in splits:
            return choice
    raise DataError(f"{display_path(root)}: neither test nor val to measure on; it has {names}")
