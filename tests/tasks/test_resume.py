"""A run that was killed at any moment goes on as if it had not been: bit for bit, without holes and doubles."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killed import At, assert_same, done, ended, in_a_fork, left
from tiny_runs import tiny, train

SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"batch_size": 4},  # 6 steps an epoch
    "model": {"dropout": 0.2, "drop_path": 0.2},
    "augment": {"mixup": 0.5, "cutmix": 0.5},
    "train": {"epochs": 3, "ema": 0.9, "save_steps": 1},
}


def settings(**parts: dict[str, Any]) -> Any:
    return tiny(**{name: SETTINGS.get(name, {}) | parts.get(name, {}) for name in {*SETTINGS, *parts}})


MOMENTS = [
    ("on_before_optimizer_step", 8),
    ("on_train_batch_end", 5),  # the last batch of an epoch
    ("on_validation_batch_end", 1),
    ("on_validation_end", 1),
    ("on_train_epoch_end", 0),
    ("on_save_checkpoint", 9),
]


@pytest.mark.parametrize(
    ("workers", "moments"),
    [
        (0, MOMENTS[1:4]),
        (2, MOMENTS[:1]),
        pytest.param(0, MOMENTS, marks=pytest.mark.slow),
        pytest.param(2, MOMENTS, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    workers: int, moments: list[tuple[str, int]], colours: Path, tmp_path: Path
) -> None:
    config = settings(data={"workers": workers})
    done(lambda: train(colours, tmp_path / "whole", config))
    whole = left(tmp_path / "whole")
    assert len(whole["rows"]) == 3
    for hook, nth in moments:
        run = tmp_path / f"{hook}-{nth}"
        killed = in_a_fork(partial(train, colours, run, config, callbacks=(At(hook, nth),)))
        assert ended(killed) == -signal.SIGKILL
        done(partial(train, colours, run, config, resume=run / "checkpoints" / "last.ckpt"))
        assert_same(whole, left(run))
