"""What the benchmarks share: timing in turn, a table that is printed and written as JSON, and its place in a page.

A report is {title, machine, versions, date, command, columns, rows}: `columns` gives each heading the key of its cells,
and `ratio` of a row holds the ratio of every round. Of it `page_with` writes what stands in BENCHMARKS.md between

    <!-- table: NAME -->
    <!-- end -->

and nothing else. Imports neither torch nor vit, so that tables are written at once.
"""

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "lightning", "transformers", "vit-pipeline")
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
SPREAD = "ratio (lowest to highest)"
END = "<!-- end -->"
WIDTH = 120


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """How long a piece of work takes, on a GPU until it is done there too."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 0) -> dict[str, list[float]]:
    """What each measurement gives, round by round; every other round runs backwards, so that none always follows."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(warm_up + rounds):
        for name in measures if number % 2 else reversed(measures):
            taken[name].append(measures[name]())
    return {name: values[warm_up:] for name, values in taken.items()}


def ratios(over: list[float], under: list[float]) -> list[float]:
    """One by the other, in each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """`1.04 (0.99 to 1.05)`: the median, the lowest and the highest."""
    middle, low, high = (
        f"{value:.{1 if value >= 10 else digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def cell(value: object) -> str:
    """A cell of a table: words as they are, ratios with their spread, numbers with the digits that mean something."""
    if value is None:
        return ""
    if isinstance(value, list):
        return spread(value)
    if not isinstance(value, int | float):
        return str(value)
    if value >= 100 or isinstance(value, int):
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def machine() -> dict[str, Any]:
    """Processor, the instructions that matter here, cores, threads of torch where it runs, and the GPU."""
    name, flags = platform.processor() or platform.machine(), set()
    account = Path("/proc/cpuinfo")
    for line in account.read_text().splitlines() if account.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    torch = sys.modules.get("torch")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": name,
        "instructions": [known for flag, known in INSTRUCTIONS.items() if flag in flags],
        "cores": cores,
        "threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Of the packages that are measured and are here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """What was called, without places on this machine."""
    words = [f"scripts/{Path(sys.argv[0]).name}"]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word == "--json":
            next(arguments, None)
        elif not word.startswith("--json="):
            words.append(Path(word).resolve().name if Path(word).exists() else word)
    return " ".join(words)


def origin(title: str) -> dict[str, Any]:
    """What every report says of itself."""
    return {
        "title": title,
        "machine": machine(),
        "versions": versions(),
        "date": dt.date.today().isoformat(),
        "command": command(),
    }


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")


class Table:
    """A table in the making: prints each row as it comes, and is written as JSON in the end."""

    def __init__(self, title: str, columns: Mapping[str, str]) -> None:
        self.report: dict[str, Any] = {**origin(title), "columns": dict(columns), "rows": []}
        print(f"{title}\n{source(self.report)}", flush=True)
        self._print(list(columns))

    def add(self, **row: Any) -> None:
        """One more row: a value for each column's key, of a ratio those of all rounds."""
        self.report["rows"].append(row)
        self._print([cell(row.get(key)) for key in self.report["columns"].values()])

    def compare(self, name: str, theirs: list[float], ours: list[float], *, rates: bool = False, **more: Any) -> None:
        """A row of two sides' seconds of each round, or rates: their medians, and the ratio in our favour."""
        ratio = ratios(ours, theirs) if rates else ratios(theirs, ours)
        self.add(name=name, theirs=statistics.median(theirs), ours=statistics.median(ours), ratio=ratio, **more)

    def note(self, text: str) -> None:
        """A sentence that belongs to the table."""
        self.report["note"] = " ".join(filter(None, [self.report.get("note"), text]))
        print(text, flush=True)

    def write(self, path: Path | None) -> None:
        """Write the JSON, if it is asked for."""
        if path:
            write_json(self.report, path)

    def _print(self, cells: list[str]) -> None:
        headings = [*self.report["columns"]][1:]
        others = (f"{text:>{max(12, len(heading))}}" for text, heading in zip(cells[1:], headings, strict=True))
        print(f"{cells[0]:44}", *others, flush=True)


