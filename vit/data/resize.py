"""The one resizing of pictures that shrink: antialiased, as Pillow does it, by torch in a fifth of the time."""

import numpy as np
from PIL import Image
from torch.nn.functional import interpolate

from vit.data.config import Interpolation
from vit.data.normalise import as_tensor

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_STEEP = 500  # shrinking by more than this goes by whole pixels first: the filter's weights alone would take gigabytes


def resized(
    pixels: np.ndarray, size: tuple[int, int], interpolation: Interpolation, extent: tuple[float, float] | None = None
) -> np.ndarray:
    """pixels uint8 [H, W, 3] -> uint8 of height and width `size`, in memory of its own, colour by colour.

    `extent` is how many of the pixels the picture spans, from the first, where that is no whole number. Each value is
    Pillow's or next to it, seldom farther: torch has 16 bits for the filter's weights (on processors with AVX2),
    Pillow 22.
    """
    height, width = pixels.shape[:2] if extent is None else extent
    if height > _STEEP * size[0] or width > _STEEP * size[1]:
        box = (0, 0, width, height)
        return np.array(Image.fromarray(pixels).resize(size[::-1], FILTERS[interpolation], box, reducing_gap=3.0))
    # a little more than asked for, since torch rounds the size down: 49 * (1 / 49) is less than 1
    scale = None if (height, width) == pixels.shape[:2] else [(size[0] + 1e-6) / height, (size[1] + 1e-6) / width]
    filtered = interpolate(
        as_tensor(pixels)[None],
        size=size if scale is None else None,
        scale_factor=scale,
        mode=interpolation,
        antialias=True,
    )
    return filtered[0].permute(1, 2, 0).numpy()
