"""Files that list pictures with words, or words alone: which of them a folder holds, where their pictures lie, splits.

A name may lead nowhere but into the folder of the pictures: what is absolute, climbs out by `..` or by a link is
refused, counted and never opened. Web addresses are not followed.
"""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vit.data.config import MAX_PIXELS, GroupDuplicates
from vit.data.layouts import SPLITS, UNSPLIT, split_in
from vit.data.splitting import hold_out
from vit.data.tables import Row, brief, fault, foreign_reason, open_text, text_lines
from vit.data.walk import LeftOut, entries, is_file, is_folder, is_picture, walk
from vit.errors import DataError, display_path

log = logging.getLogger("vit")

Reader = TypeVar("Reader")
Item = TypeVar("Item")

MISSING = "pictures that are not there"
OUTSIDE = "pictures outside their folder"
ADDRESS = "web addresses instead of files"
UNFIT = "files that are no pictures"

_SAMPLE = 64  # names by which the folder of pictures is found
_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".token")
_OTHER_TASKS = re.compile(r"lemma|instances_|keypoints_|panoptic_|stuff_|image_info_", re.IGNORECASE)
_PICTURES = re.compile(r"(images?|pictures|photos|dataset|(train|val|test)(20\d\d)?)$", re.IGNORECASE)


@dataclass
class Tally:
    """What could not serve: how many by kind, and each with its path or place and the reason."""

    counts: Counter[str] = field(default_factory=Counter)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, kind: str, path: str, reason: str | None = None) -> None:
        """Count one of a kind; `reason` in words where the kind does not say it all."""
        self.counts[kind] += 1
        self.left_out.append(LeftOut(path, reason or kind))

    def summary(self) -> str:
        """The counts in one line: "pictures that are not there 3, empty captions 1"."""
        return ", ".join(f"{kind} {count}" for kind, count in self.counts.items())


@dataclass(frozen=True, slots=True)
class Source(Generic[Reader]):
    """A file, what reads it, and the split that it is named after."""

    path: str
    reader: Reader
    split: str | None = None


def sources_of(
    data: str | os.PathLike[str], recognise: Callable[[str], Reader | None], expected: str
) -> tuple[str, list[Source[Reader]]]:
    """DATA's folder and the files that are meant: DATA itself, or those that `find_sources` finds in it, if any.

    Raises `DataError` for a file without a reader; `expected` says in words what would have one.
    """
    path = os.path.abspath(os.fspath(data))
    if os.path.isdir(path):
        return path, find_sources(path, recognise)
    name = display_path(path)
    if not os.path.lexists(path):
        raise DataError(f"{name}: no such file or folder")
    if is_container(path):
        raise container_error(path)
    if not os.path.isfile(path):
        raise DataError(f"{name}: not a regular file")
    if (reader := recognise(path)) is None:
        raise DataError(f"{name}: {foreign_reason(path) or expected}")
    return os.path.dirname(path), [Source(path, reader)]


def is_container(path: str) -> bool:
    """Whether a file is one of the containers that are not read as they are."""
    return path.lower().endswith((".tar", ".tar.gz", ".tgz", ".zip", ".parquet", ".arrow"))


def container_error(path: str) -> DataError:
    """What to do with a container."""
    if path.lower().endswith((".parquet", ".arrow")):
        hint = "write the table as .jsonl or .csv beside the pictures"
    else:
        hint = "unpack it into a folder, and name that"
    return DataError(f"{display_path(path)}: not read as it is; {hint}")


