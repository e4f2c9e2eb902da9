"""TIFF: each kind is decoded correctly or refused by name. Expected pixels follow from the TIFF 6.0 specification."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vit.api import _as_array
from vit.data.decode import decode, picture_size
from vit.errors import UnreadableImage

WHITE, BLACK, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
UINT, INT, FLOAT = 1, 2, 3


def packed(samples: np.ndarray, bits: int, kind: int, order: str) -> bytes:
    """Rows of samples [rows, samples] as a TIFF stores them."""
    if kind != UINT or bits in (8, 16, 32):
        name = {UINT: "u", INT: "i", FLOAT: "f"}[kind]
        return samples.astype(f"{order}{name}{bits // 8}").tobytes()
    digits = samples.astype(np.uint32)[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(digits.astype(np.uint8).reshape(len(samples), -1), axis=1).tobytes()


def tiff(
    samples: np.ndarray,
    photometric: int,
    bits: int = 8,
    *,
    kind: int = UINT,
    order: str = "<",
    big: bool = False,
    planes: bool = False,
    deflate: bool = False,
    rows: int = 3,
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """A TIFF of `samples` [H, W] or [H, W, S] in strips, written from the specification alone."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, count = samples.shape
    parts = np.moveaxis(samples, -1, 0)[..., None] if planes else samples[None]
    strips = [packed(part[y : y + rows].reshape(len(part[y : y + rows]), -1), bits, kind, order)
              for part in parts for y in range(0, height, rows)]  # fmt: skip
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    start = 16 if big else 8
    offsets = [start + sum(map(len, strips[:place])) for place in range(len(strips))]
    entries = {256: [width], 257: [height], 258: [bits] * count, 259: [8 if deflate else 1], 262: [photometric],
               273: offsets, 277: [count], 278: [rows], 279: [len(strip) for strip in strips],
               284: [2 if planes else 1], 339: [kind] * count, **(tags or {})}  # fmt: skip
    pointer = "Q" if big else "I"
    directory = start + sum(map(len, strips))
    beyond = directory + struct.calcsize(f"={'Q' if big else 'H'}{pointer}") + len(entries) * (20 if big else 12)
    table, more = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
    for tag, values in sorted(entries.items()):
        letter, code = ("H", 3) if max(values) < 65536 and tag not in (273, 279) else ("I", 4)
        data = struct.pack(f"{order}{len(values)}{letter}", *values)
        table += struct.pack(order + ("HHQ" if big else "HHI"), tag, code, len(values))
        if len(data) <= struct.calcsize(pointer):
            table += data.ljust(struct.calcsize(pointer), b"\0")
        else:
            table, more = table + struct.pack(order + pointer, beyond + len(more)), more + data
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head = magic + (struct.pack(order + "HHQ", 8, 0, directory) if big else struct.pack(order + "I", directory))
    return head + b"".join(strips) + table + struct.pack(order + pointer, 0) + more


def integers(bits: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, shape or (7, 9))


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """What is shown of integers of `bits` bits, uint8: fewer than 8 are scaled, of more the upper 8 are kept."""
    return values >> bits - 8 if bits >= 8 else np.rint(values * 255 / ((1 << bits) - 1)).astype(int)


def reason(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    return caught.value.reason


STORED = [
    {"order": order, "big": big, "deflate": deflate}
    for order in "<>"
    for big in (False, True)
    for deflate in (False, True)
]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 10, 12, 14, 16])
def test_gray_of_any_depth_is_black_or_white_at_0_as_the_tag_says(bits, stored):
    values = integers(bits)
    assert np.array_equal(decode(tiff(values, BLACK, bits, **stored))[..., 0], scaled(values, bits))
    inverted = (1 << bits) - 1 - values
    assert np.array_equal(decode(tiff(values, WHITE, bits, **stored))[..., 2], scaled(inverted, bits))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_single_plane_is_decoded_as_pixels_are(bits, deflate, order):
    values = integers(bits)
    for photometric in (WHITE, BLACK):
        data = tiff(values, photometric, bits, planes=True, deflate=deflate, order=order)
        gray = scaled(values if photometric == BLACK else (1 << bits) - 1 - values, bits)
        assert (decode(data) == gray[..., None]).all()


