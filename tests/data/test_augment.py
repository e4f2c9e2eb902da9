"""Training augmentation: what is random depends on the seed alone; what comes out always fits the model."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from vit.data.augment import TrainingTransform
from vit.data.config import AugmentConfig, Preprocessing
from vit.data.sampling import draw_seed
from vit.data.transforms import EvaluationTransform

EVERYTHING = {
    "default": AugmentConfig(),
    "pad": AugmentConfig(crop="pad"),
    "none": AugmentConfig(crop="none"),
    "flips": AugmentConfig(flip=0.5, vertical_flip=0.5),
    "randaugment": AugmentConfig(policy="randaugment"),
    "randaugment-weakest": AugmentConfig(policy="randaugment", policy_magnitude=0.0, policy_ops=3),
    "randaugment-strongest": AugmentConfig(policy="randaugment", policy_magnitude=10.0, policy_ops=20),
    "trivialaugment": AugmentConfig(policy="trivialaugment"),
    "three-augment": AugmentConfig(policy="three-augment", color_jitter=0.3),
    "jitter": AugmentConfig(color_jitter=1.5),
    "erase": AugmentConfig(erase=1.0),
}
STILL = {"crop": "none", "flip": 0.0}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def transform(augment, size=(32, 32), **preprocessing):
    return TrainingTransform(augment, Preprocessing(size, **preprocessing))


@pytest.mark.parametrize("augment", EVERYTHING.values(), ids=EVERYTHING)
@pytest.mark.parametrize("size", [(32, 32), (8, 40)])
@pytest.mark.parametrize("shape", [(1, 1), (5000, 1), (1, 5000), (40, 61), (32, 32), (3, 200)])
def test_every_picture_comes_out_at_the_models_size(augment, size, shape):
    vary = transform(augment, size)
    for seed in range(12):
        out = vary(picture(*shape), seed)
        assert out.shape == (*size, 3)
        assert out.dtype == np.uint8


@pytest.mark.parametrize("augment", EVERYTHING.values(), ids=EVERYTHING)
def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(augment):
    image = picture(40, 50)
    vary, again = transform(augment), transform(augment)
    first = [vary(image, seed) for seed in range(20)]
    second = [again(image, seed) for seed in reversed(range(20))][::-1]
    np.testing.assert_array_equal(first, second)
    assert len({out.tobytes() for out in first}) > 1


@pytest.mark.parametrize("augment", EVERYTHING.values(), ids=EVERYTHING)
def test_the_input_is_never_changed(augment):
    image = picture(32, 32)
    before = image.copy()
    vary = transform(augment, crop_fraction=1.0)
    for seed in range(20):
        vary(image, seed)
    np.testing.assert_array_equal(image, before)


def _digest(vary, image, seeds):
    return [vary(image, seed).tobytes() for seed in seeds]


def test_a_spawned_process_computes_the_same_pixels():
    vary = transform(AugmentConfig(policy="randaugment", color_jitter=0.4, erase=0.5, vertical_flip=0.5))
    image = picture(40, 50)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_digest, (vary, image, range(20)))
    assert there == _digest(vary, image, range(20))
    assert there == _digest(pickle.loads(pickle.dumps(vary)), image, range(20))


def test_flips_are_drawn_independently_of_each_other_and_of_the_crop():
    image = np.arange(32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3)
    vary = transform(AugmentConfig(crop="none", flip=0.5, vertical_flip=0.5), crop_fraction=1.0)
    ways = {
        image.tobytes(): "none",
        image[:, ::-1].tobytes(): "left-right",
        image[::-1].tobytes(): "upside-down",
        image[::-1, ::-1].tobytes(): "both",
    }
    counts = Counter(ways[vary(image, draw_seed(0, 0, i, 0)).tobytes()] for i in range(2000))
    assert sum(counts.values()) == 2000
    assert min(counts[way] for way in ways.values()) > 400, counts


def test_without_anything_random_it_equals_the_evaluation_transform():
    image = picture(50, 70)
    preprocessing = Preprocessing((32, 32))
    out = TrainingTransform(AugmentConfig(**STILL), preprocessing)(image, 5)
    np.testing.assert_array_equal(out, EvaluationTransform(preprocessing)(image))


def test_a_flip_probability_of_one_always_flips():
    image = picture(32, 32)
    vary = transform(AugmentConfig(crop="none", flip=1.0), crop_fraction=1.0)
    np.testing.assert_array_equal(vary(image, 3), image[:, ::-1])


def test_the_padded_crop_shifts_by_up_to_an_eighth_and_mirrors_the_edge():
    image = picture(32, 32)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {padded[y : y + 32, x : x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
    vary = transform(AugmentConfig(crop="pad", flip=0.0), crop_fraction=1.0)
    seen = {windows[vary(image, seed).tobytes()] for seed in range(600)}
    assert {y for y, _ in seen} == set(range(9))
    assert {x for _, x in seen} == set(range(9))


def test_the_random_part_keeps_to_the_scale_and_ratio_asked_for():
    height, width = 400, 600
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    image[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    vary = transform(AugmentConfig(flip=0.0, crop_scale=(0.25, 0.5), crop_ratio=(0.75, 4 / 3)), (64, 64))
    for seed in range(200):
        out = vary(image, seed).astype(float)
        part_width = (out[..., 0].max() - out[..., 0].min()) / 255 * width
        part_height = (out[..., 1].max() - out[..., 1].min()) / 255 * height
        assert 0.22 < part_width * part_height / (height * width) < 0.53
        assert 0.68 < part_width / part_height < 1.47


def test_shrinking_does_not_alias():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    vary = transform(AugmentConfig(crop_scale=(0.8, 1.0)), (32, 32))
    for seed in range(10):
        out = vary(stripes, seed)
        assert np.abs(out.astype(int) - 127).max() < 12


def test_a_thin_part_of_a_thin_picture_is_not_empty():
    for ratio in ((3.0, 4.0), (0.1, 0.2)):
        vary = transform(AugmentConfig(crop_ratio=ratio))
        for shape in ((1, 1), (2, 1), (1, 3)):
            assert vary(picture(*shape), 1).shape == (32, 32, 3)


def test_erasing_fills_one_rectangle_of_the_stated_area_with_noise():
    image = np.full((64, 64, 3), 100, np.uint8)
    vary = transform(AugmentConfig(**STILL, erase=1.0), (64, 64), crop_fraction=1.0)
    for seed in range(100):
        changed = (vary(image, seed) != 100).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.015 < area / 64**2 < 0.34
        assert changed.sum() > 0.95 * area


def test_erasing_happens_as_often_as_asked():
    image = np.full((32, 32, 3), 100, np.uint8)
    vary = transform(AugmentConfig(**STILL, erase=0.25), crop_fraction=1.0)
    erased = sum((vary(image, draw_seed(1, 0, i, 0)) != 100).any() for i in range(2000))
    assert 400 < erased < 600


def test_three_augment_gives_grey_solarized_and_blurred_pictures_alike():
    image = picture(32, 32)
    vary = transform(AugmentConfig(**STILL, policy="three-augment"), crop_fraction=1.0)
    solarized = np.where(image >= 128, 255 - image, image)
    counts = Counter()
    for seed in range(600):
        out = vary(image, seed)
        if (out == solarized).all():
            counts["solarized"] += 1
        elif (out == out[..., :1]).all():
            counts["grey"] += 1
        else:
            counts["blurred"] += 1
    assert min(counts[kind] for kind in ("grey", "solarized", "blurred")) > 150, counts


def test_the_magnitude_decides_how_far_randaugment_goes():
    rng = np.random.default_rng(0)
    image = np.clip(np.linspace(60, 180, 32)[:, None, None] + rng.normal(0, 10, (32, 32, 3)), 0, 255).astype(np.uint8)
    change = {}
    for magnitude in (1.0, 9.0):
        augment = AugmentConfig(**STILL, policy="randaugment", policy_ops=1, policy_magnitude=magnitude)
        vary = transform(augment, crop_fraction=1.0)
        outs = np.array([vary(image, seed) for seed in range(400)], dtype=float)
        change[magnitude] = np.abs(outs - image).mean()
    assert change[9.0] > 1.5 * change[1.0]


def test_each_policy_operation_goes_both_ways():
    image = np.full((32, 32, 3), 100, np.uint8)
    vary = transform(AugmentConfig(**STILL, policy="trivialaugment"), crop_fraction=1.0)
    centres = {int(vary(image, seed)[16, 16, 0]) for seed in range(500)}
    assert min(centres) < 60
    assert max(centres) > 140


def test_draw_seeds_are_well_spread():
    seeds = np.array([draw_seed(s, e, i, c) for s in range(3) for e in range(5) for i in range(2000) for c in range(3)])
    assert seeds.min() >= 0
    assert seeds.max() < 2**32
    assert len(np.unique(seeds)) > len(seeds) - 5  # 90 000 of 2^32: one collision is expected
    bits = (seeds[:, None] >> np.arange(32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(seeds[:-1], seeds[1:])[0, 1]) < 0.02


def test_the_order_of_the_four_numbers_counts():
    assert len({draw_seed(*numbers) for numbers in [(1, 2, 3, 4), (2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3)]}) == 4


def test_draw_seeds_are_the_same_on_every_machine():
    draws = [(0, 0, 0, 0), (1, 2, 3, 4), (2**40, 7, 50_000, 2)]
    assert [draw_seed(*draw) for draw in draws] == [556823690, 3579628874, 3955833422]


def test_importing_it_neither_asks_the_network_nor_leaves_a_trace_in_the_environment():
    program = (
        "import os, urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('asked the network')\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "import vit.data.augment\n"
        "assert 'NO_ALBUMENTATIONS_UPDATE' not in os.environ\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
