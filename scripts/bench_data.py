"""Pictures to tensors: our data path beside torchvision's ImageFolder with its v2 transforms, by one core.

    python scripts/bench_data.py [--photos FOLDER] [--cifar FOLDER] [--rounds 5] [--pictures 300] [--json FILE]

Same files, random-resized crop (area 8 to 100 %) to 224 x 224 and flip; of CIFAR-10 a padded crop of 32 x 32 and flip.
Photographs as they are, and blown up to 12 megapixels; from their files, from a cache on disk and from one in memory,
each short side 256. Each round times torchvision and ours in turn, batch by batch, in one process with one thread.
Ratios above one are in our favour; beside them stand what bounds us (decoding alone, and copying what the cache holds)
and the ratio that is meant to be reached.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bench_report import SPREAD, Table, add_json, in_turn, seconds
from vit.data.augment import TrainingTransform
from vit.data.caching import keep_pictures
from vit.data.config import AugmentConfig, Cache, Preprocessing
from vit.data.dataset import ImageDataset
from vit.data.decode import decode
from vit.data.folders import Sample
from vit.data.sampling import Draw

BATCH = 50
Work = Callable[[Sequence[int]], object]
"""what a loader asks a data set for: the pictures of these numbers"""


def ours(paths: list[str], size: int, augment: AugmentConfig, cache: Cache) -> Work:
    """Our dataset, its cache filled; a loader asks it for a whole batch."""
    dataset = ImageDataset(
        [Sample(path, 0) for path in paths],
        TrainingTransform(augment, Preprocessing((size, size), interpolation="bilinear")),
    )
    keep_pictures(dataset, cache, name="bench")
    if cache != "none":
        for index in range(len(paths)):
            dataset[Draw(0, index, 0)]
    return lambda numbers: dataset.__getitems__([Draw(1 + n // len(paths), n % len(paths), 0) for n in numbers])


def torchvisions(paths: list[str], steps: list[v2.Transform]) -> Work:
    """The same by torchvision, which is asked for one after the other."""
    dataset = ImageFolder(Path(paths[0]).parents[1], v2.Compose([*steps, v2.PILToTensor()]))
    wanted = set(paths)
    dataset.samples = [sample for sample in dataset.samples if sample[0] in wanted]
    return lambda numbers: [dataset[number % len(paths)] for number in numbers]


def rate(work: Work, pictures: int, numbers: Iterator[int]) -> float:
    """Pictures a second; each call goes on with the next pictures."""
    chosen = list(islice(numbers, pictures))
    batches = [chosen[start : start + BATCH] for start in range(0, pictures, BATCH)]
    return pictures / seconds(lambda: [work(batch) for batch in batches])


def compare(table: Table, name: str, works: tuple[Work, Work, Work], aim: float, rounds: int, pictures: int) -> None:
    """A row: rates of torchvision and ours, the rate of what bounds us, and the ratio that ours is meant to reach."""
    measures = {
        who: partial(rate, work, pictures, count())
        for who, work in zip(("theirs", "ours", "bound"), works, strict=True)
    }
    rates = in_turn(measures, rounds)
    bound = statistics.median(rates["bound"])
    table.compare(name, rates["theirs"], rates["ours"], rates=True, bound=bound, aim=f"{aim:g}")


def enlarged(paths: list[str], folder: Path) -> Path:
    """Copies of 4000 x 3000 pixels, or the other way round."""
    for path in paths:
        target = folder / Path(path).parent.name / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            size = (4000, 3000) if image.width >= image.height else (3000, 4000)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
    return folder


def files(folder: Path, most: int) -> list[str]:
    """Pictures of a folder of class folders, spread over the classes."""
    found = [path for path, _ in ImageFolder(folder).samples]
    return found[:: max(1, len(found) // most)][:most]


def copied(side: int) -> Work:
    """Copying as many bytes as the cache holds of a picture."""
    pixels = np.zeros((side, side * 4 // 3, 3), np.uint8)
    return lambda numbers: [pixels.copy() for _ in numbers]


def decoded(paths: list[str]) -> Work:
    """Decoding the whole picture, and nothing else."""
    return lambda numbers: [decode(paths[number % len(paths)]) for number in numbers]


def main() -> None:
    """Run the comparisons that there are pictures for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of class folders with photographs")
    parser.add_argument("--cifar", type=Path, help="a folder of class folders with 32 x 32 pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=300, help="a round (12 megapixels: a tenth)")
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    columns = {
        "source": "name",
        "torchvision": "theirs",
        "vit": "ours",
        SPREAD: "ratio",
        "bound": "bound",
        "meant to be": "aim",
    }
    table = Table(f"Pictures a second and core, {options.rounds} rounds of {options.pictures}", columns)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VIT_CACHE"] = f"{temporary}/caches"
        if options.photos:
            photographs(table, options.photos, Path(temporary), options.rounds, options.pictures)
        if options.cifar:
            small(table, options.cifar, options.rounds, options.pictures * 10)
    table.write(options.json)


def photographs(table: Table, folder: Path, temporary: Path, rounds: int, pictures: int) -> None:
    """Photographs from files, as they are and large, and from caches."""
    augment = AugmentConfig(crop_scale=(0.08, 1.0))
    steps = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    paths = files(folder, 100)
    theirs = torchvisions(paths, steps)
    works = (theirs, ours(paths, 224, augment, "none"), decoded(paths))
    compare(table, "photographs of about 500 x 375", works, 2.3, rounds, pictures)
    few = files(enlarged(paths[:20], temporary / "large"), 20)
    works = (torchvisions(few, steps), ours(few, 224, augment, "none"), decoded(few))
    compare(table, "the same, 12 megapixels", works, 6, rounds, max(1, pictures // 10))
    works = (theirs, ours(paths, 224, augment, "disk"), copied(256))
    compare(table, "photographs, cache on disk, short side 256", works, 5, rounds, pictures)
    works = (theirs, ours(paths, 224, augment, "ram"), copied(256))
    compare(table, "photographs, cache in memory", works, 15, rounds, pictures)


def small(table: Table, folder: Path, rounds: int, pictures: int) -> None:
    """CIFAR-10's pictures from files and from memory."""
    augment = AugmentConfig(crop="pad")
    paths = files(folder, 3000)
    theirs = torchvisions(paths, [v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    works = (theirs, ours(paths, 32, augment, "none"), decoded(paths))
    compare(table, "CIFAR-10, 32 x 32", works, 5, rounds, pictures)
    compare(
        table, "CIFAR-10, cache in memory", (theirs, ours(paths, 32, augment, "ram"), copied(32)), 20, rounds, pictures
    )


if __name__ == "__main__":
    main()
