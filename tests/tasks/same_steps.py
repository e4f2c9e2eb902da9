"""A program that a test starts once a process: twenty steps of 8 pictures, shared by the processes there are.

usage: same_steps.py DATA RUN [stop | resume] [KEY=VALUE ...]

With `stop` a signal comes when the batches of the second epoch are done, and its validation is not.
"""

import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tiny_runs import tiny, train

from vit.errors import Interrupted
from vit.signals import Stop
from vit.tasks.config import Config


def twenty_steps(batch_size: int, **settings: Any) -> Config:
    """Four epochs of 40 pictures, 8 a step: `batch_size` by devices or accumulated batches that `settings` tell of.

    Gradients that are zero but for rounding, as of the biases of keys, are divided by their own size in Adam: eps lies
    above them, else such weights would differ by whole steps, to no effect.
    """
    return tiny(
        data={"batch_size": batch_size},
        optim={"lr": 3e-3, "eps": 1e-4},
        train={"epochs": 4, "ema": 0.9, "strategy": "auto", **settings},
    )


class StopBeforeValidation(L.Callback):
    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise Stop(signal.SIGTERM)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data, run = map(Path, sys.argv[1:3])
    words = sys.argv[3:]
    config = twenty_steps(4, devices=2, **dict(word.split("=") for word in words if "=" in word))
    resume = run / "checkpoints" / "last.ckpt" if "resume" in words else None
    try:
        train(data, run, config, resume=resume, callbacks=(StopBeforeValidation(),) if "stop" in words else ())
    except Interrupted as error:
        print(error)
