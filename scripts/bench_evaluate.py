"""Evaluation as a whole: `vit evaluate` beside the loop of timm's validation script, each as a process of its own.

    python scripts/bench_evaluate.py PHOTOS [--pictures 1000] [--rounds 3]

Same files (those of PHOTOS, a folder of class folders, repeated), the same random weights of timm's
vit_tiny_patch16_224, 224 pixels, crop 0.9, batches of 64, two processes that read, fp32. timm's script is no part of
its package: its loop is written out with timm's own dataset, loader and model. Seconds from start to end of the
process; a ratio above one is in our favour.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import timm
import torch

from vit.data.config import Preprocessing
from vit.models.file import ModelFile, save_model
from vit.models.timm import from_timm

NAME = "vit_tiny_patch16_224"

THEIRS = """
import sys, timm, torch
from timm.data import create_dataset, create_loader
folder, weights, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = timm.create_model("vit_tiny_patch16_224", num_classes=classes)
model.load_state_dict(torch.load(weights, weights_only=True))
model.eval()
loader = create_loader(
    create_dataset("folder", root=folder, split="validation"), input_size=(3, 224, 224), batch_size=64,
    use_prefetcher=False, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), num_workers=2,
    crop_pct=0.9, crop_mode="center", device=torch.device("cpu"))
right = count = 0
with torch.inference_mode():
    for images, labels in loader:
        right += int((model(images).argmax(1) == labels).sum())
        count += len(labels)
print(right, count)
"""


def folder_of(photos: Path, target: Path, pictures: int) -> None:
    """Copies of the photographs under new names, until there are so many."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    for number in range(pictures):
        source = files[number % len(files)]
        place = target / source.parent.name / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def seconds(command: list[str]) -> tuple[float, str]:
    """How long a process takes, and what it prints."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Time the two in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pictures")
        folder_of(options.photos, folder, options.pictures)
        classes = sorted(path.name for path in folder.iterdir())
        torch.manual_seed(0)
        theirs = timm.create_model(NAME, num_classes=len(classes))
        torch.nn.init.normal_(theirs.head.weight)
        torch.save(theirs.state_dict(), f"{temporary}/weights.pt")
        network = from_timm(theirs)
        prepared = Preprocessing((224, 224), crop_fraction=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        model = ModelFile("classifier", asdict(network.architecture), classes, asdict(prepared), network.state_dict())
        save_model(model, Path(temporary, "model.safetensors"))
        ours = [sys.executable, "-c", "from vit.cli.main import run; run()", "evaluate"]
        ours += [f"{temporary}/model.safetensors", str(folder), "--out", f"{temporary}/report", "--workers", "2"]
        command = [sys.executable, "-c", THEIRS, str(folder), f"{temporary}/weights.pt", str(len(classes))]
        times: dict[str, list[float]] = {"timm": [], "vit": []}
        for _ in range(options.rounds):
            took, said = seconds(command)
            times["timm"].append(took)
            took, _ = seconds(ours)
            times["vit"].append(took)
        metrics = json.loads(Path(temporary, "report", "metrics.json").read_text())
    print(
        f"torch {torch.__version__}, {options.pictures} pictures; timm {said.strip()} right, vit {metrics['top1']:.4f}"
    )
    ratios = [one / other for one, other in zip(times["timm"], times["vit"], strict=True)]
    middle = {who: statistics.median(values) for who, values in times.items()}
    print(
        f"seconds: timm {middle['timm']:.1f}, vit {middle['vit']:.1f}, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
