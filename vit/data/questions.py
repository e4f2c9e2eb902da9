"""Listings of texts with an answer from a fixed list, each with a picture or alone: questions, statements, reviews.

The classes are the answers of the training texts; every other split is read through that one list by name.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from vit.data.annotated import (
    Pictures,
    Source,
    Tally,
    check_splits,
    complete_splits,
    first_line,
    sources_of,
    split_of,
    tally_unnamed,
)
from vit.data.caption_formats import strict_text
from vit.data.config import MAX_PIXELS, GroupDuplicates
from vit.data.folders import choose_split, require_readable_classes
from vit.data.layouts import UNSPLIT
from vit.data.tables import PATH_COLUMNS, columns_of, label_of, read_rows, text_of
from vit.data.walk import LeftOut
from vit.errors import DataError, display_path
from vit.names import class_name

BARE = "images without questions"

_TEXT_COLUMNS = ("question", "text")
_ANSWER_COLUMNS = ("answer", "label", "class")
_ID_COLUMNS = ("question_id", "id")
_EXPECTED = "expected a .csv, .tsv or .jsonl with columns such as file_name, question and answer"


@dataclass(frozen=True, slots=True)
class Asked:
    """One text and its answer; `path` is that of its picture, absolute, None in data without pictures."""

    path: str | None
    text: str
    label: str
    id: str


@dataclass
class QuestionListing:
    """Texts with answers by split ("train", "val", "test"), and what was left out of them."""

    root: str
    images: str
    """the folder of the pictures"""
    classes: tuple[str, ...]
    splits: dict[str, list[Asked]]
    counts: dict[str, int] = field(default_factory=dict)
    """how many could not serve, by kind: "pictures that are not there" """
    left_out: list[LeftOut] = field(default_factory=list)
    """what was skipped"""
    unknown: dict[str, int] = field(default_factory=dict)
    """how often each answer occurs that `classes` lacks; such texts are in no split"""

    def require_readable(self, max_pixels: int) -> None:
        """Raise DataError for answers to train on whose images are all unreadable. As a rule, decodes one of each."""
        train = self.splits["train"]
        paths: dict[str, list[str]] = {asked.label: [] for asked in train}
        for label, path in dict.fromkeys((asked.label, asked.path) for asked in train if asked.path):
            paths[label].append(path)
        alone = {asked.label for asked in train if asked.path is None}
        pictured = {label: found for label, found in paths.items() if label not in alone}
        require_readable_classes(self.root, pictured, max_pixels)


def list_questions(
    data: str | os.PathLike[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    images: str | None = None,
    group_duplicates: GroupDuplicates = False,
    max_pixels: int = MAX_PIXELS,
) -> QuestionListing:
    """List texts with answers to train on, and hold out a share for the splits that the data does not have.

    `data` is a table with a column of texts, one of answers, and perhaps one of pictures and one of splits, or a
    folder that holds one, or one a split. All texts of one picture, or all equal texts without one, are in one split.
    Raises `DataError` when there are not two answers to train on, and for faults of the table, with their line.
    """
    listing = _find(data, images, whole=True)
    listing.splits = complete_splits(
        listing.splits,
        lambda asked: asked.path or asked.text,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        root=listing.root,
        folder=listing.images,
        image=lambda asked: asked.path,
        group_duplicates=group_duplicates,
        max_pixels=max_pixels,
    )
    listing.classes = tuple(sorted({asked.label for asked in listing.splits["train"]}))
    if len(listing.classes) < 2:
        only = display_path(listing.classes[0])
        raise DataError(f"{display_path(listing.root)}: only one answer, {only}; a classifier needs two")
    return _known(listing)


def list_evaluation_questions(
    data: str | os.PathLike[str], classes: Sequence[str], *, split: str | None = None, images: str | None = None
) -> QuestionListing:
    """List texts to measure a model of the given classes on, in exactly one split: `split`, or test, else val.

    Texts of other answers are left out and counted in `unknown`. Raises `DataError` when no answer is known.
    """
    listing = _find(data, images)
    chosen = choose_split(os.path.abspath(data), listing.splits, split)
    listing.splits = {chosen: listing.splits[chosen]}
    listing.classes = tuple(map(class_name, classes))
    listing = _known(listing)
    if not any(listing.splits.values()):
        there, known = (display_path(", ".join(list(names)[:5])) for names in (listing.unknown, classes))
        raise DataError(f"{display_path(listing.root)}: no answer that the model knows; it has {there}, not {known}")
    return listing


def _known(listing: QuestionListing) -> QuestionListing:
    """Move the texts whose answer is none of the classes out of the splits."""
    unknown: Counter[str] = Counter()
    for split, texts in listing.splits.items():
        unknown.update(asked.label for asked in texts if asked.label not in listing.classes)
        listing.splits[split] = [asked for asked in texts if asked.label in listing.classes]
    listing.unknown = dict(sorted(unknown.items()))
    return listing


@dataclass(frozen=True, slots=True)
class _Row:
    name: str | None
    text: str
    label: str
    id: str
    split: str | None


_Reader = Callable[[], Iterator[_Row]]


def _question_reader(path: str) -> _Reader | None:
    if path.lower().endswith(".jsonl"):
        row = next(read_rows(path), None)
        return partial(_rows, path, ",") if row and _asks(list(row[1])) else None
    if path.lower().endswith((".csv", ".tsv")):
        for delimiter in "\t,;":
            if _asks(columns_of(first_line(path), delimiter)):
                return partial(_rows, path, delimiter)
    return None


def _asks(columns: Sequence[str]) -> bool:
    return all(any(name in columns for name in names) for names in (_TEXT_COLUMNS, _ANSWER_COLUMNS))


def _rows(path: str, delimiter: str) -> Iterator[_Row]:
    for line, row in read_rows(path, delimiter):
        pictured = any(column in row for column in PATH_COLUMNS)
        numbered = any(row.get(column) not in (None, "") for column in _ID_COLUMNS)
        yield _Row(
            text_of(row, PATH_COLUMNS, path, line) if pictured else None,
            strict_text(text_of(row, _TEXT_COLUMNS, path, line), "text", path, line),
            strict_text(label_of(row, _ANSWER_COLUMNS, path, line), "answer", path, line),
            text_of(row, _ID_COLUMNS, path, line) if numbered else str(line),
            split_of(row, path, line),
        )


def _find(data: str | os.PathLike[str], images: str | None, *, whole: bool = False) -> QuestionListing:
    """All texts by split, whatever their answer; the only split is `UNSPLIT` where the data names none.

    Images in the folder of `whole` data that no question is about are counted.
    """
    images = None if images is None else os.path.abspath(images)
    root, sources = sources_of(data, _question_reader, f"no table of questions; {_EXPECTED}")
    tally, listing = Tally(), QuestionListing(root, images or root, (), {})
    searched = [_read_source(source, images, listing, tally) for source in sources]
    if whole and listing.splits:
        tally_unnamed([pictures for pictures in searched if pictures is not None], BARE, tally)
    listing.counts, listing.left_out = dict(tally.counts), tally.left_out
    if not listing.splits:
        summary = f" ({tally.summary()}; the first is {tally.left_out[0].path})" if tally.left_out else f"; {_EXPECTED}"
        raise DataError(f"{display_path(root)}: no questions{display_path(summary)}")
    check_splits(listing.splits, root)
    return listing


def _read_source(
    source: Source[_Reader], images: str | None, listing: QuestionListing, tally: Tally
) -> Pictures | None:
    rows = list(source.reader())
    names = list(dict.fromkeys(row.name for row in rows if row.name is not None))
    paths: dict[str | None, str | None] = {None: None}
    pictures = Pictures(source, names, images) if names else None
    if pictures is not None:
        paths |= {name: pictures.find(name, tally) for name in names}
        if source.split in (None, "train"):
            listing.images = pictures.folder
    for row in rows:
        path = paths[row.name]
        if row.name is None or path is not None:
            split = row.split or source.split or UNSPLIT
            listing.splits.setdefault(split, []).append(Asked(path, row.text, row.label, row.id))
    return pictures
