"""From samples of any kind to 8-bit RGB: bit depths and transparency."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a loaded image of any mode to uint8 [H, W, 3], with transparency composited over white."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # theirs have 16 bits
        raise ValueError("32-bit integers, whose range is unknown; convert the image to mode L or I;16")
    if image.mode.startswith("I") or image.mode == "F":
        values, transparent = np.asarray(image), image.info.get("transparency")
        gray = to_8_bit(values)
        if isinstance(transparent, int):
            gray = np.where(values == transparent, np.uint8(255), gray)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow converts it to nothing else
            image = image.convert("LA")
        coloured = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(coloured, mask=coloured)
    return np.array(image.convert("RGB"))


def to_8_bit(values: np.ndarray, bits: int = 16, *, inverted: bool = False) -> np.ndarray:
    """Convert integers of `bits` bits, or floating point, of any shape to uint8; `inverted` where 0 is white.

    Of more than 8 bits the upper 8 are kept, as Pillow does for 16-bit color; fewer are scaled. Floating point counts
    from 0 to 1, or from 0 to 255 where larger values occur. Raises ValueError for anything else.
    """
    if values.dtype.kind == "f":
        return _float_to_8_bit(values, inverted)
    largest = (1 << bits) - 1
    low, high = values.min(), values.max()
    if low < 0 or high > largest:
        raise ValueError(f"gray values from {low} to {high}, expected 0 to {largest}")
    if inverted:
        values = largest - values
    if bits < 8:
        return ((values.astype(np.uint16) * 510 + largest) // (2 * largest)).astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def _float_to_8_bit(values: np.ndarray, inverted: bool) -> np.ndarray:
    if values.size and not np.isfinite(values).all():
        raise ValueError("pixels are not finite numbers")
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise ValueError(f"floating point pixels from {low:g} to {high:g}, expected 0 to 1 or 0 to 255")
    scale = np.float32(255 if high <= 1 else 1)
    values = values.astype(np.float32, copy=False) * scale
    return np.rint(255 - values if inverted else values).astype(np.uint8)
