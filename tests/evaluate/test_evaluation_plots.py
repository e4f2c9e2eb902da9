"""The plots of an evaluation: what is in the picture, and that no input stops them."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from vit.evaluate.calibration import reliability
from vit.evaluate.plots import confusion_plot, gallery, reliability_plot

ODD_NAMES = ["a\nb", "😀", "$\\frac{$", "$x_1$", "snake_case", "日本", "byte \udcff", "", "x" * 300, "100 % \\$"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def share_of(path: Path, colour: tuple[int, int, int]) -> float:
    """Share of the picture that has `colour`, give or take a rounding."""
    return float((np.abs(pixels(path) - np.array(colour)).max(axis=2) <= 2).mean())


def rgb(colour: float) -> tuple[int, int, int]:
    red, green, blue = colormaps["viridis"](colour, bytes=True)[:3]
    return int(red), int(green), int(blue)


@pytest.mark.parametrize("size", [1, 2, 10, 21, 61, 1000])
def test_a_confusion_matrix_of_any_size_is_drawn_at_a_size_that_can_be_opened(size: int, tmp_path: Path) -> None:
    confusion_plot(np.eye(size, dtype=int) * 7, [f"class {i}" for i in range(size)], tmp_path / "c.png")
    height, width = pixels(tmp_path / "c.png").shape[:2]
    assert 300 < height < 2200
    assert 300 < width < 2200
    assert min(size - 1, 1) * 0.1 <= share_of(tmp_path / "c.png", rgb(0)) < 0.9  # the empty cells


def test_colour_is_the_share_of_the_row(tmp_path: Path) -> None:
    confusion_plot(np.array([[50, 50], [0, 1]]), ["many", "few"], tmp_path / "c.png")
    half, full = share_of(tmp_path / "c.png", rgb(0.5**0.5)), share_of(tmp_path / "c.png", rgb(1.0))
    assert half == pytest.approx(2 * full, rel=0.1)  # two cells of one half, one of the whole, and none by its count
    assert full > 0.05


def test_rows_without_samples_are_grey(tmp_path: Path) -> None:
    confusion_plot(np.array([[3, 0], [0, 3]]), ["a", "b"], tmp_path / "full.png")
    confusion_plot(np.array([[3, 0], [0, 0]]), ["a", "b"], tmp_path / "half.png")
    confusion_plot(np.zeros((2, 2), dtype=int), ["a", "b"], tmp_path / "none.png")
    grey = [share_of(tmp_path / f"{name}.png", (0xD0, 0xD0, 0xD0)) for name in ("full", "half", "none")]
    assert grey[0] < 0.01
    assert grey[2] == pytest.approx(2 * grey[1], rel=0.1)
    assert grey[1] > 0.1


def test_no_class_name_stops_the_confusion_plot(tmp_path: Path) -> None:
    confusion_plot(np.eye(len(ODD_NAMES), dtype=int), ODD_NAMES, tmp_path / "odd.png")
    plain = [f"name {i}" for i in range(len(ODD_NAMES))]
    confusion_plot(np.eye(len(ODD_NAMES), dtype=int), plain, tmp_path / "plain.png")
    # the cells stay as large as they are with plain names
    cells = [
        share_of(tmp_path / f"{name}.png", rgb(0)) * pixels(tmp_path / f"{name}.png")[..., 0].size
        for name in ("odd", "plain")
    ]
    assert cells[0] == pytest.approx(cells[1], rel=0.15)


def test_nothing_is_cut_off_at_the_edges(tmp_path: Path) -> None:
    confusion_plot(np.eye(10, dtype=int), ODD_NAMES, tmp_path / "c.png")
    reliability_plot(reliability(np.linspace(0.05, 1, 50), np.arange(50) % 2), tmp_path / "r.png")
    gallery([(np.zeros((9, 9, 3), np.uint8), "a caption that is long " * 9)] * 3, tmp_path / "g.png")
    for name in ("c.png", "r.png", "g.png"):
        picture = pixels(tmp_path / name)
        for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
            assert (edge == 255).all(), name


def test_a_matrix_that_does_not_fit_the_class_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a confusion matrix \[2, 2\] for 2 classes, got \(2, 3\)"):
        confusion_plot(np.zeros((2, 3)), ["a", "b"], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_the_reliability_plot_shows_one_bar_a_bin_with_samples(tmp_path: Path) -> None:
    blue = (0x00, 0x72, 0xB2)
    one = reliability(np.array([0.5]), np.array([True]))
    all_bins = reliability((np.arange(15) + 0.5) / 15, np.ones(15))
    reliability_plot(one, tmp_path / "one.png")
    reliability_plot(all_bins, tmp_path / "all.png")
    columns = [
        (np.abs(pixels(tmp_path / f"{name}.png") - blue).max(axis=2) <= 2)[:-100].any(axis=0).sum()
        for name in ("one", "all")
    ]
    assert columns[1] == pytest.approx(15 * columns[0], rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 5, 36])
def test_a_gallery_shows_every_picture_whatever_its_size(count: int, tmp_path: Path) -> None:
    sizes = [(1, 1), (8, 8), (300, 200), (20, 700), (700, 20), (2500, 1400)]
    colours = [(7 * i, 250 - 7 * i, 120) for i in range(count)]
    pictures = [
        (np.full((*sizes[i % len(sizes)], 3), colour, dtype=np.uint8), f"picture {i}")
        for i, colour in enumerate(colours)
    ]
    gallery(pictures, tmp_path / "g.png")
    shown = {tuple(colour) for colour in np.unique(pixels(tmp_path / "g.png").reshape(-1, 3), axis=0).tolist()}
    assert set(colours) <= shown


def test_no_caption_stops_the_gallery(tmp_path: Path) -> None:
    picture = np.zeros((10, 10, 3), np.uint8)
    gallery([(picture, name) for name in [*ODD_NAMES, "\n\n", "many words " * 50]], tmp_path / "g.png")
    assert share_of(tmp_path / "g.png", (0, 0, 0)) > 0.2


def test_a_gallery_of_none_or_too_many_is_refused(tmp_path: Path) -> None:
    picture = (np.zeros((2, 2, 3), np.uint8), "")
    with pytest.raises(ValueError, match="a gallery takes 1 to 100 pictures, got 0"):
        gallery([], tmp_path / "g.png")
    with pytest.raises(ValueError, match="got 101"):
        gallery([picture] * 101, tmp_path / "g.png")


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_a_gallery_refuses_arrays_that_are_no_pictures(image: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a picture uint8 \[H, W, 3\].*'name'"):
        gallery([(image, "name")], tmp_path / "g.png")


def test_no_figure_is_left_in_memory(tmp_path: Path) -> None:
    def figures() -> int:
        gc.collect()
        return sum(type(thing) is Figure for thing in gc.get_objects())

    before = figures()
    confusion_plot(np.eye(3), list("abc"), tmp_path / "c.png")
    reliability_plot(reliability(np.array([0.5]), np.array([True])), tmp_path / "r.png")
    gallery([(np.zeros((2, 2, 3), np.uint8), "")], tmp_path / "g.png")
    assert figures() == before


def test_metrics_need_no_torch_and_no_matplotlib_and_plots_no_pyplot() -> None:
    code = """
import sys
import vit.evaluate.classification
assert not {"torch", "matplotlib"} & set(sys.modules), "metrics"
import vit.evaluate.plots
assert not {"torch", "matplotlib.pyplot"} & set(sys.modules), "plots"
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
