"""What is shown and kept while a run goes on: progress, speed, metrics.csv, pictures for TensorBoard."""

import csv
import io
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tqdm import tqdm

from vit.data.dataset import Batch
from vit.data.layouts import few
from vit.data.module import place_of
from vit.data.sampling import EpochSampler
from vit.errors import DataError, display_path
from vit.evaluate.classification import confusion_matrix
from vit.evaluate.plots import confusion_plot, gallery
from vit.explain.maps import attention_maps
from vit.explain.pictures import Box, laid_over
from vit.files import not_written
from vit.models.vision import VisionTransformer
from vit.tasks.base import Task, diverged
from vit.tasks.classify import Classify
from vit.tasks.finite import Step
from vit.tasks.rows import from_all_processes
from vit.tasks.write import Write

log = logging.getLogger("vit")

_SHARES = ("accuracy", "exact", "distinct", "ended")
_COLUMNS = ["epoch", "step", "seconds", "lr"]
_COLUMNS += [f"train/{name}" for name in ("loss", "gradient_norm", "images_per_second", "memory_gb")]
_CLASSES = ("loss", "accuracy", "top5", "balanced_accuracy", "macro_f1")
_WORDS = ("loss", "exact", "distinct", "ended", "picture_gain")


class Progress(L.Callback):
    """A live bar over the whole run, in images with the time left, on a terminal only; a line an epoch everywhere."""

    def __init__(self, unit: str = "images") -> None:
        self.unit = unit
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if not (trainer.is_global_zero and sys.stderr.isatty()):
            return
        images = _epoch_samples(trainer)
        self.bar = tqdm(
            total=images * (trainer.max_epochs or 1),
            initial=images * trainer.current_epoch + place_of(trainer)[1] * _global_batch(trainer),
            unit=f" {self.unit}",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
        )

    def on_train_batch_end(self, trainer: L.Trainer, task: Task, outputs: Any, batch: Any, index: int) -> None:
        if self.bar is not None:
            self.bar.update(_seen(trainer, batch))
            loss = trainer.callback_metrics.get("train/loss_step")
            if trainer.global_step % 10 == 0 and loss is not None:
                self.bar.set_postfix_str(f"epoch {trainer.current_epoch + 1}, loss {float(loss):.3f}")

    def on_train_epoch_end(self, trainer: L.Trainer, task: Task) -> None:
        if not trainer.is_global_zero:
            return
        seen = _epoch_metrics(trainer, task)
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", f"loss {seen['train/loss']:.4f}"]
        if "val/loss" in seen:
            parts.append(f"val loss {seen['val/loss']:.4f}")
        parts += [f"val {name} {100 * seen[key]:.2f} %" for name in _SHARES if (key := f"val/{name}") in seen]
        if "val/picture_gain" in seen:
            parts.append(f"other pictures add {seen['val/picture_gain']:.3f}")
        parts.append(f"{seen.get('train/images_per_second', 0):,.0f} {self.unit}/s")
        with tqdm.external_write_mode(file=sys.stdout):  # the bar steps aside
            log.info("   ".join(parts))

    def teardown(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Speed(L.Callback):
    """Logs images a second of training alone, waiting for data included, and the most memory taken."""

    def __init__(self) -> None:
        self.seconds, self.samples = 0.0, 0
        """of this epoch so far"""

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.since, self.seconds, self.samples = time.perf_counter(), 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, task: Task, outputs: Any, batch: Any, index: int) -> None:
        now = time.perf_counter()
        self.since, self.seconds = now, self.seconds + now - self.since
        self.samples += _seen(trainer, batch)

    def on_train_epoch_end(self, trainer: L.Trainer, task: Task) -> None:
        numbers = {"images_per_second": self.samples / max(self.seconds, 1e-9)}
        numbers["memory_gb"] = _memory_gb(task.device)
        for name, value in numbers.items():
            task.log(f"train/{name}", value, sync_dist=True, batch_size=1)


