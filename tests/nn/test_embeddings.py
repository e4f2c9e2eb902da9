"""Patches and positions against loops, against plain formulas, and against timm."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from vit.nn import PatchEmbed, resample_patches, resample_positions, sincos_1d, sincos_2d


def test_patches_are_cut_in_reading_order_and_embedded_linearly() -> None:
    embed = PatchEmbed((2, 4), 3, 8)
    images = torch.randn(2, 3, 6, 8)
    output = embed(images)
    assert output.shape == (2, 3, 2, 8)
    weight = embed.proj.weight.flatten(1)
    for row in range(3):
        for column in range(2):
            patch = images[:, :, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4].flatten(1)
            expected = patch @ weight.T + embed.proj.bias
            torch.testing.assert_close(output[:, row, column], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30)])
def test_pictures_that_the_patch_does_not_divide_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"pictures of {height} x {width} pixels .* patches of 16 x 16"):
        PatchEmbed((16, 16), 3, 8)(torch.zeros(1, 3, height, width))


def test_sine_positions_of_a_sequence_are_those_of_the_paper() -> None:
    table = sincos_1d(20, 6)
    assert table.dtype == torch.float32
    for position in range(20):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 5)])
def test_sine_positions_of_a_grid_are_a_plain_formula(rows: int, columns: int) -> None:
    table = sincos_2d(rows, columns, 16)
    assert table.shape == (rows * columns, 16)
    assert table.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            expected = [
                wave(place / 10_000 ** (i / 3))
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for i in range(4)
            ]
            assert table[row * columns + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_sine_positions_refuse_a_dim_they_cannot_fill() -> None:
    with pytest.raises(ValueError, match="even dim, got 7"):
        sincos_1d(4, 7)
    for dim in (4, 10):
        with pytest.raises(ValueError, match=f"got {dim}"):
            sincos_2d(2, 2, dim)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (7, 7)), ((6, 6), (3, 3)), ((3, 5), (4, 9)), ((2, 8), (4, 4)), ((4, 4), (2, 8))]
)
def test_resampled_positions_equal_timms(old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    positions = torch.randn(1, prefix + old[0] * old[1], 12)
    ours = resample_positions(positions, old, new, prefix=prefix)
    theirs = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=prefix)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert torch.equal(ours[:, :prefix], positions[:, :prefix])


def test_positions_of_an_unchanged_grid_stay_the_same_tensor() -> None:
    positions = torch.randn(1, 1 + 6, 4)
    assert resample_positions(positions, (2, 3), (2, 3), prefix=1) is positions


def test_bf16_positions_are_resampled_in_fp32_and_come_back_as_bf16() -> None:
    positions = torch.randn(1, 16, 4).bfloat16()
    resampled = resample_positions(positions, (4, 4), (6, 6))
    assert resampled.dtype == torch.bfloat16
    assert torch.equal(resampled, resample_positions(positions.float(), (4, 4), (6, 6)).bfloat16())


@pytest.mark.parametrize("new", [(16, 16), (4, 4), (6, 12)])
def test_patches_are_resampled_like_timms(new: tuple[int, int]) -> None:
    weight = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(
        resample_patches(weight, new), resample_patch_embed(weight, list(new)), rtol=0, atol=1e-4
    )
    assert resample_patches(weight, (8, 8)) is weight


def test_an_enlarged_patch_is_embedded_as_the_patch_itself() -> None:
    weight, patch = torch.randn(5, 3, 4, 4), torch.randn(2, 3, 4, 4)
    large = torch.nn.functional.interpolate(patch, size=(12, 8), mode="bicubic", antialias=True)
    before = (patch[:, None] * weight).sum((2, 3, 4))
    after = (large[:, None] * resample_patches(weight, (12, 8))).sum((2, 3, 4))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
