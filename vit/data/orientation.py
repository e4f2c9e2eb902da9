"""How an image is turned, by its EXIF or XMP metadata, and what turns it upright."""

import re
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image

# What undoes each EXIF orientation, for pixels [H, W, 3].
_UPRIGHT: dict[object, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels, 1),
}

TRANSPOSED = (5, 6, 7, 8)
"""the orientations that exchange height and width"""


def upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Return `pixels` [H, W, 3] of that EXIF orientation upright."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

# A marker with the fill bytes before it. Stray bytes between two segments are passed over, as libjpeg does.
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)


def jpeg_orientation(data: bytes) -> object:
    """Return the orientation by EXIF, or else by XMP, from the segments before the first scan."""
    exif, xmp = b"", b""
    for segment in _jpeg_metadata(data):
        if segment.startswith(b"Exif\0\0"):
            exif += segment[6:] if exif else segment  # a long one goes on in the next segment
        elif segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = segment
    try:
        orientation = None
        if exif:
            metadata = Image.Exif()
            metadata.load(exif)
            orientation = metadata.get(ExifTags.Base.Orientation)
        if orientation is None and (found := XMP_ORIENTATION.search(xmp)):
            orientation = int(found[1])
        return orientation or 1
    except Exception:
        return 1


def _jpeg_metadata(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the APP1 segments before the first scan."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker in (0xD9, 0xDA):  # end of the image, start of a scan
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            continue
        length = max(2, int.from_bytes(data[position : position + 2]))
        if marker == 0xE1:
            yield data[position + 2 : position + length]
        position += length


def orientation_of(image: Image.Image) -> object:
    """Return the EXIF orientation, 1 to 8 in a sound file; 1 when the metadata cannot be read."""
    try:
        # The method of the base class: the one of PNG decodes the picture to look for metadata behind the pixels.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
