"""Forward passes, loading and training steps: our VisionTransformer beside timm's module with the same weights.

    python scripts/bench_forward.py [--names Ti S B] [--repeats 5] [--compile] [--device cuda] [--train] [--json FILE]

Ours and timm's run in turn in one process, batch by batch; a round is one of each. Ratios above one are in our favour.
On a processor the tables of fp32 and bf16 (autocast); `--compile` measures both through torch.compile too; on a GPU
`--train` measures whole training steps (forward, backward, fused AdamW). `--load` measures reading ViT-B from a local
safetensors file.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench_report import SPREAD, Table, add_json, in_turn, seconds
from vit.models.build import build_network
from vit.models.sources import load_model
from vit.models.timm import from_timm

NAMES = {"Ti": "vit_tiny_patch16_224", "S": "vit_small_patch16_224", "B": "vit_base_patch16_224"}
WARM_UP = 2

Work = Callable[[], Any]


def forward(model: nn.Module, images: torch.Tensor, bf16: bool) -> Work:
    def work() -> Any:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images)

    return work


def training_step(model: nn.Module, images: torch.Tensor, bf16: bool) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def work() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def loading(table: Table, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        save_file(timm.create_model(NAMES["B"]).state_dict(), path)

        def ours() -> nn.Module:
            return build_network(load_model(f"timm:{NAMES['B']}@{path}"))

        def theirs() -> nn.Module:
            model: nn.Module = timm.create_model(NAMES["B"])
            model.load_state_dict(load_file(path))
            return model

        taken = in_turn({"ours": partial(seconds, ours), "theirs": partial(seconds, theirs)}, repeats, WARM_UP)
        table.compare("seconds to load B/16 from a safetensors file", taken["theirs"], taken["ours"])


def compare(table: Table, name: str, ours: Work, theirs: Work, options: argparse.Namespace) -> None:
    measures = {"ours": partial(seconds, ours, options.device), "theirs": partial(seconds, theirs, options.device)}
    taken = in_turn(measures, options.repeats, WARM_UP)
    rates = {who: [options.batch / value for value in values] for who, values in taken.items()}
    table.compare(name, rates["theirs"], rates["ours"], rates=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="measure compiled modules as well")
    parser.add_argument("--train", action="store_true", help="measure training steps as well")
    parser.add_argument("--load", action="store_true", help="measure loading from a file as well")
    add_json(parser)
    options = parser.parse_args()
    columns = {"what": "name", "timm": "theirs", "vit": "ours", SPREAD: "ratio"}
    table = Table(f"Forward passes by {options.device}, batches of {options.batch}, images/s", columns)
    if options.load:
        loading(table, options.repeats)
    for name in options.names:
        theirs = timm.create_model(NAMES[name]).eval().to(options.device)
        ours = from_timm(theirs)
        images = torch.randn(options.batch, 3, 224, 224, device=options.device)
        for compiled in (False, True) if options.compile else (False,):
            pair = [torch.compile(model) if compiled else model for model in (ours, theirs)]
            for precision in options.precisions:
                label = f"{name}/16 {precision}{', compiled' if compiled else ''}"
                works = [forward(model, images, precision == "bf16") for model in pair]
                compare(table, label, works[0], works[1], options)
                if options.train:
                    steps = [training_step(model.train(), images, precision == "bf16") for model in pair]
                    compare(table, f"{label}, training step", steps[0], steps[1], options)
                    for model in pair:
                        model.eval()
    table.write(options.json)


if __name__ == "__main__":
    main()
