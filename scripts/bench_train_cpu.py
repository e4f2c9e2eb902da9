"""Training on the processor: images a second of `vit train` beside the loop of timm's training script.

    python scripts/bench_train_cpu.py [FOLDER] [--repeats 3] [--pictures 2560] [--json FILE]

Same architecture (timm's VisionTransformer with our sizes), same folder of pictures, same batch, crop, flip, optimizer
and number of workers. timm's script is no part of its package: its loop is written out here with timm's own dataset,
loader, optimizer and loss. One epoch to warm up, then one that is timed, ours and timm's in turn; ratios above one are
in our favour. Without FOLDER, CIFAR-10 pictures are taken from the folder in VIT_TEST_DATA, or random ones are made.
"""

import argparse
import csv
import io
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2

from bench_report import SPREAD, Table, add_json, in_turn, machine, unpack
from bench_timm import timm_loader, timm_model
from vit.cli.main import main as vit
from vit.models.architecture import SIZES


def make_folder(target: Path, pictures: int) -> Path:
    """A folder of so many 32 x 32 JPEG files in ten classes."""
    if unpack("cifar10.tar.gz", target, "train/", pictures // 10):
        return target / "train"
    random = np.random.default_rng(0)
    for index in range(pictures):
        folder = target / f"class{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(stream, "JPEG", quality=92)
        (folder / f"{index}.jpg").write_bytes(stream.getvalue())
    return target


def timm_epochs(folder: Path, name: str, side: int, batch: int, workers: int, bf16: bool) -> float:
    """Images a second of the second epoch of timm's loop."""
    torch.manual_seed(0)
    model = timm_model(name, side, 10)
    loader = timm_loader(folder, side, batch, workers, "cpu")
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    loss_function = LabelSmoothingCrossEntropy(0.1)
    model.train()
    for _ in range(2):
        started, images = time.perf_counter(), 0
        for pictures, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_function(model(pictures), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # the script keeps a running mean
            images += len(labels)
        seconds = time.perf_counter() - started
    return images / seconds


def our_epochs(folder: Path, name: str, side: int, batch: int, workers: int, bf16: bool, compiled: bool) -> float:
    """Images a second of the second epoch of `vit train`, from its metrics.csv."""
    with tempfile.TemporaryDirectory() as out:
        code = vit(
            [
                "train",
                str(folder),
                f"--out={out}/run",
                f"--model.name={name}",
                f"--model.image_size={side}",
                f"--data.batch_size={batch}",
                f"--data.workers={workers}",
                "--data.val_fraction=0.01",
                "--data.cache=none",
                "--train.epochs=2",
                "--train.validate_every=2",
                "--train.accelerator=cpu",
                f"--train.precision={'bf16' if bf16 else 'fp32'}",
                f"--train.compile={'true' if compiled else 'false'}",
            ]
        )
        assert code == 0
        with open(f"{out}/run/metrics.csv", newline="") as file:
            return float(list(csv.DictReader(file))[1]["train/images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2560, help="an epoch, where no folder is given")
    parser.add_argument("--names", nargs="+", default=["mini/4"], help=f"sizes of {', '.join(SIZES)}, with a patch")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="measure train.compile too")
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16"), help="default: fp32, and bf16 where the processor has it"
    )
    add_json(parser)
    options = parser.parse_args()
    precisions = options.precisions or (["fp32", "bf16"] if "bf16" in machine()["instructions"] else ["fp32"])
    columns = {"model and precision": "name", "timm": "theirs", "vit": "ours", SPREAD: "ratio"}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.folder) if options.folder else make_folder(Path(made), options.pictures)
        shared = (options.side, options.batch, options.workers)
        table = Table("Training, images/s", columns)
        for name in options.names:
            for precision in precisions:
                settings = (folder, name, *shared, precision == "bf16")
                measures = {"timm": partial(timm_epochs, *settings), "vit": partial(our_epochs, *settings, False)}
                if options.compile:
                    measures["vit, compiled"] = partial(our_epochs, *settings, True)
                speeds = in_turn(measures, options.repeats)
                for who in list(measures)[1:]:
                    label = f"{name} {precision}{who.removeprefix('vit')}"
                    table.compare(label, speeds["timm"], speeds[who], rates=True)
        table.write(options.json)


if __name__ == "__main__":
    main()
