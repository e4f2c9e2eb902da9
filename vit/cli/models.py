"""`vit models [PATTERN]`."""

import csv
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from vit.cli.arguments import Parser
from vit.errors import ConfigError, display_path, shell_quote
from vit.models.architecture import SIZES

PRETRAINED = Path(__file__).parent.parent / "models" / "pretrained.csv"
"""written by scripts/list_pretrained.py"""


def main(argv: list[str]) -> int:
    """Print the sizes and pretrained weights that match a pattern. Returns the exit code."""
    parser = Parser(
        prog="vit models",
        description="The named sizes to train from scratch, and the pretrained weights to start from or to use.",
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", help="such as '*dinov2*' or 'vit_small*'; '*' for all")
    pattern = parser.parse_args(argv).pattern
    sizes = [name for name in SIZES if pattern is None or _matches(name, pattern)]
    with PRETRAINED.open(newline="", encoding="utf-8") as file:
        weights = list(csv.DictReader(file))
    found = [] if pattern is None else [row for row in weights if _is_meant(row["name"], pattern)]
    if not sizes and not found:
        wider = f"*{pattern}*"
        there = wider if any(_matches(row["name"], wider) for row in weights) else "*"
        raise ConfigError(f"no size and no weights match {display_path(pattern)}; try {shell_quote(there)}")
    if sizes:
        _print_sizes(sizes)
    if found:
        _print_weights(found)
    if pattern is None:
        print(f"{len(weights)} pretrained weights: vit models '*', or a pattern such as '*dinov2*'")
    return 0


def _is_meant(name: str, pattern: str) -> bool:
    """A pattern matches a whole name, or what stands before its tag."""
    return _matches(name, pattern) or _matches(name.partition(".")[0], pattern)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name.lower(), pattern.lower())


def _print_sizes(names: Sequence[str]) -> None:
    print(f"{'size':8} {'dim':>6} {'depth':>6} {'heads':>6} {'hidden':>7} {'in blocks':>11}")
    for name in names:
        size = SIZES[name]
        # q, k, v, output projection, two MLP matrices with their biases, two norms
        block = 4 * size.dim * (size.dim + 1) + 2 * size.dim * size.hidden + size.hidden + 5 * size.dim
        millions = size.depth * block / 1e6
        print(f"{name:8} {size.dim:6} {size.depth:6} {size.heads:6} {size.hidden:7} {millions:9.1f} M")
    print("\nA model's name is a size and a patch: --model.name S/16\n")


def _print_weights(rows: Sequence[dict[str, str]]) -> None:
    wide = max(len(row["name"]) for row in rows) + len("timm:")
    print(f"{'weights':{wide}} {'parameters':>11} {'GFLOPs':>8} {'pixels':>10}  {'cached':6}  licence")
    for row in rows:
        cached = "yes" if _cached(row["repository"]) else "no"
        print(
            f"{'timm:' + row['name']:{wide}} {row['parameters_millions']:>9} M {row['gflops']:>8} {row['pixels']:>10}"
            f"  {cached:6}  {row['licence']}"
        )
    print("\nTo start from them: vit train DATA --model.init timm:NAME\n")


def _cached(repository: str) -> bool:
    """Whether the hub's cache on this machine holds weights of a repository; its client takes a second to import."""
    home = Path(os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface")))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/*.safetensors"))
