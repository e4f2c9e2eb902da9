"""What large folders hold, remembered in the user's cache folder until one of the folders in them changes.

A file that is added, removed or renamed changes the time of its folder. One that is only written anew does not, and
need not: what is remembered are names, and which files were empty, and those are looked at again. What lies in tars
is not remembered. Nothing is unpickled: names and numbers lie in plain arrays.

The fingerprints of images are remembered, too, each as long as its file keeps its size and time.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vit.data.cache import cache_folder
from vit.data.decode import file_of
from vit.data.duplicates import Fingerprint, fingerprints
from vit.data.layouts import Found
from vit.data.tars import tars_in
from vit.data.walk import LeftOut, inode, unfit
from vit.errors import VitError
from vit.files import dump_json, whole_file

LARGE = 20_000
"""pictures from which on listing takes long enough to remember"""

MANY = 1_000
"""images from which on fingerprints are remembered"""

_VERSION = 3
_OF_CONTENT = ("empty file",)  # reasons to leave a file out that its folder's time does not vouch for
_SETTLED = 2_000_000_000  # nanoseconds for which a folder must have stood still: clocks of file systems are coarse


def recall(root: str) -> Found | None:
    """What `root` holds, if that is remembered and no folder in it has changed since."""
    try:
        with _place(root).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            told = json.loads(bytes(stored["told"]).decode("utf-8", "surrogateescape"))
            folders = _names(stored["folders"])
            if told["version"] != _VERSION or told["root"] != root or len(folders) != len(stored["times"]):
                return None
            for folder, then in zip(folders, stored["times"].tolist(), strict=True):
                if os.stat(folder).st_mtime_ns != then:
                    return None
            paths, start = _names(stored["paths"]), 0
        found = Found(root, {}, [LeftOut(*item) for item in told["left_out"]], leaks=told["leaks"])
        if any(item.reason in _OF_CONTENT and unfit(item.path) != item.reason for item in found.left_out):
            return None
        for split, label, count in told["classes"]:
            found.splits.setdefault(split, {})[label] = paths[start : start + count]
            start += count
        return found if start == len(paths) else None
    except (OSError, VitError, EOFError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile):
        # not there, or damaged
        return None


def remember(found: Found, started: int) -> None:
    """Keep what a listing begun at `started`, nanoseconds of the clock, found in a folder, where that is much."""
    classes = [(split, label, len(paths)) for split, held in found.splits.items() for label, paths in held.items()]
    if sum(count for *_, count in classes) < LARGE or tars_in(found.root):
        return
    folders = _folders(found.root)
    times = np.array([os.stat(folder).st_mtime_ns for folder in folders], dtype=np.int64)
    if times.max() > started - _SETTLED:
        return
    told = {"version": _VERSION, "root": found.root, "classes": classes, "leaks": found.leaks}
    told |= {"left_out": [(item.path, item.reason) for item in found.left_out]}
    paths = [path for held in found.splits.values() for names in held.values() for path in names]
    with contextlib.suppress(OSError, VitError):  # a full or read-only disk: it is listed again next time
        place = _place(found.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                told=np.frombuffer(dump_json(told).encode("utf-8", "surrogateescape"), np.uint8),
                folders=_joined(folders),
                times=times,
                paths=_joined(paths),
            )


def remembered_fingerprints(root: str, paths: Sequence[str], max_pixels: int) -> list[Fingerprint | LeftOut]:
    """Return the fingerprint of each image, or why it cannot be read; only new and changed files are decoded.

    Shows a progress bar on a terminal when it takes longer than two seconds.
    """
    started, stats = now(), [_stat(path) for path in paths]
    found: list[Fingerprint | LeftOut | None] = [None] * len(paths)
    known = _recall_fingerprints(root) if len(paths) >= MANY else {}
    for position, path in enumerate(paths):
        then, mark = known.get(path, (None, None))
        if mark is not None and then == stats[position] and mark.size[0] * mark.size[1] <= max_pixels:
            found[position] = mark
    missing = [position for position, mark in enumerate(found) if mark is None]
    new = fingerprints([paths[position] for position in missing], max_pixels)
    bar = tqdm(
        zip(missing, new, strict=True),
        "searching duplicates",
        len(missing),
        unit=" images",
        delay=2,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    for position, mark in bar:
        found[position] = mark
    if missing and len(paths) >= MANY:
        settled = [
            (path, stat, mark)
            for path, stat, mark in zip(paths, stats, found, strict=True)
            if isinstance(mark, Fingerprint) and stat[1] < started - _SETTLED
        ]
        _remember_fingerprints(root, settled)
    return [mark for mark in found if mark is not None]


def _recall_fingerprints(root: str) -> dict[str, tuple[tuple[int, int], Fingerprint]]:
    """Return what is remembered: by path, the file's size and time, and the fingerprint."""
    try:
        with _place(root, "fingerprints").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if stored["version"] != _VERSION:
                return {}
            columns = (stored["stats"].tolist(), stored["sizes"].tolist(), stored["digests"], stored["greys"])
            return {
                path: ((size, moment), Fingerprint((height, width), digest.tobytes(), grey))
                for path, (size, moment), (height, width), digest, grey in zip(
                    _names(stored["paths"]), *columns, strict=True
                )
            }
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # not there, or damaged
        return {}


def _remember_fingerprints(root: str, known: Sequence[tuple[str, tuple[int, int], Fingerprint]]) -> None:
    if not known:
        return
    paths, stats, marks = zip(*known, strict=True)
    place = _place(root, "fingerprints")
    with contextlib.suppress(OSError, VitError):  # a full or read-only disk: they are computed again next time
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                version=np.array(_VERSION),
                paths=_joined(paths),
                stats=np.array(stats, np.int64),
                sizes=np.array([mark.size for mark in marks], np.int32),
                digests=np.stack([np.frombuffer(mark.digest, np.uint8) for mark in marks]),
                greys=np.stack([mark.grey for mark in marks]),
            )


def _stat(path: str) -> tuple[int, int]:
    """Return size and time of the file of an image; -1 where it is gone, which its decoding reports."""
    try:
        status = os.stat(file_of(path))
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _folders(root: str) -> list[str]:
    """`root` and all folders below it, each once, however many links lead there."""
    folders, entered = list[str](), set[tuple[int, int]]()
    for folder, inside, _ in os.walk(root, followlinks=True):
        identity = inode(folder)
        if identity in entered:
            inside.clear()
            continue
        entered.add(identity)
        folders.append(folder)
    return folders


def now() -> int:
    """The clock by which folders are timed, in nanoseconds."""
    return time.time_ns()


def _place(root: str, kind: str = "listings") -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.npz"


def _joined(names: Sequence[str]) -> np.ndarray:
    """Names as bytes with zeros between them, which no name can hold: uint8 [bytes]."""
    return np.frombuffer(b"\0".join(map(os.fsencode, names)), np.uint8)


def _names(joined: np.ndarray) -> list[str]:
    return os.fsdecode(bytes(joined)).split("\0") if len(joined) else []