def complete_splits(
    splits: Mapping[str, list[Item]],
    key: Callable[[Item], str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    root: str,
    folder: str,
    image: Callable[[Item], str | None] = lambda item: None,
    group_duplicates: GroupDuplicates = False,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, list[Item]]:
    """train, val and test from what the data has: shares of train are held out for those that are missing.

    Items with the same `key` stay together; keys count without `folder` in front. With `group_duplicates`, items whose
    `image` is an exact or near-duplicate stay together, too; the path of an image is the key of its items. `root` is
    what messages call the data. Raises `DataError` where there is nothing to train on or to hold out.
    """
    check_splits(splits, root)
    if not {UNSPLIT, "train"} & splits.keys():
        raise DataError(f"{display_path(root)}: has {' and '.join(sorted(splits))} but no train")
    given = {split: items for split, items in splits.items() if split in ("val", "test")}
    train = splits.get(UNSPLIT) or splits["train"]
    wanted = {"val": val_fraction, "test": test_fraction}
    shares = {split: share for split, share in wanted.items() if share > 0 and split not in given}
    keys = list(dict.fromkeys(map(key, train)))
    if len(keys) <= len(shares):
        raise DataError(f"{display_path(root)}: {len(keys)} to train on, too few to hold out {' and '.join(shares)}")
    groups = list[list[str]]()
    if shares and (images := list(dict.fromkeys(path for path in map(image, train) if path is not None))):
        from vit.data.grouping import group_images  # decodes images

        groups, notes, _ = group_images(folder, images, [""] * len(images), group_duplicates, max_pixels)
        for note in notes if group_duplicates else ():
            log.info("note       %s", note)
    held = hold_out({"": keys}, shares, folder, seed, groups)
    place = {name: split for split, classes in held.items() for name in classes[""]}
    parts: dict[str, list[Item]] = {"train": [], **{split: [] for split in shares}}
    for item in train:
        parts[place[key(item)]].append(item)
    found = parts | given
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def check_splits(splits: Mapping[str, list[Item]], root: str) -> None:
    """Raise `DataError` where some of the data has a split and some has none."""
    if UNSPLIT in splits and len(splits) > 1:
        named = " and ".join(sorted(splits.keys() - {UNSPLIT}))
        raise DataError(f"{display_path(root)}: {len(splits[UNSPLIT])} entries have no split, others are in {named}")


def find_sources(root: str, recognise: Callable[[str], Reader | None]) -> list[Source[Reader]]:
    """The files directly in `root`, or else in the folders in it, that `recognise` has a reader for.

    They are one file, or one a split, told by their names or those of their folders: `captions_val2017.json`,
    `train.csv`, `test/metadata.jsonl`. Raises `DataError` where it is not clear which file is meant.
    """
    inside = entries(root)
    sources = [*_recognised(inside, None, recognise)]
    if not sources:
        for folder in inside:
            if is_folder(folder):
                sources += _recognised(entries(folder.path), split_in(folder.name), recognise)
    splits = [source.split for source in sources]
    if len(sources) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = display_path(", ".join(os.path.relpath(source.path, root) for source in sources[:5]))
        raise DataError(f"{display_path(root)}: several files could be meant, {names}; name one of them as DATA")
    return sources


def _recognised(
    inside: Sequence[os.DirEntry[str]], split: str | None, recognise: Callable[[str], Reader | None]
) -> Iterable[Source[Reader]]:
    pictures = {os.path.splitext(entry.name)[0] for entry in inside if is_picture(entry.name)}
    for entry in inside:
        stem, suffix = os.path.splitext(entry.name)
        # a file with the name of a picture belongs to that picture alone
        if suffix.lower() not in _SUFFIXES or stem in pictures or _OTHER_TASKS.search(stem) or not is_file(entry):
            continue
        if (reader := recognise(entry.path)) is not None:
            yield Source(entry.path, reader, split_in(stem) or split)


def split_of(row: Row, path: str, place: int | str) -> str | None:
    """The split that a row names; None when the table has no such column."""
    if "split" not in row:
        return None
    split = SPLITS.get(str(row["split"]).strip().lower())
    if split is None:
        raise fault(path, place, f"split must be train, val or test, got {brief(row['split'])}")
    return split


def first_line(path: str) -> str:
    """The first line of a text file, without its end."""
    try:
        with open(path, "rb") as stream:
            return stream.readline(1 << 20).decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{display_path(path)}: {(error.strerror or str(error)).lower()}") from error


def lines(path: str) -> Iterable[tuple[int, str]]:
    """Number and text of each line of a text file that is not empty."""
    for number, text in enumerate(text_lines(open_text(path).read()), 1):
        if text:
            yield number, text


class Pictures:
    """Finds the pictures that a file names: in its own folder, one in it, or a folder of pictures beside that.

    Names are taken as they stand, with their folders, or without where pictures lie there that way. The place is
    chosen once for the whole file, by where most of a sample of the names are: a picture that is missing there must
    not be replaced by another of the same name. `images` names the folder instead.
    """

    def __init__(self, source: Source[Reader], names: Sequence[str], images: str | None = None) -> None:
        self._top = images or os.path.dirname(source.path)
        sample = [name for name in names[:: max(1, len(names) // _SAMPLE)] if _is_plain(name)]
        folders = _folders(self._top, source.split, beside=images is None)
        self.folder, self._flat, most = self._top, False, 0
        for flat in (False, True) if any(os.path.dirname(name) for name in sample) else (False,):
            for folder in folders:
                there = sum(os.path.isfile(os.path.join(folder, _relative(name, flat))) for name in sample)
                if there > most:
                    self.folder, self._flat, most = folder, flat, there
        self._within = tuple({os.path.realpath(self.folder), os.path.realpath(self._top)})
        self._safe: dict[str, bool] = {}
        self.named: set[str] = set()
        """paths of the images that the file names, there or not"""
        self.is_above = self.folder == os.path.dirname(self._top)

    def find(self, name: str, tally: Tally) -> str | None:
        """The absolute path of the picture with that name; None, and counted in `tally`, when it cannot serve."""
        path, kind, reason = self._look(name)
        self.named.add(path)
        if kind is None:
            return path
        tally.add(kind, path, reason)
        return None

    def note(self, name: str) -> None:
        """Count the image as named, though it is not looked for."""
        self.named.add(self._look(name)[0])

    def _look(self, name: str) -> tuple[str, str | None, str | None]:
        """Path of the picture; why it cannot serve, as a kind for the tally, and in more words where there are."""
        if "://" in name:
            return name, ADDRESS, None
        if os.path.isabs(name):
            path = os.path.normpath(name)
        elif _climbs(name):
            return name, OUTSIDE, None
        else:
            path = os.path.join(self.folder, _relative(name, self._flat))
        if "\0" in path:
            return path, MISSING, None
        folder = os.path.dirname(path)
        if folder not in self._safe:
            self._safe[folder] = self._is_within(folder)
        if not self._safe[folder]:
            return path, OUTSIDE, None
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not self._is_within(path):
                    return path, OUTSIDE, "a link out of the folder of the pictures"
                status = os.stat(path)
        except OSError as error:
            return path, MISSING, (error.strerror or str(error)).lower()
        if not stat.S_ISREG(status.st_mode):
            return path, UNFIT, "not a regular file"
        return (path, None, None) if status.st_size else (path, UNFIT, "empty file")

    def _is_within(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(real == within or real.startswith(os.path.join(within, "")) for within in self._within)


def tally_unnamed(searched: Sequence[Pictures], kind: str, tally: Tally) -> None:
    """Count the images in the folders of `searched` that no file names, once each.

    The folder above that of a file may hold anything: there only the folders of images that are named count.
    """
    named = set[str]().union(*(pictures.named for pictures in searched))
    folders: dict[str, bool] = {}
    for pictures in searched:
        if pictures.is_above:
            folders |= dict.fromkeys(map(os.path.dirname, pictures.named), False)
        else:
            folders[pictures.folder] = True
    for folder, deep in folders.items():
        try:
            found = walk(folder) if deep else entries(folder)
        except DataError:  # a folder that is not there, or may not be read
            continue
        for entry in found:
            if is_picture(entry.name) and entry.path not in named:
                named.add(entry.path)
                tally.add(kind, entry.path)


def _folders(top: str, split: str | None, beside: bool) -> list[str]:
    """Where the pictures of a split may lie, the likeliest first: train2017 for the captions of train."""

    def rank(folder: os.DirEntry[str]) -> int:
        return (split, None).index(named) if (named := split_in(folder.name)) in (split, None) else 2

    found = [top, *(entry.path for entry in sorted(entries(top), key=rank) if is_folder(entry))]
    parent = os.path.dirname(top)
    if beside and os.path.dirname(parent) != parent:  # never the root of the file system
        likely = [e for e in entries(parent) if e.path != top and _PICTURES.search(e.name) and is_folder(e)]
        found += [parent, *(entry.path for entry in sorted(likely, key=rank))]
    return found


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file below some folder, as far as the name tells."""
    return not (os.path.isabs(name) or _climbs(name) or "://" in name or "\0" in name)


def _climbs(name: str) -> bool:
    """Whether a relative name leads out of the folder that it starts from."""
    return os.path.normpath(name).split(os.sep)[0] == os.pardir


def _relative(name: str, flat: bool) -> str:
    return os.path.basename(name) if flat else os.path.normpath(name)
