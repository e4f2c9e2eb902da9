"""Writing files so that what stands under the final name is always whole."""

import contextlib
import csv
import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vit.errors import ModelFileError, VitError, display_path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; when the body ends well, it is synced and renamed to `path`.

    The same folder, since a rename is atomic only within one file system. After any failure the temporary file is
    gone and whatever stood at `path` before still stands. A full or read-only disk is a VitError in words.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with temporary.open("rb+") as written:
            os.chmod(temporary, mode)  # safetensors leaves files that only their owner can read
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    except Exception as error:
        cause = _cause(error, temporary)
        if cause is None:
            raise
        raise not_written(path, cause) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Bytes that were no UTF-8 in a file name are written back as they were."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def dump_json(value: Any, **style: Any) -> str:
    """Serialize to strict JSON. Raises ValueError for NaN and inf, which `json.dumps` writes though JSON lacks them."""
    return json.dumps(value, allow_nan=False, **style)


def json_line(record: Any) -> str:
    """Serialize to one printable line of UTF-8: control characters and undecodable bytes appear as \\u escapes."""
    line = dump_json(record, ensure_ascii=False)
    if line.isprintable() and not any("\ud800" <= character <= "\udfff" for character in line):
        return line
    return dump_json(record)


# OWASP, "CSV Injection", and ASVS 1.2.10; the last four are the full-width forms of the first four
_FORMULA = re.compile("'*[=+\\-@\t\r\n\0\uff1d\uff0b\uff0d\uff20]")


def csv_writer(stream: IO[str], *, raw: bool = False) -> Callable[[Iterable[Any]], Any]:
    """Return a function that writes one row of CSV.

    Unless `raw`, text that a spreadsheet would run as a formula gets an apostrophe in front. So does text that has
    apostrophes before such a character: without one apostrophe every cell that matches `'+[=+-@...]` is what it was.
    """
    table = csv.writer(stream)

    def safe(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell

    return lambda cells: table.writerow(cells if raw else map(safe, cells))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that describes somebody's model. Raises ModelFileError saying what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{display_path(path)}: {_reason(error)}") from error
    except ValueError as error:
        raise ModelFileError(f"{display_path(path)}: not valid JSON: {display_path(error)}") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{display_path(path)}: not a JSON object")
    return found


def not_written(path: Path, error: OSError) -> VitError:
    """That `path` could not be written, and why."""
    return VitError(f"cannot write {display_path(path)}: {_reason(error)}")


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    return (error.strerror or str(error)).lower()


def _cause(error: Exception, temporary: Path) -> OSError | None:
    """What the system refused a writer in another language, who reports a full disk in words of its own."""
    if (number := re.search(r"\(os error (\d+)\)", str(error))) is not None:  # safetensors, in Rust
        code = int(number.group(1))
        return OSError(code, os.strerror(code))
    try:
        with temporary.open("ab") as file:  # torch, in C++, keeps the reason to itself: write on, and see
            file.write(bytes(1 << 20))
    except OSError as cause:
        return cause
    return None


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; file systems that cannot sync a folder are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
