"""The order of an epoch: from seed and epoch alone, fair among classes and ranks."""

from collections import Counter

import numpy as np
import pytest

from vit.data.sampling import Draw, EpochSampler, ExactSampler

LABELS = [0] * 50 + [1] * 30 + [2] * 5


def epoch(sampler, number):
    sampler.set_epoch(number)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return draws


def test_every_picture_comes_once_an_epoch():
    draws = epoch(EpochSampler(LABELS, seed=0), 3)
    assert sorted(draw.index for draw in draws) == list(range(85))
    assert {(draw.epoch, draw.copy) for draw in draws} == {(3, 0)}


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    sampler = EpochSampler(LABELS, seed=1)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert [d.index for d in first] != [d.index for d in second]
    assert epoch(EpochSampler(LABELS, seed=1), 1) == second
    assert epoch(sampler, 0) == first
    assert epoch(EpochSampler(LABELS, seed=2), 0) != first


def test_the_order_is_the_same_on_every_machine():
    assert [draw.index for draw in EpochSampler([0] * 8, seed=5)] == [1, 4, 2, 3, 7, 5, 6, 0]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_an_epoch_in_equal_parts_and_use_every_picture(world):
    parts = [epoch(EpochSampler(LABELS, seed=0, rank=rank, world=world), 4) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-85 // world)}
    draws = [draw for part in parts for draw in part]
    assert {draw.index for draw in draws} == set(range(85))
    assert len(draws) - 85 == -85 % world, "no more come again than the ranks need"
    assert len(set(draws)) == len(draws), "what comes again is augmented differently"


@pytest.mark.parametrize(("length", "world"), [(1, 2), (3, 8), (5, 6)])
def test_no_rank_is_left_without_a_picture(length, world):
    parts = [epoch(EpochSampler([0] * length, seed=0, rank=rank, world=world), 0) for rank in range(world)]
    assert [len(part) for part in parts] == [1] * world
    assert {draw.index for part in parts for draw in part} == set(range(length))


def test_a_balanced_epoch_draws_every_class_equally_often():
    sampler = EpochSampler(LABELS, seed=0, balanced=True)
    draws = epoch(sampler, 0)
    assert len(draws) == 85
    assert sorted(Counter(LABELS[draw.index] for draw in draws).values()) == [28, 28, 29]
    small = Counter(draw.index for draw in draws if LABELS[draw.index] == 2)
    assert max(small.values()) - min(small.values()) <= 1, "pictures of a small class come evenly often"
    large = Counter(draw.index for draw in draws if LABELS[draw.index] == 0)
    assert max(large.values()) == 1
    assert epoch(sampler, 1) != draws


def test_a_balanced_epoch_with_fewer_draws_than_classes_is_possible():
    draws = epoch(EpochSampler([0, 1, 2, 3, 4], seed=0, balanced=True, repeats=3), 0)
    assert len({draw.index for draw in draws}) == 1


def test_classes_that_do_not_occur_are_no_matter():
    draws = epoch(EpochSampler([7, 7, 7, 2], seed=0, balanced=True), 0)
    assert Counter([7, 7, 7, 2][draw.index] for draw in draws) == {7: 2, 2: 2}


def test_no_draw_of_an_epoch_comes_twice_so_that_none_is_augmented_alike():
    for repeats in (1, 3):
        draws = epoch(EpochSampler(LABELS, seed=0, balanced=True, repeats=repeats), 0)
        assert len(set(draws)) == len(draws)


def test_repeated_augmentation_brings_copies_in_a_row_and_fewer_pictures():
    draws = epoch(EpochSampler(LABELS, seed=0, repeats=3), 2)
    assert len(draws) == 84
    for first in range(0, 84, 3):
        assert draws[first : first + 3] == [Draw(2, draws[first].index, copy) for copy in range(3)]
    assert len({draw.index for draw in draws}) == 28


def test_copies_of_a_picture_go_to_different_ranks():
    parts = [epoch(EpochSampler(LABELS, seed=0, repeats=3, rank=rank, world=4), 0) for rank in range(4)]
    for part in parts:
        assert len({draw.index for draw in part}) == len(part) == 21


def test_more_repeats_than_pictures_still_give_one_picture():
    draws = epoch(EpochSampler([0, 0], seed=0, repeats=5), 0)
    assert [draw.copy for draw in draws] == [0, 1, 2, 3, 4]
    assert len({draw.index for draw in draws}) == 1


@pytest.mark.parametrize("balanced", [False, True])
def test_no_pictures_give_an_empty_epoch(balanced):
    assert epoch(EpochSampler([], seed=0, balanced=balanced), 0) == []


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [0, 1, 5, 20])
def test_evaluation_takes_every_picture_once_over_all_ranks(length, world):
    parts = [list(ExactSampler(length, rank=rank, world=world)) for rank in range(world)]
    assert [len(part) for part in parts] == [len(ExactSampler(length, rank=r, world=world)) for r in range(world)]
    assert sorted(draw.index for part in parts for draw in part) == list(range(length))
    for rank, part in enumerate(parts):
        assert part == [Draw(0, index, 0) for index in range(rank, length, world)]


def test_all_pictures_are_seen_over_some_epochs_of_repeated_augmentation():
    sampler = EpochSampler(LABELS, seed=0, repeats=3)
    seen = np.zeros(85, bool)
    for number in range(30):
        seen[[draw.index for draw in epoch(sampler, number)]] = True
    assert seen.all()
