"""Mutated input files never end a command in a traceback, an internal error, a hang or more than 2 GB of memory."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).parent / "fuzz.py"
KINDS = ("model", "checkpoint", "config", "split", "tar")
COUNT = 200

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to limit memory")


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of the mutations of each kind, two kinds at a time: this file is the last that a test run starts."""
    files = tmp_path_factory.mktemp("fuzz") / "files"

    def summary(kind: str, count: int = COUNT) -> dict[str, Any]:
        command = [sys.executable, FUZZ, "--kinds", kind, "--count", str(count), "--files", files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
        assert done.stdout, done.stderr
        loaded: dict[str, Any] = json.loads(done.stdout)
        return loaded

    summary("config", 0)  # writes the valid files
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(KINDS, pool.map(summary, KINDS), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutation_succeeds_or_fails_with_one_clean_message(
    kind: str, summaries: dict[str, dict[str, Any]]
) -> None:
    summary = summaries[kind]
    assert summary["failures"] == []
    assert sum(summary["counts"][kind].values()) == COUNT
    # most mutations are refused, and not all: the valid file is not what fails
    assert 0 < summary["counts"][kind].get("exit 0", 0) < COUNT
