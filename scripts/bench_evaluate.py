"""Evaluation as a whole: `vit evaluate` beside the loop of timm's validation script, each as a process of its own.

    python scripts/bench_evaluate.py PHOTOS [--pictures 1000] [--few 8] [--rounds 3] [--json FILE]

Seconds from start to end of the process, ours with its whole report, of many pictures by two models, and of a few: what
the last row takes is the start, what the others add is reading and answering pictures. A ratio above one is in our
favour.

Same files (those of PHOTOS, a folder of class folders, repeated), same random weights, 224 pixels, crop 0.9, batches of
64, two processes that read, fp32. The models are timm's vit_tiny_patch16_224 (6 million weights) and test_vit (0.5
million, its smallest, whose sums do not drown the reading), both with patches of 32. timm's script is no part of its
package: its loop is written out with timm's own dataset, loader and model. How many pictures the two answer alike is
stated; less than 95 % is an error.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import timm
import torch

from bench_report import SPREAD, Table, add_json, in_turn, seconds
from vit.data.config import Preprocessing
from vit.models.file import ModelFile, save_model
from vit.models.timm import from_timm

MODELS, PATCH = ("vit_tiny_patch16_224", "test_vit"), 32

THEIRS = """
import json, sys, timm, torch
from timm.data import create_dataset, create_loader
folder, weights, out, name, patch = sys.argv[1:]
dataset = create_dataset("folder", root=folder, split="validation")
weights = torch.load(weights, weights_only=True)
model = timm.create_model(name, img_size=224, patch_size=int(patch), num_classes=len(weights["head.bias"]))
model.load_state_dict(weights)
model.eval()
loader = create_loader(
    dataset, input_size=(3, 224, 224), batch_size=64,
    use_prefetcher=False, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), num_workers=2,
    crop_pct=0.9, crop_mode="center", device=torch.device("cpu"))
answers, labels = [], []
with torch.inference_mode():
    for images, truth in loader:
        answers += model(images).argmax(1).tolist()
        labels += truth.tolist()
names = dataset.filenames(basename=True)
with open(out, "w") as file:
    json.dump({name: [answer, label] for name, answer, label in zip(names, answers, labels)}, file)
"""


def fill(folder: Path, photos: Path, pictures: int) -> None:
    """Copies of the photographs under new names, until there are so many."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    if not files:
        sys.exit(f"{photos}: no JPEG files in class folders")
    for number in range(pictures):
        source = files[number % len(files)]
        place = folder / source.parent.name / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def save_models(name: str, classes: list[str], folder: Path) -> None:
    """The same random weights as weights.pt for timm and model.safetensors for us."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, img_size=224, patch_size=PATCH, num_classes=len(classes))
    torch.nn.init.normal_(theirs.head.weight)
    torch.save(theirs.state_dict(), folder / "weights.pt")
    network = from_timm(theirs)
    prepared = Preprocessing((224, 224), crop_fraction=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = ModelFile("classifier", asdict(network.architecture), classes, asdict(prepared), network.state_dict())
    save_model(model, folder / "model.safetensors")


def run(command: list[str]) -> None:
    """A process whose output matters only when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\nexit code {done.returncode}")


def compare(name: str, folder: Path, models: Path, rounds: int) -> tuple[dict[str, list[float]], str]:
    """Seconds of both, and what they answered."""
    report, answers = models / f"{folder.name}-report", models / f"{folder.name}.json"
    ours = [sys.executable, "-m", "vit.cli", "evaluate", str(models / "model.safetensors"), str(folder)]
    ours += ["--out", str(report), "--workers", "2", "--accelerator", "cpu"]
    theirs = [sys.executable, "-c", THEIRS, str(folder), str(models / "weights.pt"), str(answers), name, str(PATCH)]
    works = {"timm": partial(run, theirs), "vit": partial(run, ours)}
    taken = in_turn({who: partial(seconds, work) for who, work in works.items()}, rounds)
    known = json.loads(answers.read_text())
    classes = sorted(path.name for path in folder.iterdir())
    with (report / "predictions.csv").open(newline="") as file:
        said = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    alike = sum(classes[known[Path(name).name][0]] == row["class1"] for name, row in said.items())
    right = (
        sum(answer == label for answer, label in known.values()),
        sum(row["correct"] == "1" for row in said.values()),
    )
    if len(known) != len(said) or alike < 0.95 * len(known):
        sys.exit(f"the two do not do the same: {alike} of {len(known)} and {len(said)} answers are alike")
    return taken, f"{alike} of {len(said)} answers alike; right: timm {right[0]}, vit {right[1]}."


def main() -> None:
    """Time the two in turn, on many pictures and on few."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--few", type=int, default=8, help="pictures of the last row")
    parser.add_argument("--rounds", type=int, default=3)
    add_json(parser)
    options = parser.parse_args()
    table = Table("Whole evaluations, seconds", {"what": "name", "timm": "theirs", "vit": "ours", SPREAD: "ratio"})
    with tempfile.TemporaryDirectory() as temporary:
        for count, name in ((options.pictures, MODELS[0]), (options.pictures, MODELS[1]), (options.few, MODELS[0])):
            models = Path(temporary, f"{count}-{name}")
            fill(models / "pictures", options.photos, count)
            save_models(name, sorted(path.name for path in (models / "pictures").iterdir()), models)
            taken, said = compare(name, models / "pictures", models, options.rounds)
            table.compare(f"{count} photographs, {name}", taken["timm"], taken["vit"])
            table.note(said)
    table.write(options.json)


if __name__ == "__main__":
    main()
