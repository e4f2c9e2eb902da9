"""What a training run says before and after."""

import csv
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vit.errors import display_path, shell_quote
from vit.models.vision import VisionTransformer
from vit.tasks.classify import Classify
from vit.tasks.config import Config
from vit.tasks.run import Setup, flops_per_image

log = logging.getLogger("vit")

_FEW_STEPS = 10


def before_training(setup: Setup, network: VisionTransformer, run: Path, samples: int) -> None:
    """A table of data and model; a step learns from `samples` pictures."""
    listing, a, config = setup.listing, setup.architecture, setup.config
    splits = "   ".join(f"{name} {len(samples):,}" for name, samples in listing.splits.items())
    counts = Counter(sample.label for sample in listing.splits["train"])
    few, many = min(counts.values()), max(counts.values())
    parameters = sum(p.numel() for p in network.parameters())
    name = "" if config.model.init else f"{config.model.name}, "
    rows = [
        ("data", display_path(listing.name)),
        ("pictures", splits),
        ("classes", f"{len(listing.classes)}, with {_range(few, many)} training pictures each"),
        ("skipped", _skipped(setup)),
        *(("note", display_path(note)) for note in listing.notes),
        ("model", f"{name}{a.depth} blocks of width {a.dim}, {a.heads} heads"),
        *_start_rows(setup),
        ("input", f"{a.image_size[0]} x {a.image_size[1]} pixels, {a.grid[0]} x {a.grid[1]} patches"),
        ("size", f"{parameters / 1e6:.2f} M parameters, {flops_per_image(a) / 1e9:.3f} GFLOPs a picture"),
        ("training", _training(config, samples, len(listing.splits["train"]))),
        *few_steps(config, samples, len(listing.splits["train"])),
        ("cache", cache_told(config, setup.cache_reason)),
        ("run", display_path(run)),
    ]
    for name, value in rows:
        log.info("%-10s %s", name, value)
    log.info("")


def cache_told(config: Config, reason: str) -> str:
    """Where decoded pictures are kept, and why."""
    where = {"none": "none", "ram": "in memory", "disk": "on disk", "device": "on the device"}[config.data.cache]
    return f"{where} ({reason})" if reason else where


def rate_told(config: Config, samples: int) -> str:
    """The highest learning rate, and how it follows from the samples of a step where that was asked for."""
    optim = config.optim
    told = f"rate {optim.scaled(samples).lr:g}"
    return f"{told} ({optim.lr:g} x {samples}/{optim.lr_base_batch})" if optim.lr_base_batch else told


def best_epoch(run: Path, monitor: str) -> dict[str, float] | None:
    """Return the values of metrics.csv in the epoch with the best validation, and the "total" seconds of the run.

    Somebody may have edited the file: rows without readable numbers are skipped. None where no row is left.
    """
    key, rows = f"val/{monitor}", list[dict[str, float]]()
    with (run / "metrics.csv").open(encoding="utf-8", errors="replace", newline="") as file, suppress(csv.Error):
        for texts in csv.DictReader(file):
            row = {}
            for name, text in texts.items():
                with suppress(TypeError, ValueError):
                    row[str(name)] = float(text)
            if {"epoch", "seconds", key} <= row.keys() and all(map(math.isfinite, row.values())):
                rows.append(row)
    if not rows:
        return None
    best = (min if monitor == "loss" else max)(rows, key=lambda row: row[key])
    return best | {"total": rows[-1]["seconds"]}


def after_training(setup: Setup, task: Classify, run: Path) -> None:
    """The best epoch, and what to do next."""
    log.info("")
    if (best := best_epoch(run, setup.config.train.monitor)) is not None:
        accuracy, loss = 100 * best.get("val/accuracy", math.nan), best.get("val/loss", math.nan)
        message = "best       epoch %d: val accuracy %.2f %%, val loss %.4f   (%.0f s in all)"
        log.info(message, best["epoch"], accuracy, loss, best["total"])
    tell_unreadable(
        task.unreadable, {split: [sample.path for sample in samples] for split, samples in setup.listing.splits.items()}
    )
    what_next(run)


