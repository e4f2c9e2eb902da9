"""Which part of a picture a training draw shows, and which way round: known before the picture is decoded.

Letters: H, W the picture's height and width; h, w the model's.
"""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from vit.data.config import Interpolation
from vit.data.decode import Copy

_TRIES = 10
_GROWS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}


@dataclass(frozen=True, slots=True)
class View:
    """A window of a picture, in its pixels, and how it is turned."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False
    upside_down: bool = False


def random_part(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part whose area and aspect ratio (width / height) are random (Szegedy 2015).

    As torchvision draws it: where ten tries do not fit into the picture, the largest part in the middle whose aspect
    ratio is allowed, or that comes nearest to it.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            top, left = rng.randint(0, height - part_height), rng.randint(0, width - part_width)
            return top, left, part_height, part_width
    part_height, part_width = height, width
    if width / height < ratio[0]:
        part_height = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        part_width = max(1, min(width, round(height * ratio[1])))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def enough(full: tuple[int, int], part: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The least height and width of the whole picture, `full`, at which its part has the pixels of `size` or all."""
    shrink = max(1.0, min(have / want for have, want in zip(part, size, strict=True)))
    return math.ceil(full[0] / shrink), math.ceil(full[1] / shrink)


def cut_out(copy: Copy, view: View, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """The view of a picture as uint8 [h, w, 3], interpolated, antialiased along sides that shrink, and turned.

    The view counts in pixels of the whole picture; of a smaller copy the nearest pixels are taken. torch shrinks
    as Pillow does, in less time; OpenCV does not antialias, and enlarges in less still.
    """
    down, across = (extent / full for extent, full in zip(copy.extent, copy.full, strict=True))
    top, bottom = _nearest(view.top * down, (view.top + view.height) * down)
    left, right = _nearest(view.left * across, (view.left + view.width) * across)
    part = copy.pixels[top:bottom, left:right]
    if part.shape[0] <= size[0] and part.shape[1] <= size[1]:
        return turned(cv2.resize(part, size[::-1], interpolation=_GROWS[interpolation]), view)
    tensor = torch.from_numpy(part.copy()).permute(2, 0, 1)[None]
    tensor = interpolate(tensor, size=size, mode=interpolation, antialias=True)[0]
    ways = [axis for axis, turns in ((1, view.upside_down), (2, view.mirrored)) if turns]
    return (tensor.flip(ways) if ways else tensor).permute(1, 2, 0).numpy()


def _nearest(first: float, last: float) -> tuple[int, int]:
    """Whole pixels nearest to two edges, at least one between them."""
    start = min(round(first), math.ceil(last) - 1)
    return start, max(round(last), start + 1)


def turned(image: np.ndarray, view: View) -> np.ndarray:
    """A fitted picture [h, w, 3] mirrored or upside down, as the view says."""
    if view.mirrored and view.upside_down:
        return cv2.flip(image, -1)
    if view.mirrored or view.upside_down:
        return cv2.flip(image, 1 if view.mirrored else 0)
    return image
