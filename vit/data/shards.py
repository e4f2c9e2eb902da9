"""Shards: a data set as a few large files, for storage that many small ones would choke, and for many machines.

They are LitData's chunks, so that streaming, shuffling, sharing out among processes and resuming within an epoch are
that engine's work. Beside them lies `vit.json`: classes and counts, written last, so that shards cut short are no data
set. Each sample holds the bytes of a picture's file as they were, its class, its number and its name. Captions lie in
one file beside them, `captions.jsonl`.

This module needs the extra `stream`.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vit.data.captions import Captioned, CaptionListing
from vit.data.dataset import Failed, Loaded, worker_count
from vit.data.decode import picture_size, read_picture
from vit.data.folders import SHARDS, Listing, Sample
from vit.data.layouts import MANIFEST
from vit.data.normalise import as_tensor
from vit.data.tables import text_lines
from vit.errors import DataError, UnreadableImage, VitError, display_path
from vit.files import dump_json, write_text
from vit.names import class_name

_VERSION = 1
_CAPTIONS = "captions.jsonl"


def _engine() -> Any:
    try:
        import litdata
    except ImportError as error:
        raise VitError("shards need LitData: pip install '.[stream]'") from error
    return litdata


@dataclass
class ShardListing(Listing):
    """What `vit.json` tells of shards at `root`, a folder or an address such as s3://bucket/folder."""

    side: int = 224
    """median short side of the pictures in pixels"""

    def files(self, split: str) -> str:
        """Where the chunks of a split lie."""
        return _joined(self.root, split)


def write_shards(listing: Listing, out: str, *, megabytes: int = 64, workers: int = -1) -> None:
    """Write the pictures of a listing as shards of about so many megabytes, a folder a split.

    `out` is a new folder, or an address that LitData can write to. Raises DataError where there is something already.
    """
    entries = {split: [(s.path, s.label) for s in samples] for split, samples in listing.splits.items()}
    splits = _write(entries, listing.root, out, megabytes, workers)
    for split, samples in listing.splits.items():
        splits[split]["labels"] = [[k, len(list(group))] for k, group in groupby(s.label for s in samples)]
    _put_manifest(out, {"classes": list(listing.classes), "splits": splits})


def write_caption_shards(listing: CaptionListing, out: str, *, megabytes: int = 64, workers: int = -1) -> None:
    """As `write_shards` does, of captioned pictures; their captions lie in one file beside the manifest."""
    entries = {split: [(picture.path, 0) for picture in pictures] for split, pictures in listing.splits.items()}
    splits = _write(entries, listing.images, out, megabytes, workers)
    told = [
        {"split": split, "id": picture.id, "captions": picture.captions}
        for split, pictures in listing.splits.items()
        for picture in pictures
    ]
    _put(out, _CAPTIONS, "".join(dump_json(line) + "\n" for line in told))
    _put_manifest(out, {"splits": splits})


