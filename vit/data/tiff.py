"""TIFF: which kinds Pillow decodes correctly, tifffile for the others, and the names of what is refused.

Pillow misreads some of the kinds that TIFF 6.0 allows, without an error: it ignores MinIsWhite of 16 bits, takes 12
bits for 16, and mixes up uncompressed 16-bit planes. Therefore the tags are read here first, and each kind goes to a
reader that was checked against libtiff.
"""

import io
import logging
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin

from vit.data.orientation import TRANSPOSED, XMP_ORIENTATION, upright
from vit.data.pixels import to_8_bit, to_rgb

MAGIC = re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+")

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_NAMES = {0: "MinIsWhite", 1: "MinIsBlack", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr"}
_NAMES |= {8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "color filter array", 32844: "LogL", 32845: "LogLuv"}
_NAMES |= {34892: "linear raw"}
_UINT, _INT, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_KINDS = {_UINT: "unsigned", _INT: "signed integer", _FLOAT: "floating point", 5: "complex", 6: "complex"}
_NONE, _LZW, _OLD_JPEG, _PACKBITS = 1, 5, 6, 32773
_PREDICTED = (_LZW, 8, 32946, 34925, 50000)  # LZW, deflate by its two numbers, LZMA, Zstandard
_LOSSLESS = (_NONE, _PACKBITS, *_PREDICTED)
_ASSOCIATED, _UNASSOCIATED = 1, 2

# The integer tags that say how pixels are stored: name, and the value where the tag is missing.
_TAGS: dict[int, tuple[str, tuple[int, ...]]] = {
    256: ("ImageWidth", ()),
    257: ("ImageLength", ()),
    258: ("BitsPerSample", (1,)),
    259: ("Compression", (1,)),
    262: ("PhotometricInterpretation", ()),
    266: ("FillOrder", (1,)),
    273: ("StripOffsets", ()),
    274: ("Orientation", ()),
    277: ("SamplesPerPixel", (1,)),
    278: ("RowsPerStrip", (2**32 - 1,)),
    279: ("StripByteCounts", ()),
    284: ("PlanarConfiguration", (1,)),
    317: ("Predictor", (1,)),
    320: ("ColorMap", ()),
    322: ("TileWidth", ()),
    323: ("TileLength", ()),
    324: ("TileOffsets", ()),
    325: ("TileByteCounts", ()),
    332: ("InkSet", (1,)),
    338: ("ExtraSamples", ()),
    339: ("SampleFormat", (1,)),
    530: ("YCbCrSubSampling", (2, 2)),
    700: ("XMP", ()),
    32997: ("ImageDepth", (1,)),
}
_INTEGERS = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q"}


@dataclass(frozen=True)
class Layout:
    """How the first image of a file is stored."""

    order: str
    """`<` or `>`, as in struct"""
    big: bool
    """BigTIFF"""
    tags: Mapping[int, tuple[int, ...]]

    def one(self, tag: int) -> int:
        """Return the value of a tag that has one. Raises ValueError where it has none."""
        name, default = _TAGS[tag]
        values = self.tags.get(tag) or default
        if not values:
            raise ValueError(f"TIFF without the tag {name}")
        return values[0]

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.one(257), self.one(256)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return self.stored[::-1] if self.orientation in TRANSPOSED else self.stored

    @property
    def orientation(self) -> int:
        """By the tag, or else by XMP, as Pillow does."""
        if 274 in self.tags:
            return self.one(274)
        found = XMP_ORIENTATION.search(bytes(self.tags.get(700, ())))
        return int(found[1]) if found else 1

    @property
    def compression(self) -> int:
        return self.one(259)

    @property
    def photometric(self) -> int:
        return _YCBCR if self.compression == _OLD_JPEG else self.one(262)

    @property
    def samples(self) -> int:
        """Samples per pixel."""
        return 3 if self.compression == _OLD_JPEG and 277 not in self.tags else self.one(277)

    @property
    def bits(self) -> int:
        return self.one(258)

    @property
    def kind(self) -> int:
        """Sample format; undefined data counts as unsigned integers, as in libtiff."""
        return _UINT if self.one(339) == _UNDEFINED else self.one(339)

    @property
    def planes(self) -> bool:
        """Whether each sample lies in a plane of its own."""
        return self.one(284) == 2 and self.samples > 1

    @property
    def extra(self) -> tuple[int, ...]:
        """What the samples behind the colors are."""
        return self.tags.get(338, ())

    def __str__(self) -> str:
        name = _NAMES.get(self.photometric, f"photometric interpretation {self.photometric}")
        alpha = " with alpha" if {_ASSOCIATED, _UNASSOCIATED} & set(self.extra) else ""
        planes = " in separate planes" if self.planes else ""
        big = "BigTIFF, " if self.big else ""
        return f"{big}{self.bits}-bit {_KINDS.get(self.kind, 'unknown')} {name}{alpha}{planes}"


def read_layout(stream: BinaryIO) -> Layout:
    """Read the tags of the first image from the start of a TIFF. Raises ValueError and EOFError for damaged ones."""
    magic = stream.read(4)
    order, big = "<" if magic[:1] == b"I" else ">", b"+" in magic
    entry, pointer = ("HHQ", "Q") if big else ("HHI", "I")
    if big:
        stream.seek(8)
    stream.seek(_values(stream, order, pointer, 1)[0])
    (count,) = _values(stream, order, "Q" if big else "H", 1)
    entries = []
    for _ in range(min(count, 65535)):
        tag, kind, number = _values(stream, order, entry, 1)
        entries.append((tag, kind, number, stream.tell()))
        stream.seek(struct.calcsize(pointer), 1)
    tags: dict[int, tuple[int, ...]] = {}
    for tag, kind, number, position in entries:
        if tag not in _TAGS or kind not in _INTEGERS:
            continue
        if tag in tags:
            raise ValueError(f"TIFF with two tags {_TAGS[tag][0]}")
        if number > 2**22:
            raise ValueError(f"TIFF tag {_TAGS[tag][0]} of {number} values")
        stream.seek(position)
        if number * struct.calcsize(_INTEGERS[kind]) > struct.calcsize(pointer):
            stream.seek(_values(stream, order, pointer, 1)[0])
        tags[tag] = _values(stream, order, _INTEGERS[kind], number)
    return Layout(order, big, tags)


def _values(stream: BinaryIO, order: str, kinds: str, number: int) -> tuple[int, ...]:
    form = f"{order}{number}{kinds}" if len(kinds) == 1 else order + kinds
    data = stream.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise EOFError("truncated: the tags of the TIFF lie beyond its end")
    return struct.unpack(form, data)


def decode_tiff(data: bytes, layout: Layout, max_bytes: int) -> np.ndarray:
    """Decode the first image to uint8 [H, W, 3], upright.

    Raises ValueError with the name of a kind that is not supported, or of the packages that a kind needs, and whatever
    the readers raise on damaged files. No more than `max_bytes` are taken for the samples.
    """
    _check(layout)
    if pillow_reads(layout):
        try:
            image = _Reader(io.BytesIO(data))
        except (SyntaxError, KeyError) as error:
            raise ValueError(_unsupported(layout)) from error
        image.load()
        return loaded_rgb(image, layout)
    return upright(_to_rgb(_samples(data, layout, max_bytes), layout), layout.orientation)


def layout_of(image: TiffImagePlugin.TiffImageFile) -> Layout:
    """Return the layout of an image that Pillow opened."""
    tags = {tag: value if isinstance(value, tuple) else (value,) for tag, value in image.tag_v2.items() if tag in _TAGS}
    order = "<" if image.tag_v2.prefix == b"II" else ">"
    return Layout(order, False, {tag: value for tag, value in tags.items() if isinstance(value[0], int)})


def loaded_rgb(image: TiffImagePlugin.TiffImageFile, layout: Layout) -> np.ndarray:
    """Convert what Pillow loaded (and turned upright) to uint8 [H, W, 3]. Raises ValueError where Pillow is wrong."""
    _check(layout)
    if not pillow_reads(layout):
        raise ValueError(f"Pillow decodes a TIFF of {layout} wrong; give the file's path")
    if layout.photometric == _PALETTE and max(layout.tags.get(320, (256,))) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(layout.tags[320]))  # as libtiff takes such a map
        image.load()
    if layout.samples == 1 and (layout.bits > 8):
        gray = to_8_bit(np.asarray(image), layout.bits, inverted=layout.photometric == _MIN_IS_WHITE)
        return np.repeat(gray[..., None], 3, axis=-1)
    return to_rgb(image)


