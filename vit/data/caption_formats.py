"""What caption files say, in the usual formats: the name of a picture, its captions, perhaps its split and its id.

| format | how it is known |
| --- | --- |
| COCO | .json with images and annotations that have a caption |
| Karpathy and Fei-Fei's splits | .json with images that have sentences |
| BLIP | .json with a list of image, caption |
| Hugging Face's metadata, and any table of ours | .jsonl, or a header with a column of pictures and one of captions |
| Flickr8k and Flickr30k, tokens | lines of name#number, tab, caption |
| Flickr30k | a header and columns with | between them |
| Conceptual Captions 3M and 12M | .tsv without a header: caption, address or the other way round |

Text is kept as it stands. A fault is named with its line, or its place in the JSON.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vit.data.annotated import Tally, first_line, lines, split_of
from vit.data.tables import PATH_COLUMNS, Row, brief, columns_of, fault, open_text, read_rows, text_of
from vit.data.walk import is_picture
from vit.errors import DataError, display_path

EMPTY = "empty captions"
BROKEN = "broken rows"
UNOWNED = "captions of no picture"

_PICTURE_COLUMNS = (*PATH_COLUMNS, "image_name")
_CAPTION_COLUMNS = ("caption", "captions", "raw", "text", "title", "comment")
_ANSWER_COLUMNS = ("label", "answer", "class")
_TOKEN = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Record:
    """What one entry of a caption file says about one picture; `place` is where it stands: "line 7", "images[7]"."""

    name: str
    captions: tuple[str, ...]
    place: int | str
    split: str | None = None
    id: str | None = None


Reader = Callable[[Tally], Iterator[Record]]


def caption_reader(path: str) -> Reader | None:
    """What reads the records of a caption file; None when it is none. Raises `DataError` for damaged JSON."""
    lower = path.lower()
    if lower.endswith(".json"):
        return _json_reader(path)
    if lower.endswith(".jsonl"):
        row = next(read_rows(path), None)
        return partial(_table, path, ",") if row and _has_captions(list(row[1])) else None
    head = first_line(path)
    if _TOKEN.match(head):
        return partial(_tokens, path)
    for delimiter in "\t|,;":
        columns = columns_of(head, delimiter)
        if _has_captions(columns):
            return partial(_bars, path, columns) if delimiter == "|" else partial(_table, path, delimiter)
    pair = head.split("\t")
    if lower.endswith(".tsv") and len(pair) == 2 and sum(map(_names_picture, pair)) == 1:
        return partial(_pairs, path, int(_names_picture(pair[1])))
    return None


def strict_text(text: str, what: str, path: str, place: int | str) -> str:
    """`text` itself. Raises `DataError` where it has bytes that are no UTF-8 or halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fault(path, place, f"{what} is not valid UTF-8 at character {error.start + 1}") from error
    return text


def read_json(path: str) -> Any:
    """The value of a JSON file. Raises `DataError` with the line of a fault."""
    try:
        return json.loads(open_text(path).read())
    except json.JSONDecodeError as error:
        raise fault(path, error.lineno, f"not valid JSON, {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{display_path(path)}: not valid JSON, {error}") from error


def captions_of(row: Row, path: str, place: int | str, columns: Sequence[str] = _CAPTION_COLUMNS) -> tuple[str, ...]:
    """The caption or captions in the first of `columns` that the row has; an empty one where it is null."""
    column = next((column for column in columns if column in row), None)
    if column is None:
        raise fault(path, place, f"no {columns[0]}")
    value = row[column]
    if isinstance(value, str) and column in ("captions", "raw") and value.startswith("["):
        try:  # a list inside a table
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise fault(path, place, f"{column} is not a valid JSON list, {error}") from error
    values = value if isinstance(value, list) else [""] if value is None else [value]
    for text in values:
        if not isinstance(text, str):
            raise fault(path, place, f"{column} must be text or a list of texts, got {brief(text)}")
        strict_text(text, column, path, place)
    return tuple(values)


def _has_captions(columns: Sequence[str]) -> bool:
    """Whether a table with these columns is one of captions; a text with an answer is a question."""
    asks = any(column in columns for column in _ANSWER_COLUMNS)
    captions = [column for column in _CAPTION_COLUMNS if column in columns and not (asks and column == "text")]
    return bool(captions) and any(column in columns for column in _PICTURE_COLUMNS)


def _names_picture(field: str) -> bool:
    return "://" in field or is_picture(field)


