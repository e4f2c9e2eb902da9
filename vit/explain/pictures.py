"""From maps to images: a map over its image, and all heads of all layers at a glance.

Colors are cividis, for one map, and purple to orange, for a difference: color-blind people can tell both apart.
Letters: H, W height and width of an image in pixels.
"""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from vit.evaluate.plots import name_style, shorten

NEARLY_UNIFORM = 0.1
"""A map whose values differ by less than this fraction of the largest one is nearly uniform. Its colors span this
fraction all the same: from lowest to highest, noise would look like a decision."""

_LINE = 18  # pixels of a line of caption
_BAR = 10  # pixels of the color bar
_THUMBNAIL = 48
_LONGEST = 300  # characters of a caption


class Box(NamedTuple):
    """The part of a picture that the model saw, in its pixels; it may reach beyond, where margins were added."""

    top: float
    left: float
    bottom: float
    right: float

    def of_patches(self, image_size: Sequence[int], patch_size: Sequence[int]) -> "Box":
        """Return the part that the patches of a model input of `image_size` pixels cover; it ends with the last one."""
        down, across = (side // patch * patch / side for side, patch in zip(image_size, patch_size, strict=True))
        bottom, right = self.top + down * (self.bottom - self.top), self.left + across * (self.right - self.left)
        return Box(self.top, self.left, bottom, right)


class Scale(NamedTuple):
    """The values at both ends of the colors, and a note where a map says little."""

    low: float
    high: float
    note: str = ""


def color_scale(
    values: np.ndarray, *, difference: bool = False, largest: float = 0.0, query: tuple[int, int] | None = None
) -> Scale:
    """Return the color scale of a map: from its lowest to its highest value, or, of a difference, around 0.

    The value of the patch `query` (row, column) itself, which is mostly the residual's, does not count.

    The scale spans at least `NEARLY_UNIFORM` of the largest absolute value, of the map or, for a difference, `largest`
    of the two maps.
    """
    if query is not None and values.size > 1:
        values = np.delete(values, np.ravel_multi_index(query, values.shape))
    low, high = float(values.min()), float(values.max())
    largest = max(largest, abs(low), abs(high))
    if largest == 0:
        return Scale(-1.0 if difference else 0.0, 1.0, "zero everywhere")
    spread = max(abs(low), abs(high)) if difference else high - low
    note = ""
    if spread < NEARLY_UNIFORM * largest:
        what = "hardly a difference: at most" if difference else "nearly uniform: values differ by"
        note = f"{what} {100 * spread / largest:.2g} % of the largest{' of both maps' if difference else ''}"
    if difference:
        reach = max(spread, NEARLY_UNIFORM * largest)
        return Scale(-reach, reach, note)
    margin = max(0.0, NEARLY_UNIFORM * largest - spread) / 2
    return Scale(low - margin, high + margin, note)


def overlay(
    picture: np.ndarray,
    values: np.ndarray,
    box: Box,
    caption: str,
    *,
    difference: bool = False,
    scale: Scale | None = None,
    query: tuple[int, int] | None = None,
) -> np.ndarray:
    """A map [rows, columns] over its image uint8 [H, W, 3], a color bar and the caption below: uint8 [more, W, 3].

    `scale` is that of `color_scale` where it is None; the patch `query` (row, column) has a frame.
    """
    scale = color_scale(values, difference=difference, query=query) if scale is None else scale
    drawn = laid_over(picture, values, box, difference=difference, scale=scale, query=query)
    caption = f"{caption}; {scale.note}" if scale.note else caption
    return _captioned(np.concatenate([drawn, _color_bar(scale, drawn.shape[1], difference)]), caption)


def laid_over(
    picture: np.ndarray,
    values: np.ndarray,
    box: Box,
    *,
    difference: bool = False,
    scale: Scale | None = None,
    query: tuple[int, int] | None = None,
) -> np.ndarray:
    """A map [rows, columns] over its picture uint8 [H, W, 3]; where the model saw nothing, the picture is dark."""
    height, width = picture.shape[:2]
    scale = color_scale(values, difference=difference, query=query) if scale is None else scale
    large = _resized(_scaled(values, scale), box, height, width)
    seen = ~np.isnan(large)
    colours = coloured(np.nan_to_num(large), difference=difference)
    blended = np.where(seen[..., None], 0.45 * picture + 0.55 * colours, 0.3 * picture).round().astype(np.uint8)
    return blended if query is None else _framed(blended, box, values.shape, query)


def coloured(values: np.ndarray, *, difference: bool = False) -> np.ndarray:
    """Values in 0..1 [...] -> colours uint8 [..., 3]."""
    colour_map = mpl.colormaps["PuOr_r" if difference else "cividis"]
    return (255 * np.asarray(colour_map(values))[..., :3]).round().astype(np.uint8)


def contact_sheet(maps: np.ndarray, *, scale: int = _THUMBNAIL, query: tuple[int, int] | None = None) -> np.ndarray:
    """Maps [layers, heads, rows, columns] as thumbnails, one line per layer from the first, uint8 [height, width, 3].

    The patch `query` (row, column) has a frame in each.
    """
    layers, heads, rows, columns = maps.shape
    times = max(1, round(scale / max(rows, columns)))
    tile_height, tile_width, gap = rows * times, columns * times, 2
    down, across, margin = tile_height + gap, tile_width + gap, 2 * _LINE
    width = max(heads * across + margin, 170)  # room for the title
    sheet = np.full((layers * down + margin, width, 3), 255, np.uint8)
    for layer in range(layers):
        for head in range(heads):
            values = maps[layer, head]
            tile = (
                coloured(_scaled(values, color_scale(values, query=query))).repeat(times, axis=0).repeat(times, axis=1)
            )
            if query is not None:
                tile = _framed(tile, Box(0, 0, tile_height, tile_width), (rows, columns), query)
            top, left = margin + layer * down, margin + head * across
            sheet[top : top + tile_height, left : left + tile_width] = tile
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for layer in range(0, layers, -(-14 // down)):  # as many numbers as do not touch
        _write(draw, (4, margin + layer * down + tile_height / 2 - 7), str(layer))
    for head in range(0, heads, -(-20 // across)):
        _write(draw, (margin + head * across + tile_width / 2 - _width(str(head)) / 2, _LINE), str(head))
    _write(draw, (4, 1), "layers down, heads across")
    return _captioned(np.asarray(image), "each map has its own colors, from its lowest to its highest value")


def _scaled(values: np.ndarray, scale: Scale) -> np.ndarray:
    """To 0..1 from the lower to the upper end of a scale."""
    return ((values.astype(np.float64) - scale.low) / (scale.high - scale.low)).clip(0, 1)


def _framed(picture: np.ndarray, box: Box, grid: tuple[int, ...], patch: tuple[int, int]) -> np.ndarray:
    """An image with a frame, white in black, around one patch of the grid."""
    height, width = (box.bottom - box.top) / grid[0], (box.right - box.left) / grid[1]
    top, left = box.top + patch[0] * height, box.left + patch[1] * width
    sides = np.array([left, top, left + width - 1, top + height - 1]).round()
    last = (
        picture.shape[1] - 1,
        picture.shape[0] - 1,
    )  # of a patch that margins cut, the part that is seen has the frame
    corners = [float(side) for side in sides.clip(0, last * 2)]
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    line = 2 if min(height, width) >= 12 else 1  # patches of a thumbnail are a few pixels
    draw.rectangle((corners[0] - line, corners[1] - line, corners[2] + line, corners[3] + line), None, "black", line)
    draw.rectangle(corners, None, "white", line)
    return np.asarray(image)


def _color_bar(scale: Scale, width: int, difference: bool) -> np.ndarray:
    """All colors from the lowest to the highest with the values at both ends: uint8 [height, width, 3]."""
    ramp = coloured(np.linspace(0, 1, width), difference=difference)
    ends = [f"{end:.3g}" for end in (scale.low, scale.high)]
    rows = 1 if sum(map(_width, ends)) + 12 <= width else 2
    strip = np.full((4 + _BAR + 2 + rows * _LINE, width, 3), 255, np.uint8)
    strip[4 : 4 + _BAR] = ramp
    image = Image.fromarray(strip)
    draw = ImageDraw.Draw(image)
    _write(draw, (4, 6 + _BAR), ends[0])
    _write(draw, (width - 4 - _width(ends[1]), 6 + _BAR + (rows - 1) * _LINE), ends[1])
    return np.asarray(image)


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
    lines = _broken(shorten(caption, _LONGEST), picture.shape[1] - 8)
    strip = np.full((_LINE * len(lines) + 4, picture.shape[1], 3), 255, np.uint8)
    image = Image.fromarray(np.concatenate([picture, strip]))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        _write(draw, (4, picture.shape[0] + 2 + number * _LINE), line)
    return np.asarray(image)


def _broken(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels: between words, within a word that is longer than a line."""
    lines = [""]
    for word in text.split():
        if lines[-1] and _width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if lines[-1] and _width(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str) -> None:
    x, y = at
    for font, run in _runs(text):  # on one base line, whatever the font
        draw.text((x, y + 12), run, "black", font, anchor="ls")
        x += font.getlength(run)


def _width(text: str) -> float:
    """Return the pixels across that `_write` takes."""
    return sum(font.getlength(run) for font, run in _runs(text))


def _runs(text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Split a text by the font that has its characters."""
    return [(_fonts()[place], "".join(run)) for place, run in groupby(text, _font_with)]


@cache
def _font_with(character: str) -> int:
    """Return the place of the first font with a character, the first of all where none has it: it shows a box."""
    places = range(len(_fonts()))
    known = (p for p in places if font_manager.get_font(str(_fonts()[p].path)).get_char_index(ord(character)))
    return next(known, 0)


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    return [ImageFont.truetype(font_manager.findfont(name), 12) for name in name_style()["fontfamily"]]
