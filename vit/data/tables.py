"""Tables that people bring, read row by row: .csv with a header, and .jsonl. Faults are named with file and line."""

import csv
import io
import json
from collections.abc import Iterator
from typing import TextIO

from vit.errors import DataError, display_path

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image_path", "image")
"""what the column of picture files may be called, in lower case"""

Row = dict[str, object]


def read_rows(path: str, delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """Line number and fields, by lower-case column name, of each row of a .jsonl file, or else of a table of text."""
    rows = _jsonl_rows(path) if path.lower().endswith(".jsonl") else _csv_rows(path, delimiter)
    for line, row in rows:
        yield line, {key.strip().lower(): value for key, value in row.items()}


def open_text(path: str) -> TextIO:
    """A text file in memory, without a byte order mark and with line ends as they are.

    Bytes that are no UTF-8 become surrogates, as Python decodes the names of files. Raises `DataError`.
    """
    try:
        with open(path, "rb") as stream:
            return io.StringIO(stream.read().decode("utf-8-sig", "surrogateescape"), newline="")
    except OSError as error:
        raise DataError(f"{display_path(path)}: {(error.strerror or str(error)).lower()}") from error


def text_of(row: Row, columns: tuple[str, ...], path: str, place: int | str) -> str:
    """The text in the first of `columns` that the row has; `place` as in `fault`."""
    names = " or ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
    for column in columns:
        if column in row:
            value = row[column]
            if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
                raise fault(path, place, f"{column} must be text, got {value!r}")
            text = str(value)
            try:
                text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise fault(path, place, f"{column} is not valid text: {text!r}") from error
            return text
    raise fault(path, place, f"no column called {names}")


def fault(path: str, place: int | str, reason: str) -> DataError:
    """The error that names a file, a place in it (a line by its number, or in words), and the reason."""
    where = f"line {place}" if isinstance(place, int) else place
    return DataError(f"{display_path(path)}, {where}: {display_path(reason)}")


def _csv_rows(path: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(open_text(path), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise fault(path, reader.line_num, "more fields than columns; quote a name that has a comma")
            yield reader.line_num, row
    except csv.Error as error:
        raise fault(path, reader.reader.line_num, str(error)) from error


def _jsonl_rows(path: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(open_text(path), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise fault(path, number, f"not valid JSON, {error}") from error
            if not isinstance(record, dict):
                raise fault(path, number, "not a JSON object")
            yield number, record
