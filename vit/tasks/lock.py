"""The folder of a run: empty when it begins, and of one run at a time."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from vit.errors import ConfigError, display_path
from vit.files import dump_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_BEGUN = {"config.yaml", "classes.json", "split.csv", "data.json", "tokenizer.json", "environment.json"}
_BEGUN |= {"unreadable.csv"}
_BEGUN |= {"checkpoints", "tensorboard", "metrics.csv", "log.txt", LOCK}


def prepare_folder(run: Path) -> None:
    """Make an empty run folder; that of a run which ended before it saved anything keeps its log alone.

    Raises ConfigError where there is something else in it already.
    """
    if _only_begun(run):
        for entry in run.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in (LOCK, "log.txt"):
                entry.unlink()
    else:
        refuse_used(run)
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / ".writable").touch()
        (run / "checkpoints" / ".writable").unlink()
    except OSError as error:
        raise ConfigError(f"--out {display_path(run)}: {(error.strerror or str(error)).lower()}") from error


def refuse_used(run: Path) -> None:
    """Raise ConfigError for a folder that holds anything, but for a run that has only begun."""
    if run.is_dir() and any(entry.name != LOCK for entry in run.iterdir()) and not _only_begun(run):
        saved = (run / "checkpoints" / "last.ckpt").is_file()
        remedy = "name another, or go on with its run by --resume" if saved else "name another, or empty it"
        raise ConfigError(f"--out {display_path(run)}: not empty; {remedy}")


def _only_begun(run: Path) -> bool:
    """Whether a folder holds what a run writes before its first checkpoint, and nothing else."""
    if not (run / "checkpoints").is_dir() or not (run / "log.txt").is_file():
        return False
    kept = [path for path in (run / "checkpoints").iterdir() if not path.name.endswith(".part")]
    return not kept and all(entry.name in _BEGUN or entry.name.endswith(".part") for entry in run.iterdir())


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/.lock, which exists, as long as the block runs. Raises ConfigError naming the process that holds it.

    The lock is the operating system's (fcntl's, which holds on NFS as well, and which worker processes do not inherit):
    however the process ends, it is free. So a file that a killed run left behind stops nobody. Where there are no such
    locks, there is none.
    """
    path = run / LOCK
    try:
        file = _taken(path)
    except OSError as error:
        raise ConfigError(f"--out {display_path(run)}: {(error.strerror or str(error)).lower()}") from error
    try:
        file.seek(0)
        file.truncate()
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        file.write(dump_json(facts) + "\n")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()


def _taken(path: Path) -> IO[str]:
    """The lock's file, open, locked, and still the one of that name."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with file:
                file.seek(0)
                raise ConfigError(f"--out {display_path(path.parent)}: {_holder(file.read())}") from None
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(FileNotFoundError):  # the one who had it has removed it just now
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _holder(told: str) -> str:
    try:
        facts = json.loads(told)
        return f"process {facts['pid']} on {facts['host']} has been writing there since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process is writing there"
