"""Pictures that lie on the device are varied there as the workers vary them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vit.data.augment import TrainingTransform
from vit.data.config import AugmentConfig, Preprocessing
from vit.data.dataset import Batch, ImageDataset, image_loader
from vit.data.device import DeviceLoader
from vit.data.folders import Sample
from vit.data.sampling import EpochSampler, ExactSampler, draw_seed, uniform
from vit.data.transforms import EvaluationTransform
from vit.errors import ConfigError

CPU = torch.device("cpu")
SIZE = Preprocessing((24, 32))


def samples_in(folder: Path, shape: tuple[int, int], count: int = 11) -> list[Sample]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        coarse = rng.integers(0, 256, (shape[0] // 4, shape[1] // 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        found.append(Sample(str(folder / f"{index}.png"), index % 3))
    return found


def both(samples: list[Sample], transform: Any, sampler: Any, **options: Any) -> tuple[list[Batch], list[Batch]]:
    """Batches of the workers, and of the device."""
    dataset = ImageDataset(samples, transform, seed=4)
    usual = image_loader(dataset, sampler, batch_size=4, workers=0, **options)
    there = DeviceLoader(dataset, sampler, device=CPU, batch_size=4, **options)
    assert len(usual) == len(there)
    return list(usual), list(there)


@pytest.mark.parametrize("crop", ["pad", "none"])
@pytest.mark.parametrize("shape", [(24, 32), (60, 50)])
def test_shifted_and_turned_pictures_are_the_same_bit_for_bit(
    crop: Any, shape: tuple[int, int], tmp_path: Path
) -> None:
    samples = samples_in(tmp_path, shape)
    transform = TrainingTransform(AugmentConfig(crop=crop, flip=0.5, vertical_flip=0.5), SIZE)
    sampler = EpochSampler([sample.label for sample in samples], seed=1, repeats=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        usual, there = both(samples, transform, sampler)
        assert len(usual) == len(there) == 3
        for one, other in zip(usual, there, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.indices, other.indices)


def test_random_parts_are_the_same_up_to_interpolation(tmp_path: Path) -> None:
    """Mean absolute difference of 8-bit values, of parts that are enlarged."""
    samples = samples_in(tmp_path, (24, 32))
    transform = TrainingTransform(AugmentConfig(flip=0.5, vertical_flip=0.5, crop_scale=(0.3, 0.9)), SIZE)
    usual, there = both(samples, transform, EpochSampler(range(len(samples)), seed=1))
    for one, other in zip(usual, there, strict=True):
        difference = (one.images.float() - other.images.float()).abs().mean(dim=(1, 2, 3))
        assert difference.max() < 6
        mirrored = (one.images.float() - other.images.flip(3).float()).abs().mean(dim=(1, 2, 3))
        assert (difference < mirrored).all()


def test_evaluation_sees_the_same_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    samples = samples_in(tmp_path, (60, 50))
    (tmp_path / "3.png").write_bytes(b"no picture")
    usual, there = both(samples, EvaluationTransform(SIZE), ExactSampler(len(samples)))
    for one, other in zip(usual, there, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.indices.tolist() == other.indices.tolist()
        assert one.failures == other.failures
    assert [index for batch in there for index, _ in batch.failures] == [3]


def test_what_cannot_be_done_on_the_device_is_refused(tmp_path: Path) -> None:
    samples = samples_in(tmp_path, (24, 32))
    sampler = EpochSampler(range(len(samples)), seed=1)
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    with pytest.raises(ConfigError, match=r"pictures of one size, these have 2; take ram"):
        both(samples, TrainingTransform(AugmentConfig(), SIZE), sampler)


def test_many_views_at_once_are_those_drawn_one_by_one() -> None:
    seeds = np.array([draw_seed(5, 1, index, 0) for index in range(500)], np.uint64)
    for crop in ("random-resized", "pad", "none"):
        transform = TrainingTransform(AugmentConfig(crop=crop, flip=0.5, vertical_flip=0.3), SIZE)
        one_by_one = [transform.view(60, 47, int(seed))[0] for seed in seeds]
        expected = [(v.top, v.left, v.height, v.width, v.mirrored, v.upside_down) for v in one_by_one]
        assert np.array_equal(transform.views(60, 47, seeds), np.array(expected, np.int64))


def test_random_numbers_are_the_same_one_by_one_and_at_once() -> None:
    seeds = np.arange(2000, dtype=np.uint64)
    for number in (0, 1, 30):
        assert uniform(seeds, number).tolist() == [uniform(int(seed), number) for seed in seeds]
    values = np.stack([uniform(seeds, number) for number in range(20)])
    assert np.abs(np.corrcoef(values) - np.eye(20)).max() < 0.1
    assert np.abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.std() - 12**-0.5) < 0.01
