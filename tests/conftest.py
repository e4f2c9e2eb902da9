"""What tests of several parts share: a tiny picture folder, and a run trained on it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
"""the classes of the tiny folder, and the mean colour of their pictures"""

PER_CLASS = 12

TINY = [
    "--model.name=micro/8",
    "--model.image_size=16",
    "--model.dim=32",
    "--model.depth=2",
    "--model.heads=2",
    "--model.hidden=64",
    "--data.workers=0",
    "--train.accelerator=cpu",
]


def noisy_picture(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 30, (24, 24, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small sums are slower on several threads, far slower where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA/blue, green, red with 12 pictures of 24 x 24 pixels each, half JPEG, half PNG. Not to be changed."""
    root = tmp_path_factory.mktemp("colours") / "colours"
    for number, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            suffix = "png" if i % 2 else "jpg"
            noisy_picture(colour, 100 * number + i).save(root / name / f"{i:02}.{suffix}")
    return root


@pytest.fixture(scope="session")
def train() -> Callable[..., None]:
    """Run `vit train` with words, for runs that several tests share."""
    from vit.cli.main import main

    def run(*words: object) -> None:
        with unchanged_process():
            assert main(["train", *map(str, words)]) == 0

    return run


@pytest.fixture(scope="session")
def trained_run(colour_folder: Path, train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two epochs on `colour_folder`. Not to be changed: reports go elsewhere by --out."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(colour_folder, *TINY, "--train.epochs=2", "--out", run)
    return run


@pytest.fixture
def tiny() -> list[str]:
    """Settings of a model that trains in a second."""
    return list(TINY)


@pytest.fixture
def picture() -> Callable[[str, int], Image.Image]:
    """Make a picture of one of the tiny folder's classes; another seed, another picture."""
    return lambda name, seed: noisy_picture(COLOURS[name], seed)


@pytest.fixture
def untouched_process() -> Iterator[None]:
    """For tests that train in this process: signal handlers, environment and sys.argv are as before afterwards."""
    with unchanged_process():
        yield


class unchanged_process:
    """Puts back what a training run changes about its process."""

    def __enter__(self) -> None:
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.environment, self.argv = dict(os.environ), list(sys.argv)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv[:] = self.argv
