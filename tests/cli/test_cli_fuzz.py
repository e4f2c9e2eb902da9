"""Mutated input files never end a command in a traceback, an internal error, a hang or more than 2 GB of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz.py"
COUNT = 200

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to limit memory")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The valid files, built by the first kind that needs them."""
    return tmp_path_factory.mktemp("fuzz") / "files"


@pytest.mark.parametrize("kind", ["model", "checkpoint", "config", "split", "tar"])
def test_every_mutation_succeeds_or_fails_with_one_clean_message(kind: str, files: Path) -> None:
    command = [sys.executable, FUZZ, "--kinds", kind, "--count", str(COUNT), "--files", files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    summary = json.loads(done.stdout)
    assert summary["failures"] == []
    assert sum(summary["counts"][kind].values()) == COUNT
    # most mutations are refused, and not all: the valid file is not what fails
    assert 0 < summary["counts"][kind].get("exit 0", 0) < COUNT
