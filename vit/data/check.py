"""Look through a data set before anybody trains on it: every picture decoded, every copy and gap named.

Nothing on disk is changed.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vit.data.config import MAX_PIXELS, DataConfig
from vit.data.duplicates import MOST_PAIRS as _ALIKE
from vit.data.duplicates import Fingerprint, components, duplicate_groups, fingerprints, near_pairs, same_pixels
from vit.data.folders import training_problems, without_images
from vit.data.grouping import AUTO_MOST
from vit.data.layouts import UNSPLIT, Found, find_pictures, is_shards
from vit.data.splitting import hold_out
from vit.data.walk import LeftOut
from vit.errors import DataError, display_path
from vit.files import open_text

_SHOWN = 10  # of each kind in the text; JSON has all
_FEW_PICTURES = 10
_IMBALANCE = 10.0
_MEASURED = {"test": 0, "val": 1}  # a picture in one of these must not be trained on


@dataclass
class Report:
    """What `check` found. Paths are absolute; `as_json` gives plain values."""

    root: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """readable pictures by split and class; the split of data without splits is called "all" """
    sizes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """least, median and largest "height" and "width" in pixels"""
    unreadable: list[LeftOut] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    """what is no picture of any class: other files and folders"""
    leaks: list[list[str]] = field(default_factory=list)
    """the same pixels in several splits"""
    near_leaks: list[list[str]] = field(default_factory=list)
    """pairs that look alike, in different splits; by a rule of thumb, as all that looks alike"""
    conflicts: list[list[str]] = field(default_factory=list)
    """the same pixels in several classes"""
    near_conflicts: list[list[str]] = field(default_factory=list)
    """pairs that look alike, in one split and different classes"""
    copies: list[list[str]] = field(default_factory=list)
    """the same pixels several times in one split and class"""
    near_copies: list[list[str]] = field(default_factory=list)
    """near-duplicates in one split and class"""
    split: dict[str, dict[str, int]] = field(default_factory=dict)
    """readable images by split and class as `vit train` would split data without splits by default, else empty"""
    split_leaks: list[list[str]] = field(default_factory=list)
    """pairs of near-duplicates that this split would put into different splits"""
    more_alike: bool = False
    """whether the search for what looks alike was ended early, because there is so much of it"""
    good: list[tuple[str, str, str]] = field(default_factory=list)
    """split, class and path of the pictures that can be used: readable, of one class, and of equal ones the first, in a
    split that is measured on rather than in the one to train on; not in `as_json`"""
    must_mend: list[str] = field(default_factory=list)
    worth_a_look: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as nested dictionaries and lists."""
        return {name: value for name, value in asdict(self).items() if name != "good"}


@dataclass(frozen=True, slots=True)
class _Picture:
    path: str
    split: str
    label: str


