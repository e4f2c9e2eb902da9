"""What a model has learnt, drawn as PNG files. Values are cividis, which colour-blind people read like all others.

Letters: L layers, H heads, R rows and S columns of patches, P prefix tokens, H W height and width of a picture.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from vit.evaluate.plots import BLUE, GREY, ORANGE, Target, name_style, new_figure, save_png, shorten
from vit.explain.pictures import Box

_ALL = 16  # rows or columns of patches up to here are all shown
_SOME = 9  # of more, so many are
_GAP = 0.07  # between tiles, of their longer side
_PREFIX_STYLES = (("s", ORANGE), ("D", "#009E73"), ("v", "#CC79A7"))  # class, distillation, registers: Okabe & Ito


class FeaturePicture(NamedTuple):
    """A picture uint8 [H, W, 3], perhaps thinned; the part the model saw, in shares of its sides; a caption; colours
    of its patches [R, S, 3] in 0 ... 1."""

    pixels: NDArray[np.uint8]
    box: Box
    caption: str
    colours: NDArray[Any]


def shown(count: int) -> list[int]:
    """Which of `count` rows or columns of patches a picture has room for: all, or some from the first to the last."""
    return list(range(count)) if count <= _ALL else np.linspace(0, count - 1, _SOME).round().astype(int).tolist()


def positions_plot(
    similarity: NDArray[Any], rows: Sequence[int], columns: Sequence[int], kind: str, path: Target
) -> None:
    """Draw the similarity of positions [len(rows), len(columns), R, S]: a tile a position, in its own place."""
    height, width = similarity.shape[2:]
    figure = new_figure(*_sheet(len(rows), len(columns), height / width, 0.58, 1.9, 1.3))
    axes = figure.add_subplot()
    own = np.zeros(similarity.shape, bool)
    for i, row in enumerate(rows):
        own[i, range(len(columns)), row, list(columns)] = True
    others = similarity[~own] if (~own).any() else similarity
    image = _tiles(axes, similarity.reshape(-1, height, width), len(columns), vmin=others.min(), vmax=others.max())
    down, across = _pitch(height, width)
    axes.set_xticks([(i + 0.5) * across - _GAP / 2 for i in range(len(columns))], [str(c) for c in columns])
    axes.set_yticks([(i + 0.5) * down - _GAP / 2 for i in range(len(rows))], [str(r) for r in rows])
    axes.tick_params(length=0, labelsize=8)
    axes.set(xlabel="column of the patch", ylabel="row of the patch")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, extend="max", shrink=0.9)
    bar.set_label("cosine similarity (the patch itself: 1)")
    axes.set_title(f"Similarity of each position ({kind}) to all {height} x {width}", pad=10)
    save_png(figure, path)


def rotary_plot(maps: NDArray[Any], path: Target) -> None:
    """Draw the rotary similarity by offset [L or 1, 2 R - 1, 2 S - 1]."""
    layers, height, width = maps.shape
    columns = min(layers, 4)
    rows = math.ceil(layers / columns)
    side = 3.6 if layers == 1 else 1.6
    tall, wide = side * min(1, height / width), side * min(1, width / height)
    figure = new_figure(max(4.0, columns * wide + 1.6), rows * (tall + 0.25) + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    reach_down, reach_across = height // 2 + 0.5, width // 2 + 0.5
    for number, axes in enumerate(grid.flat):
        if number >= layers:
            axes.axis("off")
            continue
        image = axes.imshow(
            maps[number],
            cmap="cividis",
            vmin=maps.min(),
            vmax=1,
            extent=(-reach_across, reach_across, reach_down, -reach_down),
        )
        if layers > 1:
            axes.set_title(f"layer {number}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("columns apart", fontsize=10)
    figure.supylabel("rows apart", fontsize=10)
    figure.colorbar(image, ax=grid, fraction=0.05, pad=0.02, label="mean cosine of the rotation")
    figure.suptitle("What rotary positions leave of an equal query and key")
    save_png(figure, path)


def filters_plot(
    components: NDArray[Any],
    share: float,
    strongest: NDArray[Any],
    norms: NDArray[Any],
    colours: str,
    path: Target,
) -> None:
    """Draw filters [k, h, w, 3] in 0 ... 1: principal components, which have `share` of the variance, and the strongest
    ones of the given norms."""
    height, width = components.shape[1:3] if len(components) else strongest.shape[1:3]
    columns = 7
    rows = math.ceil(max(len(components), len(strongest)) / columns)
    panel = _sheet(rows, columns, height / width, 0.72, 0.3, 0.7)
    figure = new_figure(2 * panel[0], panel[1])
    left, right = figure.subplots(1, 2)
    titles = (
        f"{len(components)} principal components ({100 * share:.0f} % of the variance)",
        f"{len(strongest)} filters of largest norm ({norms[0]:.3g} to {norms[-1]:.3g})",
    )
    for axes, tiles, title in zip((left, right), (components, strongest), titles, strict=True):
        if len(tiles):
            _tiles(axes, tiles, columns)
        axes.set_anchor("N")
        axes.axis("off")
        axes.set_title(title, fontsize=10, pad=8)
    figure.supxlabel(f"patches of {height} x {width} pixels, {colours}; each fills the range", fontsize=9)
    save_png(figure, path)


def attention_plot(
    distances: NDArray[Any], entropies: NDArray[Any], uniform: tuple[float, float], pictures: int, path: Target
) -> None:
    """Draw mean attention distance in pixels and entropy in nats by layer, [L, H] each: a dot a head.

    `uniform` are both of attention to all alike.
    """
    layers = len(distances)
    figure = new_figure(max(8.0, min(14.0, 0.5 * layers + 3)), 4.2)
    figure.set_layout_engine("constrained", w_pad=0.12)
    names = ("mean attention distance in pixels", "entropy of attention in nats")
    panels = zip(figure.subplots(1, 2), (distances, entropies), uniform, names, strict=True)
    for axes, values, alike, name in panels:
        places = np.repeat(np.arange(layers), values.shape[1])
        axes.plot(range(layers), values.mean(axis=1), color=ORANGE, linewidth=1.5, label="mean of the heads")
        axes.scatter(places, values.ravel(), s=22, color=BLUE, alpha=0.7, linewidths=0, zorder=3, label="a head")
        axes.axhline(alike, color="black", linestyle="--", linewidth=1, label="attention to all alike")
        axes.set(xlabel="layer", ylabel=name, ylim=(0, 1.08 * max(alike, values.max(), 1e-6)))
        _by_layer(axes, layers)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"How far and how widely heads look ({counted(pictures)})")
    save_png(figure, path)


def norms_plot(patches: NDArray[Any], prefix: NDArray[Any], names: Sequence[str], pictures: int, path: Target) -> None:
    """Draw lengths of tokens by layer: of patches [L, 4], the 5 %, median, 95 % and largest; of prefix tokens [L, P].

    Tokens of one name, such as registers, share a line, their mean.
    """
    layers = len(patches)
    figure = new_figure(max(6.0, min(11.0, 0.4 * layers + 3)), 4.2)
    axes = figure.add_subplot()
    x = np.arange(layers)
    low, middle, high, largest = patches.T
    axes.fill_between(x, low, high, color=BLUE, alpha=0.25, linewidth=0, label="patches, 5 % to 95 %")
    axes.plot(x, middle, color=BLUE, marker="o", markersize=4, label="patches, median")
    axes.plot(x, largest, color="black", marker="^", markersize=5, linestyle=":", label="the longest patch")
    lines = [largest, low]
    for name, (marker, colour) in zip(dict.fromkeys(names), _PREFIX_STYLES, strict=False):
        alike = [number for number, other in enumerate(names) if other == name]
        values = prefix[:, alike].mean(axis=1)
        label = name if len(alike) == 1 else f"{name}s, mean"
        axes.plot(x, values, color=colour, marker=marker, markersize=4, label=label)
        lines.append(values)
    top, bottom = max(line.max() for line in lines), min(line.min() for line in lines)
    if bottom > 0 and top > 20 * bottom:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 1000 * bottom else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.08 * max(top, 1e-6))
    axes.set(xlabel="layer", ylabel="length of the token after the layer")
    _by_layer(axes, layers)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.set_title(f"Token norms by depth ({counted(pictures)})", pad=10)
    save_png(figure, path)


def features_plot(pictures: Sequence[FeaturePicture], shares: Sequence[float], path: Target) -> None:
    """Draw pictures beside the colours of their patches, each in its own shape; what the model does not see is dark."""
    aspect = float(np.median([p.pixels.shape[0] / p.pixels.shape[1] for p in pictures]).clip(0.5, 2))
    columns = min(len(pictures), 4)
    rows = math.ceil(len(pictures) / columns)
    width = {1: 6.0, 2: 4.0}.get(columns, 3.0)
    figure = new_figure(columns * width, rows * ((width / 2 - 0.1) * aspect + 0.25) + 0.45)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
        axes.set_anchor("N")
    for axes, picture in zip(grid.flat, pictures, strict=False):
        _pair(axes, picture)
    held = " + ".join(f"{100 * share:.0f}" for share in shares)
    figure.suptitle(
        f"Three components of the patches' features as red, green, blue ({held} % of the variance)", fontsize=10
    )
    save_png(figure, path)


def _pair(axes: Axes, picture: FeaturePicture) -> None:
    """A picture and its patches' colours beside it, in a plane whose unit is the longer side."""
    rows, columns = picture.pixels.shape[:2]
    height, width = rows / max(rows, columns), columns / max(rows, columns)
    top, left, bottom, right = picture.box
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    seen = ((top < y) & (y < bottom))[:, None] & ((left < x) & (x < right))
    dimmed = np.where(seen[..., None], picture.pixels, 0.3 * picture.pixels).astype(np.uint8)
    start = width + 0.04
    axes.imshow(dimmed, extent=(0, width, height, 0))
    frame = Rectangle((start, 0), width, height, facecolor="#EEEEEE", linewidth=0, zorder=0)
    axes.add_patch(frame)
    extent = (start + left * width, start + right * width, bottom * height, top * height)
    colours = axes.imshow(picture.colours, extent=extent, interpolation="nearest", zorder=1)
    colours.set_clip_path(frame)  # margins that were added are no part of the picture
    axes.set(xlim=(0, start + width), ylim=(height, 0))
    axes.set_title(shorten(picture.caption, 30), fontsize=8, pad=3, **name_style())


