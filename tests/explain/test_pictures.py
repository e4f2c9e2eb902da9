"""Maps as pictures: where a patch lands, colours, captions, contact sheets."""

import numpy as np
import pytest

from vit.explain.pictures import Box, coloured, contact_sheet, overlay


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
