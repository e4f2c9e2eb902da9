"""Whether the pictures of a data set are kept once they are decoded, and where: measured, decided, said in one line."""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from vit.data.cache import PixelCache, cache_folder, free_memory
from vit.data.config import Cache
from vit.data.dataset import ImageDataset
from vit.data.decode import picture_size
from vit.data.sampling import Draw
from vit.errors import UnreadableImage, display_path

log = logging.getLogger("vit")

_LOOKED_AT = 256  # pictures whose headers tell how large a slot must be
_TIMED = 24
_WORTH = 1.3  # times as fast
_SHARE = 0.5  # of the free memory


def keep_pictures(
    dataset: ImageDataset,
    mode: Cache,
    *,
    name: str,
    times: int,
    processes: int = 1,
    reserved: int = 0,
    told: bool = True,
) -> int:
    """Give `dataset` the cache that `mode` asks for, and return the bytes of memory that it may come to take.

    `name` is what the line about it calls the pictures, `times` how often each is to be read, `processes` how many
    share the machine, each with a cache of its own in memory, of which `reserved` bytes are promised already; `told`
    whether this one says what it does.
    """
    say: Callable[..., None] = log.info if told else log.debug
    if mode in ("none", "device") or not len(dataset) or (mode == "auto" and times < 2):
        return 0
    room = slot_room(dataset)
    total, free = len(dataset) * room, max(0, free_memory() - reserved) // processes
    size = f"{total / 2**30:.1f} GiB" if total >= 2**29 else f"{total / 2**20:.0f} MiB"
    if mode == "disk":
        path = cache_path(dataset, name)
        dataset.cache = PixelCache(len(dataset), room, path, source=dataset.mark())
        say("cache      %s: up to %s in %s", name, size, display_path(path))
        return 0
    count = len(dataset)
    if mode == "auto":
        if total > _SHARE * free:
            hint = "; --data.cache disk keeps them in a file" if room else ""
            say("cache      none of %s: %s are more than half of the free memory%s", name, size, hint)
            return 0
        read, kept = seconds_a_picture(dataset, room)
        if read < _WORTH * kept:
            say("cache      none of %s: reading takes %.2f ms, from memory %.2f ms", name, 1e3 * read, 1e3 * kept)
            return 0
        how = f"reading takes {1e3 * read:.2f} ms, from memory {1e3 * kept:.2f} ms"
    elif total > 0.9 * free:
        count = int(0.9 * free / room)
        how = f"the memory has room for {count} of {len(dataset)} pictures"
        if told:
            log.warning("cache      %s: %s", name, how)
    else:
        how = "as asked for"
    dataset.cache = PixelCache(count, room)
    say("cache      %s in memory, up to %s (%s)", name, size, how)
    return count * room


def slot_room(dataset: ImageDataset) -> int:
    """Bytes of the largest of some pictures, as they are kept."""
    sizes = [0]
    for index in range(0, len(dataset), max(1, len(dataset) // _LOOKED_AT)):
        try:
            height, width = dataset.kept_size(*picture_size(dataset.path(index)))
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
