"""Forward passes, loading and training steps: our VisionTransformer beside timm's module with the same weights.

    python scripts/bench_forward.py [--names Ti S B] [--repeats 5] [--compile] [--device cuda] [--train]

Ours and timm's run in turn in one process, batch by batch; a round is one of each. Ratios above one are in our favour.
On a processor the tables of fp32 and bf16 (autocast); `--compile` measures both through torch.compile too; on a GPU
`--train` measures whole training steps (forward, backward, fused AdamW). `--load` measures reading ViT-B from a local
safetensors file.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vit.models.build import build_network
from vit.models.sources import load_model
from vit.models.timm import from_timm

NAMES = {"Ti": "vit_tiny_patch16_224", "S": "vit_small_patch16_224", "B": "vit_base_patch16_224"}


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def interleaved(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, device: str
) -> list[tuple[float, float]]:
    """Seconds of ours and of theirs, round by round, the first of each round in turn; two rounds to warm up."""
    rounds = []
    for number in range(repeats + 2):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        taken = {work: seconds(work, device) for work in order}
        rounds.append((taken[ours], taken[theirs]))
    return rounds[2:]


def forward(model: nn.Module, images: torch.Tensor, bf16: bool) -> Callable[[], Any]:
    def work() -> Any:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images)

    return work


def training_step(model: nn.Module, images: torch.Tensor, bf16: bool) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def work() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def loading(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        save_file(timm.create_model(NAMES["B"]).state_dict(), path)

        def ours() -> nn.Module:
            return build_network(load_model(f"timm:{NAMES['B']}@{path}"))

        def theirs() -> nn.Module:
            model: nn.Module = timm.create_model(NAMES["B"])
            model.load_state_dict(load_file(path))
            return model

        show("load B/16 from a file", 1, interleaved(ours, theirs, repeats, "cpu"), "s")


def show(name: str, count: int, rounds: list[tuple[float, float]], unit: str) -> None:
    ratios = [theirs / ours for ours, theirs in rounds]
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    if unit == "images/s":
        ours, theirs = count / ours, count / theirs
    spread = f"{statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"{name:34} {theirs:9.2f} {ours:9.2f} {unit:9} {spread}", flush=True)


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
    options = parser.parse_args()
    print(f"torch {torch.__version__}, timm {timm.__version__}, {options.device}, {torch.get_num_threads()} threads")
    print(f"{'what':34} {'timm':>9} {'vit':>9} {'':9} ratio  (lowest to highest)")
    if options.load:
        loading(options.repeats)
    for name in options.names:
        theirs = timm.create_model(NAMES[name]).eval().to(options.device)
        ours = from_timm(theirs)
        images = torch.randn(options.batch, 3, 224, 224, device=options.device)
        for compiled in (False, True) if options.compile else (False,):
            pair = [torch.compile(model) if compiled else model for model in (ours, theirs)]
            for precision in options.precisions:
                label = f"{name}/16 {precision}{' compiled' if compiled else ''}"
                works = [forward(model, images, precision == "bf16") for model in pair]
                rounds = interleaved(works[0], works[1], options.repeats, options.device)
                show(f"{label} forward", options.batch, rounds, "images/s")
                if options.train:
                    steps = [training_step(model.train(), images, precision == "bf16") for model in pair]
                    rounds = interleaved(steps[0], steps[1], options.repeats, options.device)
                    show(f"{label} training step", options.batch, rounds, "images/s")
                    for model in pair:
                        model.eval()


if __name__ == "__main__":
    main()
