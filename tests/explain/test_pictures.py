"""Maps as pictures: where a patch lands, colours, captions, contact sheets."""

import numpy as np
import pytest

from vit.explain import pictures
from vit.explain.pictures import NEARLY_UNIFORM, Box, color_scale, coloured, contact_sheet, laid_over, overlay


def corner(rows: int = 2, columns: int = 3) -> np.ndarray:
    values = np.zeros((rows, columns), np.float32)
    values[0, 0] = 1.0
    return values


def test_an_overlay_has_the_pictures_own_width_and_a_caption_below() -> None:
    picture = np.full((40, 60, 3), 100, np.uint8)
    short = overlay(picture, corner(), Box(0, 0, 40, 60), "raw")
    long = overlay(picture, corner(), Box(0, 0, 40, 60), "generic of a class with a long name; answer another (55%)")
    assert short.shape[1] == long.shape[1] == 60
    assert 40 < short.shape[0] < long.shape[0]
    assert short.dtype == np.uint8
    assert (short[40:] < 128).any()  # letters


@pytest.mark.parametrize("box", [Box(0, 0, 40, 60), Box(10, 15, 30, 45), Box(-10, -5, 50, 65)])
def test_the_strongest_patch_is_where_it_lies_in_the_picture(box: Box) -> None:
    picture = np.full((40, 60, 3), 100, np.uint8)
    drawn = overlay(picture, corner(), box, "x")[:40].astype(int)
    weak, strong = coloured(np.array(0.0)), coloured(np.array(1.0))
    towards = drawn @ (strong.astype(int) - weak.astype(int))
    row, column = np.unravel_index(np.argmax(towards), towards.shape)
    centre = box.top + (box.bottom - box.top) / 4, box.left + (box.right - box.left) / 6
    assert row <= max(0, centre[0]) + 1
    assert column <= max(0, centre[1]) + 1


def test_what_the_model_did_not_see_is_dark() -> None:
    picture = np.full((40, 60, 3), 200, np.uint8)
    drawn = overlay(picture, corner(), Box(10, 15, 30, 45), "x")
    assert (drawn[:9] == 60).all()
    assert (drawn[:40, :14] == 60).all()
    assert (drawn[12:28, 17:43] != 60).any()


def test_pixels_that_no_patch_covers_are_dark_at_the_bottom_and_right() -> None:
    """A model of 384 pixels with patches of 14: a map of 27 x 27 covers the upper left 378 x 378."""
    assert Box(0, 0, 384, 384).of_patches((384, 384), (14, 14)) == Box(0, 0, 378, 378)
    assert Box(8, 16, 24, 48).of_patches((20, 20), (8, 5)) == Box(8, 16, 8 + 16 * 0.8, 48)
    picture = np.full((384, 384, 3), 200, np.uint8)
    values = np.zeros((27, 27))
    values[26, 26] = 1
    drawn = overlay(picture, values, Box(0, 0, 384, 384).of_patches((384, 384), (14, 14)), "x")[:384]
    assert (drawn[378:] == 60).all()
    assert (drawn[:, 378:] == 60).all()
    seen = drawn[:378, :378].astype(int) @ (coloured(np.array(1.0)).astype(int) - coloured(np.array(0.0)))
    assert seen[364:, 364:].min() > seen[:350].max()


def test_no_difference_is_the_middle_colour_and_signs_part() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    none = overlay(picture, np.zeros((2, 2)), Box(0, 0, 20, 20), "x", difference=True)[:20]
    middle = (0.55 * coloured(np.array(0.5), difference=True)).round()
    assert np.abs(none.astype(int) - middle).max() <= 1
    two = overlay(picture, np.array([[1.0, -0.5]]), Box(0, 0, 20, 20), "x", difference=True)[:20].astype(int)
    assert two[10, 1, 0] > two[10, 1, 2]  # orange
    assert two[10, 18, 2] > two[10, 18, 0]  # purple


def test_a_flat_map_and_names_with_control_characters_are_drawn() -> None:
    picture = np.zeros((20, 200, 3), np.uint8)
    assert overlay(picture, np.ones((2, 2)), Box(0, 0, 20, 20), "a\x1b[31m\n<b>&\u202e").shape[1] == 200


