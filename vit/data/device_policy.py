"""Colours of a batch varied on the device: policies, jitter and erasing of `TrainingTransform` as tensor operations.

Every picture has an operation and a strength of its own, drawn from its seed alone: the batch it comes in does not
matter. Letters: B pictures of a batch; h, w their height and width; J numbers drawn for each.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.data.config import AugmentConfig
from vit.data.sampling import uniform
from vit.data.views import DRAWN

_FIRST = DRAWN + 3
"""the first random number of a seed that says nothing of place and turn"""
_OPERATIONS = 14
_SHEAR = math.degrees(math.atan(0.3))


class DevicePolicy:
    """RandAugment (Cubuk 2020), TrivialAugment (Mueller 2021) or 3-Augment (Touvron 2022), then jitter and erasing.

    The operations and their ranges are those that the workers take from albumentations; which picture gets which is
    drawn anew. Corners that geometric operations leave empty take `fill`, a colour in 0..255.
    """

    def __init__(self, augment: AugmentConfig, fill: Sequence[int]) -> None:
        self._augment = augment
        self._fill = torch.tensor(list(fill), dtype=torch.float32).view(1, 3, 1, 1)
        self._rounds = augment.policy_ops if augment.policy == "randaugment" else int(augment.policy != "none")

    def draw(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All random numbers of pictures with seeds uint64 [B]: float32 [B, J], and the seeds of noise, int64 [B]."""
        count = 4 * self._rounds + 3 + 5
        numbers = np.stack([uniform(seeds, _FIRST + number) for number in range(count)], axis=1)
        return numbers.astype(np.float32), seeds.astype(np.int64)

    def __call__(self, images: Tensor, numbers: Tensor, seeds: Tensor) -> Tensor:
        """images uint8 [B, 3, h, w], numbers [B, J] and seeds [B] of `draw` -> uint8 [B, 3, h, w]."""
        x = images.float()
        self._fill = self._fill.to(x.device)
        for turn in range(self._rounds):
            kind, strength, way, choice = numbers[:, 4 * turn : 4 * turn + 4].unbind(1)
            if self._augment.policy == "three-augment":
                x = _three(x, (3 * kind).floor(), strength)
                continue
            if self._augment.policy == "randaugment":
                fixed = self._augment.policy_magnitude / 10
                strength, bits = (
                    torch.full_like(strength, fixed),
                    torch.full_like(strength, min(8 - round(4 * fixed), 7)),
                )
            else:
                bits = 7 - (4 * strength).floor()
            x = self._operate(x, (_OPERATIONS * kind).floor(), strength, (way < 0.5).float() * 2 - 1, choice, bits)
        jitter, erase = numbers[:, -8:-5], numbers[:, -5:]
        if self._augment.color_jitter > 0:
            brightness, contrast, saturation = (
                (1 + self._augment.color_jitter * (2 * jitter - 1)).clamp(min=0).unbind(1)
            )
            x = _saturated(_contrasted(_brighter(x, brightness), contrast), saturation)
        x = x.round_().clamp_(0, 255).byte()
        return x if self._augment.erase == 0 else _erased(x, erase, seeds, self._augment.erase)

    def _operate(self, x: Tensor, kind: Tensor, strength: Tensor, way: Tensor, choice: Tensor, bits: Tensor) -> Tensor:
        """One of the fourteen operations on each picture of x float [B, 3, h, w]; all others [B]."""
        signed = strength * way

        def only(number: int, value: Tensor, otherwise: float = 0.0) -> Tensor:
            return torch.where(kind == number, value, otherwise)

        x = _moved(
            x,
            shear_x=only(1, _SHEAR * signed),
            shear_y=only(2, _SHEAR * signed),
            shift_x=only(3, 0.45 * signed),
            shift_y=only(4, 0.45 * signed),
            rotate=only(5, 30 * signed),
            fill=self._fill,
        )
        x = _brighter(x, only(6, 1 + 0.9 * signed, 1.0))
        x = _contrasted(x, only(7, 1 + 0.9 * signed, 1.0))
        x = _saturated(x, only(8, 1 + 0.9 * signed, 1.0))
        sharper = (choice < 0.5).float()
        smooth = _blurred(x, torch.where(sharper > 0, 1.0, strength.clamp(min=0.1)), radius=3)
        x = x + _wide(only(9, torch.where(sharper > 0, 0.9 * strength, -1.0))) * (x - smooth)
        x = x.round().clamp(0, 255)
        step = 2 ** (8 - only(10, bits, 8.0))
        x = (x / _wide(step)).floor() * _wide(step)
        x = torch.where(x >= _wide(only(11, 255 * (1 - strength), 256.0)), 255 - x, x)
        x = torch.where(_wide(kind) == 12, _autocontrasted(x), x)
        return torch.where(_wide(kind) == 13, _equalized(x), x)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _three(x: Tensor, kind: Tensor, strength: Tensor) -> Tensor:
    """Grey, solarized or blurred, one of them for each picture."""
    grey = _grey(x).expand_as(x)
    solarized = torch.where(x >= 127.5, 255 - x, x)
    blurred = _blurred(x, 0.1 + 1.9 * strength, radius=6)
    return torch.where(_wide(kind) == 0, grey, torch.where(_wide(kind) == 1, solarized, blurred))


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _brighter(x: Tensor, factor: Tensor) -> Tensor:
    return (x * _wide(factor)).clamp(0, 255)


