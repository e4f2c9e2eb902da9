"""Which part of a picture a training draw shows, and which way round: known before the picture is decoded.

Letters: H, W the picture's height and width; h, w the model's.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from vit.data.config import Interpolation
from vit.data.decode import Copy
from vit.data.resize import resized
from vit.data.sampling import uniform

DRAWN = 22
"""random numbers that a part takes: two for each of ten tries, two for its place"""
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
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part whose area and aspect ratio (width / height) are random (Szegedy 2015).

    As torchvision draws it: where ten tries do not fit into the picture, the largest part in the middle whose aspect
    ratio is allowed, or that comes nearest to it. Takes the first `DRAWN` of the seed's random numbers.
    """
    logs = math.log(ratio[0]), math.log(ratio[1])
    for number in range(0, DRAWN - 2, 2):
        area = height * width * _between(*scale, uniform(seed, number))
        aspect = math.exp(_between(*logs, uniform(seed, number + 1)))
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            top = int(uniform(seed, DRAWN - 2) * (height - part_height + 1))
            left = int(uniform(seed, DRAWN - 1) * (width - part_width + 1))
            return top, left, part_height, part_width
    return _largest_part(height, width, ratio)


def random_parts(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], seeds: np.ndarray
) -> np.ndarray:
    """`random_part` for seeds uint64 [B] at once -> int64 [B, 4]."""
    parts = np.tile(np.array(_largest_part(height, width, ratio), np.int64), (len(seeds), 1))
    logs = math.log(ratio[0]), math.log(ratio[1])
    left_open = np.ones(len(seeds), bool)
    for number in range(0, DRAWN - 2, 2):
        area = height * width * _between(*scale, uniform(seeds, number))
        aspect = np.exp(_between(*logs, uniform(seeds, number + 1)))
        part_width, part_height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (part_width > 0) & (part_width <= width) & (part_height > 0) & (part_height <= height) & left_open
        top = uniform(seeds, DRAWN - 2) * (height - part_height + 1)
        left = uniform(seeds, DRAWN - 1) * (width - part_width + 1)
        drawn = np.stack([top, left, part_height, part_width], axis=1).astype(np.int64)
        parts[fits] = drawn[fits]
        left_open &= ~fits
        if not left_open.any():
            break
    return parts


def _between(low: float, high: float, share: Any) -> Any:
    return low + (high - low) * share


def _largest_part(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
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

    The view counts in pixels of the whole picture; of a smaller copy the nearest pixels are taken. OpenCV does not
    antialias, and enlarges in less time.
    """
    down, across = (extent / full for extent, full in zip(copy.extent, copy.full, strict=True))
    top, bottom = _nearest(view.top * down, (view.top + view.height) * down)
    left, right = _nearest(view.left * across, (view.left + view.width) * across)
    part = copy.pixels[top:bottom, left:right]
    if part.shape[0] <= size[0] and part.shape[1] <= size[1]:
        return turned(cv2.resize(part, size[::-1], interpolation=_GROWS[interpolation]), view)
    shrunk = torch.from_numpy(
        resized(part, size, interpolation)
    )  # whose planes lie apart: OpenCV would copy them first
    ways = [axis for axis, turns in ((0, view.upside_down), (1, view.mirrored)) if turns]
    return (shrunk.flip(ways) if ways else shrunk).numpy()


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