def test_a_contact_sheet_has_a_tile_for_every_layer_and_head() -> None:
    maps = np.random.default_rng(0).random((4, 3, 2, 5)).astype(np.float32)
    sheet = contact_sheet(maps)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] >= 4 * 2 * 10
    assert sheet.shape[1] >= 3 * 5 * 10
    assert contact_sheet(np.zeros((1, 1, 64, 64))).shape[0] >= 64


def test_the_scale_of_a_map_is_its_range() -> None:
    assert color_scale(np.array([[0.002, 0.03]])) == (0.002, 0.03, "")
    assert color_scale(np.array([[-0.2, 0.1]])) == (-0.2, 0.1, "")
    assert color_scale(np.array([[-0.2, 0.1]]), difference=True, largest=0.5) == (-0.2, 0.2, "")
    assert color_scale(np.array([[-0.2, 0.1]]), difference=True) == (-0.2, 0.2, "")


@pytest.mark.parametrize("level", [1 / 196, -3.0, 1e-20, 1e20])
def test_noise_on_a_nearly_uniform_map_does_not_span_the_colors(level: float) -> None:
    values = level * (1 + 0.001 * np.random.default_rng(0).random((14, 14)))
    scale = color_scale(values)
    assert scale.note == "nearly uniform: values differ by 0.099 % of the largest"
    assert scale.high - scale.low == pytest.approx(NEARLY_UNIFORM * np.abs(values).max())
    assert scale.low < values.min() < values.max() < scale.high
    grey = np.full((28, 28, 3), 128, np.uint8)
    drawn = laid_over(grey, values, Box(0, 0, 28, 28)).astype(int)
    assert np.ptp(drawn.reshape(-1, 3), axis=0).max() <= 3
    assert np.ptp(laid_over(grey, corner(), Box(0, 0, 28, 28)).reshape(-1, 3).astype(int), axis=0).max() > 100


def test_the_scale_widens_without_a_step_where_a_map_becomes_nearly_uniform() -> None:
    scales = [color_scale(np.array([[1 - spread, 1.0]])) for spread in (0.1001, 0.0999)]
    assert [bool(scale.note) for scale in scales] == [False, True]
    np.testing.assert_allclose(scales[0][:2], scales[1][:2], atol=2e-4)


def test_a_difference_far_below_its_maps_has_faint_colors() -> None:
    rounding = 1e-7 * np.random.default_rng(0).standard_normal((7, 7))
    scale = color_scale(rounding, difference=True, largest=0.2)
    assert (scale.low, scale.high) == (-0.2 * NEARLY_UNIFORM, 0.2 * NEARLY_UNIFORM)
    assert scale.note.startswith("hardly a difference: at most ")
    assert color_scale(np.zeros((2, 2))).note == "zero everywhere"


