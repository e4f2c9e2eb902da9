"""How the learning rate moves: warm-up, cosine, stable and decay, and that it holds still within an epoch."""

import itertools
import math
from typing import Any

import pytest
import torch

from vit.tasks.config import ScheduleConfig
from vit.tasks.optim import make_schedule, rate


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step.*")
def rates(steps: int, per_epoch: float, **settings: Any) -> list[float]:
    """The share of the highest rate that every step is taken with."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, ScheduleConfig(**settings), steps=steps, steps_per_epoch=per_epoch)
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return taken


def falls(values: list[float]) -> bool:
    return all(b <= a for a, b in itertools.pairwise(values))


def rises(values: list[float]) -> bool:
    return all(b >= a for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("name", ["cosine", "constant", "wsd"])
def test_the_warm_up_rises_in_a_line_and_never_starts_at_zero(name: str) -> None:
    taken = rates(20, 5, name=name, unit="steps", warmup=8)
    assert taken[:7] == pytest.approx([step / 8 for step in range(1, 8)])
    assert max(taken) == pytest.approx(1)


@pytest.mark.parametrize("unit", ["steps", "epochs"])
@pytest.mark.parametrize("warmup", [0, 0.3, 1, 1.7, 2, 100])
@pytest.mark.parametrize("name", ["cosine", "constant", "wsd"])
def test_the_rate_is_never_zero_and_rises_before_it_falls(name: str, warmup: float, unit: str) -> None:
    taken = rates(40, 10, name=name, unit=unit, warmup=warmup)
    peak = taken.index(max(taken))
    assert min(taken) > 0
    assert max(taken) <= 1
    assert rises(taken[: peak + 1])
    assert falls(taken[peak:])


def test_a_cosine_in_steps_is_half_a_cosine_down_to_the_final_share() -> None:
    taken = rates(30, 10, unit="steps", warmup=10, final=0.1)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 20)) / 2 for step in range(11, 31)]
    assert taken[10:] == pytest.approx(expected)
    assert taken[-1] == pytest.approx(0.1)


def test_a_cosine_in_epochs_ends_close_to_the_final_share() -> None:
    taken = rates(500, 10, warmup=3, final=0.01)
    assert taken[-1] == pytest.approx(0.01, abs=0.002)


def test_wsd_is_stable_then_decays_in_a_line() -> None:
    taken = rates(100, 10, name="wsd", unit="steps", warmup=10, final=0.2, decay_fraction=0.25)
    assert taken[9:75] == pytest.approx([1.0] * 66)
    assert taken[75:] == pytest.approx([0.2 + 0.8 * (1 - step / 25) for step in range(1, 26)])


def test_constant_stays_after_the_warm_up() -> None:
    assert rates(12, 3, name="constant", unit="steps", warmup=2)[1:] == [1.0] * 11


@pytest.mark.parametrize("per_epoch", [7, 2.5])
def test_in_epochs_the_rate_holds_still_within_one_and_changes_between_them(per_epoch: float) -> None:
    epochs = 6
    steps = int(per_epoch * epochs)
    taken = rates(steps, steps / epochs, warmup=1)
    by_epoch = [{rate for step, rate in enumerate(taken) if step // per_epoch == epoch} for epoch in range(epochs)]
    assert all(len(rates) == 1 for rates in by_epoch[1:])
    values = [rates.pop() for rates in by_epoch[1:]]
    assert len(set(values)) == len(values)
    assert falls(values)


def test_the_share_at_the_ends_of_training() -> None:
    config = ScheduleConfig(final=0.25)
    assert rate(0.5, 0.5, config) == 1.0
    assert rate(1.0, 0.0, config) == pytest.approx(0.25)
    assert rate(1.0, 1.0, config) == 1.0  # all warm-up
    assert rate(1.0, 0.0, ScheduleConfig(name="wsd", final=0.0)) == 0.0


@pytest.mark.parametrize(("epochs", "expected"), [(100, 3 / 100), (30, 0.1), (5, 0.1)])
def test_the_warm_up_is_three_epochs_but_no_more_than_a_tenth_of_training(epochs: int, expected: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = 20 * epochs
    schedule = make_schedule(optimizer, ScheduleConfig(name="constant"), steps=steps, steps_per_epoch=20)
    rates = [schedule.lr_lambdas[0](step) for step in range(steps)]
    assert sum(rate < 1 for rate in rates) == pytest.approx(expected * steps, abs=1)
