"""Write files atomically; write into devices, FIFOs and open descriptors."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from vit.errors import ModelFileError, VitError, display_path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; after the body it is synced and renamed to `path`.

    The same folder, since a rename is atomic only within one file system. After any failure the temporary file is
    removed and `path` is what it was before. A symlink stays, and the file that it names is replaced. What `is_stream`
    is never replaced: the finished file is copied into it. Raises VitError where `path` cannot be written.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "file"
            temporary.touch()
            yield temporary
            with _written_stream(path) as stream, temporary.open("rb") as written:
                shutil.copyfileobj(written, stream)
        return
    link, temporary = path, Path()
    try:
        path = Path(os.path.realpath(link))
        for refused, code in ((os.path.isdir, errno.EISDIR), (os.path.islink, errno.ELOOP)):  # links in a circle
            if refused(path):
                raise OSError(code, os.strerror(code))
        temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.part")  # no longer than a file name may be
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with temporary.open("rb+") as written:
            os.chmod(temporary, mode)  # safetensors leaves files that only their owner can read
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise not_written(link, error) from error
    except Exception as error:
        cause = _cause(error, temporary)
        if cause is None:
            raise
        raise not_written(link, cause) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file for writing as `whole_file` does, but write into a stream while the body runs.

    UTF-8; undecodable bytes of file names are written as they were; line ends are those that are written.
    """
    coding: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    if is_stream(path):
        with _written_stream(path) as stream, io.TextIOWrapper(stream, **coding) as text:
            yield text
    else:
        with whole_file(path) as temporary, temporary.open("w", **coding) as text:
            yield text


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all, as `open_text` does."""
    with open_text(path) as file:
        file.write(text)


def is_stream(path: Path) -> bool:
    """Return whether `path` is written into and never replaced: a device, FIFO, socket or open descriptor."""
    try:
        kind = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or _descriptor(path) is not None


def _descriptor(path: Path) -> int | None:
    """Return which of this process's open files /dev/stdout, /dev/fd/N or a link to them names, None for other paths.

    A regular file behind a descriptor is shared with whoever opened it, at its position: `>> log` appends.
    """
    named = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        folder, name = os.path.realpath(os.path.dirname(named)), os.path.basename(named)
        if name.isdecimal() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd", folder):
            return int(name)
        if not os.path.islink(named):
            return None
        named = os.path.join(folder, os.readlink(named))
    return None


@contextlib.contextmanager
def _written_stream(path: Path) -> Iterator[BinaryIO]:
    """Open what `is_stream` for writing. Raises VitError, or BrokenPipeError where the reader has closed it."""
    try:
        descriptor = _descriptor(path)
        for standard in (sys.stdout, sys.stderr):
            if descriptor is not None and standard is not None:
                standard.flush()  # what was printed before stays before
        opened = os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
        with os.fdopen(opened, "wb") as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise not_written(path, error) from error


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


def read_json(path: Path, *texts: str) -> dict[str, Any]:
    """Read a JSON object that describes a model or a run, with a text under each of the keys `texts`.

    Raises ModelFileError naming the file and what is wrong with it.
    """
    found = _parsed(path)
    if not isinstance(found, dict):
        raise ModelFileError(f"{display_path(path)}: not a JSON object")
    if wrong := next((k for k in texts if not isinstance(found.get(k), str) or "\0" in found[k]), None):
        raise ModelFileError(f"{display_path(path)}: {wrong}: expected text, got {str(found.get(wrong))[:60]!r}")
    return found


def read_class_names(path: Path) -> list[str]:
    """Read the classes.json of a run. Raises ModelFileError naming the file and what is wrong with it."""
    found = _parsed(path)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ModelFileError(f"{display_path(path)}: not a JSON list of class names")
    return found


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{display_path(path)}: {_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{display_path(path)}: not valid JSON: {display_path(error)}") from error


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
