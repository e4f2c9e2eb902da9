"""Operations on the device against Pillow's, one picture's draws whatever its batch, and how often each comes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit.data import device_policy
from vit.data.config import AugmentConfig
from vit.data.device_policy import DevicePolicy
from vit.data.sampling import draw_seed

FILL = (124, 116, 104)


def pictures(count: int = 6, side: int = 24) -> torch.Tensor:
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 230, (count, 6, 6, 3), dtype=np.uint8)
    made = [np.array(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC)) for part in coarse]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()


def by_pillow(images: torch.Tensor, change: Any) -> torch.Tensor:
    changed = [np.array(change(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


def operated(images: torch.Tensor, kind: int, strength: float, way: float = 1.0, choice: float = 0.0) -> torch.Tensor:
    """One operation of the fourteen on every picture."""
    ones = torch.ones(len(images))
    policy = DevicePolicy(AugmentConfig(policy="trivialaugment"), FILL)
    bits = 7 - torch.floor(4 * strength * ones)
    x = policy._operate(images.float(), kind * ones, strength * ones, way * ones, choice * ones, bits)
    return x.round().clamp(0, 255).byte()


def seeds_of(count: int, start: int = 0) -> np.ndarray:
    return np.array([draw_seed(0, 0, start + index, 0) for index in range(count)], np.uint64)


def varied(policy: DevicePolicy, images: torch.Tensor, seeds: np.ndarray) -> torch.Tensor:
    return policy(images, *(torch.from_numpy(table) for table in policy.draw(seeds)))


@pytest.mark.parametrize(
    ("kind", "strength", "change", "most"),
    [
        (0, 0.5, lambda image: image, 0),
        (6, 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45), 1),
        (7, 0.5, lambda image: ImageEnhance.Contrast(image).enhance(1.45), 1),
        (8, 0.5, lambda image: ImageEnhance.Color(image).enhance(1.45), 2),
        (10, 0.6, lambda image: ImageOps.posterize(image, 5), 0),
        (11, 0.4, lambda image: ImageOps.solarize(image, 153), 0),
        (12, 0.5, ImageOps.autocontrast, 1),
        (13, 0.5, ImageOps.equalize, 0),
    ],
)
def test_an_operation_is_pillows(kind: int, strength: float, change: Any, most: int) -> None:
    images = pictures()
    difference = (operated(images, kind, strength).int() - by_pillow(images, change).int()).abs()
    assert difference.max() <= most


def test_geometric_operations_are_pillows_turned_and_filled() -> None:
    """Of the inside; the edge between picture and fill is drawn differently."""
    images = pictures()
    bilinear = Image.Resampling.BILINEAR
    rotated = by_pillow(images, lambda image: image.rotate(-15, bilinear, fillcolor=FILL))
    shift = (1, 0, -5.4, 0, 1, 0)
    moved = by_pillow(images, lambda image: image.transform(image.size, Image.Transform.AFFINE, shift, bilinear))
    for ours, theirs in ((operated(images, 5, 0.5), rotated), (operated(images, 3, 0.5), moved)):
        difference = (ours.int() - theirs.int()).abs()[:, :, 8:-8, 8:-8]
        assert difference.float().mean() < 1.5
        assert difference.max() < 12
    assert torch.equal(operated(images, 3, 1.0)[:, :, 0, 0], torch.tensor([FILL] * len(images), dtype=torch.uint8))


def test_blur_is_pillows_and_sharpening_its_opposite() -> None:
    images = pictures()
    blurred = by_pillow(images, lambda image: image.filter(ImageFilter.GaussianBlur(1.0)))
    ours = operated(images, 9, 1.0, choice=0.9)
    assert (ours.int() - blurred.int()).abs()[:, :, 3:-3, 3:-3].float().mean() < 3
    sharper = operated(images, 9, 1.0, choice=0.1)
    assert sharper.float().std() > images.float().std() > ours.float().std()


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "three-augment"])
def test_a_picture_is_varied_by_its_own_seed_alone(policy: Any) -> None:
    images, seeds = pictures(32), seeds_of(32)
    made = DevicePolicy(AugmentConfig(policy=policy, color_jitter=0.3, erase=0.5), FILL)
    together = varied(made, images, seeds)
    alone = torch.cat([varied(made, images[i : i + 1], seeds[i : i + 1]) for i in range(32)])
    assert (together.int() - alone.int()).abs().max() <= 1  # filters of many pictures at once may round differently
    assert not torch.equal(together, varied(made, images, seeds_of(32, start=32)))


def test_every_operation_comes_as_often_as_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[torch.Tensor] = []
    plain = DevicePolicy._operate

    def counted(self: Any, x: Any, kind: torch.Tensor, *rest: Any) -> torch.Tensor:
        kinds.append(kind)
        return plain(self, x, kind, *rest)

    monkeypatch.setattr(DevicePolicy, "_operate", counted)
    images = pictures(1, 8).expand(7000, 3, 8, 8)
    varied(DevicePolicy(AugmentConfig(policy="trivialaugment"), FILL), images, seeds_of(7000))
    counts = torch.cat(kinds).long().bincount(minlength=14)
    assert len(counts) == device_policy._OPERATIONS
    assert counts.min() > 400
    assert counts.max() < 600


def test_erasing_takes_its_share_of_pictures_and_of_each() -> None:
    images = torch.full((2000, 3, 32, 32), 100, dtype=torch.uint8)
    erased = (varied(DevicePolicy(AugmentConfig(erase=0.4), FILL), images, seeds_of(2000)) != 100).any(dim=1)
    share = erased.flatten(1).float().mean(dim=1)
    assert 0.36 < (share > 0).float().mean() < 0.44
    assert share[share > 0].min() > 0.008
    assert share.max() < 0.34
