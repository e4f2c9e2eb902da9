"""Group duplicates among the images of a listing before a split is held out of them."""

from collections.abc import Sequence

from vit.data.config import GroupDuplicates
from vit.data.duplicates import Fingerprint, duplicate_groups
from vit.data.layouts import Found, few
from vit.data.remembered import remembered_fingerprints
from vit.data.walk import LeftOut
from vit.errors import DataError, display_path

AUTO_MOST = 50_000
"""Images up to which duplicates are searched by default. One core takes about 2 ms per photo of 500 x 375 pixels, so
that is less than two minutes, once: the fingerprints are remembered."""


def group_training(found: Found, setting: GroupDuplicates, max_pixels: int) -> tuple[list[list[str]], list[str]]:
    """Return groups of duplicates among the training images, and notes about them; skip unreadable images.

    Raises DataError for a class without a readable image.
    """
    labels = [label for label, paths in found.training.items() for _ in paths]
    paths = [path for paths in found.training.values() for path in paths]
    groups, notes, unreadable = group_images(found.root, paths, labels, setting, max_pixels)
    found.left_out += unreadable
    reasons = {item.path: item.reason for item in unreadable}
    gone = []
    for label, of_class in found.training.items():
        found.training[label] = [path for path in of_class if path not in reasons]
        gone += [] if found.training[label] else [(label, of_class[0])]
    if gone:
        raise unreadable_classes(found.name, [label for label, _ in gone], f"{gone[0][1]}: {reasons[gone[0][1]]}")
    return groups, notes


def unreadable_classes(data: str, classes: Sequence[str], example: str) -> DataError:
    """Return the error about classes without a readable image; `example` is a file with the reason."""
    return DataError(
        f"{display_path(data)}: no readable image of {display_path(few(classes))}, for example "
        f"{display_path(example)}; remove the class or add images"
    )


def group_images(
    root: str, paths: Sequence[str], labels: Sequence[str], setting: GroupDuplicates, max_pixels: int
) -> tuple[list[list[str]], list[str], list[LeftOut]]:
    """Return groups of duplicates among images, notes about them, and the unreadable images.

    `root` is the folder of the images, by which their fingerprints are remembered.
    """
    if setting is False:
        return [], ["duplicates are not searched; data.group_duplicates true keeps them within one split"], []
    if setting == "auto" and len(paths) > AUTO_MOST:
        note = f"duplicates are not searched among more than {AUTO_MOST:,} images"
        return [], [f"{note}; data.group_duplicates true keeps them within one split"], []
    marks = remembered_fingerprints(root, paths, max_pixels)
    unreadable = [mark for mark in marks if isinstance(mark, LeftOut)]
    readable = [position for position, mark in enumerate(marks) if isinstance(mark, Fingerprint)]
    found, cut = duplicate_groups(
        [mark for mark in marks if isinstance(mark, Fingerprint)], [labels[position] for position in readable]
    )
    groups = [[readable[member] for member in group] for group in found]
    notes = []
    if groups:
        count = sum(map(len, groups))
        notes.append(f"{count:,} images are duplicates, in {len(groups):,} groups; each group is in one split")
    if several := sum(len({labels[position] for position in group}) > 1 for group in groups):
        notes.append(f"{several:,} groups of duplicates have several labels; `vit data check` lists them")
    if cut:
        notes.append(f"{cut:,} images form long chains of near-duplicates; a chain may be in several splits")
    return [[paths[position] for position in group] for group in groups], notes, unreadable