def write_json(report: dict[str, Any], path: Path) -> None:
    """A report as a file."""
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def with_gpu_columns(report: dict[str, Any]) -> dict[str, Any]:
    """The report of bench_train_gpu with what its table shows: worked out of its rows, which may lack all else."""
    shown = []
    for row in report["rows"]:
        ours, theirs = statistics.median(row["ours"]), statistics.median(row["timm"])
        share = row["flops"] / report["matrix_peak"]
        shown.append(
            {
                **row,
                "drop": f"{row['drop_path']:g}",
                "setting": f"{row['name']}, {row['side']} pixels, batches of {row['batch']}",
                "theirs_rate": theirs,
                "ours_rate": ours,
                "ratio": spread(ratios(row["ours"], row["timm"]), 3),
                "peak_shares": f"{ours * share:.1%} ({theirs * share:.1%})",
                "memory": f"{row['ours_gb']:.1f} GB ({row['timm_gb']:.1f} GB)",
            }
        )
    columns = {
        "model": "setting",
        "drop path": "drop",
        "timm, images/s": "theirs_rate",
        "vit, images/s": "ours_rate",
        SPREAD: "ratio",
        "of the matrix-product peak (timm)": "peak_shares",
        "memory (timm)": "memory",
    }
    note = f"A bf16 product of 8192 x 8192 matrices: {report['matrix_peak'] / 1e12:.0f} TFLOP/s."
    if "cifar" in report:
        both = {who: cell(float(value)) for who, value in report["cifar"].items()}
        note += f" CIFAR-10 from the device, one run: {both['ours']} images/s, timm's loop {both['timm']}."
    return {**report, "columns": columns, "rows": shown, "note": note}


def source(report: Mapping[str, Any]) -> str:
    """Where figures come from: date, machine, versions and command, as far as the report states them."""
    about = report.get("machine") or {"gpu": report.get("device")}
    processor = about.get("processor") or ""
    if about.get("instructions"):
        processor += f" with {', '.join(about['instructions'])}"
    counts = [
        f"{about[what]} {what[: None if about[what] > 1 else -1]}" for what in ("cores", "threads") if about.get(what)
    ]
    if counts:
        processor += f" ({', '.join(counts)})"
    known = report.get("versions") or {name: report[name] for name in PACKAGES if name in report}
    parts = [report.get("date"), about.get("gpu"), processor, *(f"{name} {value}" for name, value in known.items())]
    called = f": `{report['command']}`" if report.get("command") else ""
    return ", ".join(filter(None, parts)) + called + "."


def markdown(report: dict[str, Any]) -> str:
    """A report as Markdown: where it comes from, its note, and its table."""
    if "matrix_peak" in report:
        report = with_gpu_columns(report)
    text = textwrap.fill(
        " ".join(filter(None, [source(report), report.get("note")])),
        WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [list(report["columns"]), ["---"] * len(report["columns"])]
    lines += [[cell(row.get(key)) for key in report["columns"].values()] for row in report["rows"]]
    return text + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page_with(page: str, name: str, table: str) -> str:
    """The page with a new table between the marks of that name, all else as it was."""
    mark = f"<!-- table: {name} -->"
    before, found, rest = page.partition(mark)
    inside, ended, after = rest.partition(END)
    if not found or mark in rest:
        raise ValueError(f"the page needs the mark {mark} once, and has it {page.count(mark)} times")
    if not ended or "<!-- table:" in inside:
        raise ValueError(f"the mark {mark} has no {END} after it")
    return f"{before}{mark}\n\n{table}\n\n{END}{after}"


def unpack(archive: str, target: Path, part: str = "", per_class: int | None = None) -> bool:
    """An archive of VIT_TEST_DATA into a folder: a part of it, so many files of each class; False where it is not."""
    path = Path(os.environ.get("VIT_TEST_DATA", "")) / archive
    if not path.is_file():
        return False
    counts: dict[Path, int] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            place = target / member.name
            counted = counts.get(place.parent, 0)
            if member.isfile() and member.name.startswith(part) and (per_class is None or counted < per_class):
                counts[place.parent] = counted + 1
                tar.extract(member, target, filter="data")
    return True