def test_16_bit_min_is_white_has_the_values_of_libtiff():
    values = np.array([[0, 65535], [32768, 1000]])
    assert decode(tiff(values, WHITE, 16))[..., 0].tolist() == [[255, 0], [127, 252]]


def test_12_bits_are_not_16():
    ramp = np.arange(4096).reshape(64, 64)
    assert np.array_equal(decode(tiff(ramp, BLACK, 12))[..., 0], ramp >> 4)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_rgb_of_any_depth_in_pixels_or_planes(bits, planes, stored):
    values = integers(bits, 7, 9, 3)
    assert np.array_equal(decode(tiff(values, RGB, bits, planes=planes, **stored)), scaled(values, bits))


def test_16_bit_planes_have_the_values_of_libtiff():
    values = np.arange(0, 240, 20).reshape(2, 2, 3)
    assert np.array_equal(decode(tiff(values * 257, RGB, 16, planes=True)), values)


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
@pytest.mark.parametrize("largest", [255, 65535])
def test_a_color_map_of_8_bits_is_taken_as_such(bits, largest):
    table = np.random.default_rng(0).integers(0, largest + 1, (3, 1 << bits))
    table[:, 0] = largest
    values = integers(bits)
    expected = (table if largest == 255 else table >> 8).T[values]
    assert np.array_equal(decode(tiff(values, PALETTE, bits, tags={320: table.ravel().tolist()})), expected)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_floating_point_of_any_size_counts_to_1_or_255(bits, stored):
    values = integers(8)
    values[0, 0] = 255
    for scale in (1, 255):
        numbers = values / scale
        tolerance = 1 if bits == 16 and scale == 255 else 0
        for photometric, expected in ((BLACK, values), (WHITE, 255 - values)):
            pixels = decode(tiff(numbers, photometric, bits, kind=FLOAT, **stored))
            assert np.abs(pixels[..., 1] - expected).max() <= tolerance
    assert np.array_equal(decode(tiff(integers(8, 7, 9, 3), RGB, bits, kind=FLOAT, **stored)), integers(8, 7, 9, 3))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", [False, True])
