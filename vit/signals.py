"""Signals that end a run in order: the first at a point from which it can go on, a later one at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

ONCE = 1.0
"""seconds in which a signal that comes again counts once: `timeout` sends it to the process and to its group"""


class Stop(BaseException):
    """Signal `number` ends what is under way. No Exception: libraries catch those and go on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """What training makes of SIGINT, SIGTERM and SIGHUP, and of SIGUSR1 in a job of SLURM.

    A signal raises `Stop` where it arrives. While `orderly` is set it is only kept in `received`: a training step, or
    the writing of a file, ends first, and whoever trains asks by `check`. Inside `waiting` it raises again, where
    `breaks` allows it: nothing is lost there, and what is waited for may take long.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.orderly = False
        self.breaks = True
        self._since = 0.0
        self._process = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Signals are ours inside, and who had them before has them again after."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return
        self.received, self.orderly, self.breaks, self._process = None, False, True, os.getpid()
        before = self.install()
        try:
            yield
        finally:
            self.orderly = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def install(self) -> dict[int, Any]:
        """Take the signals, once more where a library has put handlers of its own around ours; gives those before."""
        if os.getpid() != self._process:  # `caught` was not asked for
            return {}
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            numbers.append(signal.SIGHUP)
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
            numbers.append(signal.SIGUSR1)
        return {number: signal.signal(number, self._handle) for number in numbers}

    def check(self) -> None:
        """Raise `Stop` where a signal has come."""
        if self.received is not None:
            raise Stop(self.received)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a signal need not be kept."""
        if not (self.orderly and self.breaks):
            yield
            return
        self.orderly = False
        try:
            self.check()
            yield
        finally:
            self.orderly = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that was forked just now; its parent tells it when to end
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            if not self.orderly:
                raise Stop(number)
        elif time.monotonic() - self._since > ONCE:
            os._exit(128 + number)


signals = Signals()


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `Stop`, so that a command removes its unfinished files; SIGINT does by itself.

    Signals that are ignored or handled stay so; `Signals.caught` does more. A forked child ends as if by default, and
    so does the process by a signal that comes again after `ONCE` seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, since = os.getpid(), 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if os.getpid() != process or (since and time.monotonic() - since > ONCE):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not since:
            since = time.monotonic()
            raise Stop(number)

    names = ("SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def end_workers(workers: Sequence[BaseProcess]) -> None:
    """Kill the processes of a loader, for good: torch would take their end for a failure, and raise anywhere."""
    main = threading.current_thread() is threading.main_thread()
    if workers and main and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
