"""How long a user waits: `vit --help`, and `vit predict` of one file, beside importing torch and lightning.

    python scripts/bench_startup.py [--repeats 5] [--json FILE]

Whole processes, in turn; the median of their seconds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bench_report import Table, add_json, in_turn, ratios
from vit.data.config import Preprocessing
from vit.models.architecture import ModelConfig
from vit.models.file import classifier_file, save_model
from vit.models.vision import VisionTransformer

BESIDE = "`import torch, lightning`"


def first_output(command: list[str]) -> float:
    """Seconds until a command prints its first byte, or ends."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    add_json(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        network = VisionTransformer(ModelConfig(name="Ti/16").resolve(classes=10, picture_size=224))
        names = [f"class {i}" for i in range(10)]
        save_model(classifier_file(network, names, asdict(Preprocessing((224, 224)))), Path(folder) / "m.safetensors")
        random = np.random.default_rng(0).integers(0, 255, (375, 500, 3), np.uint8)
        Image.fromarray(random).save(f"{folder}/picture.jpg")
        vit = [sys.executable, "-m", "vit.cli"]
        commands = {
            "`vit --help`": [*vit, "--help"],
            "`vit train --help`": [*vit, "train", "--help"],
            "`vit predict`, one file": [*vit, "predict", f"{folder}/m.safetensors", f"{folder}/picture.jpg"],
            BESIDE: [sys.executable, "-c", "import torch, lightning; print()"],
        }
        taken = in_turn({name: partial(first_output, words) for name, words in commands.items()}, options.repeats)
    columns = {"command": "name", "seconds": "ours", "ratio to the import (lowest to highest)": "ratio"}
    table = Table("Seconds until the first output", columns)
    for name, values in taken.items():
        table.add(name=name, ours=statistics.median(values), ratio=ratios(values, taken[BESIDE]))
    table.write(options.json)


if __name__ == "__main__":
    main()
