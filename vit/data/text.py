"""Texts to learn from: plain text for a language model, and pairs of a source and a target for text to text.

Letters, line ends and blanks are kept as they stand; a byte order mark is not. Bytes that are no UTF-8 are refused,
never replaced.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from vit.data.annotated import Tally, check_splits, complete_splits, first_line, lines, sources_of, split_of
from vit.data.caption_formats import strict_text
from vit.data.folders import choose_split
from vit.data.layouts import SPLITS, UNSPLIT
from vit.data.tables import Row, brief, columns_of, csv_reason, fault, not_text, open_text, read_rows
from vit.data.walk import LeftOut, is_file, walk
from vit.errors import DataError, display_path

EMPTY = "pairs with an empty side"

_SOURCE_COLUMNS = ("source", "src", "input", "question", "prompt", "text", "from")
_TARGET_COLUMNS = ("target", "tgt", "output", "answer", "completion", "response", "translation", "summary", "to")
_EXPECTED = "expected a .tsv or .csv of two columns, or a .jsonl with source and target"


@dataclass
class Corpus:
    """Plain text by split; `test` is empty where the data has none."""

    root: str
    train: str
    val: str
    test: str = ""


def read_corpus(data: str | os.PathLike[str], *, val_fraction: float) -> Corpus:
    """Read text to train a language model on: a file, or a folder of .txt files, one after the other by name.

    The splits are files or folders called train, val and test; beside a file such as train.txt its val.txt and
    test.txt count. Where there is no val, the last `val_fraction` of the characters of train is held out (as nanoGPT
    does). Raises `DataError` for bytes that are no UTF-8, with their place, and where there is no text.
    """
    root, texts = _read_texts(data, beside=True)
    if not {UNSPLIT, "train"} & texts.keys():
        raise DataError(f"{display_path(root)}: has {' and '.join(sorted(texts))} but no train")
    train = texts.get(UNSPLIT) or texts["train"]
    val = texts.get("val")
    if val is None:
        train, val = _cut(train, val_fraction)
    return Corpus(root, train, val, texts.get("test", ""))


def read_evaluation_corpus(
    data: str | os.PathLike[str], *, split: str | None = None, val_fraction: float | None = None
) -> tuple[str, str]:
    """Read the text of exactly one split to measure on: `split`, or test, else val; returns its name, and the text.

    A file alone has but one, `UNSPLIT`; with `val_fraction`, it has the train and val that `read_corpus` makes of it.
    """
    _, texts = _read_texts(data, beside=val_fraction is not None)
    if val_fraction is not None and UNSPLIT in texts:
        texts = dict(zip(("train", "val"), _cut(texts[UNSPLIT], val_fraction), strict=True))
    name = choose_split(os.path.abspath(data), texts, split)
    return name, texts[name]


def _cut(text: str, val_fraction: float) -> tuple[str, str]:
    """What is to be trained on, and the end, which is held out."""
    place = int(len(text) * (1 - val_fraction))
    return text[:place], text[place:]


class Pair(NamedTuple):
    """A text and what it is to become."""

    source: str
    target: str


@dataclass
class PairListing:
    """Pairs of texts by split ("train", "val", "test"), and how many could not serve, by kind."""

    root: str
    splits: dict[str, list[Pair]]
    counts: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    """what was skipped"""


def list_pairs(data: str | os.PathLike[str], *, val_fraction: float, test_fraction: float, seed: int) -> PairListing:
    """List pairs to train on, and hold out a share for the splits that the data does not have.

    `data` is a .tsv, .csv or .jsonl of pairs, or a folder that holds one, or one a split (`train.tsv`, `val.tsv`).
    The columns are source and target (or some names like them), or the two that there are. All pairs of one source
    are in one split. Raises `DataError` for faults with file and line, and where nothing is left to train on.
    """
    listing = _find_pairs(data)
    listing.splits = complete_splits(
        listing.splits,
        lambda pair: pair.source,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        root=listing.root,
        folder="",
    )
    return listing


def list_evaluation_pairs(data: str | os.PathLike[str], *, split: str | None = None) -> PairListing:
    """List pairs to measure on, in exactly one split: `split`, or test, else val, or all."""
    listing = _find_pairs(data)
    chosen = choose_split(os.path.abspath(data), listing.splits, split)
    listing.splits = {chosen: listing.splits[chosen]}
    return listing


def read_text(path: str) -> str:
    """The text of a file, letter by letter. Raises `DataError` for bytes that are no UTF-8, with their place."""
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise DataError(f"{display_path(path)}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        reason = not_text(error.object) or f"not valid UTF-8, byte {error.object[error.start]:#04x} at {error.start}"
        raise DataError(f"{display_path(path)}: {reason}") from error


def _read_texts(data: str | os.PathLike[str], beside: bool) -> tuple[str, dict[str, str]]:
    """DATA's folder, and its text by split; the only split is `UNSPLIT` where the data names none."""
    path = os.path.abspath(os.fspath(data))
    name = display_path(path)
    if os.path.isdir(path):
        root = path
        files = [entry.path for entry in walk(path) if entry.name.lower().endswith(".txt") and is_file(entry)]
        by_split = {file: _split_below(root, file) for file in files}
        if len({None, *by_split.values()}) > 1 and None in by_split.values():
            stray = next(file for file, split in by_split.items() if split is None)
            raise DataError(f"{display_path(stray)}: in no split, though others are in train, val or test")
    elif os.path.isfile(path):
        root, by_split = os.path.dirname(path), {path: None}
        if beside and (others := dict(_files_beside(path))):
            by_split = {path: "train", **others}
    else:
        raise DataError(f"{name}: {'not a regular file' if os.path.lexists(path) else 'no such file or folder'}")
    texts: dict[str, list[str]] = {}
    for file, split in by_split.items():
        texts.setdefault(split or UNSPLIT, []).append(read_text(file))
    joined = {split: _joined(parts) for split, parts in texts.items()}
    empty = [split for split, text in joined.items() if not text]
    if not joined or empty:
        raise DataError(f"{name}: no text{f' in {empty[0]}' if joined and empty != [UNSPLIT] else ''}")
    return root, joined


