"""Plots of an evaluation as PNG files, drawn on a canvas of their own: no display and no pyplot state."""

import contextlib
import math
import os
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from vit.errors import display_path
from vit.evaluate.calibration import ReliabilityTable, expected_calibration_error

Target = str | os.PathLike[str] | IO[bytes]
"""a path, or an open file to write to"""

_NAMED = 60  # classes up to here are named along the axes, beyond they are numbered
_COUNTED = 20  # classes up to here have their counts written into the cells
GALLERY = 100
"""pictures in a gallery, at the most"""
_DOTS = 150  # an inch
_CELL, _LINE, _EDGE = 300, 21, 16  # pixels: side of a picture's place, height of a line, white around a gallery
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#D0D0D0"  # blue and orange: Okabe & Ito, safe for the colour-blind
_OTHER_SCRIPTS = (  # matplotlib's own font knows no Chinese, Japanese, Korean or emoji; these do, where installed
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Noto Emoji",
    "Segoe UI Emoji",
)


def confusion_plot(matrix: NDArray[Any], classes: Sequence[str], path: Target) -> None:
    """Draw the confusion matrix [C, C] (rows: true class, columns: answered class) as a PNG.

    Colour is the share of the row, on a square-root scale so that rare confusions show; rows without samples are
    grey. Up to 20 classes the cells show their counts, up to 60 the classes are named, beyond they are numbered.

    Raises ValueError where the matrix does not fit the class names.
    """
    matrix = np.asarray(matrix)
    size = len(classes)
    if size == 0 or matrix.shape != (size, size):
        raise ValueError(f"expected a confusion matrix [{size}, {size}] for {size} classes, got {matrix.shape}")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.ma.masked_array(matrix / np.maximum(totals, 1), mask=np.broadcast_to(totals == 0, matrix.shape))
    names = [shorten(name) for name in classes]
    side = _confusion_side(size)
    labels = 0.08 * max(map(len, names)) if size <= _NAMED else 0.4
    figure = new_figure(side + labels + 1.8, side + labels + 1.0)
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(bad=GREY)
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1))
    if size <= _COUNTED:
        _write_counts(axes, matrix, shares)
    if size <= _NAMED:
        _name_ticks(axes, names)
        axes.set(xlabel="answered class", ylabel="true class")
    else:
        axes.set(xlabel="answered class, by number", ylabel="true class, by number")
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "10 %", "25 %", "50 %", "75 %", "100 %"])
    bar.set_label("share of the true class" + (" (grey: no samples)" if (totals == 0).any() else ""))
    axes.set_title(_confusion_title(matrix), pad=10)
    save_png(figure, path)


