"""Runs in processes of their own that end badly, and what a run left behind, for tests that compare the two."""

import csv
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMES = ("seconds", "train/images_per_second", "train/memory_gb")


def in_a_fork(job: Callable[[], Any]) -> int:
    """Start `job` in a fork of this process, which has imported all already; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)  # those of the parent are not in the fork
        job()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """How a fork ended: 0, an exit code, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def done(job: Callable[[], Any]) -> None:
    """Do `job` in a fork, to its end."""
    assert ended(in_a_fork(job)) == 0


class At(L.Callback):
    """Sends itself a signal in a hook, the n-th time it is called (from 0)."""

    def __init__(self, hook: str, nth: int, number: int = signal.SIGKILL) -> None:
        calls = iter(range(1 << 30))

        def strike(*_: Any) -> None:
            if next(calls) == nth:
                os.kill(os.getpid(), number)

        setattr(self, hook, strike)


def left(run: Path, *, names: tuple[str, ...] = ("last", "best")) -> dict[str, Any]:
    """What must be the same of two runs: weights, states, rows and events but for times."""
    found: dict[str, Any] = {}
    for name in names:
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        keeper = checkpoint["callbacks"]["Keeper"]
        found |= _flat(checkpoint["state_dict"], f"{name} weights")
        found |= _flat(checkpoint["optimizer_states"], f"{name} optimizer")
        found |= _flat(checkpoint["lr_schedulers"], f"{name} schedule")
        found |= _flat(checkpoint["loops"], f"{name} loops")
        if name == "last":
            found |= _flat({k: v for k, v in keeper["metrics"].items() if k not in TIMES}, "metrics")
            kept = [state for key, state in checkpoint["callbacks"].items() if "Best" in key or "Patience" in key]
            found |= _flat(
                [{k: v for k, v in s.items() if "path" not in k and k != "best_k_models"} for s in kept], "best"
            )
    found.pop("best dirpath", None)
    with (run / "metrics.csv").open(newline="") as file:
        found["rows"] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        scalars = events.Scalars(tag)
        found[f"steps of {tag}"] = [event.step for event in scalars]
        if tag not in TIMES:
            found[f"events of {tag}"] = [event.value for event in scalars]
    for tag in events.Tags()["images"]:
        found[f"pictures of {tag}"] = [event.step for event in events.Images(tag)]
    return found


def _flat(value: Any, name: str) -> dict[str, Any]:
    """Nested values by their place; tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return {
            name: (value.dtype, tuple(value.shape), value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        }
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name} {key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{name} {i}").items()}
    return {name: value}


def assert_same(whole: dict[str, Any], cut: dict[str, Any]) -> None:
    """Both hold the same; names what does not."""
    assert whole.keys() == cut.keys()
    different = [name for name in whole if whole[name] != cut[name]]
    assert not different, different[:8]
