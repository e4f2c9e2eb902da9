"""Keep libraries from talking over us."""

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator

from vit.errors import Interrupted


def quiet_lightning() -> None:
    """Silence hints that are no business of a user of `vit`; our own messages go through the logger `vit`."""
    import lightning.fabric as fabric  # both set their loggers up anew when they are imported
    import lightning.pytorch as pytorch

    for package in (fabric, pytorch):
        logging.getLogger(package.__name__).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*lr_scheduler.step.*optimizer.step.*",
        ".*isn't a directory to save.*",
        ".*LeafSpec.*",
        ".*your dataloader is not resumable.*",  # ours begin at the place by themselves
        ".*IterableDataset. has .__len__. defined.*",
    ):
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def signals_as_errors() -> Iterator[None]:
    """Lightning ends the process by itself at a signal, with exit code 0 or 1; here it becomes `Interrupted`."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except SIGTERMException as error:
        raise Interrupted(signal.SIGTERM, "terminated") from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise Interrupted(signal.SIGINT, "interrupted") from error
