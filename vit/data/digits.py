"""The small default data set: scikit-learn's handwritten digits as a folder of PNG files.

1 797 scans of 8 x 8 pixels in 17 greys, the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin
and C. Kaynak (UCI Machine Learning Repository, 1998), of ten classes in nearly equal numbers.
"""

import hashlib
import os

import numpy as np
from PIL import Image

from vit.data.made import write_set
from vit.errors import VitError

SIDE = 32
"""height and width of the pictures written, in pixels"""


def make_digits(out: str | os.PathLike[str]) -> bool:
    """Write OUT/train/0..9/NNNN.png and OUT/val/0..9/NNNN.png, about four to one; NNNN is scikit-learn's number.

    Returns False, and touches nothing, where the set is already there. The files appear all at once or not at all.
    Raises `DataError` when `out` holds anything else, `VitError` without scikit-learn.
    """
    return write_set(out, _pictures().items())


def _pictures() -> dict[str, np.ndarray]:
    """Path below OUT -> uint8 [SIDE, SIDE], for every digit."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise VitError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from error
    digits = load_digits()
    held_out = _held_out(digits.target)
    return {
        f"{'val' if held_out[number] else 'train'}/{label}/{number:04}.png": _enlarge(scan)
        for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True))
    }


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Which of the scans go to val, bool [N]: a fifth of every class, by a shuffle that is always the same."""
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        numbers = np.flatnonzero(labels == label)
        order = sorted(numbers, key=lambda number: hashlib.sha256(f"{number}".encode()).digest())
        held_out[order[: round(len(order) / 5)]] = True
    return held_out


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """Values 0 to 16 [8, 8] -> uint8 [SIDE, SIDE]."""
    grey = np.rint(scan * (255 / 16)).astype(np.uint8)
    return np.array(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
