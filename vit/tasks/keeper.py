"""What lets a run stop at any step and go on as if it had not: its last checkpoint, and the place in it."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from vit.data.module import place_of
from vit.errors import Interrupted, ModelFileError, VitError, shell_quote
from vit.files import write_text
from vit.signals import Stop, signals
from vit.tasks.base import Task, diverged
from vit.tasks.checkpoints import require_finite
from vit.tasks.config import Config
from vit.tasks.rows import from_all_processes

log = logging.getLogger("vit")

_EVENTS = "tensorboard/events.out.tfevents."


class Keeper(L.Callback):
    """Writes last.ckpt between two steps, and ends the run there when a signal has come.

    Between two steps means: when the next batch is there and nothing of it is done; before a validation; when an epoch
    begins; at the end. All that callbacks and loggers have to write about a step is written by then, and how long
    metrics.csv and the events of TensorBoard were is kept as well: `rewind` takes away what a killed run wrote after.
    This callback comes before all that write something when a batch or an epoch begins.
    """

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.config = run, config
        self.last = run / "checkpoints" / "last.ckpt"
        self.state: dict[str, Any] | None = None
        self.stepped = False
        """whether this process has taken a step: what a resumed run restores has been used then"""
        self.place: tuple[int, int] | None = None
        """what last.ckpt holds; nothing before training starts"""
        self._since, self._step = time.monotonic(), 0

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the epoch needs, and Lightning does not keep."""
        return self.state or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict

    def on_train_start(self, trainer: L.Trainer, task: Task) -> None:
        signals.install()  # Lightning has put its own handler of SIGTERM around ours
        signals.orderly, signals.breaks = True, trainer.world_size == 1
        self._since, self._step, self.place = time.monotonic(), trainer.global_step, place_of(trainer)
        if self.state is not None:
            trainer.callback_metrics.update({k: torch.tensor(v) for k, v in self.state["metrics"].items()})
            task.unreadable.update({(split, index): reason for split, index, reason in self.state["unreadable"]})
            task.sums = {name: value.to(task.device) for name, value in self.state["sums"].items()}
        self._validate_last(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, task: Task) -> None:
        self._save(trainer, task)
        self._validate_last(trainer)
        self._end_if_asked(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, task: Task, batch: Any, index: int) -> None:
        if index % trainer.accumulate_grad_batches:
            return
        if self._due(trainer):
            self._save(trainer, task)
        # asking all devices costs a little: not after every step
        if trainer.world_size == 1 or index % (16 * trainer.accumulate_grad_batches) == 0:
            self._end_if_asked(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, task: Task, outputs: Any, batch: Any, index: int) -> None:
        self.stepped = True
        # waiting for the next batch may be broken off where no gradient is under way
        signals.breaks = trainer.world_size == 1 and (index + 1) % trainer.accumulate_grad_batches == 0

    def on_validation_start(self, trainer: L.Trainer, task: Task) -> None:
        signals.breaks = trainer.world_size == 1
        if self._due(trainer):
            self._save(trainer, task)
        self._end_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, task: Task) -> None:
        self._save(trainer, task)

    def on_exception(self, trainer: L.Trainer, task: Task, exception: BaseException) -> None:
        signals.orderly = True  # nothing breaks off what is written now
        if isinstance(exception, Stop) and self.place is not None:
            self._save(trainer, task)

    def teardown(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        signals.orderly = False

    def on_save_checkpoint(self, trainer: L.Trainer, task: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning's counters as they are between two steps, whichever of its hooks this is."""
        loops = checkpoint["loops"]["fit_loop"]
        epoch, batch = place_of(trainer)
        within, last = int(batch > 0), batch > 0 and batch == trainer.num_training_batches
        epochs = {"ready": epoch + within, "started": epoch + within, "processed": epoch, "completed": epoch}
        loops["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
        done = loops["epoch_loop.batch_progress"]["total"]["completed"]
        loops["epoch_loop.batch_progress"] = {"total": _all(done), "current": _all(batch), "is_last_batch": last}
        # a validation that is still to come looks like one that was begun
        begun = {"ready": int(last), "started": int(last), "processed": 0, "completed": 0}
        loops["epoch_loop.val_loop.batch_progress"] = {
            "total": dict(begun),
            "current": dict(begun),
            "is_last_batch": False,
        }
        loops["state_dict"].pop("combined_loader", None)
        checkpoint["epoch"] = epoch if within else max(0, epoch - 1)  # the last one that was begun

    def told(self, number: int) -> Interrupted:
        """What to tell the user, and the exit code, after the signal that ended the run."""
        if self.place is None:
            remedy = self._remedy() if self.last.is_file() else "the same command begins again"
            return Interrupted(number, f"stopped before training began; {remedy}")
        epoch, batch = self.place
        place = f"in epoch {epoch + 1} after batch {batch}" if batch else f"in epoch {epoch + 1} before its first batch"
        if epoch == self.config.train.epochs:
            place = "after the last epoch"
        return Interrupted(number, f"stopped {place}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"go on from there by: vit train --out {shell_quote(self.run)} --resume"

    def _due(self, trainer: L.Trainer) -> bool:
        train = self.config.train
        steps = train.save_steps > 0 and trainer.global_step - self._step >= train.save_steps
        late = train.save_minutes > 0 and time.monotonic() - self._since >= 60 * train.save_minutes
        if train.save_minutes and trainer.world_size > 1:  # clocks differ
            late = trainer.strategy.broadcast(late)
        return steps or late

    def _save(self, trainer: L.Trainer, task: Task) -> None:
        """Write last.ckpt, where there is something new. Raises VitError where a weight is no number."""
        place = place_of(trainer)
        if place == self.place and self.last.is_file():
            return
        if task.device_mesh is not None and trainer.global_step == 0:
            return  # of weights that are shared out, torch would make the moments by a step of its own, which counts
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.started != progress.completed and progress.ready != progress.completed:
            return  # within a step: never, but a checkpoint of half a step would be wrong without a sign
        self._require_finite(trainer, task)
        unreadable = from_all_processes([(split, index, why) for (split, index), why in task.unreadable.items()])
        self.state = {
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "sums": {name: value.cpu() for name, value in task.sums.items()} if place[1] else {},
            "unreadable": sorted({entry for part in unreadable for entry in part}),
            "written": written(self.run, trainer) if trainer.is_global_zero else {},
        }
        trainer.save_checkpoint(self.last, storage_options={"keep": self.config.train.keep})
        self._since, self._step, self.place = time.monotonic(), trainer.global_step, place

    def _require_finite(self, trainer: L.Trainer, task: Task) -> None:
        try:
            require_finite(task.state_dict(), self.last)
        except VitError as error:
            raise diverged(float("nan"), trainer.current_epoch, self.config, what="weights") from error

    def _end_if_asked(self, trainer: L.Trainer) -> None:
        if trainer.world_size == 1:
            signals.check()
        elif trainer.strategy.reduce_boolean_decision(signals.received is not None, all=False):
            raise Stop(signals.received or 15)

    def _validate_last(self, trainer: L.Trainer) -> None:
        """The last epoch is validated, whether or not its turn has come."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if last else self.config.train.validate_every


class ResumedSettings(L.Callback):
    """Writes the settings of a resumed run once it has accepted them, that is when all that may refuse them is done.

    A run that refused its new settings can still be resumed with the old ones. Comes after all other callbacks.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        write_text(self.path, self.text)

    def on_fit_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        write_text(self.path, self.text)  # a run that has no epoch left does not start


def _require_scalars(state: Mapping[str, Any], *names: str) -> None:
    """Raise TypeError where an entry is not a number; Lightning would fail on it epochs later."""
    for name in names:
        value = state[name]
        scalar = isinstance(value, torch.Tensor) and value.numel() == 1
        if not (value is None or scalar or type(value) in (int, float)):
            raise TypeError(f"{name} is not a number")


class Best(ModelCheckpoint):
    """best.ckpt. What was best is known again after a resume, wherever the run folder has been moved to."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _require_scalars(state_dict, "best_model_score", "current_score")
        path = str(Path(self.dirpath or "") / "best.ckpt")
        moved = dict(state_dict, dirpath=self.dirpath)
        moved["best_k_models"] = dict.fromkeys(state_dict["best_k_models"] and [path], state_dict["best_model_score"])
        for name in ("best_model_path", "kth_best_model_path"):
            moved[name] = path if state_dict[name] else ""
        super().load_state_dict(moved)
        self.current_score = state_dict["current_score"]


class Patience(EarlyStopping):
    """Stops early; a run that goes on may be given more patience than it had, and stops at once where it has none."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _require_scalars(state_dict, "best_score", "wait_count")
        super().load_state_dict(dict(state_dict, patience=self.patience))

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def written(run: Path, trainer: L.Trainer) -> dict[str, int]:
    """How many bytes metrics.csv and the files of TensorBoard hold, by their path in the run folder."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
    files = [run / "metrics.csv", *run.glob(f"{_EVENTS}*")]
    return {file.relative_to(run).as_posix(): file.stat().st_size for file in files if file.is_file()}


def rewind(run: Path, checkpoint: Mapping[str, Any]) -> None:
    """Take from metrics.csv and from TensorBoard's events what was written after the checkpoint.

    Raises ModelFileError, and changes nothing, where the checkpoint does not say how long they were.
    """
    try:
        sizes = {str(name): int(size) for name, size in checkpoint["callbacks"]["Keeper"]["written"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(
            f"{run}: its checkpoint is damaged: callbacks.Keeper.written is missing or wrong"
        ) from error
    for file in (run / "metrics.csv", *run.glob(f"{_EVENTS}*")):
        size = sizes.get(file.relative_to(run).as_posix(), 0)
        if size == 0:
            file.unlink(missing_ok=True)
        elif file.stat().st_size > size:
            os.truncate(file, size)


def _all(count: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "completed", "started", "processed"), count)
