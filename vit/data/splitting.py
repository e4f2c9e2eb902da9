"""Hold out validation and test images, with duplicates in one split, the same on every machine."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence


def hold_out(
    classes: Mapping[str, Sequence[str]],
    fractions: Mapping[str, float],
    root: str,
    seed: int,
    groups: Iterable[Sequence[str]] = (),
) -> dict[str, dict[str, list[str]]]:
    """Split the paths of each class into train and the given fractions, stratified by class: {split: {class: paths}}.

    The paths of a group, such as duplicates of one image, are all in one split, also where they are of several
    classes. At least one path of each class stays in train, and every split gets at least one where the groups allow;
    a group that is more than half of a class stays in train. The order is by a hash of the seed and of each group's
    first path relative to `root`, so it is the same on every machine, and a path added later moves few others.
    """
    label_of = {path: label for label, paths in classes.items() for path in paths}
    order = _units(label_of, root, seed, groups)
    left = {label: len(paths) for label, paths in classes.items()}
    splits: dict[str, list[str]] = {}
    for split, fraction in fractions.items():
        room = {label: min(max(1, round(fraction * len(paths))), left[label] - 1) for label, paths in classes.items()}
        missing = {label for label, count in room.items() if count > 0}
        held, kept = list[list[str]](), list[list[str]]()
        for unit in order:
            counts = Counter(label_of[path] for path in unit)
            if all(count <= room[label] for label, count in counts.items()):
                held.append(unit)
                for label, count in counts.items():
                    room[label] -= count
                    left[label] -= count
                missing -= counts.keys()
            else:
                kept.append(unit)
        for unit in sorted(kept, key=len) if missing else ():  # the smallest group of a class that got nothing yet
            counts = Counter(label_of[path] for path in unit)
            if missing & counts.keys() and all(2 * count <= left[label] for label, count in counts.items()):
                held.append(unit)
                for label, count in counts.items():
                    left[label] -= count
                missing -= counts.keys()
        taken = {id(unit) for unit in held}
        order = [unit for unit in kept if id(unit) not in taken]
        splits[split] = [path for unit in held for path in unit]
    splits = {"train": [path for unit in order for path in unit], **splits}
    parts: dict[str, dict[str, list[str]]] = {split: {label: [] for label in classes} for split in splits}
    for split, paths in splits.items():
        for path in sorted(paths):
            parts[split][label_of[path]].append(path)
    return parts


def _units(label_of: Mapping[str, str], root: str, seed: int, groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return what is to be in one split each, groups and single paths, in random order."""
    units = [sorted(group) for group in groups]
    grouped = {path for unit in units for path in unit}
    units += [[path] for path in label_of if path not in grouped]

    def key(unit: list[str]) -> bytes:
        relative = unit[0].removeprefix(root)
        if os.sep != "/":
            relative = relative.replace(os.sep, "/")
        return hashlib.sha256(f"{seed}:{relative}".encode("utf-8", "surrogateescape")).digest()

    return sorted(units, key=key)
