"""Tables that people bring, read row by row: .csv with a header, and .jsonl. Faults are named with file and line.

Lines end with `\\n` or `\\r\\n` only: other characters that Unicode calls line breaks belong to the text.
"""

import csv
import io
import json
import re
import reprlib
from collections.abc import Iterator
from typing import TextIO

from vit.errors import DataError, display_path
from vit.names import class_name

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image_path", "image")
"""what the column of picture files may be called, in lower case"""

Row = dict[str, object]

_MAX_TEXT = 1 << 20
"""characters of a path, question, id or split"""
_MAX_LABEL = 1_000
"""characters of a label; a longer one is text in the wrong column"""

_DELIMITERS = ",;\t"

# How files start that are not UTF-8 text: what they are, and how to fix it.
_SIGNATURES = {
    rb"\x1f\x8b": "gzip-compressed; decompress it first (gunzip)",
    rb"BZh[1-9]1AY&SY": "bzip2-compressed; decompress it first (bunzip2)",
    rb"\xfd7zXZ\x00": "xz-compressed; decompress it first (unxz)",
    rb"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it first (unzstd)",
    rb"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8",
    rb"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV UTF-8",
    rb"PAR1[\x00-\x1f]": "a Parquet table; convert it to .csv or .jsonl",
    rb"ARROW1\x00": "an Arrow table; convert it to .csv or .jsonl",
    rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff": "UTF-32 text; save it as UTF-8",
    rb"\xff\xfe|\xfe\xff": "UTF-16 text; save it as UTF-8",
}
_BARE_UTF_16 = re.compile(rb"[^\x00]\x00[^\x00]\x00|\x00[^\x00]\x00[^\x00]")  # without a byte order mark

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80


def brief(value: object) -> str:
    """Return `repr(value)`, with whatever is too long for a message replaced by `...`."""
    return _brief.repr(value)


def read_rows(path: str, delimiter: str | None = None) -> Iterator[tuple[int, Row]]:
    """Yield line number and fields, by lower-case column name, of each row of a .jsonl file, or else of a CSV table.

    Without `delimiter` it is the comma, or the semicolon or tab where the header has no comma. Raises `DataError`.
    """
    rows = _jsonl_rows(path) if path.lower().endswith(".jsonl") else _csv_rows(path, delimiter)
    for line, row in rows:
        fields = {key.strip().lower(): value for key, value in row.items()}
        if len(fields) < len(row):
            raise fault(path, line, f"several fields of the same name: {brief(', '.join(row))}")
        yield line, fields


def open_text(path: str) -> TextIO:
    """A text file in memory, without a byte order mark; its lines end with a line feed.

    Bytes that are no UTF-8 become surrogates, as Python decodes the names of files. Raises `DataError`, also for what
    is compressed, UTF-16, or another kind of table.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(f"{display_path(path)}: {(error.strerror or str(error)).lower()}") from error
    reason = not_text(content)
    if reason is None and _BARE_UTF_16.match(content):
        reason = "UTF-16 text without a byte order mark; save it as UTF-8"
    if reason is not None:
        raise DataError(f"{display_path(path)}: {reason}")
    return io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="\n")


def not_text(start: bytes) -> str | None:
    """Return what a file is that starts so and how to fix it, where that is not UTF-8 text; else None."""
    return next((reason for form, reason in _SIGNATURES.items() if re.match(form, start)), None)


def foreign_reason(path: str) -> str | None:
    """Return `not_text` of a file; None as well where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return not_text(stream.read(16))
    except OSError:
        return None


def text_lines(text: str) -> list[str]:
    r"""Split text at `\n` and `\r\n`, unlike `str.splitlines`, which also cuts at U+2028, U+0085, form feeds, ..."""
    return re.split(r"\r?\n", text)


def delimiter_of(header: str) -> str:
    """Return what separates the columns of a header: a comma, or else a semicolon or a tab."""
    return next((delimiter for delimiter in _DELIMITERS if delimiter in header), ",")


def columns_of(header: str, delimiter: str) -> list[str]:
    """Return the names of the columns in the first line of a table, in lower case."""
    return [column.strip(' "').lower() for column in header.split(delimiter)]


def text_of(row: Row, columns: tuple[str, ...], path: str, place: int | str) -> str:
    """The text in the first of `columns` that the row has; `place` as in `fault`."""
    names = " or ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
    for column in columns:
        if column in row:
            value = row[column]
            if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
                raise fault(path, place, f"{column} must be text, got {brief(value)}")
            text = str(value)
            if len(text) > _MAX_TEXT:
                raise fault(path, place, f"{column} has {len(text):,} characters, at most {_MAX_TEXT:,} are allowed")
            try:
                text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise fault(path, place, f"{column} is not valid text: {brief(text)}") from error
            if "\0" in text:  # no path can hold it
                raise fault(path, place, f"{column} holds a null character: {brief(text)}")
            return text
    raise fault(path, place, f"no column called {names}; the columns are {brief(', '.join(row))}")


def label_of(row: Row, columns: tuple[str, ...], path: str, place: int | str) -> str:
    """Return the label in the first of `columns` that the row has, as `class_name` spells it; `place` as in `fault`."""
    label = class_name(text_of(row, columns, path, place))
    if (reason := label_fault(label)) is not None:
        column = next(column for column in columns if column in row)
        raise fault(path, place, f"{column} {reason}")
    return label


def label_fault(label: str) -> str | None:
    """Return why a label cannot name a class, or None where it can."""
    if not label:
        return "must be text, got ''"
    return f"has {len(label):,} characters, at most {_MAX_LABEL:,} are allowed" if len(label) > _MAX_LABEL else None


def fault(path: str, place: int | str, reason: str) -> DataError:
    """The error that names a file, a place in it (a line by its number, or in words), and the reason."""
    where = f"line {place}" if isinstance(place, int) else place
    return DataError(f"{display_path(path)}, {where}: {display_path(reason)}")


def _csv_rows(path: str, delimiter: str | None) -> Iterator[tuple[int, Row]]:
    stream = open_text(path)
    if delimiter is None:
        delimiter = delimiter_of(stream.readline())
        stream.seek(0)
    reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise fault(path, reader.line_num, f"several columns of the same name: {brief(twice[0])}")
        for row in reader:
            if None in row:
                raise fault(path, reader.line_num, "more fields than columns; quote a name that has a comma")
            yield reader.line_num, row
    except csv.Error as error:
        raise fault(path, reader.reader.line_num, csv_reason(error)) from error


def csv_reason(error: csv.Error) -> str:
    """Return the `csv` module's reason in words that name the cause."""
    if "field larger" in str(error):
        return f"a field of more than {csv.field_size_limit():,} characters; is a closing quote missing?"
    if "new-line character" in str(error):
        return r"a carriage return without a line feed outside quotes; save the file with \n or \r\n line ends"
    return str(error)


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