def _contrasted(x: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (x - mean) * _wide(factor)).clamp(0, 255)


def _saturated(x: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(x)
    return (grey + (x - grey) * _wide(factor)).clamp(0, 255)


def _autocontrasted(x: Tensor) -> Tensor:
    """Every channel stretched to 0..255, as Pillow does."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    stretched = (x - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched.floor(), x)


def _equalized(x: Tensor) -> Tensor:
    """Every channel with an even histogram, as Pillow does."""
    values = x.long().flatten(2)  # [B, 3, h w]
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = counts.cumsum(dim=2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, values), values).view_as(x).float()


def _blurred(x: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Gaussian blur of each picture by its sigma [B] in pixels, cut at `radius`, the edges mirrored."""
    radius = min(radius, x.shape[2] - 1, x.shape[3] - 1)
    steps = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    height, width = x.shape[2:]
    padded = F.pad(x, (0, 0, radius, radius), mode="reflect")
    down = sum(_wide(weight) * padded[:, :, step : step + height] for step, weight in enumerate(weights.unbind(1)))
    assert isinstance(down, Tensor)
    padded = F.pad(down, (radius, radius, 0, 0), mode="reflect")
    across = sum(_wide(weight) * padded[..., step : step + width] for step, weight in enumerate(weights.unbind(1)))
    assert isinstance(across, Tensor)
    return across


def _moved(
    x: Tensor,
    *,
    shear_x: Tensor,
    shear_y: Tensor,
    shift_x: Tensor,
    shift_y: Tensor,
    rotate: Tensor,
    fill: Tensor,
) -> Tensor:
    """Each picture sheared and rotated about its middle by degrees [B], shifted by shares of its sides [B].

    `fill` [1, 3, 1, 1] is what lies outside.
    """
    height, width = x.shape[2:]
    turn, lean_x, lean_y = (torch.deg2rad(value) for value in (rotate, shear_x, shear_y))
    cos, sin, across, down = turn.cos(), turn.sin(), lean_x.tan(), lean_y.tan()
    # where a pixel of the result comes from, in pixels from the middle; grid_sample counts in half sides
    theta = torch.stack(
        [
            torch.stack([cos, (sin + across) * height / width, -2 * shift_x], dim=1),
            torch.stack([(down - sin) * width / height, cos, -2 * shift_y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def _erased(x: Tensor, numbers: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """Random pixels in one rectangle of some pictures uint8 [B, 3, h, w] (Zhong et al. 2020), numbers [B, 5]."""
    height, width = x.shape[2:]
    chosen, tall, broad, top, left = numbers.unbind(1)
    low, high = math.sqrt(0.02), math.sqrt(0.33)
    tall, broad = ((height * (low + (high - low) * tall)).floor(), (width * (low + (high - low) * broad)).floor())
    tall, broad = tall.clamp(min=1), broad.clamp(min=1)
    top, left = (top * (height - tall + 1)).floor(), (left * (width - broad + 1)).floor()
    rows = torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    inside_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + broad)[:, None])
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :] & _wide(chosen < probability)
    return torch.where(inside, _noise(seeds, x), x)


def _noise(seeds: Tensor, like: Tensor) -> Tensor:
    """Random pixels of each picture from its seed, by splitmix64; in signed numbers, which wrap as well."""
    place = torch.arange(like[0].numel(), device=like.device)
    state = seeds[:, None] * -0x2ECBDABC217D106B + (place + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        state = (state ^ (state >> shift)) * factor
    return (state >> 32).byte().view_as(like)
