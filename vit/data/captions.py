"""Listings of captioned pictures: which captions each picture has, in which split, and what could not serve.

All captions of a picture are in one split. Captions are kept letter by letter; only empty ones are dropped.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vit.data.annotated import (
    UNFIT,
    Pictures,
    Source,
    Tally,
    check_splits,
    complete_splits,
    container_error,
    first_line,
    is_container,
    lines,
    sources_of,
    tally_unnamed,
)
from vit.data.caption_formats import EMPTY, Reader, Record, caption_reader, captions_of, read_json, strict_text
from vit.data.config import MAX_PIXELS, GroupDuplicates
from vit.data.folders import choose_split
from vit.data.layouts import SPLITS, UNSPLIT, is_shards, split_in, split_of_tar
from vit.data.tables import foreign_reason
from vit.data.tars import members, tars_in
from vit.data.walk import LeftOut, entries, is_file, is_picture, unfit, walk
from vit.errors import DataError, display_path
from vit.files import open_text

DUPLICATE = "duplicate captions"
BARE = "pictures without captions"
UNLISTED = "pictures in none of the split lists"
BESIDE = "pictures beside the folders of the splits"
TAR = "files of tars"
ALONE = "texts without an image of the same name"

FORMATS = (
    "expected COCO, Karpathy or BLIP .json, .jsonl or .csv with columns such as file_name and caption, a Flickr token "
    "file, a .tsv of caption and file, or a .txt of the same name beside each picture"
)


@dataclass(frozen=True, slots=True)
class Captioned:
    """One picture: its absolute path, its captions, and its id in the data, or else its name there."""

    path: str
    captions: tuple[str, ...]
    id: str


@dataclass
class CaptionListing:
    """Captioned pictures by split ("train", "val", "test"), and what was left out of them."""

    root: str
    images: str
    """the folder of the pictures"""
    splits: dict[str, list[Captioned]]
    counts: dict[str, int] = field(default_factory=dict)
    """how many could not serve, by kind: "pictures that are not there"; duplicates are counted here and kept"""
    left_out: list[LeftOut] = field(default_factory=list)
    """what was skipped, by path or by file and place"""


def list_captions(
    data: str | os.PathLike[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    images: str | None = None,
    group_duplicates: GroupDuplicates = False,
    max_pixels: int = MAX_PIXELS,
) -> CaptionListing:
    """List captioned pictures to train on, and hold out a share for the splits that the data does not have.

    `data` is a caption file of one of `FORMATS` or a folder that holds one, or one a split; `images` is the folder of
    the pictures where it is not found by itself. What is held out depends on the seed and the names of the pictures
    alone. Raises `DataError` when nothing is left to train on, and for faults of the file, with their place.
    """
    listing = _find(data, images, whole=True)
    listing.splits = complete_splits(
        listing.splits,
        lambda picture: picture.path,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        root=listing.root,
        folder=listing.images,
        image=lambda picture: picture.path,
        group_duplicates=group_duplicates,
        max_pixels=max_pixels,
    )
    return listing


def list_evaluation_captions(
    data: str | os.PathLike[str], *, split: str | None = None, images: str | None = None
) -> CaptionListing:
    """List captioned pictures to measure on, in exactly one split: `split`, or test, else val, or all."""
    listing = _find(data, images)
    chosen = choose_split(os.path.abspath(data), listing.splits, split)
    listing.splits = {chosen: listing.splits[chosen]}
    return listing


def write_captions(listing: CaptionListing, path: str | os.PathLike[str]) -> None:
    """Write which picture went where, as CSV with the columns split, image_id, image, caption, a row a caption.

    Paths are absolute: to read it back, `list_captions` needs `images`. Names are written as `write_split` does.
    """
    with open_text(Path(path)) as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "image_id", "image", "caption"])
        for split, pictures in listing.splits.items():
            for picture in pictures:
                writer.writerows([split, picture.id, picture.path, caption] for caption in picture.captions)


@dataclass(slots=True)
class _Entry:
    """What the records say of one picture, put together."""

    id: str
    split: str
    place: int | str
    captions: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def add(self, captions: Iterable[str], where: str, tally: Tally) -> None:
        for caption in captions:
            if not caption.strip():
                tally.add(EMPTY, where)
                continue
            if caption in self.known:
                tally.counts[DUPLICATE] += 1  # kept
            self.known.add(caption)
            self.captions.append(caption)


def _find(data: str | os.PathLike[str], images: str | None, *, whole: bool = False) -> CaptionListing:
    """All captioned pictures by split; the only split is `UNSPLIT` where the data names none.

    `whole` data are expected to name all images of their folder: those that they do not name are counted.
    """
    images = None if images is None else os.path.abspath(images)
    if is_shards(data):
        from vit.data.shards import list_caption_shards  # builds on this module

        return list_caption_shards(data)
    tally = Tally()
    if tars := tars_in(data):
        return _in_tars(os.path.abspath(os.fspath(data)), tars, tally)
    root, sources = sources_of(data, caption_reader, f"no captions; {FORMATS}")
    listing = CaptionListing(root, images or root, {})
    if not sources:
        _read_sidecars(listing, tally)
    split_of_path: dict[str, str] = {}
    searched = [_read_source(source, images, listing, split_of_path, tally) for source in sources]
    if whole and listing.splits:
        tally_unnamed(searched, BARE, tally)
    listing.counts, listing.left_out = dict(tally.counts), tally.left_out
    if not listing.splits:
        raise DataError(f"{display_path(root)}: no picture with a caption{_summary(tally)}")
    check_splits(listing.splits, root)
    return listing


def _in_tars(root: str, tars: list[str], tally: Tally) -> CaptionListing:
    """Pictures in tars with the captions beside them."""
    listing, folder = CaptionListing(root, root, {}), root if os.path.isdir(root) else os.path.dirname(root)
    for path in tars:
        split = split_of_tar(path, root) or UNSPLIT
        for member in members(path, partial(tally.add, TAR)):
            entry = _Entry(member.key, split, member.key)
            captions = [strict_text(caption, "caption", path, member.key) for caption in member.captions]
            entry.add(captions, f"{path}, {member.key}", tally)
            if entry.captions:
                captioned = Captioned(
                    member.picture, tuple(entry.captions), f"{os.path.relpath(path, folder)}/{member.key}"
                )
                listing.splits.setdefault(split, []).append(captioned)
            else:
                tally.add(BARE, f"{path}, {member.key}")
    listing.counts, listing.left_out = dict(tally.counts), tally.left_out
    if not listing.splits:
        raise DataError(f"{display_path(root)}: no picture with a caption in {len(tars)} tars{_summary(tally)}")
    check_splits(listing.splits, root)
    return listing


def _read_source(
    source: Source[Reader], images: str | None, listing: CaptionListing, splits: dict[str, str], tally: Tally
) -> Pictures:
    """Add the pictures of one caption file to `listing`. `splits` has the split of each path added so far."""
    gathered, unlisted = _gather(source, tally)
    pictures = Pictures(source, list(gathered), images)
    for name in unlisted:
        pictures.note(name)
    if source.split in (None, "train"):
        listing.images = pictures.folder
    found: dict[str, _Entry] = {}
    ids: dict[tuple[str, str], str] = {}
    for name, entry in gathered.items():
        where = f"{source.path}, {_words(entry.place)}"
        if not entry.captions:
            tally.add(BARE, where)
            pictures.note(name)
            continue
        path = pictures.find(name, tally)
        if path is None:
            continue
        if splits.setdefault(path, entry.split) != entry.split:
            both = f"{splits[path]} and in {entry.split}"
            raise DataError(f"{display_path(where)}: {display_path(name)} is in {both}; it must be in one of them")
        if (same := found.get(path)) is not None:  # one picture under two names, such as a.jpg and ./a.jpg
            same.add(entry.captions, where, tally)
            continue
        found[path] = entry
        if ids.setdefault((entry.split, entry.id), name) != name:
            other = ids[entry.split, entry.id]
            raise DataError(
                f"{display_path(where)}: {display_path(name)} and {display_path(other)} have the same id "
                f"{display_path(entry.id)}"
            )
    for path, entry in found.items():
        picture = Captioned(path, tuple(entry.captions), entry.id)
        listing.splits.setdefault(entry.split, []).append(picture)
    if gathered and not found and not listing.splits:
        raise DataError(
            f"{display_path(source.path)}: names {len(gathered)} pictures, none of which can serve{_summary(tally)}\n"
            f"Pictures are looked for in {display_path(os.path.dirname(source.path))} and the folders in it."
        )
    return pictures


def _gather(source: Source[Reader], tally: Tally) -> tuple[dict[str, _Entry], set[str]]:
    """The records of a caption file by the name of the picture, in the order of the file, and the names in no split."""
    records = list(source.reader(tally))
    lists: dict[str, str] = {}
    if source.split is None and all(record.split is None for record in records):
        lists = _split_lists(source.path, records)
    gathered: dict[str, _Entry] = {}
    unlisted = set[str]()
    for record in records:
        split = record.split or source.split or UNSPLIT
        if lists:
            listed = lists.get(record.name) or lists.get(os.path.splitext(record.name)[0])
            if listed is None:
                if record.name not in unlisted:
                    tally.add(UNLISTED, record.name)
                unlisted.add(record.name)
                continue
            split = listed
        entry = gathered.setdefault(record.name, _Entry(record.id or record.name, split, record.place))
        where = f"{source.path}, {_words(record.place)}"
        if entry.split != split:
            both = f"{entry.split} and in {split}"
            raise DataError(
                f"{display_path(where)}: {display_path(record.name)} is in {both}; it must be in one of them"
            )
        entry.add(record.captions, where, tally)
    return gathered, unlisted


def _split_lists(path: str, records: Sequence[Record]) -> dict[str, str]:
    """Name of a picture -> split, from lists of names beside a caption file: `Flickr_8k.trainImages.txt`, `val.txt`."""
    names = {record.name for record in records}
    names |= {os.path.splitext(name)[0] for name in names}
    lists: dict[str, str] = {}
    for entry in entries(os.path.dirname(path)):
        stem, suffix = os.path.splitext(entry.name)
        split = split_in(stem)
        if suffix != ".txt" or split is None or entry.path == path or not is_file(entry):
            continue
        if first_line(entry.path).strip() in names:
            for line, text in lines(entry.path):
                name = text.strip()
                if lists.setdefault(name, split) != split:
                    where = f"{display_path(entry.path)}, line {line}"
                    raise DataError(f"{where}: {display_path(name)} is in {lists[name]} and in {split}")
    return lists


def _read_sidecars(listing: CaptionListing, tally: Tally) -> None:
    """Add the pictures of a folder that have a .txt, a caption a line, or a .json with a caption of the same name."""
    root = listing.images = listing.root
    files = walk(root)
    texts = {entry.path for entry in files if entry.name.endswith((".txt", ".json")) and is_file(entry)}
    pictures = [entry.path for entry in files if is_picture(entry.name)]
    stems = {path: os.path.splitext(path)[0] for path in pictures}
    captioned = [p for p in pictures if {stems[p] + ".txt", stems[p] + ".json"} & texts]
    if not captioned:
        shards = [entry.path for entry in files if is_container(entry.path)]
        if shards:
            raise container_error(shards[0])
        for file in files:
            if not is_picture(file.name) and is_file(file) and (foreign := foreign_reason(file.path)) is not None:
                raise DataError(f"{display_path(file.path)}: {foreign}")
        raise DataError(f"{display_path(root)}: no captions; {FORMATS}")
    splits = {path: SPLITS.get(os.path.relpath(path, root).split(os.sep)[0].lower(), UNSPLIT) for path in pictures}
    named = set(splits.values()) - {UNSPLIT}
    for path in pictures:
        if named and splits[path] == UNSPLIT:
            tally.add(BESIDE, path)
        elif (reason := unfit(path)) is not None:
            tally.add(UNFIT, path, reason)
        else:
            entry = _Entry(os.path.relpath(path, root), splits[path], path)
            text = next((stems[path] + suffix for suffix in (".txt", ".json") if stems[path] + suffix in texts), None)
            if text is not None:
                entry.add(_sidecar(text), text, tally)
            if entry.captions:
                listing.splits.setdefault(entry.split, []).append(Captioned(path, tuple(entry.captions), entry.id))
            else:
                tally.add(BARE, path)
    named = set(stems.values())
    for text in sorted(text for text in texts if os.path.splitext(text)[0] not in named):
        if text.endswith(".txt") or any(_sidecar(text)):
            tally.add(ALONE, text)


def _sidecar(path: str) -> Iterator[str]:
    """The captions in a file beside a picture: its lines, or the caption of a JSON object."""
    if path.lower().endswith(".json"):
        found = read_json(path)
        if isinstance(found, dict) and any(key in found for key in ("caption", "captions", "text")):
            yield from captions_of(found, path, "the object", ("caption", "captions", "text"))
        return
    for line, caption in lines(path):
        if caption.strip():
            yield strict_text(caption, "caption", path, line)


def _summary(tally: Tally) -> str:
    if not tally.left_out:
        return ""
    first = display_path(tally.left_out[0].path)
    return f" ({display_path(tally.summary())}; the first is {first})"


def _words(place: int | str) -> str:
    return f"line {place}" if isinstance(place, int) else place
