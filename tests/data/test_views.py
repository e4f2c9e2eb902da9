"""What is drawn before a picture is decoded, and how much of it is decoded for that."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop

from vit.data.augment import TrainingTransform
from vit.data.config import AugmentConfig, Preprocessing
from vit.data.decode import Copy, decode, decode_copy
from vit.data.transforms import EvaluationTransform
from vit.data.views import View, cut_out, enough, random_part, turned


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1600 x 1200 pixels with structure of all sizes, as a camera's JPEG."""
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(rng.uniform(-1, 1, (side * 3 // 4, side, 3)), (1600, 1200), interpolation=cv2.INTER_CUBIC)
        * side**-0.5
        for side in (8, 32, 128, 512)
    ]
    pixels = sum(layers)
    pixels = ((pixels - pixels.min()) / np.ptp(pixels) * 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("views") / "photograph.jpg"
    Image.fromarray(pixels).save(path, quality=92)
    return path


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (50, 1000), (1000, 50), (1, 1), (3, 2)])
def test_a_random_part_lies_inside_and_keeps_to_area_and_ratio(shape: tuple[int, int]) -> None:
    height, width = shape
    for seed in range(300):
        top, left, part_height, part_width = random_part(height, width, (0.2, 0.6), (0.75, 4 / 3), seed)
        assert top >= 0
        assert left >= 0
        assert 1 <= part_height <= height - top
        assert 1 <= part_width <= width - left
        if min(shape) >= 300:
            assert 0.19 < part_height * part_width / (height * width) < 0.61
            assert 0.74 < part_width / part_height < 1.35


def test_parts_are_distributed_as_torchvisions() -> None:
    """Means and spreads of the four numbers over 4000 draws."""
    picture = np.zeros((3, 300, 500), np.uint8)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = np.array([random_part(300, 500, scale, ratio, seed) for seed in range(4000)])
    theirs = RandomResizedCrop(224, scale=scale, ratio=ratio)
    import torch

    torch.manual_seed(0)
    drawn = [theirs.make_params([torch.from_numpy(picture)]) for _ in range(4000)]
    expected = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    assert np.abs(ours.mean(0) - expected.mean(0)).max() < 5
    assert np.abs(ours.std(0) - expected.std(0)).max() < 5


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10)])
def test_where_nothing_fits_the_middle_is_taken_as_torchvision_takes_it(shape: tuple[int, int]) -> None:
    import torch

    ours = random_part(*shape, (0.9, 1.0), (0.75, 4 / 3), 0)
    theirs = RandomResizedCrop(8, scale=(0.9, 1.0), ratio=(0.75, 4 / 3)).make_params([torch.zeros(3, *shape)])
    assert ours == (theirs["top"], theirs["left"], theirs["height"], theirs["width"])


def test_as_much_is_enough_as_gives_the_part_the_size_that_is_wanted() -> None:
    assert enough((1000, 2000), (500, 500), (100, 100)) == (200, 400)
    assert enough((1000, 2000), (500, 200), (100, 100)) == (500, 1000)
    assert enough((1000, 2000), (50, 500), (100, 100)) == (1000, 2000)


def test_a_jpeg_is_decoded_to_a_smaller_copy_that_is_large_enough(photograph: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def least(height: int, width: int) -> tuple[int, int]:
        asked.append((height, width))
        return 301, 200

    small = decode_copy(photograph, least).pixels
    assert small.shape == (450, 600, 3)
    assert asked == [(1200, 1600)]
    whole = decode(photograph)
    assert np.array_equal(decode_copy(photograph, lambda height, width: (height, width)).pixels, whole)
    assert np.array_equal(decode_copy(photograph, lambda height, width: (9999, 9999)).pixels, whole)
    assert decode_copy(photograph, lambda height, width: (0, 0)).pixels.shape == (150, 200, 3)
    area = cv2.resize(whole, (600, 450), interpolation=cv2.INTER_AREA)
    assert np.abs(area.astype(int) - small).mean() < 1.5
    turned_file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photograph) as image:
        image.save(turned_file, exif=exif)
    asked.clear()
    assert decode_copy(turned_file, least).pixels.shape == (400, 300, 3)
    assert asked == [(1600, 1200)]
    Image.fromarray(whole).save(tmp_path / "lossless.png")
    assert np.array_equal(decode_copy(tmp_path / "lossless.png", least).pixels, whole)
    assert len(asked) == 1


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
def test_reading_for_evaluation_differs_from_full_decoding_by_less_than_one_grey_value(
    photograph: Path, resize: str, crop_fraction: float
) -> None:
    """Mean absolute difference of 8-bit values; 0 where the file is not twice the fitted size."""
    transform = EvaluationTransform(Preprocessing((224, 224), resize=resize, crop_fraction=crop_fraction))  # type: ignore[arg-type]
    expected = transform(decode(photograph)).astype(int)
    read = transform.read(photograph)
    assert np.abs(read - expected).mean() < 0.6
    assert np.abs(read - expected).max() < 12
    large = EvaluationTransform(Preprocessing((700, 700)))
    assert np.array_equal(large.read(photograph), large(decode(photograph)))


def test_reading_for_training_shows_what_full_decoding_shows(photograph: Path) -> None:
    whole = decode(photograph)
    for crop in ("random-resized", "pad", "none"):
        transform = TrainingTransform(AugmentConfig(crop=crop, flip=0.5, vertical_flip=0.5), Preprocessing((96, 128)))  # type: ignore[arg-type]
        for seed in range(20):
            read, expected = transform.read(photograph, seed), transform(whole, seed)
            assert np.abs(read.astype(int) - expected).mean() < 3, (crop, seed)


def test_a_side_that_shrinks_is_averaged_while_the_other_grows() -> None:
    stripes = np.zeros((40, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    out = cut_out(Copy.whole(stripes), View(0, 0, 40, 400), (80, 40), "bicubic")
    assert out.shape == (80, 40, 3)
    assert (
        np.abs(out.astype(int) - 127).max() <= 8
    )  # 255 where stripes alias; the cubic filter overshoots at the borders


def test_views_are_turned_as_they_say() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(turned(image, View(0, 0, 4, 6)), image)
    assert np.array_equal(turned(image, View(0, 0, 4, 6, mirrored=True)), image[:, ::-1])
    assert np.array_equal(turned(image, View(0, 0, 4, 6, upside_down=True)), image[::-1])
    assert np.array_equal(turned(image, View(0, 0, 4, 6, True, True)), image[::-1, ::-1])
