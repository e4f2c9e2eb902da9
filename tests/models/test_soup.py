"""Averages of weights: uniform, greedy, and what cannot be averaged."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.models.soup import greedy_soup, uniform_soup


def state(value: float) -> dict[str, Tensor]:
    return {"w": torch.full((2, 2), value), "b": torch.full((2,), 2 * value, dtype=torch.bfloat16)}


def test_a_uniform_soup_is_the_mean_in_each_tensors_type() -> None:
    average = uniform_soup([state(1.0), state(2.0), state(6.0)])
    assert torch.equal(average["w"], torch.full((2, 2), 3.0))
    assert torch.equal(average["b"], torch.full((2,), 6.0, dtype=torch.bfloat16))
    assert torch.equal(uniform_soup([state(0.1)])["w"], state(0.1)["w"])


def distance_to(target: float) -> tuple[list[float], "Score"]:
    calls: list[float] = []
    return calls, Score(target, calls)


class Score:
    """Higher the nearer the weights are to a target; notes what it was asked."""

    def __init__(self, target: float, calls: list[float]) -> None:
        self.target, self.calls = target, calls

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        value = float(weights["w"].mean())
        self.calls.append(value)
        return -abs(value - self.target)


def test_a_greedy_soup_keeps_what_does_not_lower_the_score() -> None:
    calls, score = distance_to(3.0)
    soup, kept = greedy_soup([state(9.0), state(2.0), state(4.5)], score)
    assert calls == pytest.approx([9.0, 2.0, 4.5, (2.0 + 4.5) / 2, (2.0 + 4.5 + 9.0) / 3])
    assert kept == [1, 2]  # best first; the third would lead away
    assert float(soup["w"].mean()) == pytest.approx(3.25)


def test_a_greedy_soup_is_never_worse_than_its_best_part() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = (10 * torch.rand(5, generator=generator)).tolist()
        _, score = distance_to(4.0)
        soup, kept = greedy_soup([state(value) for value in values], score)
        assert score(soup) >= max(score(state(value)) for value in values)
        assert kept[0] == max(range(5), key=lambda i: score(state(values[i])))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"w": torch.zeros(2, 3), "b": torch.zeros(2)}, r"w is \(2, 2\) in the first and \(2, 3\) in no. 2"),
        ({"w": torch.zeros(2, 2)}, r"b is \(2,\) in the first and absent in no. 2"),
    ],
)
def test_weights_that_cannot_be_averaged_are_named(other: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        uniform_soup([state(1.0), other])
