"""Devices: which one a process has, in which precision it computes, and several processes as one."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from vit.errors import ConfigError
from vit.tasks.config import TrainConfig


def device_for(accelerator: str, devices: int | str = "auto") -> str:
    """The device of `train.accelerator` and `train.devices` for a process that needs but one.

    Raises ConfigError where it is not here.
    """
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        place = int(os.environ.get("LOCAL_RANK", 0))  # each of several processes has its own
        named = [number for number in str(devices).split(",") if number.strip()] if "," in str(devices) else []
        return f"cuda:{int(named[place]) if place < len(named) else place}"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    if accelerator in ("gpu", "mps"):
        raise ConfigError(f"accelerator: torch finds no {accelerator} on this machine")
    return "cpu"


def devices_for(accelerator: str, asked: str) -> int:
    """How many processes are to be started, one a device: `asked`, or, for auto, one for each GPU; one among several.

    Raises ConfigError for more GPUs than there are.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    gpus = torch.cuda.device_count() if device_for(accelerator).startswith("cuda") else 0
    number = max(1, gpus) if asked == "auto" else int(asked)
    if gpus and number > gpus:
        raise ConfigError(f"devices: torch finds {gpus} on this machine, not {number}")
    return number


def settled_precision(train: TrainConfig) -> Literal["fp32", "bf16", "fp16"]:
    """`auto` is bf16 where a GPU has it, else fp32."""
    if train.precision != "auto":
        return train.precision
    on_gpu = train.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


@contextlib.contextmanager
def distributed() -> Iterator[int]:
    """Inside, processes that torchrun started share pictures out among themselves; gives this one's rank.

    What they tell each other are rows of numbers at the end, for which gloo serves on every device.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0
        return
    dist.init_process_group("gloo", timeout=timedelta(days=1))  # one may have much slower pictures than another
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def launch(devices: int, words: Sequence[str]) -> int:
    """Run `vit WORDS` as so many processes of this machine, as torchrun would. Returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    several = LaunchConfig(
        1, 1, devices, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, run_id="evaluate"
    )
    try:
        elastic_launch(several, sys.executable)("-m", "vit.cli", *words)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
