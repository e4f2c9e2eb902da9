"""From maps to pictures: a map laid over its picture, and all heads of all layers at a glance.

Colours are cividis, for one map, and purple to orange, for a difference: both are told apart by colour-blind people.
Letters: H, W height and width of a picture in pixels.
"""

from functools import cache
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

_LINE = 18  # pixels of a line of caption
_THUMBNAIL = 48


class Box(NamedTuple):
    """The part of a picture that the model saw, in its pixels; it may reach beyond, where margins were added."""

    top: float
    left: float
    bottom: float
    right: float


def overlay(picture: np.ndarray, values: np.ndarray, box: Box, caption: str, *, difference: bool = False) -> np.ndarray:
    """A map [rows, columns] over its picture uint8 [H, W, 3], the caption below: uint8 [H + a line or two, W, 3]."""
    return _captioned(laid_over(picture, values, box, difference=difference), caption)


def laid_over(picture: np.ndarray, values: np.ndarray, box: Box, *, difference: bool = False) -> np.ndarray:
    """A map [rows, columns] over its picture uint8 [H, W, 3]; where the model saw nothing, the picture is dark."""
    height, width = picture.shape[:2]
    large = _resized(_scaled(values, difference), box, height, width)
    seen = ~np.isnan(large)
    colours = coloured(np.nan_to_num(large), difference=difference)
    blended = np.where(seen[..., None], 0.45 * picture + 0.55 * colours, 0.3 * picture)
    return blended.round().astype(np.uint8)


def coloured(values: np.ndarray, *, difference: bool = False) -> np.ndarray:
    """Values in 0..1 [...] -> colours uint8 [..., 3]."""
    colour_map = mpl.colormaps["PuOr_r" if difference else "cividis"]
    return (255 * np.asarray(colour_map(values))[..., :3]).round().astype(np.uint8)


def contact_sheet(maps: np.ndarray, *, scale: int = _THUMBNAIL) -> np.ndarray:
    """Maps [layers, heads, rows, columns] as thumbnails, a line a layer from the first, uint8 [height, width, 3]."""
    layers, heads, rows, columns = maps.shape
    times = max(1, round(scale / max(rows, columns)))
    tile_height, tile_width, gap = rows * times, columns * times, 2
    margin = 2 * _LINE
    width = max(heads * (tile_width + gap) + margin, 170)  # room for the title
    sheet = np.full((layers * (tile_height + gap) + margin, width, 3), 255, np.uint8)
    for layer in range(layers):
        for head in range(heads):
            tile = coloured(_scaled(maps[layer, head], False)).repeat(times, axis=0).repeat(times, axis=1)
            top, left = margin + layer * (tile_height + gap), margin + head * (tile_width + gap)
            sheet[top : top + tile_height, left : left + tile_width] = tile
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for layer in range(layers):
        draw.text((4, margin + layer * (tile_height + gap) + tile_height / 2 - 7), str(layer), "black", _font())
    for head in range(heads):
        draw.text((margin + head * (tile_width + gap) + tile_width / 2 - 4, _LINE), str(head), "black", _font())
    draw.text((4, 1), "layers down, heads across", "black", _font())
    return np.asarray(image)


def _scaled(values: np.ndarray, difference: bool) -> np.ndarray:
    """To 0..1: from the lowest to the highest, or, of a difference, with 0 in the middle."""
    values = values.astype(np.float64)
    if difference:
        reach = np.abs(values).max()
        return np.full_like(values, 0.5) if reach == 0 else 0.5 + 0.5 * values / reach
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high == low else (values - low) / (high - low)


def _resized(values: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """A map at the picture's resolution, [height, width], NaN outside the box."""
    y = ((np.arange(height) + 0.5 - box.top) / (box.bottom - box.top)) * values.shape[0] - 0.5
    x = ((np.arange(width) + 0.5 - box.left) / (box.right - box.left)) * values.shape[1] - 0.5
    outside_y = (y < -0.5) | (y > values.shape[0] - 0.5)
    outside_x = (x < -0.5) | (x > values.shape[1] - 0.5)
    between = _interpolated(_interpolated(values, y, axis=0), x, axis=1)
    between[outside_y] = np.nan
    between[:, outside_x] = np.nan
    return between


def _interpolated(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    at = at.clip(0, values.shape[axis] - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (at - low)[:, None] if axis == 0 else (at - low)[None]
    return values.take(low, axis=axis) * (1 - share) + values.take(high, axis=axis) * share


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    lines = _broken(caption, max(8, picture.shape[1] // 8))
    strip = np.full((_LINE * len(lines) + 4, picture.shape[1], 3), 255, np.uint8)
    image = Image.fromarray(np.concatenate([picture, strip]))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((4, picture.shape[0] + 2 + number * _LINE), line, "black", _font())
    return np.asarray(image)


def _broken(text: str, width: int) -> list[str]:
    """Lines of at most `width` letters; control characters are left out."""
    lines, line = [], ""
    for word in "".join(c if c.isprintable() else " " for c in text).split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [part[:width] for part in [*lines, line]]


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)
