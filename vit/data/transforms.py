"""From a decoded picture to the model's input outside training, as timm does it.

Letters: H, W the picture's height and width; h, w the model's.
"""

import math
import os

import numpy as np
from PIL import Image

from vit.data.config import Preprocessing
from vit.data.decode import Copy, decode_copy
from vit.data.resize import FILTERS, resized

_EXTREME = 20  # long side / short side above which `crop` resizes no more than the part it keeps
_AMPLE = 2  # a JPEG is decoded to this much more than the fitted size, or more: the filter sees to the rest


class EvaluationTransform:
    """Resize and cut or pad a picture to the model's size, antialiased.

    `crop`, `squash` and `letterbox` are timm's evaluation transform (crop modes `center`, `squash` and `border`): each
    value is the same, but for some that are the next one (`vit.data.resize`). The picture is fitted to
    size / crop_fraction and its centre is kept: a crop fraction below 1 cuts the margins even of a squashed or
    letterboxed picture.

    Where the sides differ more than twentyfold, `crop` computes only the part it keeps, because the whole would not
    fit into memory (5000 x 1 at size 224 would be 1 280 000 x 256 first). There, single values may differ from
    timm's by rounding; and a letterboxed side is at least one pixel wide, where timm stops with an error.

    `read` decodes a JPEG of more than twice the fitted size to a smaller copy first.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.size = preprocessing.size
        self.max_pixels = preprocessing.max_pixels
        self._interpolation = preprocessing.interpolation
        self._scaled = tuple(math.floor(side / preprocessing.crop_fraction) for side in preprocessing.size)

    def read(self, source: str | os.PathLike[str] | bytes) -> np.ndarray:
        """Decode a picture and fit it -> uint8 [h, w, 3]. Raises UnreadableImage as `decode` does."""
        copy = decode_copy(source, self._least, self.max_pixels, passing=True)
        fitted = self.fit(copy)
        return fitted.copy() if np.may_share_memory(fitted, copy.pixels) else fitted

    def keep(self, source: str | os.PathLike[str] | bytes) -> Copy:
        """What a cache keeps of a picture: all that `read` gives."""
        return Copy.whole(self.read(source))

    def kept_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a cache keeps of a picture [H, W]."""
        return self.size

    def kept_as(self) -> str:
        """Whatever changes what `keep` gives, in words."""
        return repr(self.preprocessing)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Fit `image` uint8 [H, W, 3] -> uint8 [h, w, 3]; a picture that fits already is returned as it is."""
        return self.fit(Copy.whole(image))

    def fit(self, copy: Copy) -> np.ndarray:
        """As calling does, of a picture that may be a smaller copy: the whole one's shape decides."""
        image = copy.pixels
        height, width = copy.full
        fitted = self._fitted_size(height, width)
        if fitted == image.shape[:2] == self.size:
            return image
        if self.preprocessing.resize == "letterbox":
            return self._pad(self._resize(copy, fitted))
        if self.preprocessing.resize == "crop" and max(height, width) > _EXTREME * min(height, width):
            return self._resize_centre(image, fitted)
        return self._cut(self._resize(copy, fitted))

    def _least(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which a picture [H, W] may be decoded, at the least."""
        if max(height, width) > _EXTREME * min(height, width):
            return height, width
        fitted = self._fitted_size(height, width)
        return min(height, _AMPLE * fitted[0]), min(width, _AMPLE * fitted[1])

    def seen(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a picture [H, W] that the model sees: top, left, bottom, right in its pixels.

        It reaches beyond the picture where margins are added.
        """
        fitted = self._fitted_size(height, width)
        top, left = ((have - want) / 2 for have, want in zip(fitted, self.size, strict=True))
        down, across = height / fitted[0], width / fitted[1]
        return top * down, left * across, (top + self.size[0]) * down, (left + self.size[1]) * across

    def _fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole picture after resizing, rounded as torchvision and timm round."""
        if self.preprocessing.resize == "squash":
            return self._scaled[0], self._scaled[1]
        if self.preprocessing.resize == "letterbox":
            ratio = max(height / self._scaled[0], width / self._scaled[1])
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if self._scaled[0] == self._scaled[1]:  # torchvision's Resize cuts the long side down to whole pixels
            short, long = self._scaled[0], int(self._scaled[0] * max(height, width) / min(height, width))
            return (long, short) if width <= height else (short, long)
        ratio = min(height / self._scaled[0], width / self._scaled[1])
        return round(height / ratio), round(width / ratio)

    def _resize(self, copy: Copy, fitted: tuple[int, int]) -> np.ndarray:
        """Each pass over the picture rounds, so their order shows: across first, and so does torch.

        Pillow 13 goes down first where more than twice as many rows as columns go away.
        """
        pixels, (height, width) = copy.pixels, copy.extent
        if (height, width) == pixels.shape[:2] and height > fitted[0] and height - fitted[0] > 2 * (width - fitted[1]):
            pixels = resized(pixels, (fitted[0], pixels.shape[1]), self._interpolation)
            return resized(pixels, fitted, self._interpolation)
        return resized(pixels, fitted, self._interpolation, copy.extent)

    def _resize_centre(self, image: np.ndarray, fitted: tuple[int, int]) -> np.ndarray:
        """The centre of the resized picture, computed from the pixels it depends on alone."""
        rows = _source_span(image.shape[0], fitted[0], self.size[0])
        columns = _source_span(image.shape[1], fitted[1], self.size[1])
        part = np.ascontiguousarray(image[rows[0] : rows[1], columns[0] : columns[1]])
        box = (columns[2], rows[2], columns[3], rows[3])
        return np.array(Image.fromarray(part).resize((self.size[1], self.size[0]), FILTERS[self._interpolation], box))

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        """The centre of a fitted picture."""
        top, left = (_centre(have, want) for have, want in zip(picture.shape, self.size, strict=False))
        kept = picture[top : top + self.size[0], left : left + self.size[1]]
        return kept.copy(order="K")  # in the order of its memory, colour by colour, as `as_tensor` takes it

    def _pad(self, picture: np.ndarray) -> np.ndarray:
        """A fitted picture in the middle of the mean colour; where it is longer, its centre."""
        canvas = np.empty((*self.size, 3), np.uint8)
        canvas[:] = [round(255 * value) for value in self.preprocessing.mean]
        (down, rows), (across, columns) = (
            _overlap(_start(have, want), have, want) for have, want in zip(picture.shape, self.size, strict=False)
        )
        canvas[down, across] = picture[rows, columns]
        return canvas


def _centre(have: int, want: int) -> int:
    """Where a centred window of `want` pixels starts among `have`, rounded as torchvision's CenterCrop rounds."""
    return round((have - want) / 2.0)


def _start(have: int, want: int) -> int:
    """Where a side of `have` pixels starts when it is centred on one of `want`: below 0 when it is the longer one."""
    return (want - have) // 2 if have < want else -_centre(have, want)


def _overlap(start: int, have: int, want: int) -> tuple[slice, slice]:
    """Where a side of `have` pixels that starts at `start` lies on one of `want`, and which part of it."""
    end = min(want, start + have)
    return slice(max(0, start), end), slice(max(0, -start), end - start)


def _source_span(source: int, fitted: int, kept: int) -> tuple[int, int, float, float]:
    """The pixels [first, last) of one side that the centre depends on, and the centre's ends counted from `first`."""
    scale = source / fitted
    low = _centre(fitted, kept) * scale
    high = min(low + kept * scale, float(source))
    reach = 3 * max(scale, 1.0)  # the bicubic filter's support is 2 pixels of the coarser side
    first, last = max(0, math.floor(low - reach)), min(source, math.ceil(high + reach))
    return first, last, low - first, min(high - first, float(last - first))
