"""From a picture file to upright 8-bit RGB pixels: the one decoder behind every command.

Baseline and progressive JPEG in RGB or grey goes through libjpeg-turbo (simplejpeg), everything else through Pillow.
Both give the same pixels, value for value. Colour profiles are not applied.
"""

import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from vit.data.config import MAX_PIXELS
from vit.data.orientation import TRANSPOSED, jpeg_orientation, orientation_of, upright
from vit.data.pixels import to_rgb
from vit.data.tiff import MAGIC, decode_tiff, layout_of, loaded_rgb, read_layout
from vit.errors import UnreadableImage

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
    | ({".avif"} if features.check("avif") else set())
)
"""endings of picture files, in lower case and with the dot"""

# The formats that are read at all, by how a file begins. Pillow's `Image.open` is left aside: it would try decoders
# that nobody asked for, and it refuses large pictures by a limit of its own, kept in a global variable.
_READERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Image.Image]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"P[1-6]\s"), PpmImagePlugin.PpmImageFile),
    (re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL), AvifImagePlugin.AvifImageFile),
)

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}

_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


Least: TypeAlias = Callable[[int, int], tuple[int, int]]
"""height and width of a whole picture -> the least height and width at which it will do"""


@dataclass(frozen=True, slots=True)
class Copy:
    """A picture, perhaps smaller than it is: pixels uint8 [h, w, 3], the height and width of the whole, and how many of
    the copy's pixels it spans, which need not be whole numbers.
    """

    pixels: np.ndarray
    full: tuple[int, int]
    extent: tuple[float, float]

    @classmethod
    def whole(cls, pixels: np.ndarray) -> "Copy":
        """Of a picture as it is."""
        size = pixels.shape[0], pixels.shape[1]
        return cls(pixels, size, size)


