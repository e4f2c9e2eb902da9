"""Where reports go: one folder per data set and split, which reports of anything else never replace."""

import json
from itertools import count
from pathlib import Path
from typing import Any

from vit.cli.arguments import data_name, make_folder

Facts = dict[str, Any]


def report_facts(model: str, data: str, weights: str) -> Facts:
    """Return what a report is of; `paths` tells apart what has the same name seen from other working directories."""
    return {
        "model": model,
        "weights": weights,
        "data": data,
        "paths": {"model": _absolute(model), "data": _absolute(data)},
    }


def report_folder(out: str | None, root: Path, facts: Facts, split: str, file: str = "metrics.json") -> Path:
    """Make and return the folder of a report: `out`, or ROOT/DATA/SPLIT, where `file` will hold the `facts`.

    DATA is the name of the data set. Where reports of other data of that name, or of another model, are in ROOT/DATA
    already, it is DATA-2, or the first such number that is free. Raises ConfigError where the folder cannot be made.
    """
    if out is not None:
        folder = Path(out)
    else:
        name, mine = data_name(facts["data"]), _subject(facts)
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        free = next(n for n in names if all(_read(path) == mine for path in (root / n).glob(f"*/{file}")))
        folder = root / free / split
    make_folder(folder, "--out", [facts["data"]])
    return folder


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _subject(facts: Facts) -> tuple[str, str, str]:
    return facts["paths"]["model"], facts["weights"], facts["paths"]["data"]


def _read(path: Path) -> tuple[str, str, str] | None:
    """What a report is of; None if that cannot be read."""
    try:
        return _subject(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
