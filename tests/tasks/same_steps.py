"""A program that a test starts once a process: twenty steps of 8 pictures, shared by the processes there are.

usage: same_steps.py DATA RUN [KEY=VALUE ...]
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from tiny_runs import tiny, train

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


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data, run = map(Path, sys.argv[1:3])
    train(data, run, twenty_steps(4, devices=2, **dict(word.split("=") for word in sys.argv[3:])))
