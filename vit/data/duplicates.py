"""Duplicates of images: exact ones by a checksum of the pixels, near ones by a difference hash."""

import hashlib
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from PIL import Image

from vit.data.decode import decode
from vit.data.walk import LeftOut
from vit.errors import UnreadableImage

MOST_PAIRS = 1_000_000
"""near-duplicate pairs gone through; a thousand variants of one image make half as many"""

_WAITING = 8  # images per thread
_STRICTER = ((4, 8.0), (2, 4.0), (1, 2.0))  # bits and levels of `near_pairs`; the next where there are too many pairs
_WHOLE_CHAIN = 0.05  # fraction of a class up to which a chain of near-duplicates stays one group
_TILE = 512  # rows and columns of the table of all pairs, at a time


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


def fingerprints(paths: Iterable[str], max_pixels: int) -> Iterator[Fingerprint | LeftOut]:
    """Decode images in threads and yield their fingerprints, or why one cannot be read, in the order of the paths."""

    def one(path: str) -> Fingerprint | LeftOut:
        try:
            return fingerprint(decode(path, max_pixels))
        except UnreadableImage as error:
            return LeftOut(path, error.reason)

    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)  # the decoders release the interpreter lock
    waiting: deque[Future[Fingerprint | LeftOut]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(one, path))
            if len(waiting) > _WAITING * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for all the rest


def same_pixels(marks: Sequence[Fingerprint]) -> list[list[int]]:
    """Return the positions of images with equal pixels as groups; an image unlike all others is a group of one."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for position, mark in enumerate(marks):
        groups[mark.digest].append(position)
    return list(groups.values())


def duplicate_groups(marks: Sequence[Fingerprint], labels: Sequence[str]) -> tuple[list[list[int]], int]:
    """Return groups of positions of exact and near-duplicates, and how many images are in chains that were cut.

    An image and those alike to it are one group. Near-duplicates can form chains (a is alike to b, b to c, but a not to
    c), such as the frames of a video. A chain of at most 5 % of each of its classes is one group, too; a longer one
    would swallow the class, and is cut into its most connected images, each with those alike to it.
    """
    equal = same_pixels(marks)
    pairs: list[tuple[int, int, int]] = []
    if len(equal) > 1:
        greys = np.stack([marks[group[0]].grey for group in equal])
        for bits, levels in _STRICTER:
            pairs = list(islice(near_pairs(greys, bits, levels), MOST_PAIRS + 1))
            if len(pairs) <= MOST_PAIRS:
                break
            pairs = []
    alike: defaultdict[int, set[int]] = defaultdict(set)
    for first, second, _ in pairs:
        alike[first].add(second)
        alike[second].add(first)
    totals, cut = Counter(labels), 0
    groups = [group for number, group in enumerate(equal) if number not in alike and len(group) > 1]
    for chain in components(alike):
        stars = list(_stars(chain, alike))
        members = [position for number in chain for position in equal[number]]
        counts = Counter(labels[position] for position in members)
        if len(stars) > 1 and any(count > _WHOLE_CHAIN * totals[label] for label, count in counts.items()):
            cut += len(members)
            groups += [[position for number in star for position in equal[number]] for star in stars]
        else:
            groups.append(members)
    return [sorted(group) for group in groups if len(group) > 1], cut


def components(alike: dict[int, set[int]]) -> Iterator[list[int]]:
    """Yield the connected components of a graph, given by the neighbors of each node."""
    seen: set[int] = set()
    for start in alike:
        if start not in seen:
            seen.add(start)
            component = [start]
            for node in component:
                new = alike[node] - seen
                seen |= new
                component += sorted(new)
            yield component


def _stars(component: Sequence[int], alike: dict[int, set[int]]) -> Iterator[list[int]]:
    """Cut a component into nodes with their neighbors, the nodes with most neighbors first."""
    left = set(component)
    for node in sorted(component, key=lambda node: (-len(alike[node]), node)):
        if node in left:
            star = [node, *sorted(alike[node] & left)]
            left.difference_update(star)
            yield star


def near_pairs(greys: np.ndarray, bits: int = 4, levels: float = 8.0) -> Iterator[tuple[int, int, int]]:
    """Pairs (i, j, differing bits) of pictures that look alike, i < j, from small pictures `greys` uint8 [N, 8, 9].

    Two pictures look alike when their difference hashes (64 bits: is each small pixel brighter than its left
    neighbour; Krawetz 2013, "Kind of Like That") differ in at most `bits` and their small pixels by at most `levels`
    of 255 on average. Flat pictures and plain gradients are passed over: their hashes say nothing. Each pair comes
    once, in no particular order; N copies of one picture make N * N / 2, so stop when there are enough.

    Cut into `bits` + 1 bands, two such hashes have a band in common: only pictures that share one are compared
    (Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling").
    """
    told = np.flatnonzero(_tells(greys))
    hashes = _difference_hashes(greys[told])
    small = greys[told].astype(np.int16)
    bands = _bands(bits + 1)
    for number, band in enumerate(bands):
        for bucket in _buckets(hashes & band):
            for first, second in _close(bucket, hashes, bits):
                differing = hashes[first] ^ hashes[second]
                alike = np.abs(small[first] - small[second]).mean((1, 2)) <= levels
                for earlier in bands[:number]:  # an earlier band in common has given the pair already
                    alike &= (differing & earlier) != 0
                counts = np.bitwise_count(differing[alike])
                for i, j, count in zip(told[first[alike]], told[second[alike]], counts, strict=True):
                    yield int(i), int(j), int(count)


def _bands(count: int) -> np.ndarray:
    """Masks uint64 [count] that cut 64 bits into runs of about equal length."""
    ends = [64 * i // count for i in range(count + 1)]
    return np.array([(1 << high) - (1 << low) for low, high in pairwise(ends)], dtype=np.uint64)


def _buckets(keys: np.ndarray) -> list[np.ndarray]:
    """The places of each key of `keys` [N] that occurs more than once, in rising order."""
    order = np.argsort(keys, kind="stable")
    buckets = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return [bucket for bucket in buckets if len(bucket) > 1]


def _close(bucket: np.ndarray, hashes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of pairs in `bucket` whose hashes differ in at most `bits`, a tile of the table of all pairs at a time."""
    for start in range(0, len(bucket), _TILE):
        rows = bucket[start : start + _TILE]
        for other in range(start, len(bucket), _TILE):
            columns = bucket[other : other + _TILE]
            close = np.bitwise_count(hashes[rows][:, None] ^ hashes[columns][None]) <= bits
            first, second = np.nonzero(np.triu(close, 1) if other == start else close)
            if len(first):
                yield rows[first], columns[second]


def _difference_hashes(greys: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 9] -> uint64 [N]."""
    brighter = greys[:, :, 1:] > greys[:, :, :-1]
    return np.packbits(brighter.reshape(-1, 64), axis=1).view(np.uint64)[:, 0]


def _tells(greys: np.ndarray) -> np.ndarray:
    """Whether the hash of each picture tells it from others, bool [N]: not flat, and not brighter to one side only."""
    spread = greys.reshape(-1, 72).max(1).astype(int) - greys.reshape(-1, 72).min(1)
    ones = np.bitwise_count(_difference_hashes(greys))
    return (spread >= 16) & (ones >= 8) & (ones <= 56)
