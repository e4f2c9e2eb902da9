"""How the tests of the command line run it: in this process, or as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vit.cli.main import main

ROOT = Path(__file__).parent.parent.parent
VIT = [sys.executable, "-c", "from vit.cli.main import run; run()"]


class Outcome(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def vit(capsysbinary: pytest.CaptureFixture[bytes], untouched_process: None) -> Callable[..., Outcome]:
    """Run `vit` with words in this process."""

    def run(*words: object) -> Outcome:
        capsysbinary.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsysbinary.readouterr()
        return Outcome(code, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "surrogateescape"))

    return run


@pytest.fixture
def refused(vit: Callable[..., Outcome]) -> Callable[..., str]:
    """Run `vit` and give its complaint, after checking its form: a clear line or three, no traceback, a code."""

    def run(*words: object, code: int) -> str:
        outcome = vit(*words)
        assert outcome.code == code, outcome
        assert outcome.err.startswith("vit: "), outcome.err
        assert "Traceback" not in outcome.err
        assert "internal error" not in outcome.err
        assert 1 <= len(outcome.err.splitlines()) <= 3
        return outcome.err

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start `vit` as a process of its own, of this project's code, with its output buffered as for a user."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    started = []

    def run(*words: object, **options: Any) -> "subprocess.Popen[bytes]":
        environment = {**kept, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen([*VIT, *map(str, words)], env=environment, **options))
        return started[-1]

    yield run
    for process in started:
        with process:  # closes its pipes, and waits
            process.kill()
