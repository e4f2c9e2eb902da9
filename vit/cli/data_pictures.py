"""`vit data preview` and `vit data pack`: what training will see of pictures, and keeping them decoded beforehand."""

import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vit.cli.arguments import check_out
from vit.data.tables import text_lines
from vit.errors import ConfigError, UnreadableImage, VitError, display_path, shell_quote
from vit.tasks.config import Config

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vit.data.dataset import Batch, ImageDataset
    from vit.tasks.run import Setup

log = logging.getLogger("vit")

_SHOWN = 36


def preview(data: str, config: Config, out: Path, epoch: int) -> int:
    """Draw the first training batch of an epoch as the network sees it, each picture with its labels. -> exit code."""
    from vit.evaluate.plots import gallery
    from vit.files import whole_file

    if not 0 <= epoch < config.train.epochs:
        last = config.train.epochs - 1
        raise ConfigError(f"--epoch: must be from 0 to {last}, the last of train.epochs, got {epoch}")
    setup = _set_up(data, replace(config, data=replace(config.data, cache="none", workers=0)))
    from vit.data.module import ImageFolderData

    check_out(str(out), inputs=(sample.path for part in setup.listing.splits.values() for sample in part))
    config, samples = setup.config, setup.listing.splits["train"]
    loaders = ImageFolderData(setup.listing, config.data, config.augment, setup.preprocessing, config.train.seed)
    loaders.load_state_dict({"epoch": epoch})
    loader = loaders.train_dataloader()
    batch = next(iter(loader))
    if not len(batch):
        raise VitError(f"{display_path(data)}: none of the {len(batch.failures)} pictures of the batch could be read")
    images, labels = _inputs(setup, batch, epoch, epoch * len(loader))
    classes = setup.listing.classes
    tiles = [(image, _named(row, classes)) for image, row in zip(images, labels, strict=True)][:_SHOWN]
    with whole_file(out) as temporary, temporary.open("wb") as file:
        gallery(tiles, file)
    for index, reason in batch.failures:
        log.info("left out   %s: %s", display_path(samples[index].path), reason)
    height, width = setup.preprocessing.size
    log.info(
        "preview    %d of a batch of %d, %d x %d pixels: %s", len(tiles), len(batch), height, width, display_path(out)
    )
    return 0


def pack(data: str, config: Config) -> int:
    """Decode all pictures of DATA into the files that `vit train --data.cache disk` reads. -> the exit code."""
    from vit.data.augment import TrainingTransform
    from vit.data.caching import keep_pictures
    from vit.data.dataset import ImageDataset
    from vit.data.transforms import EvaluationTransform

    setup = _set_up(data, replace(config, data=replace(config.data, cache="disk")))
    failed = 0
    for split in ("train", "val"):
        transform: TrainingTransform | EvaluationTransform = EvaluationTransform(setup.preprocessing)
        if split == "train":
            transform = TrainingTransform(
                setup.config.augment, setup.preprocessing, kept_side=setup.config.data.cache_side
            )
        samples = setup.listing.splits.get(split, [])
        dataset = ImageDataset(samples, transform)
        keep_pictures(dataset, "disk", name=split)
        if dataset.cache is not None:
            failed += _fill(dataset, split)
    log.info("next       vit train %s --data.cache disk, with the same settings", shell_quote(data))
    return 1 if failed else 0


def shard(data: str, config: Config, out: str, engine: str, megabytes: int) -> int:
    """Write the pictures of DATA, with their classes or captions, as a few large files. -> the exit code."""
    shares: dict[str, Any] = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
    if config.task == "classify":
        from vit.data.folders import list_for_training

        listing = list_for_training(data, config.data, config.train.seed)
        if engine == "litdata":
            from vit.data.shards import write_shards

            write_shards(listing, out, megabytes=megabytes, workers=config.data.workers)
        else:
            told = {
                split: [(sample.path, {"cls": listing.classes[sample.label]}) for sample in samples]
                for split, samples in listing.splits.items()
            }
            _write_tars(told, out, megabytes)
        counts = {split: len(samples) for split, samples in listing.splits.items()}
    elif config.task == "caption":
        from vit.data.captions import list_captions

        shares |= {"group_duplicates": config.data.group_duplicates, "max_pixels": config.data.max_pixels}
        captions = list_captions(data, **shares, seed=config.train.seed)
        if engine == "litdata":
            from vit.data.shards import write_caption_shards

            write_caption_shards(captions, out, megabytes=megabytes, workers=config.data.workers)
        else:
            told = {
                split: [(entry.path, {"txt": _lines(entry.captions)}) for entry in part]
                for split, part in captions.splits.items()
            }
            _write_tars(told, out, megabytes)
        counts = {split: len(part) for split, part in captions.splits.items()}
    else:
        raise ConfigError(f"task: {config.task} has no shards; classify and caption have")
    log.info(
        "shards     %s in %s", "   ".join(f"{name} {count:,}" for name, count in counts.items()), display_path(out)
    )
    task = "" if config.task == "classify" else f" --task {config.task}"
    log.info("next       vit train %s%s", shell_quote(out), task)
    return 0