def check(
    data: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> Report:
    """Decode every picture of a data set in any layout of `find_pictures`, and report what is amiss.

    Data that cannot be listed is a finding too. Data without splits is judged as `vit train` would split it by default
    with `seed`. `progress` is called with the number of pictures done and of all.
    """
    if is_shards(data):
        shards = f"{data}: shards hold copies; check the folder that they were made of"
        return Report(os.fspath(data), must_mend=[shards])
    try:
        found = find_pictures(data)
    except DataError as error:
        return Report(os.path.abspath(os.fspath(data)), must_mend=[str(error)])
    report = Report(found.root)
    for item in found.left_out:
        (report.left_out if os.path.isdir(item.path) else report.unreadable).append(item)
    pictures = [
        _Picture(path, split, label)
        for split, classes in found.splits.items()
        for label, paths in classes.items()
        for path in paths
    ]
    marks: dict[_Picture, Fingerprint] = {}
    results = fingerprints([picture.path for picture in pictures], max_pixels)
    for done, (picture, result) in enumerate(zip(pictures, results, strict=True), 1):
        if isinstance(result, Fingerprint):
            marks[picture] = result
        else:
            report.unreadable.append(result)
        if progress:
            progress(done, len(pictures))
    _count(report, found, marks)
    split_of = _plan(report, marks, seed) if UNSPLIT in found.splits else {}
    _compare(report, marks, split_of)
    _judge(report, found)
    return report


def _plan(report: Report, marks: dict[_Picture, Fingerprint], seed: int) -> dict[str, str]:
    """Split the images as `vit train` would by default, and return the split of each path."""
    pictures, config = list(marks), DataConfig()
    classes: dict[str, list[str]] = {}
    for picture in pictures:
        classes.setdefault(picture.label, []).append(picture.path)
    groups, labels = list[list[int]](), [picture.label for picture in pictures]
    if len(pictures) <= AUTO_MOST:
        groups, _ = duplicate_groups(list(marks.values()), labels)
    paths = [[pictures[position].path for position in group] for group in groups]
    held = hold_out(classes, {"val": config.val_fraction}, report.root, seed, paths)
    report.split = {split: {label: len(held[split][label]) for label in sorted(classes)} for split in held}
    report.worth_a_look += without_images(held)
    return {path: split for split, by_class in held.items() for paths in by_class.values() for path in paths}


def _count(report: Report, found: Found, marks: dict[_Picture, Fingerprint]) -> None:
    totals = Counter((picture.split, picture.label) for picture in marks)
    report.counts = {
        split: {label: totals[split, label] for label in sorted(classes)} for split, classes in found.splits.items()
    }
    if marks:
        sizes = np.array([mark.size for mark in marks.values()])
        for side, values in zip(("height", "width"), sizes.T, strict=True):
            report.sizes[side] = (int(values.min()), int(np.median(values)), int(values.max()))


def _compare(report: Report, marks: dict[_Picture, Fingerprint], split_of: dict[str, str]) -> None:
    """Sort exact copies and pairs that look alike by what they do to training.

    `split_of` has the split that each path would get where the data has no splits.
    """
    pictures = list(marks)
    groups = [[pictures[position] for position in group] for group in same_pixels(list(marks.values()))]
    for group in groups:
        paths = [picture.path for picture in group]
        splits, labels = {picture.split for picture in group}, {picture.label for picture in group}
        if len(splits) > 1:
            report.leaks.append(paths)
        if len(labels) > 1:
            report.conflicts.append(paths)
        if len(group) > 1 and len(splits) == len(labels) == 1:
            report.copies.append(paths)
        if len(labels) == 1:
            best = min(group, key=lambda picture: _MEASURED.get(picture.split, len(_MEASURED)))
            report.good.append((best.split, best.label, best.path))
        if len({split_of.get(path) for path in paths}) > 1:
            report.split_leaks.append(paths)
    firsts = [group[0] for group in groups]
    if len(firsts) < 2:
        return
    alike: defaultdict[int, set[int]] = defaultdict(set)
    for number, (i, j, _) in enumerate(near_pairs(np.stack([marks[picture].grey for picture in firsts]))):
        if number == _ALIKE:
            report.more_alike = True
            break
        first, second = firsts[i], firsts[j]
        if first.split != second.split:
            report.near_leaks.append([first.path, second.path])
        elif first.label != second.label:
            report.near_conflicts.append([first.path, second.path])
        else:
            alike[i].add(j)
            alike[j].add(i)
        if split_of.get(first.path) != split_of.get(second.path):
            report.split_leaks.append([first.path, second.path])
    report.near_copies = [sorted(firsts[i].path for i in group) for group in components(alike)]
    for pairs in (report.near_leaks, report.near_conflicts, report.near_copies, report.split_leaks):
        pairs.sort()


def _judge(report: Report, found: Found) -> None:
    """Say what must be mended and what is worth a look, a line each."""
    report.must_mend = training_problems(found)
    report.must_mend += [f"{title}: {len(lines)}" for title, lines in _faults(report).items() if lines]
    train = report.counts.get(UNSPLIT, report.counts.get("train", {}))
    gone = [label for label, count in train.items() if not count and found.training[label]]
    if gone:
        report.must_mend.append(f"no readable picture of {_listed(gone)}")
    report.worth_a_look += _class_remarks(report, train)
    report.worth_a_look += [f"{title}: {len(lines)}" for title, lines in _oddities(report).items() if lines]
    if report.more_alike:
        report.worth_a_look.append(f"more pictures look alike; the search ended after {_ALIKE} pairs")
    report.worth_a_look += [f"{item.path}: {item.reason}" for item in report.left_out]


def _class_remarks(report: Report, train: dict[str, int]) -> Iterator[str]:
    few = [label for label, count in train.items() if 0 < count < _FEW_PICTURES]
    if few:
        yield f"fewer than {_FEW_PICTURES} pictures to train on of {_listed(few)}"
    filled = {label: count for label, count in train.items() if count}
    if filled:
        largest, smallest = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        ratio = filled[largest] / filled[smallest]
        if ratio > _IMBALANCE:
            yield (
                f"{ratio:.0f} times as many pictures of {largest} ({filled[largest]}) "
                f"as of {smallest} ({filled[smallest]}); data.balanced draws them equally often"
            )
    for split in ("val", "test"):
        missing = [label for label in filled if not report.counts.get(split, {}).get(label)]
        if split in report.counts and missing:
            yield f"{split} has no pictures of {_listed(missing)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def write_good(report: Report, path: Path) -> None:
    """Write the pictures that can be used as a list that `vit train` takes: split, where there are any, class, path."""
    split = any(split != UNSPLIT for split, _, _ in report.good)
    with open_text(path) as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "class", "path"] if split else ["class", "path"])
        writer.writerows(row if split else row[1:] for row in sorted(report.good))


