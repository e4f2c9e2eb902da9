"""Random variation of training pictures by albumentations 2.0.8; no other file touches that library.

Two of its habits are mended here. It asks the network for a newer version when it is imported; and its own random
state is the same in every worker and every epoch, hence each call gets fresh generators made from the call's seed.
"""

import math
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from vit.data.config import AugmentConfig, Preprocessing
from vit.data.decode import Copy, decode_copy
from vit.data.resize import resized
from vit.data.sampling import uniform
from vit.data.transforms import EvaluationTransform
from vit.data.views import DRAWN, View, cut_out, enough, random_part, random_parts, turned


def _import_albumentations() -> Any:
    """Import the library without its version check, and leave the environment as it was."""
    name = "NO_ALBUMENTATIONS_UPDATE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import albumentations
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return albumentations


A = _import_albumentations()

_Range = tuple[float, float]


class TrainingTransform:
    """Crop, flip, policy, colour jitter and erasing, in this order; what comes out depends on (picture, seed) alone.

    A random-resized part (Szegedy et al. 2015) is interpolated as `preprocessing` says, antialiased where it shrinks.
    The other crops resize as `EvaluationTransform` does.
    Corners that geometric operations leave empty take the mean colour. Erasing (Zhong et al. 2020) fills one rectangle
    with random pixels; each of its sides is 14 % to 57 % of the picture's, its area 2 % to 33 %.
    """

    def __init__(self, augment: AugmentConfig, preprocessing: Preprocessing, *, kept_side: int = 0) -> None:
        self.size = preprocessing.size
        self.kept_side = kept_side or -(-8 * max(preprocessing.size) // 7)
        self.augment = augment = augment.settled()
        self._fit = None if augment.crop == "random-resized" else EvaluationTransform(preprocessing)
        height, width = self.size
        self.margin = (height // 8, width // 8) if augment.crop == "pad" else (0, 0)
        """rows and columns by which a padded crop is shifted at most"""
        self._interpolation = preprocessing.interpolation
        self.max_pixels = preprocessing.max_pixels
        self.fill = fill = tuple(round(255 * value) for value in preprocessing.mean)
        steps = [*_policy_steps(augment, fill), *_jitter_steps(augment), *_erase_steps(augment)]
        self._steps = A.Compose(steps, is_check_shapes=False) if steps else None

    @property
    def parts(self) -> bool:
        """Whether random parts are drawn, rather than shifts of the fitted picture."""
        return self._fit is None

    @property
    def colours(self) -> bool:
        """Whether there is more to vary than the place and the turn."""
        return self._steps is not None

    def read(self, source: str | os.PathLike[str] | bytes, seed: int) -> np.ndarray:
        """Decode as much of a picture as this draw needs, and vary it -> uint8 [h, w, 3].

        Raises UnreadableImage as `decode` does.
        """
        if self._fit is not None:
            return self._varied(self._fit.read(source), *self.view(*self.size, seed))

        def least(height: int, width: int) -> tuple[int, int]:
            view, _ = self.view(height, width, seed)
            return enough((height, width), (view.height, view.width), self.size)

        return self.show(decode_copy(source, least, self.max_pixels, passing=True), seed)

    def keep(self, source: str | os.PathLike[str] | bytes) -> Copy:
        """What a cache keeps of a picture for draws to come: all that is the same in every draw.

        Of pictures whose parts are drawn that is the whole, its short side shrunk to `kept_side`.
        """
        if self._fit is not None:
            return self._fit.keep(source)
        copy = decode_copy(source, self.kept_size, self.max_pixels)
        height, width = self.kept_size(*copy.full)
        return Copy(resized(copy.pixels, (height, width), "bicubic", copy.extent), copy.full, (height, width))

    def kept_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a cache keeps of a picture [H, W]."""
        if self._fit is not None:
            return self.size
        shrink = max(1.0, min(height, width) / self.kept_side)
        return max(1, round(height / shrink)), max(1, round(width / shrink))

    def kept_as(self) -> str:
        """Whatever changes what `keep` gives, in words."""
        return f"short side {self.kept_side}, {self.max_pixels}" if self._fit is None else self._fit.kept_as()

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Vary `image` uint8 [H, W, 3] -> uint8 [h, w, 3]; the same seed gives the same pixels in every process."""
        return self.show(Copy.whole(image), seed)

    def show(self, copy: Copy, seed: int) -> np.ndarray:
        """As calling does, of a picture that may be a smaller copy: the whole one's shape decides what is drawn."""
        if self._fit is not None:
            return self._varied(self._fit.fit(copy), *self.view(*self.size, seed))
        view, seed = self.view(*copy.full, seed)
        return self._coloured(cut_out(copy, view, self.size, self._interpolation), seed)

    def show_all(self, copies: Sequence[Copy], seeds: np.ndarray) -> np.ndarray:
        """As `show` does for copies that are fitted, not cut (not `parts`), of seeds uint64 [B] -> uint8 [B, h, w, 3].

        Their views are drawn at once: one by one, that takes small pictures longer than all else.
        """
        assert self._fit is not None
        seen = np.empty((len(copies), *self.size, 3), np.uint8)
        views = self.views(*self.size, seeds).tolist()
        colours = (uniform(seeds, DRAWN + 2) * 2**32).astype(np.int64).tolist()
        for place, (copy, numbers, colour) in enumerate(zip(copies, views, colours, strict=True)):
            seen[place] = self._varied(self._fit.fit(copy), View(*numbers), colour)
        return seen

    def view(self, height: int, width: int, seed: int) -> tuple[View, int]:
        """What a draw shows of a picture [H, W], and the seed of all that is random about its colours.

        Of a padded crop it is the place in the padded picture, which has the model's size and margins.
        """
        if self._fit is None:
            part = random_part(height, width, self.augment.crop_scale, self.augment.crop_ratio, seed)
        else:
            top, left = (int(uniform(seed, n) * (2 * margin + 1)) for n, margin in enumerate(self.margin))
            part = (top, left, *self.size)
        mirrored, upside_down = (uniform(seed, DRAWN + n) < p for n, p in enumerate(self._turns))
        return View(*part, mirrored, upside_down), int(uniform(seed, DRAWN + 2) * 2**32)

    def views(self, height: int, width: int, seeds: np.ndarray) -> np.ndarray:
        """The places and turns of `view` for pictures of one shape, seeds uint64 [B] -> int64 [B, 6], as in `View`."""
        if self._fit is None:
            parts = random_parts(height, width, self.augment.crop_scale, self.augment.crop_ratio, seeds)
        else:
            starts = [uniform(seeds, n) * (2 * margin + 1) for n, margin in enumerate(self.margin)]
            parts = np.stack([*starts, *(np.full(len(seeds), side) for side in self.size)], axis=1).astype(np.int64)
        turns = [uniform(seeds, DRAWN + n) < p for n, p in enumerate(self._turns)]
        return np.concatenate([parts, np.stack(turns, axis=1)], axis=1)

    @property
    def _turns(self) -> tuple[float, float]:
        return self.augment.flip or 0.0, self.augment.vertical_flip

    def _varied(self, image: np.ndarray, view: View, seed: int) -> np.ndarray:
        """A fitted picture [h, w, 3], shifted and turned as the view says, and coloured by the seed."""
        return self._coloured(turned(self._shifted(image, view), view), seed)

    def _coloured(self, image: np.ndarray, seed: int) -> np.ndarray:
        if self._steps is None:
            return image
        # One pair of generators for all steps. `set_random_seed` would give every step its own pair with the same seed:
        # the steps' draws would be one another's copies.
        self._steps.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self._steps(image=np.ascontiguousarray(image))["image"]

    def _shifted(self, image: np.ndarray, view: View) -> np.ndarray:
        """The view of a fitted picture whose margins mirror it."""
        rows, columns = self.margin
        if (view.top, view.left) == (rows, columns):
            return image
        image = cv2.copyMakeBorder(image, rows, rows, columns, columns, cv2.BORDER_REFLECT_101)
        return image[view.top : view.top + view.height, view.left : view.left + view.width]


def _jitter_steps(augment: AugmentConfig) -> list[Any]:
    strength = augment.color_jitter
    return [_colors(brightness=strength, contrast=strength, saturation=strength)] if strength > 0 else []


def _erase_steps(augment: AugmentConfig) -> list[Any]:
    if augment.erase == 0:
        return []
    # not A.Erasing: in 2.0.8 it raises TypeError where one side of the target is four times the other
    sides = (math.sqrt(0.02), math.sqrt(0.33))
    hole = A.CoarseDropout(
        num_holes_range=(1, 1), hole_height_range=sides, hole_width_range=sides, fill="random", p=augment.erase
    )
    return [hole]


def _policy_steps(augment: AugmentConfig, fill: tuple[int, ...]) -> list[Any]:
    """The policy as one step: RandAugment (Cubuk 2020), TrivialAugment (Mueller 2021), 3-Augment (Touvron 2022)."""
    if augment.policy == "randaugment":
        strength = augment.policy_magnitude / 10
        return [A.RandomOrder(_operations(strength, strength, fill), n=augment.policy_ops, replace=True)]
    if augment.policy == "trivialaugment":
        return [A.OneOf(_operations(0.0, 1.0, fill), p=1)]
    if augment.policy == "three-augment":
        blur = A.GaussianBlur(sigma_limit=(0.1, 2.0), p=1)
        return [A.OneOf([A.ToGray(p=1), A.Solarize(threshold_range=(0.5, 0.5), p=1), blur], p=1)]
    return []


def _operations(low: float, high: float, fill: tuple[int, ...]) -> list[Any]:
    """RandAugment's fourteen operations, each with a strength drawn from [low, high] within 0..1.

    At full strength: shear 0.3, translation 45 % of the side, rotation 30 degrees, colours changed by 90 %, 4 bits,
    everything solarized. Those that can go either way do so at random.
    """
    shear = math.degrees(math.atan(0.3))
    return [
        A.NoOp(p=1),
        _either_way(low, high, lambda a, b: _affine(fill, shear_x=(shear * a, shear * b))),
        _either_way(low, high, lambda a, b: _affine(fill, shear_y=(shear * a, shear * b))),
        _either_way(low, high, lambda a, b: _affine(fill, shift_x=(0.45 * a, 0.45 * b))),
        _either_way(low, high, lambda a, b: _affine(fill, shift_y=(0.45 * a, 0.45 * b))),
        _either_way(low, high, lambda a, b: _affine(fill, rotate=(30 * a, 30 * b))),
        _either_way(low, high, lambda a, b: _colors(brightness=(1 + 0.9 * a, 1 + 0.9 * b))),
        _either_way(low, high, lambda a, b: _colors(contrast=(1 + 0.9 * a, 1 + 0.9 * b))),
        _either_way(low, high, lambda a, b: _colors(saturation=(1 + 0.9 * a, 1 + 0.9 * b))),
        A.OneOf([_sharper(low, high), A.GaussianBlur(sigma_limit=(max(low, 0.1), max(high, 0.1)), p=1)], p=1),
        A.Posterize(num_bits=(min(8 - round(4 * high), 7), min(8 - round(4 * low), 7)), p=1),
        A.Solarize(threshold_range=(1 - high, 1 - low), p=1),
        A.AutoContrast(method="pil", p=1),
        A.Equalize(mode="pil", p=1),
    ]


def _either_way(low: float, high: float, make: Callable[[float, float], Any]) -> Any:
    return A.OneOf([make(low, high), make(-high, -low)], p=1)


def _affine(
    fill: tuple[int, ...],
    *,
    rotate: _Range = (0, 0),
    shear_x: _Range = (0, 0),
    shear_y: _Range = (0, 0),
    shift_x: _Range = (0, 0),
    shift_y: _Range = (0, 0),
) -> Any:
    shear, shift = {"x": shear_x, "y": shear_y}, {"x": shift_x, "y": shift_y}
    return A.Affine(rotate=rotate, shear=shear, translate_percent=shift, fill=fill, p=1)


def _colors(
    *, brightness: float | _Range = (1, 1), contrast: float | _Range = (1, 1), saturation: float | _Range = (1, 1)
) -> Any:
    """Factors of brightness, contrast and saturation in random order; a number s means 1 - s to 1 + s."""
    return A.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=(0, 0), p=1)


def _sharper(low: float, high: float) -> Any:
    return A.Sharpen(alpha=(0.9 * low, 0.9 * high), method="gaussian", p=1)