def _tiles(axes: Axes, tiles: NDArray[Any], columns: int, **scale: Any) -> AxesImage:
    """Draw small pictures [n, height, width] or [n, height, width, 3] as tiles, from the upper left."""
    height, width = tiles.shape[1:3]
    down, across = _pitch(height, width)
    for number, tile in enumerate(tiles):
        y, x = number // columns * down, number % columns * across
        image = axes.imshow(
            tile,
            cmap="cividis",
            interpolation="nearest",
            extent=(x, x + across - _GAP, y + down - _GAP, y),
            **scale,
        )
    axes.set(
        xlim=(0, min(columns, len(tiles)) * across - _GAP), ylim=(math.ceil(len(tiles) / columns) * down - _GAP, 0)
    )
    axes.spines[:].set_visible(False)
    return image


def _pitch(height: int, width: int) -> tuple[float, float]:
    """From one tile to the next, down and across, where the longer side of a tile is 1."""
    return height / max(height, width) + _GAP, width / max(height, width) + _GAP


def _sheet(rows: int, columns: int, aspect: float, side: float, beside: float, above: float) -> tuple[float, float]:
    """Inches, width and height, of rows x columns tiles of height / width `aspect` with the longer side `side`."""
    across, down = side * min(1.0, 1 / aspect), side * min(1.0, aspect)
    return max(4.0, columns * across + beside), rows * down + above


def _by_layer(axes: Axes, layers: int) -> None:
    axes.set_xlim(-0.5, layers - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GREY, linewidth=0.5)
    axes.set_axisbelow(True)


def counted(pictures: int) -> str:
    """`1 picture`, `1,200 pictures`."""
    return f"{pictures:,} picture{'' if pictures == 1 else 's'}"
