"""What large folders hold, remembered in the user's cache folder until one of the folders in them changes.

A file that is added, removed or renamed changes the time of its folder. One that is only written anew does not, and
need not: what is remembered are names, and which files were empty, and those are looked at again. What lies in tars
is not remembered. Nothing is unpickled: names and numbers lie in plain arrays.
"""

import contextlib
import hashlib
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np

from vit.data.cache import cache_folder
from vit.data.layouts import Found
from vit.data.tars import tars_in
from vit.data.walk import LeftOut, inode, unfit
from vit.errors import VitError
from vit.files import dump_json, whole_file

LARGE = 20_000
"""pictures from which on listing takes long enough to remember"""

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


def _place(root: str) -> Path:
    return cache_folder() / "listings" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.npz"


def _joined(names: list[str]) -> np.ndarray:
    """Names as bytes with zeros between them, which no name can hold: uint8 [bytes]."""
    return np.frombuffer(b"\0".join(map(os.fsencode, names)), np.uint8)


def _names(joined: np.ndarray) -> list[str]:
    return os.fsdecode(bytes(joined)).split("\0") if len(joined) else []
