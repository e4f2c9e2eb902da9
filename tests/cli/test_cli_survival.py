"""A run that is stopped by a signal, a fault or another run: what it says, its exit code, and that it goes on."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "tasks"))
from killed import assert_same, ended, in_a_fork, left
from tiny_runs import draw_folder

import vit.cli.report  # what a fork need not import then
import vit.data.augment
import vit.tasks.run  # noqa: F401
from vit.cli.main import main
from vit.tasks.callbacks import Pictures

EYES = ["--model.name=micro/8", "--model.image_size=16", "--model.depth=1", "--model.dim=32", "--model.heads=2"]
EYES += ["--model.hidden=32", "--data.batch_size=4", "--data.cache=none", "--train.accelerator=cpu", "--optim.lr=0.003"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, in steps of 4, and 10 to validate on."""
    return draw_folder(tmp_path_factory.mktemp("colours"))


class Run:
    """`vit` in a fork, its output in files; hooks of a callback may do something in it."""

    def __init__(self, folder: Path, words: list[object], hooks: dict[str, Callable[..., None]]) -> None:
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        self.pid = in_a_fork(lambda: self._main([str(word) for word in words], hooks))

    def _main(self, words: list[str], hooks: dict[str, Callable[..., None]]) -> None:
        os.setsid()
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        made = vit.tasks.run._callbacks

        def callbacks(*args: Any) -> list[Any]:
            extra = vit.tasks.run.L.Callback()
            for name, hook in hooks.items():
                setattr(extra, name, hook)
            return [*(c for c in made(*args) if not isinstance(c, Pictures)), extra]

        vit.tasks.run._callbacks = callbacks
        code = main(words)
        sys.stderr.flush()
        os._exit(code)

    def ended(self) -> tuple[int, str]:
        """Exit code and standard error."""
        return ended(self.pid), self.err.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs = []

    def run(*words: object, **hooks: Callable[..., None]) -> Run:
        runs.append(Run(tmp_path, [*words], hooks))
        return runs[-1]

    yield run
    for each in runs:  # those that a failed test left
        try:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def nth(n: int, act: Callable[[], None]) -> Callable[..., None]:
    """A hook that acts when it is called the n-th time, from 0."""
    calls = iter(range(1 << 30))

    def hook(*_: Any) -> None:
        if next(calls) == n:
            act()

    return hook


def to_itself(number: int, *, group: bool = False) -> Callable[[], None]:
    return lambda: (os.killpg if group else os.kill)(os.getpid(), number)


MOMENTS = {
    "training": ("on_train_batch_end", 7, "in epoch 2 after batch 2"),
    "the first batch": ("on_train_batch_start", 0, "in epoch 1 after batch 1"),
    "the last batch": ("on_train_batch_end", 5, "in epoch 1 after batch 6"),
    "validation": ("on_validation_batch_end", 1, "in epoch 1 after batch 6"),
    "saving": ("on_save_checkpoint", 2, "in epoch 2 before its first batch"),
    "the end of an epoch": ("on_train_epoch_end", 0, "in epoch 2 before its first batch"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_step_and_the_run_goes_on_there(
    moment: str, workers: int, start: Any, colours: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    hook, n, place = MOMENTS[moment]
    number = signal.SIGINT if moment in ("validation", "training") else signal.SIGTERM
    run = tmp_path / "run"
    # with workers, the whole group gets it, as from `timeout` or a terminal
    strike = nth(n, to_itself(number, group=workers > 0))
    words = ["train", colours, *EYES, "--train.epochs=3", f"--data.workers={workers}", "--out", run]
    began = start(*words, **{hook: strike})
    assert began.ended() == (128 + number, f"vit: stopped {place}; go on from there by: vit train --out {run} --resume\n")
    assert (run / "model.safetensors").is_file()
    assert start("train", "--out", run, "--resume").ended() == (0, "")
    assert_same(whole, left(run))


@pytest.fixture(scope="module")
def whole(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", folder / "run"]
    assert Run(folder, words, {}).ended() == (0, "")
    return left(folder / "run")