def test_alpha_is_composited_over_white_and_other_extra_samples_are_ignored(bits, planes):
    largest, values = (1 << bits) - 1, integers(bits, 7, 9, 4)
    color, alpha = values[..., :3], values[..., 3:] / largest
    for extra, shown in (
        ([0], color),
        ([2], color * alpha + largest * (1 - alpha)),
        ([1], color * alpha // 1 + largest * (1 - alpha)),
    ):
        stored = np.concatenate([color * alpha // 1, values[..., 3:]], -1).astype(int) if extra == [1] else values
        pixels = decode(tiff(stored, RGB, bits, planes=planes, tags={338: extra}))
        assert np.abs(pixels - shown / (257 if bits == 16 else 1)).max() < 3, extra
    gray = integers(bits, 7, 9, 2)
    pixels = decode(tiff(gray, BLACK, bits, planes=planes, tags={338: [2]}))[..., 0]
    shown = 255 - (largest - gray[..., 0]) * (gray[..., 1] / largest) * 255 / largest
    assert np.abs(pixels - shown).max() < 3


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_alpha_of_few_bits_is_composited_with_8(bits):
    values = integers(bits, 7, 9, 2)
    gray, alpha = scaled(values[..., 0], bits), scaled(values[..., 1], bits)
    decoded = decode(tiff(values, BLACK, bits, tags={338: [2]}))
    assert (decoded == np.rint(gray * (alpha / 255) + 255 - alpha).astype(int)[..., None]).all()


def test_cmyk_becomes_rgb():
    values = integers(16, 7, 9, 4)
    ink = values / 65535
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    for planes in (False, True):
        assert np.abs(decode(tiff(values, CMYK, 16, planes=planes)) - expected).max() < 3
        assert np.abs(decode(tiff(values >> 8, CMYK, planes=planes)) - expected).max() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 12])
def test_both_readers_turn_it_upright(orientation, bits):
    values = integers(bits, 7, 9, 3)
    data = tiff(values, RGB, bits, tags={274: [orientation]})
    expected = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1), 7: np.rot90(values, 2).transpose(1, 0, 2), 8: np.rot90(values),
    }[orientation]  # fmt: skip
    assert np.array_equal(decode(data), scaled(expected, bits))
    assert picture_size(data) == expected.shape[:2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(integers(8), BLACK, 32), "32-bit unsigned MinIsBlack, whose range is unknown"),
        (tiff(integers(8), BLACK, 32, kind=INT), "32-bit signed integer MinIsBlack, whose range is unknown"),
        (tiff(integers(7), BLACK, 8, kind=INT), "8-bit signed integer MinIsBlack, whose range is unknown"),
        (tiff(integers(8), BLACK, 16, kind=INT), "16-bit signed integer MinIsBlack, whose range is unknown"),
        (tiff(integers(8, 7, 9, 3), LAB), "CIELab; convert it to RGB"),
        (tiff(integers(8, 7, 9, 4), CMYK, tags={332: [2]}), "CMYK; convert it to RGB"),
        (tiff(integers(8), 32803), "color filter array"),
        (tiff(integers(8), 51177), "photometric interpretation 51177"),
        (tiff(integers(8, 7, 9, 4), RGB), "with 4 samples per pixel, of which ExtraSamples declares 0"),
        (tiff(integers(8, 7, 9, 3), RGB, tags={258: [8, 8, 4]}), "samples differ in format"),
        (tiff(integers(8, 7, 9, 3), RGB, tags={339: [1, 1, 2]}), "samples differ in format"),
        (tiff(integers(8), BLACK, tags={317: [2]}), "a predictor, which its compression does not have"),
        (tiff(integers(8, 8, 8, 3), YCBCR, tags={530: [2, 2]}), "YCbCr with compression 1"),
        (tiff(integers(12), BLACK, 12, tags={259: [34712]}), "MinIsBlack with compression 34712"),
        (tiff(integers(8, 7, 9, 2), WHITE, tags={338: [1]}), "MinIsWhite with alpha; remove its alpha"),
        (tiff(integers(8, 7, 9, 2), PALETTE, tags={338: [2], 320: [0] * 768}), "palette with alpha"),
        (tiff(integers(14), BLACK, 14)[:-40], "truncated"),
        (tiff(integers(14), BLACK, 14, tags={279: [10**6] * 3}), "truncated: strips or tiles"),
        (tiff(integers(14), BLACK, 14, tags={273: [8], 279: [8]}), "1 strips or tiles, expected 3"),
        (tiff(integers(14), BLACK, 14, tags={322: [2**30], 323: [2**30]}), "too large"),
        (tiff(integers(14), BLACK, 14, tags={256: [10**6], 257: [10**6]}), "1000000.0 Mpixel, more than the limit"),
        (b"II*\0\xff\xff\xff\xff", "truncated: the tags of the TIFF lie beyond its end"),
    ],
)
def test_other_kinds_and_damage_are_refused_by_name(data, words):
    assert words in reason(data)


def test_a_kind_that_needs_more_packages_names_them(monkeypatch):
    for name in ("imagecodecs", "tifffile"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            told = reason(tiff(integers(10), BLACK, 10))
            assert told.endswith("10-bit unsigned MinIsBlack needs more packages: pip install 'vit-pipeline[tiff]'")
            assert decode(tiff(integers(8), BLACK)).shape == (7, 9, 3)


def test_an_image_that_pillow_opened_is_decoded_as_the_file_or_refused():
    for data in (
        tiff(integers(16), WHITE, 16),
        tiff(integers(12), BLACK, 12),
        tiff(integers(4), PALETTE, 4, tags={320: list(range(48))}),
        tiff(integers(8, 7, 9, 3), RGB, tags={274: [6]}),
    ):
        assert np.array_equal(_as_array(Image.open(io.BytesIO(data))), decode(data))
    with pytest.raises(ValueError, match="16-bit unsigned RGB in separate planes wrong; give the file's path"):
        _as_array(Image.open(io.BytesIO(tiff(integers(16, 7, 9, 3), RGB, 16, planes=True))))
