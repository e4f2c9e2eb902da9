"""What commands share: argparse whose complaints look like all others, and MODEL."""

import argparse
import csv
import difflib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vit.errors import ConfigError, display_path
from vit.models.generation_config import GenerationConfig

if TYPE_CHECKING:
    from vit.data.folders import Sample
    from vit.data.tokenizer import Tokenizer
    from vit.models.file import ModelFile

MODEL_HELP = "run folder, .safetensors or .ckpt of ours, timm:NAME[.TAG], hf:NAME, or a folder or .npz file of theirs"


class Parser(argparse.ArgumentParser):
    """Ends a wrong use of a command with one line and the exit code 2."""

    def error(self, message: str) -> NoReturn:
        what, _, words = message.partition("unrecognized arguments: ")
        if not what and words.startswith("--"):
            near = difflib.get_close_matches(words.split()[0].partition("=")[0], self._option_string_actions, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"vit: {message}; see {self.prog} --help\n")


def add_generation(parser: argparse.ArgumentParser, *, beams: int) -> None:
    """The options of `GenerationConfig`; what is not given is left to the command."""
    parser.add_argument("--beams", type=int, help=f"likeliest texts followed side by side (default: {beams})")
    parser.add_argument("--n-best", type=int, help="texts to give back (default: 1)")
    parser.add_argument("--sample", action="store_true", help="draw words by their probability")
    parser.add_argument("--temperature", type=float, help="below 1 for likelier words, 0 for the likeliest (--sample)")
    parser.add_argument("--top-k", type=int, help="draw among that many likeliest words (--sample)")
    parser.add_argument("--top-p", type=float, help="draw among the fewest words of this probability (--sample)")
    parser.add_argument("--min-p", type=float, help="draw among words at least this part of the likeliest (--sample)")
    parser.add_argument("--length-penalty", type=float, help="above 0 favours long texts (--beams; default: 1)")
    parser.add_argument("--early-stopping", action="store_true", help="stop as soon as enough texts ended (--beams)")
    parser.add_argument("--repetition-penalty", type=float, help="above 1: words become less likely once written")
    parser.add_argument("--no-repeat-ngram", type=int, metavar="N", help="no N words in a row occur twice")
    parser.add_argument("--min-length", type=int, help="fewest new tokens")
    parser.add_argument("--max-length", type=int, help="most new tokens")
    parser.add_argument("--seed", type=int, default=0, help="of --sample (default: 0)")


def generation_of(options: argparse.Namespace, **ordinary: Any) -> GenerationConfig:
    """The config that was asked for; `ordinary` are the command's own defaults. Raises ConfigError for a wrong one."""
    given = {f.name: getattr(options, f.name, None) for f in fields(GenerationConfig)}
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    if options.sample and options.beams is None:
        ordinary = ordinary | {"beams": 1}
    ordinary = ordinary | {"max_length": max(ordinary.get("max_length", 20), asked.get("min_length", 0))}
    return GenerationConfig(**(ordinary | asked))


def data_name(data: str) -> str:
    """What folders made for DATA are called: a file without its ending, a folder as it is, be it cifar10.1."""
    path = Path(data).resolve()
    return path.name if path.is_dir() else path.stem


def make_folder(folder: Path, flag: str) -> None:
    """Make the folder that `flag` names, where it is not there. Raises ConfigError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {display_path(folder)}: {(error.strerror or str(error)).lower()}") from error


def mention_unknown(tokenizer: "Tokenizer", text: str) -> None:
    """Say on standard error which parts of a text the model cannot read."""
    if lacking := tokenizer.lacks(text):
        shown = ", ".join(map(display_path, lacking[:5])) + (f" and {len(lacking) - 5} more" if lacking[5:] else "")
        print(f"note     the model's vocabulary lacks {shown}", file=sys.stderr)


def announce(model: "ModelFile") -> None:
    """Name weights that others made, and their licence, on standard error: standard output is for results."""
    if model.licence is not None:
        print(f"weights  {display_path(model.origin)}, licence {display_path(model.licence)}", file=sys.stderr)


def split_told(split: str) -> str:
    """The split that was measured, in words."""
    return "which has no splits" if split == "all" else f"split {split}"


def run_of(model: Path) -> Path | None:
    """The run folder that a model belongs to: itself, or above a model file or checkpoint of it."""
    if not model.exists():  # timm:NAME and the like
        return None
    folders = [model] if model.is_dir() else [model.parent, model.parent.parent]
    marks = ("split.csv", "data.json")  # of a run of classes, of words
    return next((folder for folder in folders if any((folder / mark).is_file() for mark in marks)), None)


def seen_in_training(run: Path | None, samples: "list[Sample]") -> dict[str, int]:
    """How many of the pictures the run was trained on, and by how many its best epoch was chosen."""
    if run is None:
        return {}
    if not (run / "split.csv").is_file():
        from vit.data.folders import SHARDS

        shards = json.loads((run / "data.json").read_text(encoding="utf-8")).get("shards")
        places = {split: f"{SHARDS}{str(shards).rstrip('/')}/{split}#" for split in ("train", "val")}
        return {split: sum(sample.path.startswith(place) for sample in samples) for split, place in places.items()}
    with (run / "split.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        splits = {row["path"]: row["split"] for row in csv.DictReader(file)}
    return {split: sum(splits.get(sample.path) == split for sample in samples) for split in ("train", "val")}
