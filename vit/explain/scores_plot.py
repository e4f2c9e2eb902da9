"""How faithful maps are, drawn as a PNG file: curves with their 95 % intervals, and the two scores without a curve."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vit.evaluate.plots import BLUE, GREY, ORANGE, Target, new_figure, save_png

_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#B8A800")  # after Okabe & Ito
_BASELINES = {"random": "--", "centre": ":"}
_CURVES = {
    "positive": ("Positive perturbation: lower is better", "share of the pixels black, highest first", "right answers"),
    "negative": ("Negative perturbation: higher is better", "share of the pixels black, lowest first", "right answers"),
    "deletion": ("Deletion: lower is better", "share of the patches gone, highest first", "probability of the answer"),
    "insertion": (
        "Insertion: higher is better",
        "share of the patches there, highest first",
        "probability of the answer",
    ),
}


def scores_plot(scores: dict[str, Any], curves: dict[str, Any], accuracy: float, path: Target) -> None:
    """Draw `scores` and `curves` by method, as `scores.json` holds them; `accuracy` is that of whole pictures."""
    figure = new_figure(13, 8)
    grid = figure.subplots(2, 3)
    colours = dict(zip((name for name in curves if name not in _BASELINES), _COLOURS, strict=False))
    handles: dict[str, Any] = {}
    for axes, (what, (title, below, beside)) in zip(grid[:, :2].flat, _CURVES.items(), strict=True):
        for name, of_method in curves.items():
            curve = of_method[what]
            at, mean, low, high = (np.array(curve[key], float) for key in ("at", "mean", "low", "high"))
            style = _BASELINES.get(name, "-")
            colour = colours.get(name, "#707070")
            (handles[name],) = axes.plot(at, mean, style, color=colour, linewidth=1.6, label=name)
            axes.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
        if what in ("positive", "negative"):
            axes.axhline(accuracy, color=GREY, linewidth=1, zorder=0)
            axes.annotate(
                "whole pictures", (0.02, accuracy), (0, 2), textcoords="offset points", fontsize=8, color="#707070"
            )
        axes.set(xlim=(0, 1), xlabel=below, ylabel=beside)
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    _bars(grid[0, 2], "pointing", scores, colours, "Grid pointing game: higher is better", "share on the right picture")
    _bars(grid[1, 2], "weights", scores, colours, "Shuffled weights: lower is better", "rank correlation of the maps")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    save_png(figure, path)


def _bars(axes: Axes, what: str, scores: dict[str, Any], colours: dict[str, str], title: str, below: str) -> None:
    """One score of every method with its interval; pointing's chance as a line."""
    axes.set_title(title, fontsize=10)
    if any(what not in of_method for of_method in scores.values()):
        axes.axis("off")
        axes.text(0.5, 0.5, "left out: too few classes\nare answered rightly and surely", ha="center", va="center")
        return
    names = list(scores)
    means = np.array([scores[name][what]["mean"] for name in names])
    ends = np.array([scores[name][what]["interval"] for name in names])
    places = np.arange(len(names))
    axes.barh(places, means, color=[colours.get(name, GREY) for name in names], height=0.7)
    reach = np.abs(ends.T - means)
    axes.errorbar(means, places, xerr=reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.axvline(0.25 if what == "pointing" else 0, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel=f"{below} (dashed: chance)" if what == "pointing" else below)
    axes.spines[["top", "right"]].set_visible(False)
