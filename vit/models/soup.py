"""Averages of weights that were fine-tuned from the same start (Wortsman et al. 2022, "Model soups")."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vit.errors import ConfigError

State = dict[str, Tensor]


def uniform_soup(states: Sequence[Mapping[str, Tensor]]) -> State:
    """The mean of every tensor, taken in fp64, in its own type.

    Raises ConfigError naming the first parameter that is not in all of the states, or not of one shape.
    """
    first = states[0]
    for number, state in enumerate(states[1:], 2):
        for name in sorted(first.keys() | state.keys()):
            there, here = (tuple(s[name].shape) if name in s else "absent" for s in (first, state))
            if there != here:
                raise ConfigError(
                    f"weights of another shape: {name} is {there} in the first and {here} in no. {number}"
                )
    return {name: torch.stack([s[name].double() for s in states]).mean(dim=0).to(t.dtype) for name, t in first.items()}


def greedy_soup(
    states: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]
) -> tuple[State, list[int]]:
    """Go through the states, best first, and keep each whose addition does not lower the score of the average.

    Returns the average and the indices of what went in. Every single one is scored once, and each addition.
    """
    alone = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda i: -alone[i])
    kept, best = order[:1], alone[order[0]]
    for index in order[1:]:
        tried = score(uniform_soup([states[i] for i in (*kept, index)]))
        if tried >= best:
            kept, best = [*kept, index], tried
    return uniform_soup([states[i] for i in kept]), kept
