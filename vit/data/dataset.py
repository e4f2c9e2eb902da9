"""Picture files to batches: a broken picture is named in its batch, never raised and never replaced by another."""

import ctypes
import errno
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vit.data.cache import PixelCache, source_mark
from vit.data.config import Preprocessing
from vit.data.decode import Copy
from vit.data.folders import SHARDS, Sample
from vit.data.normalise import as_tensor
from vit.data.sampling import Draw, ExactSampler, draw_seed
from vit.data.transfer import sent
from vit.data.transforms import EvaluationTransform
from vit.errors import DataError, UnreadableImage
from vit.signals import end_workers, signals

if TYPE_CHECKING:  # albumentations takes a second to import, and evaluation does without
    from vit.data.augment import TrainingTransform

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One picture that could be read: `image` uint8 [3, H, W]."""

    image: Tensor
    label: int
    index: int


@dataclass(frozen=True, slots=True)
class Failed:
    """One picture that could not be read; `size` is the height and width it would have had."""

    index: int
    reason: str
    size: tuple[int, int]


@dataclass(slots=True)
class Batch:
    """Pictures of a batch, and those that could not be read.

    images: uint8 [B, 3, H, W]; labels, indices: int64 [B], the indices count the dataset's samples;
    failures: (index, reason) of the pictures left out. B may be smaller than the batch size, and 0.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    failures: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`, as `sent` takes it there."""
        images, labels, indices = sent((self.images, self.labels, self.indices), device)
        return Batch(images, labels, indices, self.failures)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; DataLoader calls this where `pin_memory` is on."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.failures)


class ImageDataset(Dataset[Loaded | Failed]):
    """Decodes and transforms the picture of a draw; a training picture's variation depends on (seed, draw) alone.

    With a `cache` each picture is decoded once, and kept there.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: "EvaluationTransform | TrainingTransform",
        *,
        seed: int = 0,
        cache: PixelCache | None = None,
    ) -> None:
        # One block of bytes and two arrays: a million string objects would be copied into every worker process,
        # page by page, as soon as their reference counts are touched.
        paths = [os.fsencode(sample.path) for sample in samples]
        self._paths = b"".join(paths)
        self._ends = np.cumsum([0, *(len(path) for path in paths)])
        self.labels = np.array([sample.label for sample in samples], dtype=np.int64)
        self.transform = transform
        self.seed = seed
        self.cache = cache

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Loaded | Failed:
        try:
            image = self.pixels(draw, self.cache)
        except (UnreadableImage, OSError) as error:
            return Failed(draw.index, reason_of(error), self.transform.size)
        return Loaded(as_tensor(image), int(self.labels[draw.index]), draw.index)

    def __getitems__(self, draws: Sequence[Draw]) -> list[Loaded | Failed]:
        """The pictures of a batch, which is what a loader asks for: the same as one by one, in less time."""
        transform = self.transform
        if isinstance(transform, EvaluationTransform) or transform.parts:
            return [self[draw] for draw in draws]
        found: list[Loaded | Failed | None] = []
        copies = []
        for draw in draws:
            try:
                copies.append(self.kept(draw.index) if self.cache is None else self.keep(self.cache, draw.index))
                found.append(None)
            except (UnreadableImage, OSError) as error:
                found.append(Failed(draw.index, reason_of(error), transform.size))
        read = [draw for draw, item in zip(draws, found, strict=True) if item is None]
        epochs, indices, counts = np.array(read, np.uint64).reshape(-1, 3).T
        seeds = draw_seed(self.seed, epochs, indices, counts)
        images = iter(torch.from_numpy(transform.show_all(copies, seeds)).permute(0, 3, 1, 2).unbind(0))
        return [
            Loaded(next(images), int(self.labels[draw.index]), draw.index) if item is None else item
            for draw, item in zip(draws, found, strict=True)
        ]

    def path(self, index: int) -> str:
        """Where picture `index` lies."""
        return os.fsdecode(self._paths[self._ends[index] : self._ends[index + 1]])

    def pixels(self, draw: Draw, cache: PixelCache | None) -> np.ndarray:
        """The picture of a draw as the model sees it, uint8 [h, w, 3], from its file or from a cache.

        Raises UnreadableImage as `decode` does.
        """
        transform = self.transform
        kept = None if cache is None else self.keep(cache, draw.index)
        if isinstance(transform, EvaluationTransform):
            return transform.read(picture_source(self.path(draw.index))) if kept is None else kept.pixels
        seed = draw_seed(self.seed, *draw)
        if kept is None:
            return transform.read(picture_source(self.path(draw.index)), seed)
        return transform.show(kept, seed)

    def keep(self, cache: PixelCache, index: int) -> Copy:
        """What the cache has of picture `index`, which is decoded first where that is nothing."""
        kept = cache.get(index)
        if kept is None:
            kept = self.kept(index)
            cache.put(index, kept)
        return kept

    def kept(self, index: int) -> Copy:
        """What caches keep of picture `index`, decoded now. Raises UnreadableImage."""
        return self.transform.keep(picture_source(self.path(index)))

    @property
    def how(self) -> str:
        """How pictures are kept, in words: whatever changes what a cache holds."""
        return self.transform.kept_as()

    def mark(self) -> str:
        """What a cache must have been made of to hold these pictures."""
        return source_mark([self.path(index) for index in range(len(self))], self.how)

    def kept_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a cache keeps of a picture [H, W]."""
        return self.transform.kept_size(height, width)


def reason_of(error: UnreadableImage | OSError) -> str:
    """Why a picture could not be read, without its path."""
    return error.reason if isinstance(error, UnreadableImage) else error.strerror or str(error)


def picture_source(path: str) -> str | bytes:
    """What a sample's picture is decoded from: its path, or, of shards, its file's bytes."""
    if not path.startswith(SHARDS):
        return path
    from vit.data.shards import stored_picture  # builds on this module

    return stored_picture(path)


def collate(items: Sequence[Loaded | Failed]) -> Batch:
    """Stack what was read; what was not is named in `failures` and left out of the tensors."""
    loaded = [item for item in items if isinstance(item, Loaded)]
    failed = [item for item in items if isinstance(item, Failed)]
    return Batch(
        images=torch.stack([item.image for item in loaded]) if loaded else _no_images(failed),
        labels=torch.tensor([item.label for item in loaded], dtype=torch.int64),
        indices=torch.tensor([item.index for item in loaded], dtype=torch.int64),
        failures=[(item.index, item.reason) for item in failed],
    )


def _no_images(failed: Sequence[Failed]) -> Tensor:
    height, width = failed[0].size if failed else (0, 0)
    return torch.empty((0, 3, height, width), dtype=torch.uint8)


def worker_count(workers: int, processes: int = 1) -> int:
    """Processes that decode pictures: `workers`, or for -1 this process's share of the usable cores, from 1 to 8.

    `processes` is how many on this machine load pictures, each with workers of its own.
    """
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // processes, 8))


def patient(iterator: Iterator[Item]) -> Iterator[Item]:
    """The batches of a loader's iterator, between which a signal may end the run.

    Raises DataError where the processes that read pictures gave nothing for `data.timeout` seconds, and ends them.
    """
    watch = _Watch(getattr(iterator, "_workers", []), getattr(iterator, "_timeout", 0))
    try:
        while True:
            with signals.waiting():
                watch.since = time.monotonic()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except (RuntimeError, OSError, EOFError) as error:
                    if "DataLoader timed out" in str(error):
                        watch.give_up()
                    if watch.told:
                        raise DataError(watch.told) from error
                    if full := watch.dead(errno.ENOSPC):
                        raise DataError(shared_memory_full(f" (pid {full})")) from error
                    if not isinstance(error, RuntimeError) and (dead := watch.dead()):  # torch names it otherwise
                        raise DataError(
                            f"a process that reads pictures (pid {dead}) died; if memory ran out, lower data.workers "
                            "or data.batch_size; --resume goes on with the run"
                        ) from error
                    raise
                watch.since = None
            yield batch
    finally:
        watch.ended.set()


def started(start: Callable[[], Iterator[Item]], workers: int) -> Iterator[Item]:
    """Make a loader's iterator at the first `next`, and yield its batches as `patient` does.

    Not earlier: after an error at that point Lightning's teardown raises one of its own. Raises DataError where
    /dev/shm has no room for the semaphores of torch's queues, before torch leaves half an iterator behind.
    """
    try:
        # three for each queue (of results, and of every worker), five for an event; a page of memory each
        locks = [multiprocessing.Lock() for _ in range(8 + 3 * workers if workers else 0)]
        del locks
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(shared_memory_full()) from error
    yield from patient(start())


def shared_memory_full(where: str = "") -> str:
    """What to tell the user where the worker processes, `where`, have used up /dev/shm."""
    return (
        f"/dev/shm is too small for the batches of the processes that read images{where}; "
        "lower data.workers (`vit evaluate`: --workers) or the batch size; no workers need none"
    )


class _Watch(threading.Thread):
    """Ends worker processes that give nothing: torch's own timeout does not, nor is it heeded while a batch that has
    come is opened, for which its worker must answer.
    """

    def __init__(self, workers: Sequence[Any], timeout: float) -> None:
        super().__init__(daemon=True)
        self.workers, self.timeout = list(workers), timeout
        self.since: float | None = None
        self.told = ""
        self.ended = threading.Event()
        if self.workers and timeout:
            self.start()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            since = self.since
            if since is not None and time.monotonic() - since > self.timeout + 1:  # torch's comes first where it can
                self.give_up()
                return

    def dead(self, code: int | None = None) -> str:
        """The processes that have ended, or ended so, where a batch of one of them did not come or cannot be opened."""
        for worker in self.workers:
            worker.join(0.5)  # one that was killed just now takes a moment
        ends = [(worker.pid, worker.exitcode) for worker in self.workers if worker.exitcode is not None]
        return ", ".join(str(pid) for pid, end in ends if code in (None, end))

    def give_up(self) -> None:
        """Note which processes there were, and end them: they would not when asked."""
        if self.told:
            return
        named = ", ".join(f"{worker.pid}{_state(worker.pid)}" for worker in self.workers)
        self.told = (
            f"the processes that read pictures (pid {named}) gave nothing for {self.timeout} seconds; "
            "look at the disk or the storage they read from, raise data.timeout, or set data.workers 0; "
            "--resume goes on with the run"
        )
        end_workers(self.workers)


def _state(pid: int) -> str:
    """In words, a process that cannot go on by itself; Linux alone tells."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return {"T": " stopped", "D": " waiting for a disk"}.get(letter, "")


class Loader(DataLoader[Any]):
    """torch's loader, with `patient` iterators."""

    def __iter__(self) -> Any:
        return started(super().__iter__, self.num_workers)


def image_loader(
    dataset: ImageDataset,
    sampler: Sampler[Draw],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    timeout: int = 0,
) -> "DataLoader[Batch]":
    """A loader of `Batch` in the sampler's order; `workers` as in `worker_count`, never more than there are batches.

    Workers that give nothing for `timeout` seconds end it; 0 waits for ever.
    """
    workers = min(worker_count(workers), -(-len(sampler) // batch_size))  # type: ignore[arg-type]
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        timeout=timeout if workers else 0,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
    )


def evaluation_loader(
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> "DataLoader[Batch]":
    """Every sample once over all ranks, in order, as `preprocessing` says; the last batch may be smaller."""
    dataset = ImageDataset(samples, EvaluationTransform(preprocessing))
    sampler = ExactSampler(len(samples), rank=rank, world=world)
    return image_loader(dataset, sampler, batch_size=batch_size, workers=workers, pin_memory=pin_memory)


def start_worker(worker: int) -> None:
    """Keep a worker process to one core, and let the main process alone answer signals: it tells when to end.

    On Linux a worker dies with the main process, however that ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` and schedulers signal the whole group
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    torch.set_num_threads(1)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # type: ignore[attr-defined]
    if "cv2" in sys.modules:  # OpenCV would start a thread for every core; evaluation does without OpenCV
        sys.modules["cv2"].setNumThreads(0)


def _end_unsent(error: Exception, batch: object) -> None:
    """A batch that cannot be handed over would be waited for in vain: end the worker, by a code where /dev/shm is full.

    Python's queue lets this be said (`_on_queue_feeder_error`); its own way is a traceback, and to go on.
    """
    full = "shared memory" in str(error) and os.strerror(errno.ENOSPC) in str(error)
    if not full:
        traceback.print_exception(error)
    os._exit(errno.ENOSPC if full else 1)
