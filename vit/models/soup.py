"""Averages of weights that were fine-tuned from the same start (Wortsman et al. 2022, "Model soups")."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.models.file import State


def uniform_soup(states: Sequence[Mapping[str, Tensor]]) -> State:
    """The mean of every parameter, taken in fp32 or finer, in its own type. Integers, which have none, must be equal.

    Raises ConfigError naming the first parameter that is not in all states alike.
    """
    _check_alike(states)
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def greedy_soup(
    states: Sequence[Mapping[str, Tensor]], score: Callable[[State, Sequence[int]], float]
) -> tuple[State, list[int]]:
    """Go through the states, best first, and keep each whose addition does not lower the score of the average.

    Returns the average, and the indices of `states` that went in, in that order (recipe 1 of the paper). Of equal
    states the earlier comes first. `score`, the higher the better, of an average and the indices of the states in it,
    is asked once for every state and once for every addition but the first. The result never scores lower than the best
    single state. Raises as `uniform_soup`, before any score is asked for.
    """
    _check_alike(states)
    alone = [score(dict(state), [index]) for index, state in enumerate(states)]
    first, *others = sorted(range(len(states)), key=lambda i: alone[i], reverse=True)
    kept, soup, best = [first], uniform_soup([states[first]]), alone[first]
    for index in others:
        tried = uniform_soup([states[i] for i in (*kept, index)])
        if (value := score(tried, [*kept, index])) >= best:
            kept, soup, best = [*kept, index], tried, value
    return soup, kept


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    kind = tensors[0].dtype
    if not kind.is_floating_point:
        return tensors[0].clone()
    total = torch.zeros_like(tensors[0], dtype=torch.promote_types(kind, torch.float32))
    for tensor in tensors:  # one at a time, so that memory holds two tensors, however many models there are
        total += tensor
    return (total / len(tensors)).to(kind)


def _check_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    if not states:
        raise ConfigError("there is no model to average")
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        for name in sorted(first.keys() | state.keys()):
            here, there = _described(first, name), _described(state, name)
            if here != there:
                raise ConfigError(f"models differ: {name} is {here} in model 1 and {there} in model {number}")
            if not (first[name].is_floating_point() or torch.equal(first[name], state[name])):
                raise ConfigError(f"models differ: {name} holds other integers in model 1 than in model {number}")


def _described(state: Mapping[str, Tensor], name: str) -> str:
    """`(32, 3) float32`, or `absent`."""
    if name not in state:
        return "absent"
    return f"{tuple(state[name].shape)} {str(state[name].dtype).removeprefix('torch.')}"
