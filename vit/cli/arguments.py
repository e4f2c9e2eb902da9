"""What commands share: argparse whose complaints look like all others, and MODEL."""

import argparse
import contextlib
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from vit.data.config import LARGEST_INT, LARGEST_SEED
from vit.errors import ConfigError, display_path, printable
from vit.files import is_stream, open_text, read_json
from vit.models.generation_config import GenerationConfig

if TYPE_CHECKING:
    from vit.data.folders import Sample
    from vit.data.tokenizer import Tokenizer
    from vit.models.file import ModelFile

MODEL_HELP = (
    "run folder, .safetensors or .ckpt of ours, timm:NAME[.TAG][@FILE], hf:NAME, or a folder or .npz file of theirs"
)


class Parser(argparse.ArgumentParser):
    """Accept options before, between and after positionals; end wrong use with one line and exit code 2."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.given: dict[str, str] = {}
        """the options of the command line, by destination: `limit` -> `--limit`"""
        self._options_only = False
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # also -1e-3

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the options first, then what is left as positionals.

        `argparse.ArgumentParser.parse_intermixed_args` does the same, but not below subcommands and not with `--`.
        """
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return super().parse_known_args(args, namespace)
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        if {"-h", "--help"} & {*words[:end]}:
            self.print_help()
            self.exit()
        holders: list[Any] = [*self._actions, *self._mutually_exclusive_groups]
        required = [one for one in holders if one.required]
        for one in required:
            one.required = False
        self._options_only = True
        try:
            namespace, rest = super().parse_known_args(words[:end], namespace)
        finally:
            self._options_only = False
        for one in required:  # those missing still are reported by the second pass, together with positionals
            actions = one._group_actions if isinstance(one, argparse._MutuallyExclusiveGroup) else [one]
            one.required = all(getattr(namespace, action.dest) is action.default for action in actions)
        return super().parse_known_args(rest + words[end:], namespace)

    def refuse_idle(self, names: Iterable[str], reason: str) -> None:
        """Raise ConfigError if one of some options, by destination, was given: it "has no effect", and the reason."""
        for name in names:
            if name in self.given:
                raise ConfigError(f"{self.given[name]}: has no effect {reason}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings:
            self.given[action.dest] = action.option_strings[-1]
        return super()._get_values(action, arg_strings)

    def _get_positional_actions(self) -> list[argparse.Action]:
        return [] if self._options_only else super()._get_positional_actions()

    def error(self, message: str) -> NoReturn:
        what, _, words = message.partition("unrecognized arguments: ")
        if not what and words.startswith("--"):
            near = difflib.get_close_matches(words.split()[0].partition("=")[0], self._option_string_actions, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"vit: {printable(message)}; see {self.prog} --help\n")


def integer(low: int, high: int = LARGEST_INT) -> Callable[[str], int]:
    """Return an argparse type: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        shown = display_path(text[:40])
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, got {shown}") from None
        if not low <= value <= high:
            rule = f"at least {low}" if value < low else f"at most {high}"
            raise argparse.ArgumentTypeError(f"must be {rule}, got {shown}")
        return value

    return parse


def finite(text: str) -> float:
    """Parse a finite number; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {display_path(text[:40])}")
    return value


def add_max_pixels(parser: argparse.ArgumentParser, default: str = "the model's") -> None:
    """Add --max-pixels, the largest image that is decoded."""
    parser.add_argument(
        "--max-pixels", type=integer(1, 2**63 - 1), metavar="N", help=f"refuse larger images (default: {default})"
    )


def override_max_pixels(model: "ModelFile", max_pixels: int | None) -> None:
    """Let the option --max-pixels, where it is given, take the place of the limit that the model was trained with."""
    if max_pixels is not None:
        model.preprocessing = {**model.preprocessing, "max_pixels": max_pixels}


def add_generation(parser: argparse.ArgumentParser, *, beams: int) -> None:
    """Add the options of `GenerationConfig`; the command decides about those not given."""
    parser.add_argument(
        "--beams", type=integer(1), help=f"beam search of this width; not when sampling (default: {beams})"
    )
    parser.add_argument("--n-best", type=integer(1), help="texts to give back (default: 1)")
    parser.add_argument(
        "--sample",
        action="store_true",
        help="sample tokens; --temperature above 0, --top-k, --top-p and --min-p imply it",
    )
    parser.add_argument("--temperature", type=finite, help="below 1 for likelier tokens; 0 is greedy decoding")
    parser.add_argument("--top-k", type=integer(0), help="sample from this many most likely tokens")
    parser.add_argument("--top-p", type=finite, help="sample from the fewest tokens whose probabilities sum to this")
    parser.add_argument(
        "--min-p", type=finite, help="sample from tokens with at least this fraction of the highest probability"
    )
    parser.add_argument("--length-penalty", type=finite, help="above 0 favours long texts (--beams; default: 1)")
    parser.add_argument("--early-stopping", action="store_true", help="stop as soon as enough texts ended (--beams)")
    parser.add_argument("--repetition-penalty", type=finite, help="above 1: words become less likely once written")
    parser.add_argument("--no-repeat-ngram", type=integer(0), metavar="N", help="no N words in a row occur twice")
    parser.add_argument("--min-length", type=integer(0), help="fewest new tokens")
    parser.add_argument("--max-length", type=integer(1), help="most new tokens")
    parser.add_argument("--seed", type=integer(0, LARGEST_SEED), default=0, help="of sampling (default: 0)")


def generation_of(options: argparse.Namespace, **ordinary: Any) -> GenerationConfig:
    """Return the generation settings of a command line; `ordinary` are the command's own defaults.

    A sampling option implies sampling, temperature 0 greedy decoding; both turn the default beam search off. Raises
    ConfigError for settings out of range or without effect, such as `--beams 4 --top-k 5`.
    """
    given = {f.name: getattr(options, f.name, None) for f in fields(GenerationConfig)}
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    greedy = options.temperature == 0
    if not greedy and any(name in asked for name in ("sample", "temperature", "top_k", "top_p", "min_p")):
        asked["sample"] = True
    if greedy or "sample" in asked:
        ordinary = ordinary | {"beams": 1}
    ordinary = ordinary | {"max_length": max(ordinary.get("max_length", 20), asked.get("min_length", 0))}
    return GenerationConfig(**(ordinary | asked))


def output_format(out: str | None, formats: Sequence[str], asked: str | None = None, flag: str = "--out") -> str:
    """Return the format of the file that `flag` names: by its suffix, else as `asked` for, else the first of `formats`.

    Raises ConfigError for a suffix of another format, so that no file holds something else than its name says.
    """
    suffix = Path(out or "").suffix.lower()
    named = "jsonl" if suffix == ".ndjson" else suffix[1:]
    if named in formats and asked not in (None, named):
        raise ConfigError(f"{flag} {display_path(out)} and --format {asked}: two formats; change one of them")
    if suffix and named not in formats and asked is None:
        known = " or ".join(f".{name}" for name in formats)
        named_by_option = ", or choose a format by --format" if len(formats) > 1 else ""
        raise ConfigError(
            f"{flag} {display_path(out)}: {display_path(suffix)} is not supported; use {known}{named_by_option}"
        )
    return named if named in formats else asked or formats[0]


def data_name(data: str) -> str:
    """What folders made for DATA are called: a file without its ending, a folder as it is, be it cifar10.1."""
    path = Path(data).resolve()
    return path.name if path.is_dir() else path.stem


def make_folder(folder: Path, flag: str, inputs: Iterable[object] = ()) -> None:
    """Create the folder that `flag` names and its parents.

    Raises ConfigError where it cannot be created or written to, is no folder, or is one of the `inputs`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "not a folder" if os.path.exists(folder) else (error.strerror or str(error)).lower()
        raise ConfigError(f"{flag} {display_path(folder)}: {reason}") from error
    if _among(folder, inputs) is not None:
        raise ConfigError(f"{flag} {display_path(folder)}: holds the input data; choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {display_path(folder)}: permission denied")


def check_out(out: str | None, flag: str = "--out", inputs: Iterable[object] = ()) -> None:
    """Refuse, before any work, a file that cannot be written or is one of the command's `inputs`.

    Raises ConfigError. Missing parent folders are refused, since they are often typing errors.
    """
    if out is None:
        return
    shown, target = f"{flag} {display_path(out) or repr(out)}", os.path.realpath(out)
    folder = os.path.dirname(target)
    if out == "" or os.path.isdir(out):
        raise ConfigError(f"{shown}: {'is a folder' if out else 'is empty'}; name a file")
    if is_stream(Path(out)):
        folder = out
    elif not os.path.isdir(folder):
        raise ConfigError(f"{shown}: no such folder {display_path(folder)}")
    elif os.path.islink(target):
        raise ConfigError(f"{shown}: too many levels of symbolic links")
    elif (read := _among(Path(out), inputs)) is not None:
        raise ConfigError(f"{shown}: is the input {display_path(read)}; name another file")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{shown}: permission denied")


def _among(path: Path, inputs: Iterable[object]) -> str | Path | None:
    """Return the one of `inputs` that is the same existing file or folder as `path`."""
    try:
        there = os.stat(path)
    except OSError:
        return None
    for other in inputs:
        with contextlib.suppress(OSError, ValueError):
            if isinstance(other, str | Path) and os.path.samestat(there, os.stat(other)):
                return other
    return None


@contextlib.contextmanager
def result_stream(out: str | None) -> Iterator[IO[str]]:
    """Open the file that --out names, or standard output, for results in UTF-8."""
    if out is not None:
        with open_text(Path(out)) as stream:
            yield stream
        return
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    yield sys.stdout


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


def model_files(model: str) -> list[Path]:
    """Return the files that a MODEL on this machine is made of, be it a file, a run or a model folder."""
    names = (
        "model.safetensors",
        "config.json",
        "config.yaml",
        "classes.json",
        "split.csv",
        "data.json",
        "tokenizer.json",
    )
    return [Path(model), *(Path(model) / name for name in names)]


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

        shards = read_json(run / "data.json").get("shards")
        places = {split: f"{SHARDS}{str(shards).rstrip('/')}/{split}#" for split in ("train", "val")}
        return {split: sum(sample.path.startswith(place) for sample in samples) for split, place in places.items()}
    from vit.data.tables import read_rows

    splits = {row.get("path"): row.get("split") for _, row in read_rows(str(run / "split.csv"))}
    return {split: sum(splits.get(sample.path) == split for sample in samples) for split in ("train", "val")}
