"""MixUp and CutMix: their definitions, their seed, and the edges of a batch."""

import pytest
import torch

from vit.data.config import AugmentConfig
from vit.data.mix import Mix

CLASSES = 5


def batch(count=8, size=16):
    """Pictures that tell which sample each value comes from: picture i is filled with i, its label is i % 5."""
    images = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(count, 3, size, size).clone()
    return images, torch.arange(count) % CLASSES


def mean_labels(weights, labels):
    return weights @ torch.nn.functional.one_hot(labels, CLASSES).float()


def test_mixup_is_the_weighted_mean_of_two_pictures_and_of_their_labels():
    _, labels = batch()
    # row i of picture i is 1, all else 0: what is mixed shows its parts
    images = torch.eye(8)[:, None, :, None].expand(8, 3, 8, 8).clone()
    mix = Mix(AugmentConfig(mixup=1.0), CLASSES)
    for seed in range(20):
        mixed, targets = mix(images, labels, seed)
        weights = mixed[:, 0, :, 0]
        assert torch.equal(mixed, weights[:, None, :, None].expand_as(mixed))
        assert ((weights > 0).sum(1) <= 2).all()
        assert_every_picture_counts_once(weights)
        torch.testing.assert_close(mean_labels(weights, labels), targets)


def test_cutmix_pastes_a_rectangle_and_weighs_the_labels_by_its_area():
    images, labels = batch()
    mix = Mix(AugmentConfig(cutmix=1.0), CLASSES)
    pasted = 0
    for seed in range(20):
        mixed, targets = mix(images, labels, seed)
        weights = torch.stack([(mixed[:, 0] == j).float().mean((1, 2)) for j in range(8)], dim=1)
        assert_every_picture_counts_once(weights)
        torch.testing.assert_close(mean_labels(weights, labels), targets)
        for picture in mixed[:, 0]:
            parts = [picture == value for value in picture.unique()]
            assert len(parts) <= 2
            pasted += len(parts) == 2
            assert any(part.sum() == part.any(0).sum() * part.any(1).sum() for part in parts), "one is a rectangle"
    assert pasted > 80


def assert_every_picture_counts_once(weights):
    """weights [B, pictures]: what of the pictures is in a place adds up to one, and so does a picture over all."""
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    torch.testing.assert_close(weights.sum(0), torch.ones(len(weights)))


def test_partners_are_drawn_anew_for_every_seed():
    images, labels = batch()
    mix = Mix(AugmentConfig(cutmix=1.0), CLASSES)
    pairs = [set(picture.unique().tolist()) for seed in range(60) for picture in mix(images, labels, seed)[0]]
    assert {value for pair in pairs if 0 in pair for value in pair} == set(range(8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixing_on_a_gpu_waits_for_nothing_and_equals_that_of_the_processor():
    images, labels = batch()
    for augment in (AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)):
        mix = Mix(augment, CLASSES)
        expected = mix(images, labels, 7)
        there = images.cuda(), labels.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = mix(*there, 7)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other.cpu())


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8, cutmix=1.0), AugmentConfig(mixup=0.2)])
def test_the_result_depends_on_the_seed_alone_and_the_global_state_goes_on_undisturbed(augment):
    images, labels = batch()
    mix = Mix(augment, CLASSES)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = mix(images, labels, 7)
    assert torch.equal(torch.rand(3), expected)
    again = Mix(augment, CLASSES)(images, labels, 7)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], mix(images, labels, 8)[1])


def test_the_input_batch_is_not_changed():
    images, labels = batch()
    before = images.clone()
    for seed in range(10):
        Mix(AugmentConfig(mixup=0.8, cutmix=1.0), CLASSES)(images, labels, seed)
    assert torch.equal(images, before)


def test_the_switch_decides_between_mixup_and_cutmix():
    images, labels = batch()
    for switch, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        mix = Mix(AugmentConfig(mixup=1.0, cutmix=1.0, mix_switch=switch), CLASSES)
        cut = sum(bool((mix(images, labels, seed)[0] % 1 == 0).all()) for seed in range(300)) / 300
        assert low <= cut <= high


def test_the_probability_decides_how_many_batches_are_mixed():
    images, labels = batch()
    mix = Mix(AugmentConfig(mixup=1.0, mix_probability=0.4), CLASSES)
    results = [mix(images, labels, seed) for seed in range(300)]
    left = [(mixed, targets) for mixed, targets in results if torch.equal(mixed, images)]
    assert 0.5 < len(left) / 300 < 0.7
    assert all(torch.equal(t, torch.nn.functional.one_hot(labels, CLASSES).float()) for _, t in left)


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0), AugmentConfig()])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_batches_of_any_size_give_soft_labels_that_sum_to_one(augment, count):
    images, labels = batch(count)
    for seed in range(5):
        mixed, targets = Mix(augment, CLASSES)(images, labels, seed)
        assert mixed.shape == images.shape
        assert targets.shape == (count, CLASSES)
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(count))


def test_a_single_picture_stays_itself():
    images, labels = batch(3)
    for augment in (AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)):
        mixed, targets = Mix(augment, CLASSES)(images[2:], labels[2:], 1)
        torch.testing.assert_close(mixed, images[2:])
        torch.testing.assert_close(targets, torch.nn.functional.one_hot(labels[2:], CLASSES).float())


def test_half_precision_pictures_stay_so():
    images, labels = batch()
    mixed, targets = Mix(AugmentConfig(mixup=0.8), CLASSES)(images.bfloat16(), labels, 1)
    assert mixed.dtype == torch.bfloat16
    assert targets.dtype == torch.float32


def test_nothing_is_mixed_in_the_last_epochs_or_when_everything_is_off():
    mix = Mix(AugmentConfig(mixup=0.8, mix_off_epochs=2), CLASSES)
    assert [mix.active(epoch, 5) for epoch in range(5)] == [True, True, True, False, False]
    assert not Mix(AugmentConfig(), CLASSES).active(0, 5)
    assert not Mix(AugmentConfig(mixup=0.8, mix_probability=0.0), CLASSES).active(0, 5)
    assert Mix(AugmentConfig(cutmix=1.0), CLASSES).active(4, 5)