def _split_below(root: str, file: str) -> str | None:
    """The split of a text by the folder in `root` that it lies in, or by its own name directly in `root`."""
    first = os.path.relpath(file, root).split(os.sep)[0]
    return SPLITS.get(os.path.splitext(first)[0].lower() if first == os.path.basename(file) else first.lower())


def _files_beside(path: str) -> Iterator[tuple[str, str]]:
    """Files and splits beside that of train, by their names: val.txt for train.txt, a.valid.txt for a.train.txt."""
    folder, name = os.path.split(path)
    if not re.search(r"\btrain\b", name):
        return
    seen = set()
    for word, split in SPLITS.items():
        other = os.path.join(folder, re.sub(r"\btrain\b", word, name, count=1))
        if split != "train" and split not in seen and os.path.isfile(other):
            seen.add(split)
            yield other, split


def _joined(texts: Sequence[str]) -> str:
    """Texts one after the other, each beginning on a line of its own."""
    return "".join(
        text if last or not text or text.endswith("\n") else f"{text}\n"
        for text, last in zip(texts, [False] * (len(texts) - 1) + [True], strict=True)
    )


_Reader = Callable[[], Iterator[tuple[int, Pair, str | None]]]


def _pair_reader(path: str) -> _Reader | None:
    lower = path.lower()
    if lower.endswith(".jsonl"):
        row = next(read_rows(path), None)
        return partial(_named_columns, path, ",") if row and _pairs_up(list(row[1])) else None
    if not lower.endswith((".tsv", ".csv", ".txt")):
        return None
    head = first_line(path)
    delimiter = "," if lower.endswith(".csv") and "\t" not in head else "\t"
    if lower.endswith(".csv") and _pairs_up(columns_of(head, ";")):
        delimiter = ";"
    if _pairs_up(columns_of(head, delimiter)):
        return partial(_named_columns, path, delimiter)
    if delimiter == ",":
        return partial(_comma_pairs, path) if len(next(csv.reader([head]), [])) == 2 else None
    return partial(_tab_pairs, path) if head.count("\t") == 1 else None


def _pairs_up(columns: Sequence[str]) -> bool:
    return all(any(name in columns for name in names) for names in (_SOURCE_COLUMNS, _TARGET_COLUMNS))


def _named_columns(path: str, delimiter: str) -> Iterator[tuple[int, Pair, str | None]]:
    for line, row in read_rows(path, delimiter):
        source, target = (_side(row, columns, path, line) for columns in (_SOURCE_COLUMNS, _TARGET_COLUMNS))
        yield line, Pair(source, target), split_of(row, path, line)


def _side(row: Row, columns: Sequence[str], path: str, line: int) -> str:
    column = next((column for column in columns if column in row), None)
    if column is None:
        raise fault(path, line, f"no {columns[0]}")
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise fault(path, line, f"{column} must be text, got {brief(value)}")
    return strict_text(value or "", column, path, line)


def _tab_pairs(path: str) -> Iterator[tuple[int, Pair, None]]:
    for line, text in lines(path):
        yield line, _pair(text.split("\t"), path, line), None


def _comma_pairs(path: str) -> Iterator[tuple[int, Pair, None]]:
    reader = csv.reader(open_text(path), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, _pair(fields, path, reader.line_num), None
    except csv.Error as error:
        raise fault(path, reader.line_num, csv_reason(error)) from error


def _pair(fields: list[str], path: str, line: int) -> Pair:
    if len(fields) != 2:
        raise fault(path, line, f"expected two columns, source and target, got {len(fields)}")
    source, target = fields
    return Pair(strict_text(source, "source", path, line), strict_text(target, "target", path, line))


def _find_pairs(data: str | os.PathLike[str]) -> PairListing:
    """All pairs by split; the only split is `UNSPLIT` where the data names none."""
    root, sources = sources_of(data, _pair_reader, f"no pairs of texts; {_EXPECTED}")
    tally, listing = Tally(), PairListing(root, {})
    for source in sources:
        for line, pair, split in source.reader():
            if not pair.source.strip() or not pair.target.strip():
                tally.add(EMPTY, f"{source.path}, line {line}")
                continue
            listing.splits.setdefault(split or source.split or UNSPLIT, []).append(pair)
    listing.counts, listing.left_out = dict(tally.counts), tally.left_out
    if not listing.splits:
        raise DataError(
            f"{display_path(root)}: no pairs of texts{f' ({tally.summary()})' if tally.counts else f'; {_EXPECTED}'}"
        )
    check_splits(listing.splits, root)
    return listing