def reliability_plot(table: ReliabilityTable, path: Target) -> None:
    """Draw accuracy by confidence (Guo et al. 2017, figure 1) above the number of samples in each bin, as a PNG."""
    figure = new_figure(5.6, 6.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = table.counts > 0
    left, width = table.edges[:-1][filled], np.diff(table.edges)[filled]
    accuracy, confidence = table.accuracy[filled], table.confidence[filled]
    top.bar(left, accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    top.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor="none",
        edgecolor=ORANGE,
        hatch="////",
        label="gap to mean confidence",
    )
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    error = expected_calibration_error(table)
    top.set_title(f"Expected calibration error {100 * error:.1f} % (samples: {table.counts.sum():,})", pad=10)
    bottom.bar(table.edges[:-1], table.counts, np.diff(table.edges), align="edge", color=BLUE, edgecolor="white")
    bottom.set(xlabel="confidence (probability of the answered class)", ylabel="samples")
    bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bottom.yaxis.set_major_formatter("{x:,.0f}")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    save_png(figure, path)


def gallery(pictures: Sequence[tuple[NDArray[np.uint8], str]], path: Target) -> None:
    """Draw up to 100 pictures (uint8 [H, W, 3], any sizes) in a grid, each under its caption, as a PNG.

    Raises ValueError for no picture, for more than 100, and for arrays of another kind.
    """
    if not 1 <= len(pictures) <= GALLERY:
        raise ValueError(f"a gallery takes 1 to {GALLERY} pictures, got {len(pictures)}")
    for image, caption in pictures:
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
            raise ValueError(f"expected a picture uint8 [H, W, 3], got {image.dtype} {image.shape} for {caption!r}")
    captions = [_caption(caption) for _, caption in pictures]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    above = 12 + _LINE * max(caption.count("\n") + 1 for caption in captions)
    cell = (_CELL + above, _CELL)
    width, height = columns * cell[1] + 2 * _EDGE, rows * cell[0] + 2 * _EDGE
    figure = new_figure(width / _DOTS, height / _DOTS)
    figure.set_layout_engine("none")
    figure.set_dpi(_DOTS)
    style = name_style()
    placed = []
    for place, ((image, _), caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(place, columns)
        top, left = _EDGE + row * cell[0], _EDGE + column * cell[1]
        shown = _fitted(image, _CELL - 20)
        down, across = top + above, left + (_CELL - shown.shape[1]) // 2
        placed.append((down, across, shown))
        middle, bottom = (left + _CELL / 2) / width, 1 - (down - 6) / height
        figure.text(middle, bottom, caption, ha="center", va="bottom", fontsize=8, **style)
    # matplotlib draws the captions alone: with the pictures, which it would draw twice, it took three times as long
    page = _drawn(figure)
    for down, across, shown in placed:
        page[down : down + shown.shape[0], across : across + shown.shape[1]] = shown
    Image.fromarray(page).save(path, format="png", compress_level=3)


def _fitted(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] whose longer side has `side` pixels."""
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, kind))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches with the canvas that writes PNG."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Target) -> None:
    """Write the PNG, cut or grown to what is drawn, at 150 dots an inch; and empty the figure, full of cycles."""
    with _any_script():
        quick = {"compress_level": 3}
        figure.savefig(path, format="png", dpi=_DOTS, bbox_inches="tight", pad_inches=0.15, pil_kwargs=quick)
    figure.clear()


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels uint8 [H, W, 3], at its own dots an inch; it is empty after."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with _any_script():
        canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[..., :3]
    figure.clear()
    return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """A name in a script that no font here knows shows as boxes; that is no fault to stop for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from|Matplotlib currently does not support")
        yield


def name_style() -> dict[str, Any]:
    """How text that comes from the user is set: `$` is no formula, and fonts for other scripts help out."""
    installed = set(fontManager.get_font_names())
    return {
        "parse_math": False,
        "fontfamily": ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed)],
    }


def shorten(text: str, width: int = 24) -> str:
    """`text` as one printable line of at most `width` characters."""
    line = display_path(text)
    return line if len(line) <= width else line[: width - 9] + "…" + line[-8:]  # names often differ in their end


def _caption(text: str) -> str:
    """`text` wrapped to lines that fit over a picture, at most four."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)  # letters of twice the width
    lines = [
        part for line in text.splitlines() for part in textwrap.wrap(display_path(line), 16 if wide else 26) or [""]
    ]
    return "\n".join(lines if len(lines) <= 4 else [*lines[:3], lines[3][:25] + "…"])


def _confusion_side(size: int) -> float:
    """Inches of the square that holds size x size cells."""
    if size <= _COUNTED:
        return max(2.4, 0.46 * size)  # room for five digits
    return max(8.0, 0.17 * size) if size <= _NAMED else 9.0


def _confusion_title(matrix: NDArray[Any]) -> str:
    samples = int(matrix.sum())
    if samples == 0:
        return "Confusion matrix (samples: 0)"
    return f"Confusion matrix (samples: {samples:,}, right: {100 * np.trace(matrix) / samples:.1f} %)"


def _write_counts(axes: Axes, matrix: NDArray[Any], shares: Any) -> None:
    for row, column in np.argwhere(matrix > 0):
        count = int(matrix[row, column])
        text = f"{count}" if count < 100_000 else f"{count / 1e6:.2g}M"
        colour = "black" if shares[row, column] > 0.25 else "white"
        written = axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        written.set_in_layout(False)  # it lies within its cell: measuring hundreds of them takes a while


def _name_ticks(axes: Axes, names: list[str]) -> None:
    places = range(len(names))
    size = 9 if len(names) <= _COUNTED else 7
    turn = 90 if max(map(len, names)) > 4 else 0
    axes.set_xticks(places, names, rotation=turn, fontsize=size, **name_style())
    axes.set_yticks(places, names, fontsize=size, **name_style())