@pytest.mark.parametrize(("difference", "ends"), [(False, ("0.002", "0.03")), (True, ("-0.03", "0.03"))])
@pytest.mark.parametrize("width", [300, 60])
def test_below_the_map_stands_a_color_bar_with_its_values(
    difference: bool, ends: tuple[str, str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = pictures._write
    monkeypatch.setattr(pictures, "_write", lambda draw, at, text: (written.append(text), write(draw, at, text)))
    values = np.array([[0.002, 0.03]], np.float32)
    drawn = overlay(np.zeros((40, width, 3), np.uint8), values, Box(0, 0, 40, width), "raw", difference=difference)
    assert written == [*ends, "raw"]
    bar = drawn[40:60]
    ramp = coloured(np.linspace(0, 1, width), difference=difference)
    assert any((row == ramp).all() for row in bar)


def test_a_note_is_part_of_the_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(pictures, "_write", lambda draw, at, text: written.append(text))
    overlay(np.zeros((40, 900, 3), np.uint8), np.ones((2, 2)), Box(0, 0, 40, 900), "rollout; answer cat (93%)")
    assert written[-1] == "rollout; answer cat (93%); nearly uniform: values differ by 0 % of the largest"


@pytest.mark.parametrize("box", [Box(0, 0, 70, 100), Box(10, 20, 45, 70), Box(-7, 0, 77, 100)])
@pytest.mark.parametrize("query", [(0, 0), (5, 7), (6, 9)])
def test_the_query_patch_has_a_frame(box: Box, query: tuple[int, int]) -> None:
    gray = np.full((70, 100, 3), 128, np.uint8)
    values = np.zeros((7, 10), np.float32)
    plain, marked = (laid_over(gray, values, box, query=patch).astype(int) for patch in (None, query))
    rows, columns = np.nonzero((plain != marked).any(axis=2))
    height, width = (box.bottom - box.top) / 7, (box.right - box.left) / 10
    top, left = box.top + query[0] * height, box.left + query[1] * width
    expected = [max(0, top), min(69, top + height), max(0, left), min(99, left + width)]
    found = [rows.min(), rows.max(), columns.min(), columns.max()]
    np.testing.assert_allclose(found, expected, atol=4)
    inside = (round((max(0, top) + min(69, top + height)) / 2), round(left + width / 2))
    assert (marked[inside] == plain[inside]).all()
    assert (marked == 255).all(axis=2).any()
    assert (marked == 0).all(axis=2).any()


def test_the_query_patchs_own_value_leaves_the_others_their_colors() -> None:
    values = np.array([[1.0, 0.001, 0.002], [0.003, 0.001, 0.001]])
    assert color_scale(values, query=(0, 0)) == (0.001, 0.003, "")
    assert color_scale(np.ones((1, 1)), query=(0, 0)).note.startswith("nearly uniform")
    drawn = laid_over(np.zeros((20, 30, 3), np.uint8), values, Box(0, 0, 20, 30), query=(0, 0))
    assert np.abs(drawn[17, 4] - 0.55 * coloured(np.array(1.0))).max() <= 10  # yellow, not the color of 0.3 %


def test_the_query_patch_has_a_frame_in_every_thumbnail() -> None:
    maps = np.random.default_rng(0).random((2, 3, 14, 14)).astype(np.float32)
    plain, marked = contact_sheet(maps), contact_sheet(maps, query=(5, 7))
    changed = (plain != marked).any(axis=2)
    for layer in range(2):
        for head in range(3):
            top, left = 36 + layer * 44, 36 + head * 44
            rows, columns = np.nonzero(changed[top : top + 42, left : left + 42])
            assert 13 <= rows.min() < rows.max() <= 18  # patch 5 of three pixels, and a pixel around
            assert 20 <= columns.min() < columns.max() <= 24
    changed[36:124, 36:168] = False
    assert not changed.any()


@pytest.mark.parametrize("name", ["W" * 200, "a name of many words " * 9, "и" * 90 + " 猫" * 40, "i" * 5000])
def test_no_letter_of_a_long_caption_is_beyond_the_edge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(pictures, "_write", lambda draw, at, text: written.append(text))
    overlay(np.zeros((40, 160, 3), np.uint8), corner(), Box(0, 0, 40, 160), f"raw of {name}")
    lines = written[2:]
    assert all(pictures._width(line) <= 152 for line in lines)
    shown = "".join(lines).replace(" ", "")
    wanted = f"raw of {name}".replace(" ", "")
    assert shown == wanted or (len(shown) == 300 - 2 and "…" in shown)


def test_characters_come_from_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """DejaVu Sans stands in for a font of another script: STIX lacks Georgian."""
    monkeypatch.setattr(pictures, "name_style", lambda: {"fontfamily": ["STIXGeneral", "DejaVu Sans"]})
    pictures._fonts.cache_clear()
    pictures._font_with.cache_clear()
    try:
        runs = [(font.getname()[0], run) for font, run in pictures._runs("of აბგ; b")]
        assert runs == [("STIXGeneral", "of "), ("DejaVu Sans", "აბგ"), ("STIXGeneral", "; b")]
    finally:
        pictures._fonts.cache_clear()
        pictures._font_with.cache_clear()
