"""CIFAR-10 from scratch on a processor, for a given time: `vit train` and the loop of timm's training script.

    python scripts/race_cifar_cpu.py CIFAR10 --minutes 20 --epochs 10 --seeds 0 1 [--json FILE]

CIFAR10 is a folder of train/CLASS/*.jpg and test/CLASS/*.jpg. Both train the same shape (`micro/4`, mean pooling; ours
has a class token beside, which timm's does without) at the same time, each on a core of its own with one thread, and
change cores from seed to seed; each is scored on the test pictures by its averaged weights as they are after each
quarter of the time (ours as its last checkpoint has them, one an epoch). Ours takes configs/classify/cifar10_small.yaml
with Muon, small pictures first and pictures kept in memory, for `--epochs`: choose them so that they fill the time.
timm's loop takes what its script
offers for this: AdamW, cosine by the time that has gone, random-resized crops of 60 % and more, flips, label smoothing,
averaged weights, its loader with one process on the same core.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "micro/4"
SCORED = (0.25, 0.5, 0.75, 1.0)
"""shares of the time after which both are scored"""
OURS = {
    "data.cache": "ram",
    "data.workers": "1",
    "optim.name": "muon",
    "optim.lr": "0.004",
    "augment.half_size": "0.6",
    "train.ema": "0.998",
    "train.validate_every": "100",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--epochs", type=int, default=10, help="of ours, as many as fill the time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="settings of ours, such as optim.lr=0.002")
    parser.add_argument("--timm", nargs=2, metavar=("SEED", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timm:
        timm_side(options.folder, options.minutes, int(options.timm[0]), Path(options.timm[1]))
        return
    rows = []
    for seed in options.seeds:
        rows.append(race(options, seed, swapped=seed % 2 == 1))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


def race(options: argparse.Namespace, seed: int, *, swapped: bool) -> dict[str, Any]:
    """One seed: both at once, then their scores."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    ours_core, timm_core = reversed(cores) if swapped else cores
    config = Path(__file__).parent.parent / "configs" / "classify" / "cifar10_small.yaml"
    with tempfile.TemporaryDirectory() as out:
        settings = OURS | dict(pair.split("=", 1) for pair in options.set)
        command = [sys.executable, "-m", "vit.cli", "train", str(options.folder), "--config", str(config)]
        command += [f"--{key}={value}" for key, value in settings.items()]
        command += [f"--train.epochs={options.epochs}", f"--train.seed={seed}", f"--out={out}/vit"]
        theirs = [sys.executable, __file__, str(options.folder), "--minutes", str(options.minutes)]
        theirs += ["--timm", str(seed), f"{out}/timm.json"]
        started = time.perf_counter()
        running = {f"{out}/vit.log": pinned(command, ours_core, f"{out}/vit.log")}
        running[f"{out}/timm.log"] = pinned(theirs, timm_core, f"{out}/timm.log")
        kept = [Path(out, f"{share}.ckpt") for share in SCORED]
        try:
            for share, copy in zip(SCORED, kept, strict=True):
                while time.perf_counter() - started < share * 60 * options.minutes:
                    check(running)
                    time.sleep(1)
                shutil.copyfile(f"{out}/vit/checkpoints/last.ckpt", copy)
            for process in running.values():
                process.wait()
            check(running)
        finally:
            for process in running.values():
                process.kill()
        scores = [score(model, options.folder, out) for model in kept]
        found = json.loads(Path(out, "timm.json").read_text())
    return {"seed": seed, "minutes": [share * options.minutes for share in SCORED], "vit": scores, **found}


def check(running: "dict[str, subprocess.Popen[bytes]]") -> None:
    """End the race where one side has failed, with what its log says."""
    for log, process in running.items():
        if process.poll():
            sys.exit(f"{process.args}: exit code {process.returncode}\n{Path(log).read_text()[-2000:]}")


def pinned(command: list[str], core: int, log: str) -> "subprocess.Popen[bytes]":
    """The command on one core, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "wb") as file:
        return subprocess.Popen(["taskset", "-c", str(core), *command], stdout=file, stderr=file, env=environment)


def score(model: Path, folder: Path, out: str) -> float:
    """Accuracy on the test pictures."""
    report = Path(out, f"report {model.stem}")
    command = [sys.executable, "-m", "vit.cli", "evaluate", str(model), str(folder), "--split", "test", "--out", report]
    subprocess.run(command, check=True, capture_output=True)
    return float(json.loads((report / "metrics.json").read_text())["top1"])


def timm_side(folder: Path, minutes: float, seed: int, out: Path) -> None:
    """timm's loop for a time, everything from its start counted; writes its scores."""
    started = time.perf_counter()
    import math

    import torch
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    from bench_timm import timm_model

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = timm_model(NAME, 32, 10, class_token=False, global_pool="avg", fc_norm=False)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    shared: dict[str, Any] = {"input_size": (3, 32, 32), "mean": mean, "std": std, "device": torch.device("cpu")}
    loader = create_loader(
        create_dataset("folder", root=str(folder / "train"), split="train", is_training=True),
        batch_size=128,
        is_training=True,
        scale=(0.6, 1.0),
        ratio=(0.9, 1.1),
        color_jitter=None,
        num_workers=1,
        interpolation="bicubic",
        persistent_workers=True,
        **shared,
    )
    test = create_loader(
        create_dataset("folder", root=str(folder / "test"), split="test", is_training=False),
        batch_size=500,
        num_workers=0,
        crop_pct=1.0,
        **shared,
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    averaged = ModelEmaV3(model, decay=0.998, use_warmup=True)
    loss_function = LabelSmoothingCrossEntropy(0.1)
    scores: list[float] = []
    scoring, seen, share = 0.0, 0, 0.0
    while share < 1:
        for pictures, labels in loader:
            share = (time.perf_counter() - started - scoring) / (60 * minutes)
            rate = (
                min(1.0, share / 0.1) if share < 0.1 else 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.1) / 0.9)))
            )
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * max(rate, 0.01)
            loss = loss_function(model(pictures), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            averaged.update(model, step=seen // 128)
            seen += len(labels)
            if share >= SCORED[len(scores)]:
                before = time.perf_counter()
                scores.append(right(averaged.module, test))
                scoring += time.perf_counter() - before
            if share >= 1:
                break
    out.write_text(json.dumps({"timm": scores, "timm_pictures": seen}))


def right(model: Any, loader: Any) -> float:
    """Share of the pictures that are classified as they are labelled."""
    import torch

    model.eval()
    with torch.inference_mode():
        found = [(model(pictures).argmax(1) == labels) for pictures, labels in loader]
    return float(torch.cat(found).float().mean())


if __name__ == "__main__":
    main()
