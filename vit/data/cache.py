"""Decoded pictures kept for the next epoch: in memory that all workers share, or in one file on disk.

Both are one sparse file of equal slots, the memory's being one without a name. A slot holds a checksum, the height and
width of what is kept and of the picture that it comes from, and pixels; it is filled when its picture is first
decoded. A slot whose checksum is wrong counts as empty: after a crash each picture is there whole or not at all, and
two runs may fill one file at the same time, for both write the same.

Letters: H, W the height and width of the whole picture; h, w those of what is kept of it.
"""

import errno
import hashlib
import logging
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np

from vit.data.decode import Copy
from vit.errors import DataError, VitError, display_path
from vit.files import dump_json

log = logging.getLogger("vit")

_SLOT = struct.Struct("<5I")  # checksum of all that follows, h, w, H, W
_HEADER = 4096  # bytes before the first slot: JSON, padded with zeros
_VERSION = 1


class PixelCache:
    """Slots for `count` pictures, each of at most `room` bytes of pixels.

    May be sent to other processes, which then share it. `path` None keeps them in memory. Threads and processes may
    read and write at the same time.
    """

    def __init__(self, count: int, room: int, path: Path | None = None, *, source: str = "") -> None:
        """Open the cache at `path`, or make it, where there is none or one of another `source`, layout or version.

        Raises DataError where the file cannot be made.
        """
        self.count, self.room, self.path = count, room, path
        self._slot = _SLOT.size + room
        self._full = False
        try:
            self._descriptor = _unnamed() if path is None else self._opened(path, source)
            if path is None:
                os.ftruncate(self._descriptor, _HEADER + count * self._slot)
        except OSError as error:
            where = "in memory" if path is None else f"at {display_path(path)}"
            raise DataError(f"no cache of pictures {where}: {(error.strerror or str(error)).lower()}") from error
        self._map()

    def _map(self) -> None:
        self._bytes = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        self._sound = np.zeros(self.count, dtype=bool)
        """slots whose checksum this process has compared"""

    def _opened(self, path: Path, source: str) -> int:
        """The file, made anew where it is not the one that is wanted."""
        told = {
            "format": "vit pixel cache",
            "version": _VERSION,
            "count": self.count,
            "room": self.room,
            "source": source,
        }
        wanted = dump_json(told).encode().ljust(_HEADER, b"\0")
        size = _HEADER + self.count * self._slot
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR)
            if os.pread(descriptor, _HEADER, 0) == wanted and os.fstat(descriptor).st_size == size:
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            pass
        # under another name first: a run that uses the old file goes on with it
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            os.pwrite(descriptor, wanted, 0)
            os.ftruncate(descriptor, size)
            os.replace(temporary, path)
        except OSError:
            os.close(descriptor)
            os.unlink(temporary)
            raise
        return descriptor

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # absent where opening failed
            os.close(self._descriptor)  # the map, and pixels that are still in use, hold on by themselves

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in ("_bytes", "_sound", "_descriptor")}
        return state | {"duplicate": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        duplicate = state.pop("duplicate")
        vars(self).update(state)
        self._descriptor = duplicate.detach()
        self._map()

    def get(self, index: int) -> Copy | None:
        """What is kept of picture `index`, not to be written to; None where that is nothing."""
        if index >= self.count:
            return None
        start = _HEADER + index * self._slot
        checksum, height, width, *full = _SLOT.unpack_from(self._bytes, start)
        size = 3 * height * width
        if not 0 < size <= self.room:
            return None
        if not self._sound[index]:
            with memoryview(self._bytes)[start + 4 : start + _SLOT.size + size] as told:
                if zlib.crc32(told) != checksum:
                    return None
            self._sound[index] = True
        pixels = np.frombuffer(self._bytes, np.uint8, size, start + _SLOT.size).reshape(height, width, 3)
        return Copy(pixels, (full[0], full[1]), (height, width))

    def put(self, index: int, kept: Copy) -> None:
        """Keep a picture, unless it is too large for a slot or the disk is full, which is said once."""
        if index >= self.count or kept.pixels.nbytes > self.room or self._full:
            return
        told = struct.pack("<4I", *kept.pixels.shape[:2], *kept.full) + kept.pixels.tobytes()
        filled = struct.pack("<I", zlib.crc32(told)) + told
        try:
            written = os.pwrite(self._descriptor, filled, _HEADER + index * self._slot)
            if written < len(filled):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._full = True
            where = "memory" if self.path is None else display_path(self.path)
            reason = (error.strerror or str(error)).lower()
            log.warning("cache      %s: %s; training goes on, further pictures are decoded each time", where, reason)

    def filled(self) -> int:
        """How many pictures are kept."""
        return sum(self.get(index) is not None for index in range(self.count))


def _unnamed() -> int:
    """A file that lives as long as somebody has it open, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vit pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def cache_folder() -> Path:
    """Return the folder for caches: VIT_CACHE, else vit in the user's cache folder. Raises VitError without either."""
    if own := os.environ.get("VIT_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit"
    except RuntimeError as error:  # a user id without an account, as in some containers
        raise VitError("no home folder to cache files in; set VIT_CACHE or HOME to a folder") from error


def source_mark(paths: Sequence[str], how: str) -> str:
    """SHA-256 of the pictures' names, sizes and times, and of `how` they are kept: another mark, another cache."""
    digest = hashlib.sha256(how.encode())
    for path in paths:
        try:
            found = os.stat(path)
            told = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            told = "not there"
        digest.update(os.fsencode(path) + b"\0" + told.encode())
    return digest.hexdigest()


def free_memory() -> int:
    """Bytes of memory that programs can still take."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return min(int(line.split()[1]) * 1024, _limit())
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _limit() -> int:
    """What a container still allows this process, as far as it says."""
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        taken = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return 2**62 if most == "max" else max(0, int(most) - taken)
    except (OSError, ValueError):
        return 2**62