class MetricsFile(L.Callback):
    """metrics.csv: one row an epoch, appended and flushed at once."""

    def __init__(self, path: Path, *, words: bool = False) -> None:
        self.path = path
        self.columns = _COLUMNS + [f"val/{name}" for name in (_WORDS if words else _CLASSES)]
        self.started = time.perf_counter()
        self.rate = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.started, "rate": self.rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The seconds go on from where they were."""
        self.started, self.rate = time.perf_counter() - state_dict["seconds"], state_dict["rate"]

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_epoch_end(self, trainer: L.Trainer, task: Task) -> None:
        if not trainer.is_global_zero:
            return
        seen = _epoch_metrics(trainer, task)
        row: dict[str, Any] = {name: f"{value:.6g}" for name, value in seen.items() if name in self.columns}
        row["epoch"], row["step"] = trainer.current_epoch + 1, trainer.global_step
        row["seconds"] = f"{time.perf_counter() - self.started:.1f}"
        row["lr"] = f"{self.rate:.6g}"  # of the last step; the schedule has moved on since
        new = not self.path.exists()
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise not_written(self.path, error) from error


class Finite(L.Callback):
    """Ends training at a loss or gradient that is no number, or tells of it; and takes the mean of an epoch's losses.

    The weights have not changed by such a step. This callback comes before all that look at the mean.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def on_train_epoch_start(self, trainer: L.Trainer, task: Task) -> None:
        task.sums.clear()

    def on_train_batch_start(self, trainer: L.Trainer, task: Task, *_: Any) -> None:
        self._look(trainer, task, wait=False)

    def on_validation_start(self, trainer: L.Trainer, task: Task) -> None:
        self._look(trainer, task, wait=True)

    def on_train_epoch_end(self, trainer: L.Trainer, task: Task) -> None:
        self._look(trainer, task, wait=True)
        means = task.means()
        if "loss" not in means:
            raise DataError("no picture for training could be read; `vit data check` names the reasons")
        for name, value in means.items():
            task.log(f"train/{name}_epoch", value, batch_size=1)

    def _look(self, trainer: L.Trainer, task: Task, *, wait: bool) -> None:
        train = task.config.train
        for step in task.watch.seen(wait=wait):
            self.in_a_row = 0 if step.finite else self.in_a_row + 1
            if step.finite:
                continue
            loss, norm = step.numbers.tolist()
            what, value = ("loss", loss) if not np.isfinite(loss) else ("gradient", norm)
            error = diverged(value, trainer.current_epoch, task.config, what=what, where=_where(trainer, step))
            scaled = train.precision == "fp16"  # gradients too large for it are usual: its scale adapts
            if self.in_a_row >= train.nan_limit or not (scaled or train.on_nan == "skip"):
                raise error
            if not scaled:
                log.info("skipped    %s", str(error).partition("; lower")[0] + _where(trainer, step))


