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

from vit.data.decode import IMAGE_SUFFIXES, decode, in_tar, picture_size, upright_rgb
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


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(data) + 2) + data


def test_only_segments_before_the_first_scan_turn_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = (encoded(Image.fromarray(colours()), "JPEG", **options) for options in ({}, {"exif": exif}))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
    comment, other = jpeg_segment(0xFE, b"Exif\0\0no metadata"), jpeg_segment(0xE1, b"other\0Exif\0\0")
    upright = {
        "an appended JPEG": plain + turned,
        "an appended JPEG behind stray bytes": plain + bytes(5) + turned,
        "a comment that holds a JPEG": plain[:2] + jpeg_segment(0xFE, turned) + plain[2:],
        "XMP behind the image": plain + xmp,
        "XMP in a comment": plain[:2] + jpeg_segment(0xFE, xmp) + plain[2:],
    }
    across = {
        "EXIF": turned,
        "a comment first": turned[:2] + comment + turned[2:],
        "another APP1 first": turned[:2] + other + turned[2:],
        "fill bytes first": turned[:2] + b"\xff\xff" + turned[2:],
        "XMP": plain[:2] + jpeg_segment(0xE1, xmp) + plain[2:],
        "an appended JPEG that is upright": turned + plain,
    }
    for files, shape in ((upright, (37, 53)), (across, (53, 37))):
        for name, data in files.items():
            assert decode(data).shape[:2] == picture_size(data) == shape, name


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


def test_32_bit_gray_is_refused_because_its_range_is_unknown():
    for value in (3, 70_000):
        gray = np.full((4, 4), value, np.int32)
        assert "32-bit signed integer MinIsBlack, whose range is unknown" in reason(
            encoded(Image.fromarray(gray), "TIFF")
        )


def test_an_image_in_memory_of_32_bit_integers_is_refused_too():
    for values in (np.full((4, 4), 200, np.int32), np.full((4, 4), 60_000, np.int32)):
        with pytest.raises(ValueError, match="32-bit integers, whose range is unknown"):
            upright_rgb(Image.fromarray(values))
    assert upright_rgb(Image.fromarray(np.full((4, 4), 60_000, np.uint16)))[0, 0, 0] == 60_000 >> 8


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


def png(bits: int, samples: np.ndarray, transparent: bytes) -> bytes:
    """A PNG of gray [H, W] or RGB [H, W, 3] samples of `bits` bits, with that tRNS chunk."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, rows = *samples.shape[:2], samples.reshape(len(samples), -1)
    digits = (rows[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    lines = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in digits)
    head = struct.pack(">IIBBBBB", width, height, bits, 0 if samples.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_is_white_at_any_depth(bits):
    largest = (1 << bits) - 1
    gray = np.random.default_rng(bits).integers(0, largest + 1, (5, 7))
    for transparent in (0, 1, largest):
        gray[0, :2] = transparent, transparent ^ 1
        expected = np.where(gray == transparent, 255, gray >> 8 if bits == 16 else gray * 255 // largest)
        assert np.array_equal(decode(png(bits, gray, struct.pack(">H", transparent)))[..., 0], expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_color_of_a_png_is_compared_in_all_its_bits(bits):
    color = np.random.default_rng(bits).integers(0, 1 << bits, (5, 7, 3))
    color[0, 1] = color[0, 0]
    color[0, 2:5] = color[0, 0] ^ np.eye(3, dtype=int)  # the lowest bit of one sample differs
    data = png(bits, color, struct.pack(">HHH", *color[0, 0]))
    expected = color >> bits - 8
    expected[0, :2] = 255
    assert np.array_equal(decode(data), expected)
    assert np.array_equal(upright_rgb(Image.open(io.BytesIO(data))), expected)


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


@pytest.mark.parametrize(("start", "size"), [(0, 10**13), (10**17, 1), (0, 10**40), (0, 10**4000)])
def test_a_part_beyond_the_end_of_a_tar_is_not_read(tmp_path, start, size):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(1024))
    assert reason(in_tar(str(path), start, size)) == "truncated: the tar ends early"


def test_a_sparse_part_of_a_tar_is_not_read(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(1024))
    os.truncate(path, 2**40)
    assert reason(in_tar(str(path), 512, 2**40 - 512)) == "1024.0 GiB, too large for a picture"


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


def test_a_header_of_no_pixels_is_refused(tmp_path):
    for data in (png_header(0, 4), b"P5 0 4 255\n", b"GIF89a" + bytes(7)):
        path = tmp_path / "a"
        path.write_bytes(data)
        assert reason(path)
        assert size_reason(path)