def _write_tars(told: dict[str, list[tuple[str, dict[str, str]]]], out: str, megabytes: int) -> None:
    """A folder of tars a split, of pictures with what lies beside them."""
    from vit.data.dataset import picture_source
    from vit.data.decode import read_picture
    from vit.data.tars import write_tars

    def stored(path: str) -> bytes:
        source = picture_source(path)
        return source if isinstance(source, bytes) else read_picture(source)[1]

    if "://" in out or (os.path.isdir(out) and os.listdir(out)):
        raise ConfigError(f"--out {display_path(out)}: tars are written to a new folder")
    for split, samples in told.items():
        bar = tqdm(samples, unit=" pictures", delay=2, leave=False, disable=not sys.stderr.isatty())
        write_tars(
            ((stored(path), _ending(path), texts) for path, texts in bar),
            Path(out) / split,
            megabytes=megabytes,
        )


def _lines(captions: Sequence[str]) -> str:
    """Return captions as the text of a file with one caption per line; line ends within a caption become spaces."""
    return "\n".join(" ".join(text_lines(caption)) for caption in captions)


def _ending(path: str) -> str:
    ending = Path(path).suffix.lower().lstrip(".")
    return ending if ending.isalpha() else "jpg"  # a picture that lies in a tar: any ending of a picture will do


def _fill(dataset: "ImageDataset", split: str) -> int:
    """Fill the cache of a data set, and tell; -> how many pictures could not be read."""
    cache = dataset.cache
    assert cache is not None
    assert cache.path is not None

    def fill(index: int) -> str | None:
        try:
            dataset.keep(cache, index)
        except UnreadableImage as error:
            return f"{display_path(dataset.path(index))}: {error.reason}"
        return None

    bar = tqdm(total=len(dataset), unit=" pictures", delay=2, leave=False, disable=not sys.stderr.isatty())
    reasons = []
    # the decoders let go of the interpreter
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) as pool:
        for reason in pool.map(fill, range(len(dataset))):
            bar.update()
            if reason is not None:
                reasons.append(reason)
    bar.close()
    for reason in reasons[:20]:
        log.info("left out   %s", reason)
    taken = os.stat(cache.path).st_blocks * 512 if hasattr(os.stat_result, "st_blocks") else 0
    kept = cache.filled()
    size, path = f"{taken / 2**20:.0f} MiB", display_path(cache.path)
    log.info("%-10s %d of %d pictures, %s in %s", split, kept, len(dataset), size, path)
    if kept < len(dataset) - len(reasons):
        raise VitError(f"{display_path(cache.path)}: only {kept} of {len(dataset)} pictures could be kept")
    return len(reasons)


def _set_up(data: str, config: Config) -> "Setup":
    from vit.data.folders import list_for_training

    if config.task != "classify":
        raise ConfigError(f"task: is for classify, got {config.task}")
    listing = list_for_training(data, config.data, config.train.seed)
    from vit.cli.quiet import quiet_lightning

    quiet_lightning()
    from vit.tasks.run import set_up

    return set_up(listing, config)


def _inputs(setup: "Setup", batch: "Batch", epoch: int, step: int) -> "tuple[np.ndarray, Tensor]":
    """Pictures uint8 [B, h, w, 3] and soft labels [B, classes], mixed as in that step of training."""
    import torch

    from vit.data.mix import Mix
    from vit.data.sampling import draw_seed

    config, count = setup.config, len(setup.listing.classes)
    labels = torch.nn.functional.one_hot(batch.labels, count).float()
    images = batch.images.float()
    mix = Mix(config.augment, count)
    if mix.active(epoch, config.train.epochs):
        images, labels = mix(images, batch.labels, draw_seed(config.train.seed, step, 0, 0))
    return images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), labels


def _named(labels: "Tensor", classes: "tuple[str, ...] | list[str]") -> str:
    """The classes of a picture with their shares."""
    there = [(float(share), classes[place]) for place, share in enumerate(labels.tolist()) if share > 0]
    if len(there) == 1:
        return there[0][1]
    return "\n".join(f"{name} {share:.0%}" for share, name in sorted(there, reverse=True))
