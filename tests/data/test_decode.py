"""Decoding: right pixels for every kind of picture, a reason in words for everything else."""

import io
import os
import socket
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from vit.data.decode import IMAGE_SUFFIXES, decode, picture_size
from vit.errors import UnreadableImage


def colours(height: int = 37, width: int = 53) -> np.ndarray:
    """A smooth picture without symmetry, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)], -1).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def reason(source: str | Path | bytes, max_pixels: int = 100_000_000) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(source, max_pixels)
    return caught.value.reason


def size_reason(path: str | Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        picture_size(path)
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels and holds none."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + checksum + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (8, 8), (1, 300), (300, 1)])
@pytest.mark.parametrize("options", [{"subsampling": 2}, {"subsampling": 1}, {"subsampling": 0}, {"progressive": True}])
def test_jpeg_has_the_pixels_that_pillow_gives(shape, options):
    data = encoded(Image.fromarray(colours(*shape)), "JPEG", quality=80, **options)
    pixels = decode(data)
    assert np.array_equal(pixels, np.array(Image.open(io.BytesIO(data))))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_grey_and_cmyk_jpeg_have_the_pixels_that_pillow_gives():
    for mode in ("L", "CMYK"):
        data = encoded(Image.fromarray(colours()).convert(mode), "JPEG", quality=95)
        assert np.array_equal(decode(data), np.array(Image.open(io.BytesIO(data)).convert("RGB"))), mode
        assert (
            np.abs(decode(data).mean() - np.array(Image.fromarray(colours()).convert(mode).convert("RGB")).mean()) < 2
        )


def test_lossless_formats_come_back_exactly(tmp_path):
    formats = ["PNG", "BMP", "TIFF", "PPM"] + (["WEBP"] if features.check("webp") else [])
    for format in formats:
        path = tmp_path / f"a.{format.lower()}"
        Image.fromarray(colours()).save(path, lossless=True)
        assert np.array_equal(decode(path), colours()), format
        assert np.array_equal(decode(str(path)), decode(path.read_bytes())), format
        assert picture_size(path) == (37, 53)


@pytest.mark.skipif(".avif" not in IMAGE_SUFFIXES, reason="Pillow was built without AVIF")
def test_avif_is_read():
    data = encoded(Image.fromarray(colours()), "AVIF", quality=90)
    assert np.abs(decode(data).astype(int) - colours()).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "compressed TIFF"])
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": "tiff_lzw"} if format == "compressed TIFF" else {}
    data = encoded(Image.fromarray(colours()), format.split()[-1], exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decode(data), np.array(expected))
    assert decode(data).flags.c_contiguous
    path = tmp_path / "a"
    path.write_bytes(data)
    assert picture_size(path) == decode(data).shape[:2] == ((37, 53) if orientation < 5 else (53, 37))


def test_an_orientation_that_does_not_exist_changes_nothing():
    exif = Image.Exif()
    exif[0x0112] = 77
    data = encoded(Image.fromarray(colours()), "PNG", exif=exif)
    assert np.array_equal(decode(data), colours())


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_metadata_neither_stops_a_picture_nor_warns(exif):
    data = encoded(Image.fromarray(colours()), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).shape == (37, 53, 3)
    data = encoded(Image.fromarray(colours()), "PNG", exif=exif)
    assert np.array_equal(decode(data), colours())


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_equals_the_same_picture_in_8_bit(format):
    grey = colours()[..., 0]
    for wide in (grey.astype(np.uint16) * 257, grey.astype(np.uint16) * 256):
        pixels = decode(encoded(Image.fromarray(wide), format))
        assert np.abs(pixels.astype(int) - grey[..., None]).max() <= (1 if format == "PPM" else 0)


def test_big_endian_16_bit_grey_is_read():
    grey = colours()[..., 0]
    wide = Image.frombytes("I;16B", (53, 37), (grey.astype(">u2") * 257).tobytes())
    assert np.array_equal(decode(encoded(wide, "TIFF")), np.repeat(grey[..., None], 3, -1))


def test_floating_point_counts_from_0_to_1_or_to_255():
    grey = colours()[..., 0].astype(np.float32)
    for values in (grey, grey / 255):
        assert np.array_equal(decode(encoded(Image.fromarray(values), "TIFF"))[..., 1], grey)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (-1.0, "floating point pixels from -1"), (3e4, "to 30000")],
)
def test_floating_point_without_a_known_range_is_refused(value, words):
    grey = np.full((4, 4), 0.5, np.float32)
    grey[1, 2] = value
    assert words in reason(encoded(Image.fromarray(grey), "TIFF"))


def test_32_bit_grey_beyond_16_bits_is_refused():
    grey = np.full((4, 4), 70_000, np.int32)
    assert "grey values from 70000 to 70000" in reason(encoded(Image.fromarray(grey), "TIFF"))


def test_palette_and_1_bit_pictures_get_their_colours():
    palette = Image.fromarray(colours()).quantize(16)
    assert np.array_equal(decode(encoded(palette, "PNG")), np.array(palette.convert("RGB")))
    black_and_white = Image.fromarray(colours()).convert("1")
    for format in ("PNG", "TIFF", "PPM", "BMP"):
        assert np.array_equal(decode(encoded(black_and_white, format)), np.array(black_and_white.convert("RGB"))), (
            format
        )


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (0, 0, 0, 128)
    for format in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(rgba), format))
        assert pixels[0, 0].tolist() == [10, 20, 30]
        assert pixels[0, 1].tolist() == [127, 127, 127]
        assert pixels[1].min() == 255
    pixels = decode(encoded(Image.fromarray(rgba).convert("LA"), "PNG"))
    assert pixels[0, 1].tolist() == [127, 127, 127]
    assert pixels[1].min() == 255


def test_a_transparent_colour_is_laid_over_white():
    grey = np.array([[0, 200]], np.uint8)
    palette = Image.fromarray(grey).convert("P")
    for image in (Image.fromarray(grey), palette):
        assert decode(encoded(image, "PNG", transparency=0))[0, :, 0].tolist() == [255, 200], image.mode
    assert decode(encoded(palette, "PNG", transparency=bytes([0] + [255] * 255)))[0, :, 0].tolist() == [255, 200]
    assert decode(encoded(palette, "GIF", transparency=0))[0, :, 0].tolist() == [255, 200]
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    assert decode(encoded(wide, "PNG", transparency=0))[0, :, 0].tolist() == [255, 200]


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_of_several_is_taken(format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data)[5, 5].astype(int) - (255, 0, 0)).max() < 5
    assert decode(data).shape == (10, 20, 3)


def test_stray_bytes_between_the_scans_of_a_jpeg_do_no_harm():
    data = encoded(Image.fromarray(colours()), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    marker = data.rindex(b"\xff\xc4", 0, scan)  # the Huffman table before the last scan
    strayed = data[:marker] + b"\x01\x02\x03" + data[marker:]
    assert np.array_equal(decode(strayed), decode(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not a picture of a known format"),
        (b"\xff", "not a picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
        (b"P5 4 4 255\nab", "truncated"),
        (b"BMW sells cars, but no file beginning so is a picture", "truncated: "),
        (b"BM", "truncated: the file ends early"),
        (b"\xff\xd8\xff\xe0\x00\x04no jpeg behind this", "cannot be decoded: "),
        (png_header(40_000, 40_000), "40000 x 40000 = 1600.0 Mpixel, more than the limit of 100 Mpixel"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(tmp_path, data, words):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert words in reason(path)
    assert words in reason(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_file_cut_short_is_refused(format):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format)
    for part in (0.3, 0.6, 0.95):
        assert reason(data[: int(len(data) * part)])


def test_a_cut_jpeg_with_its_end_marker_put_back_is_refused():
    data = encoded(Image.fromarray(colours(200, 200)), "JPEG")
    assert reason(data[: len(data) // 2]).startswith("truncated: ")
    assert reason(data[: len(data) // 2] + b"\xff\xd9").startswith("truncated: ")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_the_pixel_limit_holds_for_every_format(format):
    data = encoded(Image.new("RGB", (30, 20)), format)
    assert decode(data, max_pixels=600).shape == (20, 30, 3)
    assert reason(data, max_pixels=599) == "30 x 20 = 0.0 Mpixel, more than the limit of 0.000599 Mpixel"


def test_the_pixel_limit_is_the_callers_and_not_that_of_pillow(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(40_000, 40_000))
    limit = Image.MAX_IMAGE_PIXELS
    assert picture_size(path) == (40_000, 40_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_sparse_file_beyond_all_pictures_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(4, 4))
    os.truncate(path, 2**40)
    assert reason(path) == "1024.0 GiB, too large for a picture"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the name of a socket may not be long
    try:
        listener.bind("socket.jpg")
    finally:
        os.chdir(here)
        listener.close()
    for refuse in (reason, size_reason):
        assert refuse(tmp_path / "pipe.jpg") == "not a regular file (named pipe)"
        assert refuse(tmp_path / "folder.jpg") == "not a regular file (folder)"
        assert refuse(tmp_path / "socket.jpg") == "not a regular file (socket)"
        assert refuse("/dev/zero") == "not a regular file (character device)"
        assert refuse(tmp_path / "absent.jpg") == "no such file or directory"
        assert "symbolic links" in refuse(tmp_path / "loop.jpg")
        assert "null" in refuse("a\0b.jpg")


def test_the_message_names_the_file_and_the_reason_in_one_line(tmp_path):
    path = tmp_path / "a\nb\udcff.jpg"
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage) as caught:
        decode(path)
    assert str(caught.value) == f"{tmp_path}/a\\nb\\udcff.jpg: empty file"


def test_threads_decode_the_same_pixels():
    files = [encoded(Image.fromarray(colours(30 + i, 40)), format) for i in range(8) for format in ("JPEG", "PNG")] * 4
    with ThreadPoolExecutor(4) as pool:
        for alone, together in zip(map(decode, files), pool.map(decode, files), strict=True):
            assert np.array_equal(alone, together)