def _write(
    entries: dict[str, list[tuple[str, int]]], root: str, out: str, megabytes: int, workers: int
) -> dict[str, dict[str, Any]]:
    """Write pictures, (path, label) by split, and say what the manifest tells of each split."""
    engine = _engine()
    with _reasons(out):
        if not _is_empty(out):
            raise DataError(f"{display_path(out)}: not empty; shards are written to a new folder")
    splits: dict[str, dict[str, Any]] = {}
    for split, pictures in entries.items():
        count = min(worker_count(workers), max(1, len(pictures) // 64))
        files = _joined(out, split)
        with _reasons(files), _start_method_kept():
            engine.optimize(
                _sample,
                [(index, path, label, root) for index, (path, label) in enumerate(pictures)],
                files,
                chunk_bytes=f"{megabytes}MB",
                num_workers=count,
                keep_data_ordered=True,
                verbose=False,
            )
            if _remote(out):
                _check_chunks(files)
        splits[split] = {"side": _side([path for path, _ in pictures])}
    return splits


def _check_chunks(files: str) -> None:
    """Raise DataError where a chunk is missing: the engine goes on when its processes could not send one."""
    storage = _storage(files)
    for chunk in json.loads(_got(files, "index.json"))["chunks"]:
        if not storage.exists(_joined(files, chunk["filename"])):
            raise DataError(f"{display_path(files)}: {chunk['filename']} did not get there; the reason is told above")


def _put_manifest(out: str, told: dict[str, Any]) -> None:
    _put(out, MANIFEST, dump_json({"format": "vit shards", "version": _VERSION, "engine": "litdata"} | told, indent=1))


@contextlib.contextmanager
def _start_method_kept() -> Iterator[None]:
    """LitData changes how the whole program starts processes."""
    before = multiprocessing.get_start_method()
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def _sample(entry: tuple[int, str, int, str]) -> Any:
    """A sample as it is stored. LitData would take bytes of a JPEG for a picture and decode them itself."""
    index, path, label, root = entry
    data = np.frombuffer(read_picture(path)[1], np.uint8)
    yield {"file": data, "label": label, "index": index, "name": os.path.relpath(path, root)}


def list_shards(data: str | os.PathLike[str], classes: Sequence[str] | None = None) -> ShardListing:
    """Read the manifest of shards. Labels go by `classes` where they are given, by name.

    Raises DataError where there is none, or it is damaged.
    """
    root, told = _manifest(data)
    try:
        names, splits = tuple(map(class_name, told["classes"])), {}
        for split, facts in told["splits"].items():
            if not all(0 <= label < len(names) and count > 0 for label, count in facts["labels"]):
                raise ValueError(f"labels of {split}")
            _check_count(root, split, sum(count for _, count in facts["labels"]))
            labels = [label for label, count in facts["labels"] for _ in range(count)]
            splits[split] = [Sample(_name(root, split, i), label) for i, label in enumerate(labels)]
        side = int(told["splits"]["train" if "train" in splits else next(iter(splits))]["side"])
    except (ValueError, KeyError, TypeError) as error:
        raise _no_manifest(root, "of pictures with classes") from error
    if classes is not None and tuple(map(class_name, classes)) != names:
        raise DataError(f"{display_path(root)}: has other classes than the model, or in another order")
    return ShardListing(root, names, splits, side=side)


def list_caption_shards(data: str | os.PathLike[str]) -> CaptionListing:
    """Read what `write_caption_shards` wrote. Raises DataError where there is none, or it is damaged."""
    root, told = _manifest(data)
    listing = CaptionListing(root, root, {})
    try:
        for line in filter(None, text_lines(_got(root, _CAPTIONS))):
            entry = json.loads(line)
            pictures = listing.splits.setdefault(entry["split"], [])
            pictures.append(
                Captioned(_name(root, entry["split"], len(pictures)), tuple(entry["captions"]), entry["id"])
            )
        if not told["splits"].keys() == listing.splits.keys():
            raise ValueError(f"splits {[*listing.splits]}")
        for split, pictures in listing.splits.items():
            _check_count(root, split, len(pictures))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_manifest(root, "of pictures with captions") from error
    return listing


def shard_side(name: str) -> int:
    """The median short side in pixels of the split that a picture of shards is in."""
    root, _, split = name.removeprefix(SHARDS).rpartition("#")[0].rpartition("/")
    return int(_manifest(root)[1]["splits"][split]["side"])


def _manifest(data: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """The place of shards, and what their manifest tells."""
    root = os.fspath(data)
    root = root if _remote(root) else os.path.abspath(root)
    try:
        told: dict[str, Any] = json.loads(_got(root, MANIFEST))
        if told["format"] != "vit shards" or told["version"] != _VERSION:
            raise DataError(f"{display_path(root)}: shards of version {told['version']}, this is version {_VERSION}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_manifest(root, "") from error
    return root, told


def _check_count(root: str, split: str, count: int) -> None:
    """Raise DataError where the chunks of a split hold another number of images than the manifest says."""
    try:
        held = sum(chunk["chunk_size"] for chunk in json.loads(_got(_joined(root, split), "index.json"))["chunks"])
    except RecursionError as error:
        raise ValueError("index") from error
    if held != count:
        files = display_path(_joined(root, split))
        raise DataError(f"{files}: the manifest names {count} images, the chunks hold {held}; write the shards again")


def _no_manifest(root: str, what: str) -> DataError:
    return DataError(f"{display_path(root)}/{MANIFEST}: not a manifest of shards {what}".rstrip())


def _name(root: str, split: str, number: int) -> str:
    """What a picture of shards is called, as good as a path."""
    return f"{SHARDS}{_joined(root, split)}#{number}"


def stored_picture(name: str) -> bytes:
    """The file of a picture of a `ShardListing`, by its name there, fetching the chunk it lies in.

    Raises DataError where that is missing or damaged.
    """
    files, _, number = name.removeprefix(SHARDS).rpartition("#")
    try:
        sample = _opened(files, os.getpid())[int(number)]
        data: bytes = sample["file"].tobytes()
    except Exception as error:  # the engine raises many kinds
        raise unreadable(files, error) from error
    return data


@functools.lru_cache(maxsize=8)
def _opened(files: str, process: int) -> Any:
    """Each process opens shards of its own."""
    return _engine().StreamingDataset(files)


def unreadable(files: str, error: Exception) -> DataError:
    """What to say of shards that the engine could not read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{display_path(files)}: a shard cannot be read: {display_path(reason)}")


def loaded(sample: dict[str, Any], read: Callable[[bytes], np.ndarray], size: tuple[int, int]) -> Loaded | Failed:
    """What `read` makes of a stored sample, or why it could not."""
    index = int(sample["index"])
    try:
        pixels = read(sample["file"].tobytes())
    except UnreadableImage as error:
        return Failed(index, f"{error.reason} ({sample['name']})", size)
    return Loaded(as_tensor(pixels), int(sample["label"]), index)


def _side(paths: Sequence[str]) -> int:
    sides = []
    for path in paths[:: max(1, len(paths) // 64)]:
        try:
            sides.append(min(picture_size(path)))
        except UnreadableImage:
            continue
    return int(np.median(sides)) if sides else 224


def _joined(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"


def _remote(root: str) -> bool:
    return "://" in root


def _is_empty(root: str) -> bool:
    """Whether there is nothing at a place yet, be it an address."""
    if _remote(root):
        empty: bool = _storage(root).is_empty(root)
        return empty
    return not os.path.isdir(root) or not os.listdir(root)


def _put(root: str, name: str, text: str) -> None:
    """Write a file beside the shards."""
    if not _remote(root):
        write_text(Path(root) / name, text)
        return
    with _reasons(_joined(root, name)), tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / name, text)
        _storage(root).upload_file(os.path.join(folder, name), _joined(root, name))


def _got(root: str, name: str) -> str:
    """Read a file beside the shards."""
    with _reasons(_joined(root, name)):
        if not _remote(root):
            return (Path(root) / name).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            _storage(root).download_file(_joined(root, name), str(path))
            return path.read_text(encoding="utf-8")


def _storage(root: str) -> Any:
    """The engine's access to an address, of the two it has the one by the storage's own library.

    The other, obstore, starts threads that are lost when a process forks: readers forked later would wait for ever.
    """
    _engine()
    from litdata.streaming.fs_provider import _get_fs_provider

    if not root.startswith("s3://"):
        return _get_fs_provider(root)
    from botocore.config import Config

    # the engine would try a thousand times to reach what is not there
    return _get_fs_provider(root, {"config": Config(retries={"max_attempts": 5})})


@contextlib.contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Turn whatever the engine, a storage or the file system raises into DataError about the place `name`."""
    try:
        yield
    except VitError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{display_path(name)}: {display_path(reason)}") from error
