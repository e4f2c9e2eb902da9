"""Averages of weights: uniform, greedy, and what cannot be averaged."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.models.soup import greedy_soup, uniform_soup

State = dict[str, Tensor]


def states(count: int) -> list[State]:
    """Random weights in three types, and an integer that all share."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "weight": torch.randn(3, 2, generator=generator),
            "bias": torch.randn(3, generator=generator).bfloat16(),
            "scale": torch.randn((), generator=generator).double(),
            "steps": torch.tensor(2**53 + 1),
        }
        for _ in range(count)
    ]


def numbers(*values: float) -> list[State]:
    """Weights of one number each."""
    return [{"w": torch.tensor([value], dtype=torch.float64)} for value in values]


def mean_by_loops(tensors: list[Tensor]) -> np.ndarray:
    arrays = [tensor.double().numpy() for tensor in tensors]
    mean = np.zeros(arrays[0].shape)
    for position in np.ndindex(mean.shape):
        mean[position] = sum(array[position] for array in arrays) / len(arrays)
    return mean


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_uniform_soup_is_the_mean_in_each_tensors_type(count: int) -> None:
    ingredients = states(count)
    soup = uniform_soup(ingredients)
    assert {name: tensor.dtype for name, tensor in soup.items()} == {
        name: tensor.dtype for name, tensor in ingredients[0].items()
    }
    assert soup["steps"] == 2**53 + 1  # which a mean in floating point would miss
    for name, tolerance in (("weight", 1e-6), ("bias", 2**-8), ("scale", 1e-14)):
        expected = mean_by_loops([state[name] for state in ingredients])
        np.testing.assert_allclose(soup[name].double().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_halves_are_averaged_in_finer_numbers() -> None:
    halves = [{"w": torch.tensor(value, dtype=torch.float16)} for value in (60000.0, 60000.0, 30000.0)]
    assert uniform_soup(halves)["w"] == 50000  # the sum is past the range of float16


def test_ingredients_are_neither_changed_nor_handed_out() -> None:
    ingredients = states(2)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in ingredients]
    for soup in (uniform_soup(ingredients[:1]), uniform_soup(ingredients), greedy_soup(ingredients, lambda *_: 0.0)[0]):
        for tensor in soup.values():
            tensor.zero_()
    for state, copy in zip(ingredients, before, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in copy)


def near(target: float, asked: list[float]) -> Callable[[State, Sequence[int]], float]:
    """A score, higher the nearer the number is to the target, that notes what it was asked."""

    def score(state: State, _: Sequence[int]) -> float:
        asked.append(float(state["w"]))
        return -abs(asked[-1] - target)

    return score


def test_a_greedy_soup_starts_from_the_best_and_asks_once_for_each_alone_and_each_addition() -> None:
    asked: list[float] = []
    soup, kept = greedy_soup(numbers(9.0, 2.0, 4.5), near(3.0, asked))
    assert asked == pytest.approx([9.0, 2.0, 4.5, (2 + 4.5) / 2, (2 + 4.5 + 9) / 3])
    assert kept == [1, 2]  # 9 would lead away
    assert float(soup["w"]) == 3.25


def test_what_lowers_the_score_is_refused_and_what_follows_still_gets_its_turn() -> None:
    _, kept = greedy_soup(numbers(3.4, 3.1, 2.2, 3.3), near(3.0, []))
    assert kept == [1]  # each of the others pulls further away
    soup, kept = greedy_soup(numbers(3.2, 3.4, 2.5), near(3.0, []))
    assert kept == [0, 2]  # 3.4 comes before 2.5 and is refused
    assert float(soup["w"]) == pytest.approx(2.85)


def test_an_addition_that_changes_nothing_is_kept_and_of_equals_the_earlier_comes_first() -> None:
    assert greedy_soup(numbers(1.0, 1.0, 1.0), near(3.0, []))[1] == [0, 1, 2]


def greedy_by_loops(values: list[float], target: float) -> tuple[float, list[int]]:
    left, kept = list(range(len(values))), []
    best = -np.inf
    while left:
        candidate = min(left, key=lambda i: abs(values[i] - target))
        left.remove(candidate)
        score = -abs(np.mean([values[i] for i in (*kept, candidate)]) - target)
        if score >= best:
            kept, best = [*kept, candidate], score
    return float(np.mean([values[i] for i in kept])), kept


def test_a_greedy_soup_equals_a_loop_and_is_never_worse_than_its_best_part() -> None:
    random = np.random.default_rng(0)
    sizes = []
    for _ in range(50):
        values = random.uniform(0, 10, size=6).tolist()
        soup, kept = greedy_soup(numbers(*values), near(5.0, []))
        expected, order = greedy_by_loops(values, 5.0)
        assert kept == order
        assert float(soup["w"]) == pytest.approx(expected)
        assert abs(float(soup["w"]) - 5) <= min(abs(value - 5) for value in values) + 1e-12
        sizes.append(len(kept))
    assert len(set(sizes)) > 2  # both additions and refusals occurred


def test_one_model_is_a_soup_of_itself() -> None:
    soup, kept = greedy_soup(numbers(4.0), near(3.0, []))
    assert (float(soup["w"]), kept) == (4.0, [0])


ONES = {"a": torch.ones(2, 2), "b": torch.ones(2), "count": torch.tensor(1)}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (ONES | {"a": torch.ones(2, 3), "b": torch.ones(3)}, r"a is \(2, 2\) float32 in model 1 and \(2, 3\) float32"),
        ({"b": torch.ones(2), "count": torch.tensor(1)}, r"a is \(2, 2\) float32 in model 1 and absent in model 3"),
        (ONES | {"c": torch.ones(4)}, r"c is absent in model 1 and \(4,\) float32 in model 3"),
        (ONES | {"b": torch.ones(2).half()}, r"b is \(2,\) float32 in model 1 and \(2,\) float16 in model 3"),
        (ONES | {"count": torch.tensor(2)}, "count holds other integers in model 1 than in model 3"),
    ],
)
def test_models_that_cannot_be_averaged_are_named_before_any_is_scored(other: State, words: str) -> None:
    with pytest.raises(ConfigError, match=f"models differ: {words}"):
        uniform_soup([ONES, ONES, other])
    asked: list[float] = []
    with pytest.raises(ConfigError, match=f"models differ: {words}"):
        greedy_soup([ONES, ONES, other], near(3.0, asked))
    assert asked == []


def test_no_models_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="there is no model to average"):
        uniform_soup([])
    with pytest.raises(ConfigError, match="there is no model to average"):
        greedy_soup([], near(3.0, []))