def _table(path: str, delimiter: str, tally: Tally) -> Iterator[Record]:
    for line, row in read_rows(path, delimiter):
        name = text_of(row, _PICTURE_COLUMNS, path, line)
        number = text_of(row, ("image_id",), path, line) if row.get("image_id") not in (None, "") else None
        yield Record(name, captions_of(row, path, line), line, split_of(row, path, line), number)


def _tokens(path: str, tally: Tally) -> Iterator[Record]:
    for line, text in lines(path):
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise fault(path, line, "expected name#number, a tab and the caption")
        yield Record(match["name"], (strict_text(match["caption"], "caption", path, line),), line)


def _bars(path: str, columns: list[str], tally: Tally) -> Iterator[Record]:
    """Columns with a bar and a blank between them. The one file of this kind has a row without its bar."""
    for line, text in lines(path):
        fields = [field.strip() for field in text.split("|", len(columns) - 1)]
        if line == 1:
            continue
        if len(fields) < len(columns):
            tally.add(BROKEN, f"{path}, line {line}")
            continue
        row: Row = dict(zip(columns, fields, strict=True))
        yield Record(text_of(row, _PICTURE_COLUMNS, path, line), captions_of(row, path, line), line)


def _pairs(path: str, picture: int, tally: Tally) -> Iterator[Record]:
    """Two columns without a header; `picture` is the place of the one that names pictures."""
    for line, text in lines(path):
        fields = text.split("\t")
        if len(fields) != 2:
            raise fault(path, line, f"expected two columns with a tab between them, got {len(fields)}")
        caption = strict_text(fields[1 - picture], "caption", path, line)
        yield Record(fields[picture], (caption,), line)


def _json_reader(path: str) -> Reader | None:
    found = read_json(path)
    if isinstance(found, list):
        first = found[0] if found else None
        return partial(_list, path, found) if isinstance(first, dict) and _has_captions(list(first)) else None
    images = found.get("images") if isinstance(found, dict) else None
    if not isinstance(images, list) or not images:
        return None
    if isinstance(images[0], dict) and "sentences" in images[0]:
        return partial(_karpathy, path, images)
    annotations = found.get("annotations")
    if isinstance(annotations, list) and annotations and isinstance(annotations[0], dict):
        return partial(_coco, path, images, annotations) if "caption" in annotations[0] else None
    return None


def _list(path: str, records: list[Any], tally: Tally) -> Iterator[Record]:
    for place, row in _objects(path, "entry", records):
        number = text_of(row, ("image_id",), path, place) if "image_id" in row else None
        name = text_of(row, _PICTURE_COLUMNS, path, place)
        yield Record(name, captions_of(row, path, place), place, split_of(row, path, place), number)


def _karpathy(path: str, images: list[Any], tally: Tally) -> Iterator[Record]:
    for place, image in _objects(path, "images", images):
        name = os.path.join(str(image.get("filepath") or ""), text_of(image, ("filename",), path, place))
        keys = tuple(key for key in ("cocoid", "imgid") if key in image)
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise fault(path, place, "sentences is not a list")
        captions = [
            caption
            for inner, sentence in _objects(path, f"{place}.sentences", sentences)
            for caption in captions_of(sentence, path, inner, ("raw",))
        ]
        number = text_of(image, keys, path, place) if keys else None
        yield Record(name, tuple(captions), place, split_of(image, path, place), number)


def _coco(path: str, images: list[Any], annotations: list[Any], tally: Tally) -> Iterator[Record]:
    named: dict[str, tuple[str, str]] = {}
    for place, image in _objects(path, "images", images):
        number, name = text_of(image, ("id",), path, place), text_of(image, ("file_name",), path, place)
        before = named.setdefault(number, (name, place))
        if before[0] != name:
            raise fault(path, place, f"id {number} is also that of {before[1]}")
    captions: dict[str, list[str]] = {number: [] for number in named}
    for place, annotation in _objects(path, "annotations", annotations):
        number = text_of(annotation, ("image_id",), path, place)
        found = captions_of(annotation, path, place, ("caption",))
        if number not in captions:
            tally.add(UNOWNED, f"{path}, {place}")
        captions.get(number, []).extend(found)
    for number, (name, place) in named.items():
        yield Record(name, tuple(captions[number]), place, id=number)


def _objects(path: str, what: str, values: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and value of each entry of a JSON list. Raises `DataError` for one that is no object."""
    for number, value in enumerate(values):
        place = f"{what}[{number}]"
        if not isinstance(value, dict):
            raise fault(path, place, "not a JSON object")
        yield place, value
