"""Which picture comes when: the order of an epoch and the seed of each draw, from (seed, epoch) alone."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

_WORD = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_SPREAD = 0xD1342543DE82EF95
"""an odd number of mixed bits: seeds that follow one another must not share their random numbers"""


class Draw(NamedTuple):
    """One picture of one epoch; `copy` tells apart the times it is drawn in that epoch."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    copy: int


def draw_seed(seed: int, epoch: Any, index: Any, copy: Any) -> Any:
    """A 32-bit seed for one draw, well mixed, the same on every platform and in every process.

    The four numbers pass one after the other through the finalizer of splitmix64 (Steele, Lea and Flood 2014), so
    neighbouring draws get unrelated seeds. Numbers may be uint64 arrays, one place a draw.
    """
    state: Any = 0
    for number in (seed, epoch, index, copy):
        state = _mixed((state ^ (number & _WORD)) + _GOLDEN)
    return state >> 32


def uniform(seed: Any, number: int) -> Any:
    """The `number`th of a draw's random numbers, in [0, 1): any of them at once, by splitmix64.

    `seed` is that of `draw_seed`, one or an array of them; the result is a float, or float64 of that shape.
    """
    return (_mixed(seed * _SPREAD + ((number + 1) * _GOLDEN & _WORD)) >> 11) * 2.0**-53


def _mixed(state: Any) -> Any:
    """splitmix64's finalizer. An array's numbers wrap around by themselves, the others by `_WORD`."""
    state = state & _WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
    return state ^ (state >> 31)


class EpochSampler(Sampler[Draw]):
    """A new order every epoch, from (seed, epoch) alone; every rank gets equally many draws.

    balanced: every class is drawn equally often, the epoch stays as long. The pictures of a small class come again
        only after each of them has come once.
    repeats: repeated augmentation (Hoffer et al. 2020; Touvron et al. 2021, DeiT): each drawn picture comes `repeats`
        times in a row with copies 0, 1, ..., so an epoch holds about 1 / repeats of the pictures. Ranks take the draws
        in turn, hence the copies of a picture go to different ranks where there are as many.

    Where the draws do not divide among the ranks, the first ones are given out again, with copy numbers of their own.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        seed: int,
        balanced: bool = False,
        repeats: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._length = len(labels)
        self._members = _members(np.asarray(labels, dtype=np.int64)) if balanced else []
        self._seed, self._repeats, self._rank, self._world = seed, repeats, rank, world
        self._epoch = 0
        self.start = 0
        """draws of this epoch that are left out, since a run that goes on has seen them"""

    @property
    def epoch(self) -> int:
        """The epoch whose order is given, counted from 0."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; Lightning calls this before every training epoch."""
        if epoch != self._epoch:
            self._epoch, self.start = epoch, 0

    def start_at(self, epoch: int, draws: int) -> None:
        """Take the order of `epoch`, and in it begin behind its first `draws`; `len` stays that of the whole epoch."""
        self._epoch, self.start = epoch, draws

    def __len__(self) -> int:
        total = self._pictures() * self._repeats
        return -(-total // self._world)

    def __iter__(self) -> Iterator[Draw]:
        return self._draws(self.start)

    def whole(self) -> Iterator[Draw]:
        """All draws of the epoch, wherever it begins."""
        return self._draws(0)

    def _draws(self, start: int) -> Iterator[Draw]:
        indices, copies = (part[start:].tolist() for part in self.order())
        return (Draw(self._epoch, index, copy) for index, copy in zip(indices, copies, strict=True))

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """All draws of the epoch: indices and copies, int64 [len(self)] each."""
        rng = np.random.default_rng((self._seed, self._epoch))
        count = self._pictures()
        order = _balanced(self._members, count, rng) if self._members else rng.permutation(self._length)[:count]
        first = _occurrences(order) * self._repeats
        again, positions = np.divmod(np.arange(len(self)) * self._world + self._rank, max(1, count * self._repeats))
        drawn, copies = np.divmod(positions, self._repeats)
        copies += again * (first.max(initial=0) + self._repeats)  # given out again, but augmented differently
        return order[drawn].astype(np.int64), first[drawn] + copies

    def _pictures(self) -> int:
        """Pictures drawn in an epoch, over all ranks, copies not counted."""
        return max(self._length // self._repeats, min(self._length, 1))


class ExactSampler(Sampler[Draw]):
    """Every index once over all ranks, in order, none padded: rank r of n takes r, r + n, r + 2n, ..."""

    def __init__(self, length: int, *, rank: int = 0, world: int = 1) -> None:
        self._indices = range(rank, length, world)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(0, index, 0) for index in self._indices)

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices and copies, int64 [len(self)] each."""
        return np.array(self._indices, np.int64), np.zeros(len(self), np.int64)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each class that occurs in `labels` [N]."""
    _, counts = np.unique(labels, return_counts=True)
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1]) if len(labels) else []


def _balanced(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` indices in random order, each class equally often, give or take one where it does not divide."""
    quotas = np.full(len(members), count // len(members))
    quotas[rng.permutation(len(members))[: count % len(members)]] += 1
    drawn = []
    for indices, quota in zip(members, quotas, strict=True):
        rounds = [rng.permutation(indices) for _ in range(-(-quota // len(indices)))]
        drawn.append(np.concatenate(rounds)[:quota] if rounds else indices[:0])
    return rng.permutation(np.concatenate(drawn))


def _occurrences(order: np.ndarray) -> np.ndarray:
    """For each entry of `order` [N], how often its value came before it: copies of one picture must be told apart."""
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    occurrences = np.empty_like(order)
    occurrences[by_value] = np.arange(len(order)) - np.searchsorted(values, values, side="left")
    return occurrences
