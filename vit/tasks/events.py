"""TensorBoard's events of a run. They may fail, on a full disk, without the run: that ends by a checkpoint it lacks."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from vit.files import not_written

log = logging.getLogger("vit")


class Events(TensorBoardLogger):
    """Writes RUN/tensorboard; what cannot be written is told once, and left out."""

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run, name="", version="tensorboard", default_hp_metric=False)
        self._spared: _Spared | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """torch's SummaryWriter, whose failures are no errors."""
        if self._spared is None:
            threading.excepthook = _without_tensorboard(threading.excepthook)
            self._spared = _Spared(super().experiment, Path(self.log_dir))
        return self._spared


class _Spared:
    """A writer whose methods do nothing where the disk refuses."""

    def __init__(self, writer: Any, folder: Path) -> None:
        self._writer, self._folder = writer, folder
        self._told = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._writer, name)
        return self._sparing(found) if callable(found) else found

    def _sparing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def spared(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except OSError as error:
                if not self._told:
                    log.info("left out   %s", not_written(self._folder, error))
                    self._told = True
                return None

        return spared


def _without_tensorboard(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A hook for what ends a thread: TensorBoard's own, which writes, is told by the next call of its writer."""

    def hook(args: Any) -> Any:
        if isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard."):
            return None
        return before(args)

    return hook