class Pictures(L.Callback):
    """TensorBoard pictures: training batches as the model sees them, the confusion matrix, right and wrong answers.

    And maps of the same few validation pictures each time: what the model looks at, as it learns.
    """

    SHOWN = 16
    MAPPED = 8

    def __init__(self, *, times: int = 4) -> None:
        self.times = times
        self.mapped: list[tuple[torch.Tensor, int]] = []
        """validation pictures uint8 [3, H, W] and their classes, the first ones of each class"""

    def on_train_batch_start(self, trainer: L.Trainer, task: Classify, batch: Batch, index: int) -> None:
        if index == 0 and self._due(trainer) and len(batch):
            with torch.no_grad():
                seen, _ = task.inputs(batch)
            grid = _grid(_visible(seen[: self.SHOWN], task))
            _writer(trainer).add_image("train/as the model sees them", grid, trainer.global_step, dataformats="HWC")

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.right: list[tuple[np.ndarray, str]] = []
        self.wrong: list[tuple[np.ndarray, str]] = []
        self.counts: Counter[tuple[int, bool]] = Counter()
        self.choosing = not self.mapped

    def on_validation_batch_end(
        self, trainer: L.Trainer, task: Classify, outputs: torch.Tensor, batch: Batch, *_: Any
    ) -> None:
        if not self._due(trainer):
            return
        each = -(-self.SHOWN // len(task.classes))  # of a class: the pictures come class by class
        if self.choosing:
            self._choose(batch, task)
        answers = outputs.argmax(dim=1).tolist()
        for place, (label, answer) in enumerate(zip(batch.labels.tolist(), answers, strict=True)):
            kept = self.right if label == answer else self.wrong
            if len(kept) < self.SHOWN and self.counts[label, label == answer] < each:
                self.counts[label, label == answer] += 1
                caption = task.classes[answer] + ("" if label == answer else f", is {task.classes[label]}")
                kept.append((batch.images[place].permute(1, 2, 0).cpu().numpy(), caption))

    def on_validation_end(self, trainer: L.Trainer, task: Classify) -> None:
        if not self._due(trainer) or not len(task.gathered.indices):
            return
        writer, step = _writer(trainer), trainer.global_step
        matrix = confusion_matrix(task.gathered.predictions, len(task.classes))
        drawn = io.BytesIO()
        confusion_plot(matrix, task.classes, drawn)
        writer.add_image("val/confusion matrix", np.asarray(Image.open(drawn).convert("RGB")), step, dataformats="HWC")
        for name, pictures in (("right", self.right), ("wrong", self.wrong)):
            if pictures:
                drawn = io.BytesIO()
                gallery(pictures, drawn)
                writer.add_image(f"val/{name}", np.asarray(Image.open(drawn).convert("RGB")), step, dataformats="HWC")
        if self.mapped:
            drawn = io.BytesIO()
            gallery(_with_maps(self.mapped, task), drawn)
            writer.add_image("val/attention", np.asarray(Image.open(drawn).convert("RGB")), step, dataformats="HWC")

    def _choose(self, batch: Batch, task: Classify) -> None:
        each = -(-self.MAPPED // len(task.classes))
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            if len(self.mapped) < self.MAPPED and sum(label == other for _, other in self.mapped) < each:
                self.mapped.append((image, label))

    def _due(self, trainer: L.Trainer) -> bool:
        """A few times a run: drawing takes two seconds or so."""
        epochs = trainer.max_epochs or 1
        if not trainer.is_global_zero or trainer.sanity_checking:
            return False
        every = max(1, epochs // self.times)
        return trainer.current_epoch % every == 0 or trainer.current_epoch == epochs - 1


class ReadableClasses(L.Callback):
    """End a run at the end of an epoch in which every training image of a class turned out to be unreadable."""

    def on_train_epoch_end(self, trainer: L.Trainer, task: Classify) -> None:
        parts = from_all_processes([index for split, index in task.unreadable if split == "train"])
        failed = {index for part in parts for index in part}
        if not failed:
            return
        samples = trainer.datamodule.listing.splits["train"]
        read = {sample.label for index, sample in enumerate(samples) if index not in failed}
        gone = {sample.label: sample.path for sample in reversed(samples) if sample.label not in read}
        if gone and read:  # where nothing was read at all, the epoch has no loss, which is reported as such
            first = min(gone)
            names = few([task.classes[label] for label in sorted(gone)])
            raise DataError(f"no readable image of {display_path(names)}, for example {display_path(gone[first])}")


class Samples(L.Callback):
    """What the model writes about some validation samples, each time: in the log, and in TensorBoard as text."""

    def on_train_epoch_end(self, trainer: L.Trainer, task: Write) -> None:
        if not trainer.is_global_zero or task.validated != trainer.current_epoch:
            return
        with tqdm.external_write_mode(file=sys.stdout):
            for _, text, ended in task.samples:
                log.info("           %s", display_path(text[:100]) + ("" if ended and not text[100:] else " ..."))
        if task.samples:
            lines = [f"{index}: {text}" for index, text, _ in task.samples]
            _writer(trainer).add_text("val/written", "  \n".join(lines), trainer.global_step)


def _where(trainer: L.Trainer, step: Step) -> str:
    """Which step, at which rate, and what it learned from."""
    names = trainer.datamodule.names([i for indices in step.indices for i in indices.tolist()])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; step {step.number}, rate {step.rate:.3g}, {', '.join(names[:3])}{more}"


def _epoch_metrics(trainer: L.Trainer, task: Task) -> dict[str, float]:
    """The numbers of the epoch that ends; Lightning also keeps those of the last validation, however old."""
    now = {name.removesuffix("_epoch"): float(value) for name, value in trainer.callback_metrics.items()}
    validated = task.validated == trainer.current_epoch
    return {name: value for name, value in now.items() if validated or not name.startswith("val/")}


def _epoch_samples(trainer: L.Trainer) -> int:
    """Return how many samples all devices together draw in an epoch."""
    loader = trainer.train_dataloader
    sampler = getattr(loader.batch_sampler or loader, "sampler", None)  # shards have none of their own
    return len(sampler if isinstance(sampler, EpochSampler) else loader.dataset) * trainer.world_size


def _seen(trainer: L.Trainer, batch: Any) -> int:
    """Return how many samples all devices together took for a batch, unreadable ones included."""
    return (len(batch) + len(batch.failures)) * trainer.world_size


def _global_batch(trainer: L.Trainer) -> int:
    """Samples that all devices together take in one step."""
    loader = trainer.train_dataloader
    return int(loader.batch_size or loader.batch_sampler.batch_size) * trainer.world_size


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6  # bytes there, kilobytes elsewhere


def _writer(trainer: L.Trainer) -> Any:
    assert isinstance(trainer.logger, TensorBoardLogger)
    return trainer.logger.experiment


def _visible(images: torch.Tensor, task: Classify) -> np.ndarray:
    """Normalised images [B, 3, H, W] -> uint8 [B, H, W, 3]."""
    pixels = 255 * (images * task.normalise.std + task.normalise.mean)
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _with_maps(chosen: list[tuple[torch.Tensor, int]], task: Classify) -> list[tuple[np.ndarray, str]]:
    """Each picture, named, beside its map of the class the model answers."""
    network = task.evaluated
    assert isinstance(network, VisionTransformer)
    batch = task.normalise(torch.stack([image for image, _ in chosen]))
    with torch.inference_mode(False):
        maps = attention_maps(network, batch.clone())
    assert maps.targets is not None
    pairs = []
    for (image, label), values, answer in zip(chosen, maps.values.cpu().numpy(), maps.targets, strict=True):
        picture = image.permute(1, 2, 0).cpu().numpy()
        times = max(1, 160 // min(picture.shape[:2]))  # smoothly, where pictures are small
        picture = picture.repeat(times, axis=0).repeat(times, axis=1)
        height, width = picture.shape[:2]
        pairs.append((picture, task.classes[label]))
        box = Box(0, 0, height, width).of_patches(image.shape[-2:], network.architecture.patch_size)
        pairs.append((laid_over(picture, values, box), f"for {task.classes[answer]}"))
    return pairs


def _grid(images: np.ndarray) -> np.ndarray:
    """Pictures uint8 [B, H, W, 3] -> one of them side by side, in rows, uint8 [H', W', 3]."""
    times = max(1, 96 // max(images.shape[1:3]))  # small pictures are shown large
    images = images.repeat(times, axis=1).repeat(times, axis=2)
    side = int(np.ceil(np.sqrt(len(images))))
    missing = side * side - len(images)
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    rows = [np.concatenate(list(images[start : start + side]), axis=1) for start in range(0, side * side, side)]
    return np.concatenate(rows, axis=0)
