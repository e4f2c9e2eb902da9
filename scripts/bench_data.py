"""Pictures to tensors: our data path beside torchvision's ImageFolder with its v2 transforms, by one core.

    python scripts/bench_data.py [--photos FOLDER] [--cifar FOLDER] [--rounds 5] [--pictures 300]

Same files, random-resized crop (area 8 to 100 %) to 224 x 224 and flip; of CIFAR-10 a padded crop of 32 x 32 and flip.
Photographs as they are, and blown up to 12 megapixels; from their files, from a cache on disk and from one in memory,
each short side 256. Each round times torchvision and ours in turn, in one process with one thread. Ratios above one are
in our favour; beside them stand what bounds us: decoding alone, and copying what the cache holds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit.data.augment import TrainingTransform
from vit.data.caching import keep_pictures
from vit.data.config import AugmentConfig, Cache, Preprocessing
from vit.data.dataset import ImageDataset
from vit.data.decode import decode
from vit.data.folders import Sample
from vit.data.sampling import Draw

Work = Callable[[int], object]


def ours(paths: list[str], size: int, augment: AugmentConfig, cache: Cache) -> Work:
    """What gives picture number i by our dataset, its cache filled."""
    dataset = ImageDataset(
        [Sample(path, 0) for path in paths],
        TrainingTransform(augment, Preprocessing((size, size), interpolation="bilinear")),
    )
    keep_pictures(dataset, cache, name="bench")
    if cache != "none":
        for index in range(len(paths)):
            dataset[Draw(0, index, 0)]
    return lambda number: dataset[Draw(1 + number // len(paths), number % len(paths), 0)]


def torchvisions(folder: Path, steps: list[v2.Transform]) -> Work:
    """The same by torchvision."""
    transform = v2.Compose([*steps, v2.PILToTensor()])
    dataset = ImageFolder(folder, transform)
    return lambda number: dataset[number % len(dataset)]


def rate(work: Work, pictures: int, first: int) -> float:
    """Pictures a second."""
    started = time.perf_counter()
    for number in range(first, first + pictures):
        work(number)
    return pictures / (time.perf_counter() - started)


def compare(name: str, theirs: Work, mine: Work, bound: Work, rounds: int, pictures: int) -> None:
    """Print a row: both rates, the ratio with its spread, and the rate of what bounds us."""
    rates: dict[str, list[float]] = {"theirs": [], "ours": [], "bound": []}
    for number in range(rounds):
        for who, work in (("theirs", theirs), ("ours", mine), ("bound", bound)):
            rates[who].append(rate(work, pictures, number * pictures))
    ratios = [one / other for one, other in zip(rates["ours"], rates["theirs"], strict=True)]
    middle = {who: statistics.median(values) for who, values in rates.items()}
    print(
        f"{name:32} {middle['theirs']:9.0f} {middle['ours']:9.0f} {statistics.median(ratios):6.2f}  "
        f"({min(ratios):.2f} to {max(ratios):.2f}) {middle['bound']:9.0f}",
        flush=True,
    )


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


def copied(paths: list[str], side: int) -> Work:
    """Copying as many bytes as the cache holds of a picture."""
    pixels = np.zeros((side, side * 4 // 3, 3), np.uint8)
    return lambda number: pixels.copy()


def decoded(paths: list[str]) -> Work:
    """Decoding the whole picture, and nothing else."""
    return lambda number: decode(paths[number % len(paths)])


def main() -> None:
    """Run the comparisons that there are pictures for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of class folders with photographs")
    parser.add_argument("--cifar", type=Path, help="a folder of class folders with 32 x 32 pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=300, help="a round (12 megapixels: a tenth)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(f"torch {torch.__version__}, one of {os.cpu_count()} cores, {options.rounds} rounds of {options.pictures}")
    print(f"{'pictures a second and core':32} {'theirs':>9} {'ours':>9}  ratio  (lowest to highest)     bound")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VIT_CACHE"] = f"{temporary}/caches"
        if options.photos:
            photographs(options.photos, Path(temporary), options.rounds, options.pictures)
        if options.cifar:
            small(options.cifar, options.rounds, options.pictures * 10)


def photographs(folder: Path, temporary: Path, rounds: int, pictures: int) -> None:
    """Photographs from files, as they are and large, and from caches."""
    augment = AugmentConfig(crop_scale=(0.08, 1.0))
    steps = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    paths = files(folder, 100)
    theirs = torchvisions(folder, steps)
    compare("photographs", theirs, ours(paths, 224, augment, "none"), decoded(paths), rounds, pictures)
    copies: Work = copied(paths, 256)
    for cache in ("disk", "ram"):
        name = f"photographs, cache {cache}"
        compare(name, theirs, ours(paths, 224, augment, cache), copies, rounds, pictures)
    large = enlarged(paths[:20], temporary / "large")
    few = files(large, 20)
    row = (torchvisions(large, steps), ours(few, 224, augment, "none"), decoded(few))
    compare("12 megapixels", *row, rounds, max(1, pictures // 10))


def small(folder: Path, rounds: int, pictures: int) -> None:
    """CIFAR-10's pictures from files and from memory."""
    augment = AugmentConfig(crop="pad")
    paths = files(folder, 3000)
    theirs = torchvisions(folder, [v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    compare("32 x 32", theirs, ours(paths, 32, augment, "none"), decoded(paths), rounds, pictures)
    compare("32 x 32, cache ram", theirs, ours(paths, 32, augment, "ram"), copied(paths, 32), rounds, pictures)


if __name__ == "__main__":
    main()