def decode(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one picture, given as a path or as the bytes of a file, to uint8 [H, W, 3] in RGB, upright.

    16 bits a channel are scaled to 8, transparency is laid over white, the first frame of an animation is taken.
    Raises `UnreadableImage` for what is no regular file, no picture of a known format, damaged, cut short, or of more
    than `max_pixels` pixels, which the header tells before anything is decoded. May be called from several threads.
    """
    return decode_copy(source, _all, max_pixels).pixels


def decode_copy(
    source: str | os.PathLike[str] | bytes, least: Least, max_pixels: int = MAX_PIXELS, *, passing: bool = False
) -> Copy:
    """Decode one picture as `decode` does, or a copy of it that is as large as `least` says of the upright picture.

    Only a JPEG gets smaller, by eighths: its finer waves are left out, and with them most of the work. A `passing` copy
    is good until the thread decodes another one: its pixels lie in memory that is used again, a third of the time being
    spent on getting new memory from the system otherwise.
    """
    name, data = ("picture in memory", source) if isinstance(source, bytes) else read_picture(source, max_pixels)
    with _reasons(name):
        if MAGIC.match(data):
            layout = read_layout(io.BytesIO(data))
            _check_size(name, *layout.size, max_pixels)
            return Copy.whole(decode_tiff(data, layout, _most_bytes(max_pixels)))
        copy = _decode_jpeg(data, name, least, max_pixels, passing) if data.startswith(b"\xff\xd8\xff") else None
        return copy or Copy.whole(upright_rgb(_open(io.BytesIO(data), name, max_pixels)))


def _all(height: int, width: int) -> tuple[int, int]:
    return height, width


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to uint8 [H, W, 3], turned as its metadata say.

    Raises what Pillow raises where pixels still to be decoded are damaged, ValueError for those that have no meaning.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        layout = layout_of(image)
        image.load()  # turns it, too
        return loaded_rgb(image, layout)
    transparent = _png_transparent(image) if isinstance(image, PngImagePlugin.PngImageFile) else None
    image.load()  # before the orientation is asked for: it may lie behind the pixels
    pixels = to_rgb(image)
    if transparent is not None:
        pixels[transparent] = 255
    return upright(pixels, orientation_of(image))


_PNG_SCALES = {"1": 255, "L;2": 85, "L;4": 17}


def _png_transparent(image: PngImagePlugin.PngImageFile) -> np.ndarray | None:
    """Make the transparent color of a PNG that is not loaded yet comparable with Pillow's pixels, which have 8 bits.

    Return the transparent pixels [H, W] of 16-bit RGB, whose lower 8 bits Pillow drops.
    """
    transparent, raw = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if raw in _PNG_SCALES and isinstance(transparent, int):
        scale = _PNG_SCALES[raw]
        image.info["transparency"] = scale * (transparent % (255 // scale + 1))
    if raw != "RGB;16B" or not isinstance(transparent, tuple):
        return None
    del image.info["transparency"]
    position = image.fp.tell()
    image.fp.seek(0)
    lower = PngImagePlugin.PngImageFile(io.BytesIO(image.fp.read()))
    image.fp.seek(position)
    lower.tile = [lower.tile[0]._replace(args="RGB;16L")]  # the other byte of each sample
    lower.load()
    wide = np.asarray(image).astype(np.uint16) << 8 | np.asarray(lower)
    return (wide == np.array(transparent, np.uint16)).all(axis=-1)


def picture_size(source: str | os.PathLike[str] | bytes, max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width in pixels of the upright picture, from the header of a file, or of its bytes, alone.

    Raises `UnreadableImage` as `decode` does, though damage behind the header goes unnoticed, and without a limit by
    default: the header of a file may claim any size.
    """
    name = "picture in memory" if isinstance(source, bytes) else os.fspath(source)
    stored: BinaryIO
    if isinstance(source, bytes):
        stored = io.BytesIO(source)
    else:
        stored = io.BytesIO(read_picture(name)[1]) if _IN_TAR.fullmatch(name) else _open_regular(name)
    with stored as stream, _reasons(name):
        tiff = MAGIC.match(stream.read(4))
        stream.seek(0)
        if tiff:
            height, width = read_layout(stream).size
            _check_size(name, height, width, max_pixels)
            return height, width
        image = _open(stream, name, max_pixels)
        width, height = image.size
        return (width, height) if orientation_of(image) in TRANSPOSED else (height, width)


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into `UnreadableImage` for the file `name`.

    Decoders meet hostile bytes, and Pillow raises nearly every kind of exception on them; all of them mean the same.
    """
    # Pillow warns of odd metadata, once a place and without a path. The filter is added, not set for a while:
    # `warnings.catch_warnings` exchanges the list of the whole process and is not safe among threads.
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error.__cause__, (struct.error, IndexError)):  # Pillow wraps what its parsers run into
        return "truncated: the file ends early"
    text = " ".join(str(error).split()) or type(error).__name__
    cut = isinstance(error, EOFError) or re.search(r"truncated|premature end|not enough|too short", text, re.IGNORECASE)
    return f"truncated: {text.removeprefix('truncated: ')}" if cut else f"cannot be decoded: {text}"


def _open_regular(name: str, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read. Nothing else is opened at all: a pipe would block, a device may do anything."""
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            # Without O_NONBLOCK a pipe that took the file's place since would still hang the process.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            stream = os.fdopen(os.open(name, flags), "rb", buffering)
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISREG(mode):
                return stream
            stream.close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableImage(name, (getattr(error, "strerror", None) or str(error)).lower()) from error
    raise UnreadableImage(name, f"not a regular file ({_KINDS.get(stat.S_IFMT(mode), 'special file')})")


# A picture in a tar: the file, where the picture starts in it, and its size.
_IN_TAR = re.compile(r"(.+\.tar)#(\d+)\+(\d+)", re.IGNORECASE | re.DOTALL)


def in_tar(path: str, start: int, size: int) -> str:
    """What names a picture that lies in a tar; as good as a path."""
    return f"{path}#{start}+{size}"


def file_of(path: str) -> str:
    """The file that a picture is in: itself, or the tar."""
    packed = _IN_TAR.fullmatch(path)
    return packed[1] if packed else path


def is_regular(path: str) -> None:
    """Raise UnreadableImage for what is no regular file that can be opened."""
    _open_regular(path).close()


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[str, bytes]:
    """The name and the bytes of a file that may be a picture, or of a picture that lies in a tar."""
    name = os.fspath(path)
    packed = _IN_TAR.fullmatch(name)
    with _open_regular(packed[1] if packed else name, buffering=0) as stream:
        try:
            end = os.fstat(stream.fileno()).st_size
            start, size = (int(packed[2]), int(packed[3])) if packed else (0, end)
            # Sizes are checked before reading takes the memory: a list may claim any, and a sparse file of a terabyte
            # costs nothing to make. No picture within the limit needs that many bytes.
            if start + size > end:
                raise UnreadableImage(name, "truncated: the tar ends early")
            if size > _most_bytes(max_pixels):
                raise UnreadableImage(name, f"{size / 2**30:.1f} GiB, too large for a picture")
            if packed is None:
                return name, stream.read()
            stream.seek(start)
            return name, stream.read(size)
        except OSError as error:
            raise UnreadableImage(name, (error.strerror or str(error)).lower()) from error
        except ValueError as error:  # more digits than Python converts
            raise UnreadableImage(name, "truncated: the tar ends early") from error


def _most_bytes(max_pixels: int) -> int:
    """More than an image of that many pixels takes."""
    return 16 * max_pixels + 2**28


def _open(stream: BinaryIO, name: str, max_pixels: int | None) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded."""
    start = stream.read(16)
    if not start:
        raise UnreadableImage(name, "empty file")
    for magic, reader in _READERS:
        if magic.match(start):
            stream.seek(0)
            image = reader(stream)
            _check_size(name, image.height, image.width, max_pixels)
            return image
    raise UnreadableImage(name, "not a picture of a known format")


def _check_size(name: str, height: int, width: int, max_pixels: int | None) -> None:
    if min(width, height) < 1:
        raise UnreadableImage(name, f"{width} x {height}, no pixels")
    if max_pixels is not None and width * height > max_pixels:
        size = f"{width} x {height} = {width * height / 1e6:.1f} Mpixel"
        raise UnreadableImage(name, f"{size}, more than the limit of {max_pixels / 1e6:g} Mpixel")


# The sizes, in eighths, to which libjpeg-turbo decodes in less time than to the full one.
_EIGHTHS = (1, 2, 3, 4, 8)


class _Memory(threading.local):
    """What the passing copies of a thread lie in."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, size: int) -> np.ndarray:
        """At least so many bytes."""
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes


_memory = _Memory()


def _decode_jpeg(data: bytes, name: str, least: Least, max_pixels: int, passing: bool) -> Copy | None:
    """The pixels of a JPEG in colour or grey, as many as are needed; None when Pillow has to judge the file.

    libjpeg only warns when the data ends early, and fills the rest with grey; that is refused here. Other complaints,
    as of a few stray bytes between two markers, do no harm to the picture: Pillow passes over them.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "RGB", "Gray"):
        return None
    _check_size(name, height, width, max_pixels)
    orientation = jpeg_orientation(data)
    across = orientation in TRANSPOSED
    rows, columns = least(width, height)[::-1] if across else least(height, width)
    for eighths in _EIGHTHS:
        size = -(-height * eighths // 8), -(-width * eighths // 8)
        if size[0] >= rows and size[1] >= columns:
            break
    memory = _memory.of(3 * size[0] * size[1]) if passing else None
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=size[0], min_width=size[1], min_factor=1, buffer=memory, strict=True
        )
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise
        return None
    full, extent = (height, width), (height * eighths / 8, width * eighths / 8)
    if across:
        full, extent = full[::-1], extent[::-1]
    return Copy(upright(pixels, orientation), full, extent)
