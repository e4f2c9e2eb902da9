"""What attention maps cost, in time and memory: beside the passes they need, and beside transformers' eager maps.

    python scripts/bench_attention.py [--repeats 5] [--batch 4] [--device cuda] [--memory] [--large] [--json FILE]

Time: rollout beside a forward pass of the same model; generic attention and LeGrad beside a forward and a backward
pass; rollout beside transformers' model with `output_attentions=True` (its eager attention) and a rollout of its maps
as tensors, of the same weights and pictures. All runs of one process, in turn; a ratio below one is in our favour.

`--memory` prints, instead of times, the peak of a fresh process for each, less what the model takes; on a GPU the
allocator's, else Linux's account. `--large` adds that of one picture of 1024 x 1024 pixels (4 097 tokens).
"""

import argparse
import gc
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench_report import Table, add_json, in_turn, ratios, seconds
from vit.explain.maps import attention_maps
from vit.models.huggingface import from_huggingface
from vit.models.vision import VisionTransformer


def theirs_of(size: int) -> nn.Module:
    """transformers' ViT-B/16 with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(image_size=size, num_labels=1000, attn_implementation="eager")
    model: nn.Module = ViTForImageClassification(config).eval()
    return model


def rollout_of_matrices(matrices: tuple[Tensor, ...]) -> Tensor:
    """Rollout of the class token as it is usually written, from all matrices [B, H, N, N]."""
    row = torch.zeros(matrices[0].shape[0], 1, matrices[0].shape[-1], device=matrices[0].device)
    row[:, :, 0] = 1
    for matrix in reversed(matrices):
        row = (row + row @ matrix.mean(dim=1)) / 2
    return row[:, 0, 1:]


def works(device: str, batch: int, size: int, names: list[str]) -> dict[str, Callable[[], Any]]:
    """The passes to measure, by name; only what they need is built."""
    theirs = theirs_of(size).to(device)
    ours: VisionTransformer = from_huggingface(theirs).eval().to(device)
    if not any(name.startswith("transformers") for name in names):
        del theirs
    images = torch.randn(batch, 3, size, size, device=device)

    @torch.no_grad()
    def forward() -> None:
        ours(images)

    def forward_backward() -> None:
        ours(images).amax(dim=1).sum().backward()
        ours.zero_grad(set_to_none=True)

    @torch.no_grad()
    def transformers_rollout() -> Tensor:
        return rollout_of_matrices(theirs(images, output_attentions=True).attentions)

    def maps_by(method: str) -> Callable[[], Tensor]:
        return lambda: attention_maps(ours, images, method=method).values

    every: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "forward and backward": forward_backward,
        "transformers rollout": transformers_rollout,
        **{method: maps_by(method) for method in ("raw", "rollout", "generic", "legrad")},
    }
    return {name: every[name] for name in names}


def times(device: str, batch: int, repeats: int) -> Table:
    pairs = {
        ("rollout", "forward"): ("rollout", "a forward pass"),
        ("raw", "forward"): ("raw, all heads of a layer", "a forward pass"),
        ("generic", "forward and backward"): ("generic attention", "a forward and a backward pass"),
        ("legrad", "forward and backward"): ("LeGrad", "a forward and a backward pass"),
        ("rollout", "transformers rollout"): ("rollout", "transformers' rollout"),
    }
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    measured = works(device, batch, 224, names)
    if device == "cpu":
        ours, theirs = measured["rollout"]().flatten(1), measured["transformers rollout"]()
        print(f"largest difference of the two rollouts: {(ours - theirs).abs().max():.1e} of {theirs.max():.1e}")
    taken = in_turn({name: partial(seconds, measured[name], device) for name in names}, repeats, warm_up=1)
    columns = {
        "what": "name",
        "beside": "beside",
        "s": "ours",
        "s of that": "theirs",
        "ratio of times (lowest to highest)": "ratio",
    }
    table = Table(f"Attention maps by {device}, ViT-B/16, batches of {batch}", columns)
    for (one, other), (name, beside) in pairs.items():
        ours, theirs = taken[one], taken[other]
        row = {"ours": statistics.median(ours), "theirs": statistics.median(theirs), "ratio": ratios(ours, theirs)}
        table.add(name=name, beside=beside, **row)
    return table


def peak(name: str, device: str, batch: int, size: int) -> float:
    """MiB of a fresh process at its highest, above what the model and the picture take."""
    command = [sys.executable, __file__, "--one", name, "--device", device, "--batch", str(batch), "--size", str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def one_peak(name: str, device: str, batch: int, size: int) -> None:
    work = works(device, batch, size, [name])[name]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest is now what there is
    before = memory("VmRSS")
    work()
    print(memory("VmHWM") - before)


def memory(name: str) -> float:
    """A line of Linux's account of this process, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    parser.add_argument("--large", action="store_true", help="with --memory: at 1024 x 1024 pixels as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    add_json(parser)
    options = parser.parse_args()
    if options.one:
        one_peak(options.one, options.device, options.batch, options.size)
        return
    if not options.memory:
        times(options.device, options.batch, options.repeats).write(options.json)
        return
    print(f"ViT-B/16, torch {torch.__version__}, {options.device}")
    for size, batch in ((224, options.batch), *([(1024, 1)] if options.large else [])):
        print(f"{size} x {size} pixels, batch {batch}: MiB above the model")
        names = ["forward", "rollout", "transformers rollout", "forward and backward", "generic", "legrad"]
        for name in names:
            print(f"  {name:30} {peak(name, options.device, batch, size):9.0f}", flush=True)


if __name__ == "__main__":
    main()
