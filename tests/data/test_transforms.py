"""Evaluation preprocessing against timm's own transforms, and pictures of extreme shapes."""

import resource

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from vit.data.config import Preprocessing
from vit.data.normalise import as_tensor
from vit.data.resize import resized
from vit.data.transforms import EvaluationTransform

SHAPES = [(48, 64), (64, 48), (375, 500), (500, 333), (24, 24), (32, 32), (33, 31), (1, 1), (7, 130), (200, 11), (2, 3)]


def picture(height, width, seed=0):
    """A smooth gradient with noise, so that both blurring and aliasing would show."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, height * width).reshape(height, width, 1)
    return (ramp + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)


def by_timm(image, preprocessing, mode):
    transform = create_transform(
        (3, *preprocessing.size),
        crop_mode=mode,
        crop_pct=preprocessing.crop_fraction,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        normalize=False,
    )
    return transform(Image.fromarray(image)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (224, 224)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_mode_equals_timm_up_to_rounding(shape, size, interpolation):
    image = picture(*shape)
    for crop_fraction in (0.5, 0.875, 0.9, 1.0):
        for resize, mode in (("crop", "center"), ("squash", "squash"), ("letterbox", "border")):
            preprocessing = Preprocessing(size, resize, crop_fraction, interpolation)
            ours = EvaluationTransform(preprocessing)(image)
            off = np.abs(ours.astype(int) - by_timm(image, preprocessing, mode))
            assert off.max() <= 2  # of 255: torch's weights have 16 bits, Pillow's 22
            assert off.mean() <= 0.06  # where small pictures grow bilinearly, one value in twenty lies half-way


def test_letterbox_shows_the_whole_picture_at_a_crop_fraction_of_1():
    red = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    whole, cut = (EvaluationTransform(Preprocessing((32, 32), "letterbox", fraction))(red) for fraction in (1.0, 0.8))
    for out, border in ((whole, 4), (cut, 1)):
        assert (out[border:-border] == (255, 0, 0)).all()
        assert (out[:border] == (124, 116, 104)).all(), "the border has the mean colour"
        assert (out[-border:] == (124, 116, 104)).all()


def test_a_grey_picture_stays_grey():
    grey = np.repeat(picture(50, 70)[..., :1], 3, axis=2)
    out = EvaluationTransform(Preprocessing((32, 32)))(grey)
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out[..., 0], out[..., 2])


@pytest.mark.parametrize("shape", [(1, 700), (700, 1), (9, 700), (640, 17)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_extreme_shapes_equal_timm_up_to_rounding(shape, size):
    image = picture(*shape)
    preprocessing = Preprocessing(size)
    ours = EvaluationTransform(preprocessing)(image).astype(int)
    assert np.abs(ours - by_timm(image, preprocessing, "center")).max() <= 1


@pytest.mark.parametrize("resize", ["crop", "letterbox", "squash"])
@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 20_000_000), (3_000_000, 2)])
def test_extreme_shapes_need_little_memory(shape, resize):
    image = np.full((*shape, 3), 77, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = EvaluationTransform(Preprocessing((224, 224), resize))(image)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert out.shape == (224, 224, 3)
    assert (out == 77).all(axis=2).any()
    assert grown < 200_000, f"{grown} kB"


def test_the_centre_of_a_long_strip_is_what_is_kept():
    strip = np.zeros((1, 100_001, 3), np.uint8)
    strip[0, 49_997:50_004] = 255
    out = EvaluationTransform(Preprocessing((8, 8), crop_fraction=1.0))(strip)
    assert (out == 255).all()


def test_a_picture_that_fits_already_is_left_alone():
    image = picture(32, 32)
    assert EvaluationTransform(Preprocessing((32, 32), crop_fraction=1.0))(image) is image


def test_the_result_can_be_written_to_and_lies_in_one_piece():
    for resize in ("crop", "letterbox", "squash"):
        for shape in ((40, 50), (1, 500)):
            out = EvaluationTransform(Preprocessing((32, 32), resize))(picture(*shape))
            assert out.dtype == np.uint8
            assert out.flags.writeable
            assert out.flags.c_contiguous or out.transpose(2, 0, 1).flags.c_contiguous
            assert np.shares_memory(as_tensor(out).numpy(), out)


def test_a_smaller_copy_of_no_whole_size_is_fitted_to_the_very_size():
    for height in range(40, 240):
        for wanted in (1, 7, height // 2, height - 1, height):  # 49 * (1 / 49) is less than 1
            pixels = np.full((height, 31, 3), 9, np.uint8)
            assert resized(pixels, (wanted, 10), "bilinear", (float(height), 30.25)).shape == (wanted, 10, 3)
