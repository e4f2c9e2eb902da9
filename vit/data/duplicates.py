"""Copies of pictures: exact ones by a checksum of the pixels, near ones by a difference hash."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

_ROWS = 256  # of the table of all pairs, at a time


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of a picture to compare it with others."""

    size: tuple[int, int]
    """height, width in pixels"""
    digest: bytes
    """checksum of the decoded pixels, the same for every file format that keeps them"""
    grey: np.ndarray
    """uint8 [8, 9], the picture in small"""


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """The fingerprint of a decoded picture, uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{height} x {width}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)
    return Fingerprint((height, width), digest.digest(), np.array(small))


def near_pairs(
    greys: np.ndarray, bits: int = 4, levels: float = 8.0, limit: int = 10_000
) -> list[tuple[int, int, int]]:
    """Pairs (i, j, differing bits) of pictures that look alike, i < j, from small pictures `greys` uint8 [N, 8, 9].

    Two pictures look alike when their difference hashes (64 bits: is each small pixel brighter than its left
    neighbour; Krawetz 2013, "Kind of Like That") differ in at most `bits` and their small pixels by at most `levels`
    of 255 on average. Flat pictures and plain gradients are passed over: their hashes say nothing. The search stops
    after about `limit` pairs.
    """
    told = np.flatnonzero(_tells(greys))
    hashes = _difference_hashes(greys[told])
    small = greys[told].astype(np.int16)
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(told), _ROWS):
        distances = np.bitwise_count(hashes[start : start + _ROWS, None] ^ hashes[None, start:])
        rows, columns = (places[:limit] for places in np.nonzero(np.triu(distances <= bits, 1)))
        first, second = rows + start, columns + start
        alike = np.abs(small[first] - small[second]).mean((1, 2)) <= levels
        found = zip(told[first[alike]], told[second[alike]], distances[rows, columns][alike], strict=True)
        pairs += [(int(i), int(j), int(distance)) for i, j, distance in found]
        if len(pairs) >= limit:
            break
    return pairs


def _difference_hashes(greys: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 9] -> uint64 [N]."""
    brighter = greys[:, :, 1:] > greys[:, :, :-1]
    return np.packbits(brighter.reshape(-1, 64), axis=1).view(np.uint64)[:, 0]


def _tells(greys: np.ndarray) -> np.ndarray:
    """Whether the hash of each picture tells it from others, bool [N]: not flat, and not brighter to one side only."""
    spread = greys.reshape(-1, 72).max(1).astype(int) - greys.reshape(-1, 72).min(1)
    ones = np.bitwise_count(_difference_hashes(greys))
    return (spread >= 16) & (ones >= 8) & (ones <= 56)