def tell_unreadable(reasons: Mapping[tuple[str, int], str], paths: Mapping[str, Sequence[str]]) -> None:
    """Name the first pictures that could not be read, by split and place among `paths`, and say how many there are."""
    for (split, index), reason in list(reasons.items())[:20]:
        log.info("left out   %s: %s", display_path(paths[split][index]), reason)
    if len(reasons) > 20:
        log.info("left out   ... %d unreadable pictures in all, see unreadable.csv", len(reasons))


def what_next(run: Path) -> None:
    """Where the model lies, and what can be done with it."""
    shown = display_path(run)
    if not (run / "model.safetensors").is_file():  # of neighbours that voted
        log.info("report     %s", shown)
        return
    log.info("model      %s/model.safetensors", shown)
    word = shell_quote(run)
    data = shell_quote(run / "split.csv") if (run / "split.csv").is_file() else "DATA"
    log.info("next       vit evaluate %s %s", word, data)
    log.info("           vit predict %s PICTURE...", word)
    if (run / "tensorboard").is_dir():  # a head alone leaves none
        log.info("           tensorboard --logdir %s", word)


def _start_rows(setup: Setup) -> list[tuple[str, str]]:
    """Which weights a run starts with, whose they are, and what becomes of their head."""
    if setup.start is None:
        return []
    licence = f", licence {setup.start.licence}" if setup.start.licence else ""
    there, here = len(setup.start.classes), len(setup.listing.classes)
    had = f"the weights know {there} others" if there else "the weights have none"
    head = f"new, for {here} classes; {had}" if setup.new_head else f"of the weights, for the same {here} classes"
    if setup.config.tune.method == "probe":
        head = f"fitted on the weights' features, for {here} classes"
    return [("weights", display_path(f"{setup.config.model.init}{licence}")), ("head", head)]


def epoch_steps(config: Config, samples: int, count: int) -> int:
    """Return the optimizer steps of an epoch over `count` samples, of which a step takes `samples`."""
    return -(-(count // config.data.repeats * config.data.repeats) // samples)


def few_steps(config: Config, samples: int, count: int) -> list[tuple[str, str]]:
    """Return a row of the table that warns of epochs with few steps, where there are few."""
    steps = epoch_steps(config, samples, count)
    if steps >= _FEW_STEPS or config.tune.method in ("probe", "knn"):
        return []
    per_epoch = f"only {steps} step{'' if steps == 1 else 's'} per epoch"
    return [("warning", f"{per_epoch}; lower data.batch_size (now {config.data.batch_size}) for more weight updates")]


def schedule_of(config: Config, samples: int, count: int) -> str:
    """Return epochs, steps per epoch, batch size and precision in one line."""
    steps = epoch_steps(config, samples, count)
    length = f"{config.train.epochs} epochs x {steps:,} step{'' if steps == 1 else 's'}"
    return f"{length}, batch size {config.data.batch_size}, {config.train.precision}"


def _training(config: Config, samples: int, count: int) -> str:
    """How long and how fast."""
    tune = config.tune
    if tune.method in ("probe", "knn"):
        return "a linear head on the features" if tune.method == "probe" else "votes of the nearest features"
    how = schedule_of(config, samples, count)
    rate = rate_told(config, samples)
    if config.optim.layer_decay != 1:
        rate += f", from block to block x {config.optim.layer_decay:g}"
    lora = f", LoRA of rank {tune.lora_rank}" if tune.method == "lora" else ""
    return f"{how}, {rate}{lora}"


def _skipped(setup: Setup) -> str:
    skipped = setup.listing.left_out
    if not skipped:
        return "none"
    first = skipped[0]
    more = f", and {len(skipped) - 1:,} more in unreadable.csv" if len(skipped) > 1 else ""
    return f"{display_path(f'{first.path}: {first.reason}')}{more}"


def _range(few: int, many: int) -> str:
    return f"{few:,}" if few == many else f"{few:,} to {many:,}"
