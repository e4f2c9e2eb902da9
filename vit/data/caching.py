"""Whether the pictures of a data set are kept once they are decoded, and where: by measuring."""

import hashlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vit.data.cache import PixelCache, cache_folder, free_memory
from vit.data.config import Cache
from vit.data.dataset import ImageDataset, picture_source
from vit.data.decode import picture_size
from vit.data.sampling import Draw
from vit.errors import UnreadableImage

log = logging.getLogger("vit")

_LOOKED_AT = 256  # pictures whose headers tell how large a slot must be
_TIMED = 24
_WORTH = 1.3  # times as fast
_SHARE = 0.5  # of the free memory


@dataclass(frozen=True)
class Choice:
    """Where pictures are to be kept, and why, in words."""

    cache: Cache
    reason: str


def choose_cache(dataset: ImageDataset, *, times: int, processes: int = 1) -> Choice:
    """In memory, where the pictures fit into half of what is free and reading them from their files is slower.

    `times` is how often each is to be read, `processes` how many share the machine, each with a cache of its own.
    """
    if times < 2:
        return Choice("none", "each is read once")
    room = slot_room(dataset)
    if not room:
        return Choice("none", "none of some pictures could be read")
    total = len(dataset) * room
    if total > _SHARE * free_memory() / processes:
        return Choice("none", f"{_size(total)} are more than half of the free memory; disk keeps them in a file")
    read, kept = seconds_a_picture(dataset, room)
    reason = f"reading takes {1e3 * read:.2f} ms, from memory {1e3 * kept:.2f} ms"
    return Choice("ram" if read >= _WORTH * kept else "none", reason)


def keep_pictures(dataset: ImageDataset, cache: Cache, *, name: str, processes: int = 1, reserved: int = 0) -> int:
    """Give `dataset` the cache that is asked for, and return the bytes of memory that it may come to take.

    `name` is what messages call the pictures; `reserved` bytes of the memory are promised already. Where memory has not
    room for all, the first ones are kept. Raises DataError where a file cannot be made.
    """
    if cache not in ("ram", "disk") or not len(dataset):
        return 0
    room, count = slot_room(dataset), len(dataset)
    if cache == "disk":
        dataset.cache = PixelCache(count, room, cache_path(dataset, name), source=dataset.mark())
        return 0
    free = max(0, free_memory() - reserved) / processes
    if count * room > 0.9 * free:
        count = int(0.9 * free / room)
        log.warning("cache      the memory has room for %d of %d %s pictures", count, len(dataset), name)
    dataset.cache = PixelCache(count, room)
    return count * room


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"


def slot_room(dataset: ImageDataset) -> int:
    """Bytes of the largest of some pictures, as they are kept."""
    sizes = [0]
    for index in range(0, len(dataset), max(1, len(dataset) // _LOOKED_AT)):
        try:
            size = picture_size(picture_source(dataset.path(index)), dataset.transform.max_pixels)
            height, width = dataset.kept_size(*size)
        except UnreadableImage:
            continue
        sizes.append(3 * height * width)
    return max(sizes)


def cache_path(dataset: ImageDataset, name: str) -> Path:
    """The file of a data set's cache: one a folder and way of keeping, whatever its pictures are today."""
    folder = os.path.commonpath([os.path.dirname(dataset.path(0)), os.path.dirname(dataset.path(len(dataset) - 1))])
    mark = hashlib.sha256(os.fsencode(folder) + dataset.how.encode()).hexdigest()
    return cache_folder() / f"{Path(folder).name or 'pictures'}-{name}-{mark[:16]}.pixels"


def seconds_a_picture(dataset: ImageDataset, room: int) -> tuple[float, float]:
    """How long a picture takes, read from its file and from a cache in memory: the medians of some."""
    cache = PixelCache(len(dataset), room)
    draws = [Draw(0, index, 0) for index in range(0, len(dataset), max(1, len(dataset) // _TIMED))]
    took: list[list[float]] = [[], []]
    for draw in draws:
        try:
            dataset.keep(cache, draw.index)
            for way, kept in enumerate((None, cache)):
                started = time.perf_counter()
                dataset.pixels(draw, kept)
                took[way].append(time.perf_counter() - started)
        except (UnreadableImage, OSError):
            continue
    if not took[0]:
        return 0.0, 1.0
    middle = len(took[0]) // 2
    return sorted(took[0])[middle], sorted(took[1])[middle]
