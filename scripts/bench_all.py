"""Every benchmark that this machine can run, within 20 minutes, and the tables of BENCHMARKS.md from what they say.

    python scripts/bench_all.py [--only NAME ...] [--render] [--quick]

Each script writes benchmarks/NAME.json; then what stands in BENCHMARKS.md between `<!-- table: NAME -->` and
`<!-- end -->` is written anew from it. What was not measured this time keeps its table. JOBS states the minutes of each
script on 2 cores: one that is not done when the minutes up to its own are over is ended. What a script saves is left to
those after it. A GPU adds its own minutes.

Photographs and CIFAR-10 are taken from the folder in VIT_TEST_DATA (photos100.tar, cifar10.tar.gz). A script that fails
is told and stops no other; the exit code is then 1.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_report import markdown, page_with, unpack

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "BENCHMARKS.md", ROOT / "benchmarks"

ARCHIVES = {"PHOTOS": ("photos100.tar", "photos100"), "CIFAR": ("cifar10.tar.gz", "train")}
"""where pictures come from, and the folder in it that is meant"""


@dataclass(frozen=True)
class Job:
    """A script, its minutes, its settings, and those that only try it; PHOTOS and CIFAR stand for folders."""

    script: str
    minutes: float
    settings: str
    quick: str


JOBS = {
    "startup": Job("bench_startup.py", 1.5, "--repeats 3", "--repeats 1"),
    "train_cpu": Job("bench_train_cpu.py", 4.5, "--pictures 1280", "--repeats 1 --pictures 160 --precisions fp32"),
    "forward": Job(
        "bench_forward.py",
        4,
        "--load --compile --precisions fp32 --batch 4",
        "--load --names Ti --precisions fp32 --batch 1 --repeats 1",
    ),
    "forward_bf16": Job(
        "bench_forward.py",
        2.5,
        "--names Ti S --compile --precisions bf16 --batch 2 --repeats 3",
        "--names Ti --precisions bf16 --batch 1 --repeats 1",
    ),
    "attention": Job("bench_attention.py", 1.25, "--repeats 3 --batch 2", "--repeats 1 --batch 1"),
    "caption": Job("bench_caption.py", 2, "--batch 4", "--small --rounds 1 --batch 2 --length 4"),
    "data": Job(
        "bench_data.py",
        2.5,
        "--photos PHOTOS --cifar CIFAR --pictures 200",
        "--photos PHOTOS --cifar CIFAR --pictures 10 --rounds 1",
    ),
    "evaluate": Job("bench_evaluate.py", 5, "PHOTOS --rounds 3", "PHOTOS --pictures 16 --few 2 --rounds 1"),
    "train_gpu": Job("bench_train_gpu.py", 9, "--cifar CIFAR/.. --photos PHOTOS", "--names S/16 --batch 32 --rounds 1"),
}


def run(command: list[str], limit: float) -> str | None:
    """Run a process and all that it starts, for so many seconds at most; returns what went wrong."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing that it started is left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"exit code {code}" if code else None


def measure(names: list[str], results: Path, quick: bool) -> tuple[list[str], bool]:
    """Run these jobs; returns those measured, and whether none failed."""
    measured, whole = [], True
    started, allowed = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as temporary:
        settings = {name: JOBS[name].quick if quick else JOBS[name].settings for name in names}
        per_class = None if "train_gpu" in names else 300  # it trains on all
        known = {
            what: Path(temporary, what, part)
            for what, (archive, part) in ARCHIVES.items()
            if any(what in words for words in settings.values())
            and unpack(archive, Path(temporary, what), part, per_class)
        }
        for name in names:
            job = JOBS[name]
            lacking = [
                archive for what, (archive, _) in ARCHIVES.items() if what in settings[name] and what not in known
            ]
            if lacking:
                files = " and ".join(lacking)
                print(f"\n{name}: left out, for VIT_TEST_DATA names no folder with {files}", flush=True)
                continue
            allowed += 60 * job.minutes
            words = settings[name].split()
            for what, folder in known.items():
                words = [word.replace(what, str(folder)) for word in words]
            made = Path(temporary, f"{name}.json")
            command = [sys.executable, str(ROOT / "scripts" / job.script), *words, "--json", str(made)]
            begun = time.monotonic()
            limit = started + allowed - begun
            print(f"\n{name}: {job.script}, at most {limit:.0f} seconds", flush=True)
            wrong = run(command, limit)
            if wrong or not made.is_file():
                whole = False
                print(f"{name}: failed: {wrong or 'no table was written'}", flush=True)
                continue
            results.mkdir(exist_ok=True)
            (results / f"{name}.json").write_bytes(made.read_bytes())
            measured.append(name)
            print(f"{name}: {time.monotonic() - begun:.0f} seconds", flush=True)
    return measured, whole


def read(results: Path, name: str) -> dict[str, Any]:
    """What a script wrote."""
    report: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    return report


def render(page: str, names: list[str], results: Path) -> str:
    """The page with the tables of these names."""
    for name in names:
        page = page_with(page, name, markdown(read(results, name)))
    return page


def main() -> int:
    """Measure, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), metavar="NAME", help=", ".join(JOBS))
    parser.add_argument("--render", action="store_true", help="measure nothing: write the tables from benchmarks/")
    parser.add_argument("--quick", action="store_true", help="tiny settings that only try the scripts; writes nothing")
    options = parser.parse_args()
    names = options.only or list(JOBS)
    page = PAGE.read_bytes().decode()
    try:
        for name in names:
            page_with(page, name, "")  # a missing mark is told now, not after 20 minutes
        if options.render:
            measured = [name for name in names if (RESULTS / f"{name}.json").is_file()]
            PAGE.write_bytes(render(page, measured, RESULTS).encode())
            print(f"{PAGE.name}: {', '.join(measured) or 'no table'} written from {RESULTS.name}/")
            return 0
        import torch  # after --help and --render

        if "train_gpu" in names and not torch.cuda.is_available():
            names = [name for name in names if name != "train_gpu"]
            print("train_gpu: left out, for there is no GPU")
        with tempfile.TemporaryDirectory() as tried:
            results = Path(tried) if options.quick else RESULTS
            measured, whole = measure(names, results, options.quick)
            if options.quick:
                for name in measured:
                    print(f"\n{name}: {markdown(read(results, name))}")
            else:
                # read again: whoever edits the page meanwhile loses nothing
                PAGE.write_bytes(render(PAGE.read_bytes().decode(), measured, results).encode())
                print(f"\n{PAGE.name}: {', '.join(measured) or 'no table'} written")
    except ValueError as error:
        print(f"{PAGE.name}: {error}", file=sys.stderr)
        return 1
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