class _Reader(TiffImagePlugin.TiffImageFile):
    """Pillow's reader without Pillow's own limit on pixels, which is kept in a global variable."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)
        ImageFile.ImageFile.load_prepare(self)


def _check(layout: Layout) -> None:
    """Raise ValueError for what no reader here decodes."""
    colors = _COLORS.get(layout.photometric)
    formats, bits = set(layout.tags.get(339, (1,))), set(layout.tags.get(258, (1,)))
    unsupported = f"unsupported TIFF of {layout}"
    foreign_inks = layout.photometric == _CMYK and (layout.one(332) != 1 or layout.extra)
    if colors is None or foreign_inks or (layout.photometric == _PALETTE and any(layout.extra)):
        raise ValueError(f"{unsupported}; convert it to RGB")
    if layout.kind not in (_UINT, _FLOAT) or (layout.kind == _UINT and layout.bits > 16):
        raise ValueError(f"{unsupported}, whose range is unknown; convert it to 8 or 16 bits, unsigned")
    if layout.kind == _FLOAT and layout.bits not in (16, 32, 64):
        raise ValueError(f"{unsupported}; convert it to 32 bits")
    if len(formats) > 1 or len(bits) > 1 or layout.one(32997) != 1:
        raise ValueError("unsupported TIFF whose samples differ in format; convert it to 8-bit RGB")
    if layout.samples != colors + len(layout.extra):
        declared = f"of which ExtraSamples declares {len(layout.extra)}"
        raise ValueError(f"{unsupported} with {layout.samples} samples per pixel, {declared}; convert it to RGB")
    if layout.one(317) != 1 and layout.compression in (_NONE, _PACKBITS):
        raise ValueError("TIFF with a predictor, which its compression does not have")


def pillow_reads(layout: Layout) -> bool:
    """Whether Pillow decodes this kind correctly."""
    bits, samples, extra = layout.bits, layout.samples, layout.extra
    reversed_bits = layout.one(266) == 2 and layout.compression in _LOSSLESS and (bits, samples) != (1, 1)
    if (layout.big and layout.order == ">") or reversed_bits or layout.one(339) == _UNDEFINED:
        return False
    # Of one uncompressed plane Pillow forgets the number of bits, the byte order and that 0 is white.
    plain = bits == 8 and layout.photometric in (_MIN_IS_BLACK, _PALETTE)
    if layout.one(284) == 2 and samples == 1 and layout.compression == _NONE and not plain:
        return False
    if layout.kind == _FLOAT:
        native = layout.order == "<" or layout.compression == _NONE
        return native and (bits, layout.photometric, samples) == (32, _MIN_IS_BLACK, 1)
    if layout.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK):
        if samples == 1:
            little, black = layout.order == "<", layout.photometric == _MIN_IS_BLACK
            return bits in (1, 2, 4, 8) or (bits == 16 and (little or black)) or (bits == 12 and little and black)
        known = layout.photometric == _MIN_IS_BLACK and extra in ((0,), (_UNASSOCIATED,))
        return known and bits == 8 and not layout.planes
    if layout.photometric == _RGB:
        if layout.planes:
            return bits == 8 and extra in ((), (_UNASSOCIATED,))
        return bits in (8, 16) and extra in ((), (0,), (_ASSOCIATED,), (_UNASSOCIATED,))
    if layout.photometric == _PALETTE:
        return bits in (1, 2, 4, 8) and samples == 1
    if layout.photometric == _CMYK:
        return extra == () and (bits == 8 or (bits == 16 and not layout.planes))
    whole = layout.compression != _NONE or layout.tags.get(530, (2, 2)) == (1, 1)  # not subsampled
    return layout.photometric == _YCBCR and (bits, samples) == (8, 3) and whole and not layout.planes


def _unsupported(layout: Layout) -> str:
    return f"unsupported TIFF of {layout} with compression {layout.compression}; convert it to 8-bit RGB"


def _samples(data: bytes, layout: Layout, max_bytes: int) -> np.ndarray:
    """Read all samples [H, W, samples] by tifffile, in their own type."""
    if layout.photometric == _YCBCR or layout.compression not in _LOSSLESS:
        raise ValueError(_unsupported(layout))
    if layout.one(317) != 1 and (layout.one(317), layout.kind) not in ((2, _UINT), (3, _FLOAT)):
        raise ValueError(f"unsupported TIFF of {layout} with predictor {layout.one(317)}")
    height, width = layout.stored
    _check_segments(layout, len(data), max_bytes)
    try:
        import imagecodecs  # noqa: F401  # tifffile does without it until a file needs it
        import tifffile
    except ImportError:
        raise ValueError(f"TIFF of {layout} needs more packages: pip install 'vit-pipeline[tiff]'") from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs oddities without a path
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        shape = (layout.samples, 1, height, width, 1) if layout.planes else (1, 1, height, width, layout.samples)
        if page.shaped != shape:
            raise ValueError(f"TIFF whose tags contradict each other: {page.shaped}, expected {shape}")
        values = page.asarray(squeeze=False, maxworkers=1)
    return np.moveaxis(values[:, 0, ..., 0], 0, -1) if layout.planes else values[0, 0]


def _check_segments(layout: Layout, size: int, max_bytes: int) -> None:
    """Raise for strips or tiles that are missing or lie outside the file: tifffile takes them for empty ones."""
    height, width = layout.stored
    tiled = 322 in layout.tags
    across, down = (layout.one(322), layout.one(323)) if tiled else (width, min(layout.one(278), height))
    if min(height, width, across, down) < 1:
        raise ValueError("TIFF without pixels")
    item = max(1, layout.bits // 8) if layout.bits in (8, 16, 32, 64) else 1 + (layout.bits > 8)
    if max(height * width, across * down) * layout.samples * item > max_bytes:
        raise ValueError(f"TIFF of {layout} with {layout.samples} samples per pixel, too large")
    expected = math.ceil(height / down) * math.ceil(width / across) * (layout.samples if layout.planes else 1)
    offsets, counts = (layout.tags.get(tag, ()) for tag in ((324, 325) if tiled else (273, 279)))
    if len(offsets) != expected or len(counts) != expected:
        raise ValueError(f"TIFF with {len(offsets)} strips or tiles, expected {expected}")
    if min(counts) < 1 or max(map(sum, zip(offsets, counts, strict=True))) > size:
        raise EOFError("truncated: strips or tiles of the TIFF lie beyond its end")


def _to_rgb(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Convert samples [H, W, samples] to uint8 [H, W, 3], as stored."""
    count, inverted, bits = _COLORS[layout.photometric], layout.photometric == _MIN_IS_WHITE, layout.bits
    if layout.photometric == _PALETTE:
        table = np.array(layout.tags.get(320, ()), np.uint16).reshape(3, 1 << bits)
        return (table if table.max() < 256 else table >> 8).astype(np.uint8).T[values[..., 0].astype(np.uint16)]
    if bits < 8:
        values, bits = to_8_bit(values, bits), 8
    alphas = [count + place for place, kind in enumerate(layout.extra) if kind in (_ASSOCIATED, _UNASSOCIATED)]
    if alphas and layout.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
        values, inverted = _over_white(values, count, alphas[0], layout, (1 << bits) - 1), False
    colors = to_8_bit(values[..., :count], bits, inverted=inverted)
    return to_rgb(Image.fromarray(colors, "CMYK")) if count == 4 else np.repeat(colors, 3 // count, -1)


def _over_white(values: np.ndarray, count: int, alpha_at: int, layout: Layout, largest: int) -> np.ndarray:
    """Composite integer samples [H, W, samples] of 0 to `largest` over white -> [H, W, count], where 0 is black."""
    associated = layout.extra[alpha_at - count] == _ASSOCIATED
    if layout.kind == _FLOAT or (associated and layout.photometric == _MIN_IS_WHITE):
        raise ValueError(f"unsupported TIFF of {layout}; remove its alpha")
    shown, alpha = values[..., :count].astype(np.uint32), values[..., alpha_at, None].astype(np.uint32)
    if layout.photometric == _MIN_IS_WHITE:
        shown = largest - shown
    shown = shown if associated else (shown * alpha + largest // 2) // largest
    return np.minimum(shown + (largest - alpha), largest)