def report_lines(report: Report) -> Iterator[str]:
    """The report as text, a line at a time; every line can be printed as it is."""
    for line in _lines(report):
        yield display_path(line)


def _lines(report: Report) -> Iterator[str]:
    yield report.root
    for split, classes in report.counts.items():
        yield f"  {split}: {sum(classes.values())} pictures of {len(classes)} classes"
        largest_first = sorted(classes.items(), key=lambda item: -item[1])
        yield from (f"    {count:>8}  {label}" for label, count in largest_first[: 2 * _SHOWN])
        if len(classes) > 2 * _SHOWN:
            yield f"    and {len(classes) - 2 * _SHOWN} classes more, the least with {largest_first[-1][1]}"
    if report.split:
        train, val = (sum(report.split[split].values()) for split in ("train", "val"))
        yield f"  vit train would use {train:,} images for training and {val:,} for validation"
    for side, (least, median, largest) in report.sizes.items():
        yield f"  {side}: {least} to {largest} pixels, median {median}"
    for title, lines in (_faults(report) | _oddities(report)).items():
        yield from _section(title, lines)
    yield from _section("worth a look", report.worth_a_look)
    yield from _section("must be mended", report.must_mend)
    if not report.must_mend:
        yield "nothing must be mended"


def _faults(report: Report) -> dict[str, list[str]]:
    """What must be mended, by title, a line a finding."""
    return {
        "files that cannot be used": [f"{item.path}: {item.reason}" for item in report.unreadable],
        "the same picture in several splits": _groups(report, report.leaks),
        "the same picture in several classes": _groups(report, report.conflicts),
    }


def _oddities(report: Report) -> dict[str, list[str]]:
    """What may well be as it should, by title, a line a finding."""
    return {
        "pictures that look alike in different splits": _groups(report, report.near_leaks),
        "pictures that look alike in different classes": _groups(report, report.near_conflicts),
        "the same picture several times in a class": _groups(report, report.copies),
        "near-duplicates within a class": _groups(report, report.near_copies),
        "near-duplicates that vit train would put into different splits": _groups(report, report.split_leaks),
    }


def _groups(report: Report, groups: list[list[str]]) -> list[str]:
    beneath = os.path.join(report.root, "")
    return ["  =  ".join(path.removeprefix(beneath) for path in group) for group in groups]


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"  and {len(lines) - _SHOWN} more (--json lists all)"
