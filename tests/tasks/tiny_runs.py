"""A folder of two colours and the smallest configuration that learns it, for the tests of this folder."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image

from vit.cli.config import to_yaml
from vit.data.config import AugmentConfig, DataConfig
from vit.data.folders import list_training
from vit.models.architecture import ModelConfig
from vit.tasks.callbacks import Pictures
from vit.tasks.classify import Classify
from vit.tasks.config import Config, LossConfig, OptimConfig, ScheduleConfig, TrainConfig, TuneConfig
from vit.tasks.lock import prepare_folder
from vit.tasks.run import Setup, describe_folder, fit, make_task, make_trainer, set_up

NAMES = {"red": (200, 40, 40), "blue": (40, 40, 200)}


def draw_folder(root: Path, train: int = 12, val: int = 5, side: int = 16) -> Path:
    """ROOT/train and ROOT/val with `train` and `val` noisy pictures of each colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in NAMES.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.array(colour) + rng.integers(-40, 40, (side, side, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def tiny(**parts: dict[str, Any]) -> Config:
    """A configuration with dim 32, depth 2, pictures of 16 pixels; `parts` change single keys."""
    defaults: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 8, "workers": 0},
        "augment": {},
        "model": {"name": "micro/8", "image_size": 16, "dim": 32, "depth": 2, "heads": 2, "hidden": 48},
        "optim": {"lr": 3e-3},
        "schedule": {"warmup": 0.5},
        "loss": {},
        "train": {"epochs": 3, "accelerator": "cpu", "devices": 1},
        "tune": {},
    }
    types = {
        "data": DataConfig,
        "augment": AugmentConfig,
        "model": ModelConfig,
        "optim": OptimConfig,
        "schedule": ScheduleConfig,
        "loss": LossConfig,
        "train": TrainConfig,
        "tune": TuneConfig,
    }
    return Config(**{name: types[name](**(values | parts.get(name, {}))) for name, values in defaults.items()})


Trained = tuple[Setup, Classify, L.Trainer]


def train(
    data: Path,
    run: Path,
    config: Config,
    *,
    resume: Path | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    pictures: bool = False,
) -> Trained:
    """What `vit train` does, without its words; pictures for TensorBoard, a second an epoch, only where asked for."""
    listing = list_training(data, val_fraction=0.2, test_fraction=0.0, seed=config.train.seed)
    setup = set_up(listing, config)
    L.seed_everything(config.train.seed, workers=True, verbose=False)
    if resume is None and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        prepare_folder(run)
        describe_folder(setup, run, to_yaml(setup.config))
    task = make_task(setup)
    trainer = make_trainer(setup.config, run)
    trainer.callbacks = [c for c in trainer.callbacks if pictures or not isinstance(c, Pictures)] + list(callbacks)
    fit(setup, run, trainer, task, resume=resume)
    return setup, task, trainer


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states hold the same tensors, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
