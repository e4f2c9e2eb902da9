"""Unusual surroundings of the process: C locale, closed standard streams, no home or current folder, little memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit.cli.main import main
from vit.data.cache import cache_folder
from vit.errors import VitError, is_out_of_memory, shell_quote

ROOT = Path(__file__).parent.parent.parent
VIT = [sys.executable, "-c", "from vit.cli.main import run; run()"]
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def in_shell(script: str, *words: object, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of shell in which "$@" is the command with `words`."""
    command = ["sh", "-c", script, "sh", *VIT, *map(str, words)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, env=surroundings, timeout=240)


@needs_posix
def test_names_of_every_script_work_in_an_ascii_locale(
    colour_folder: Path, tiny: list[str], tmp_path: Path, vit: Callable[..., Any]
) -> None:
    """The same class names and the same output as in a UTF-8 locale."""
    ascii_only = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    names = ["caf\u00e9 noir", "\u96ea", "it's"]
    data, run = tmp_path / "d\u00e9j\u00e0 vu", tmp_path / "r\u00fan"
    for name, source in zip(names, sorted(colour_folder.iterdir()), strict=True):
        shutil.copytree(source, data / name)
    done = in_shell('"$@"', "train", data, *tiny, "--out", run, **ascii_only)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"next       vit evaluate {shell_quote(run)} " in done.stdout.decode()
    assert json.loads((run / "classes.json").read_text()) == sorted(names)
    for words in (["predict", run, data], ["data", "check", data]):
        done = in_shell('"$@"', *words, **ascii_only)
        assert done.stdout.decode() == vit(*words).out, done
    assert main(["evaluate", str(run), str(data), "--out", str(tmp_path / "report"), "--workers=0"]) == 0


@needs_posix
def test_unprintable_characters_are_escaped_in_other_encodings(colour_folder: Path, tmp_path: Path) -> None:
    for name, source in zip(("caf\u00e9", "\u96ea"), sorted(colour_folder.iterdir()), strict=False):
        shutil.copytree(source, tmp_path / "data" / name)
    done = in_shell('"$@"', "data", "check", tmp_path / "data", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode("latin-1")
    assert "caf\u00e9\n" in shown
    assert "\\u96ea\n" in shown


@needs_posix
def test_closed_standard_streams(trained_run: Path, colour_folder: Path, tmp_path: Path) -> None:
    """What cannot be printed is a failure for results and is dropped for reports; nothing gets into a file."""
    image, out = colour_folder / "red" / "00.jpg", tmp_path / "out.jsonl"
    closed = b"vit: standard output is closed\n"
    cases: list[tuple[str, list[object], int, bytes, bytes]] = [
        ('"$@" >&-', ["models"], 1, b"", closed),
        ('"$@" >&-', ["--help"], 1, b"", closed),
        ('"$@" >&-', ["predict", trained_run, image], 1, b"", closed),
        ('"$@" >&- 2>&- <&-', ["predict", trained_run, image, "--out", out], 0, b"", b""),
        ('"$@" 2>&-', ["models", "zz*"], 2, b"", b""),
        (
            '"$@" <&-',
            ["predict", trained_run, "-"],
            2,
            b"",
            b"vit: -: standard input is closed; name files, or give it",
        ),
        ('"$@" <&- >&- 2>&-', ["evaluate", trained_run, colour_folder, "--out", tmp_path / "report"], 0, b"", b""),
    ]
    processes = [(in_shell(script, *words), words, *expected) for script, words, *expected in cases]
    for done, words, code, printed, reported in processes:
        assert (done.returncode, done.stdout) == (code, printed), (words, done)
        assert done.stderr.startswith(reported), (words, done)
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()] == [str(image)]
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["count"] > 0


@needs_posix
def test_a_current_folder_that_is_gone_is_named(colour_folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = in_shell(f'cd {shell_quote(gone)}; rmdir {shell_quote(gone)}; "$@"', "data", "check", colour_folder)
    assert done.returncode == 2
    assert done.stderr == b"vit: the current folder no longer exists; change to another one by cd\n"


def test_without_a_home_folder_only_a_cache_on_disk_is_refused(
    vit: Callable[..., Any],
    refused: Callable[..., str],
    colour_folder: Path,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container whose user id has no account."""
    for name in ("HOME", "XDG_CACHE_HOME", "VIT_CACHE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(VitError, match="set VIT_CACHE or HOME"):
        cache_folder()
    monkeypatch.setattr("vit.data.remembered.LARGE", 0)
    assert vit("train", colour_folder, *tiny, "--out", tmp_path / "run").code == 0
    assert vit("models", "vit_tiny*").code == 0
    assert "no home folder" in refused("data", "pack", colour_folder, code=1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        SystemError("error return without exception set"),
    ],
    ids=repr,
)
def test_every_way_to_run_out_of_memory_is_recognized(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_a_limit_of_memory_is_named(trained_run: Path, colour_folder: Path) -> None:
    image = colour_folder / "red" / "00.jpg"
    done = in_shell('ulimit -v 500000; "$@"', "predict", trained_run, image, "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.startswith(b"vit: out of memory; lower "), done.stderr


@needs_posix
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "a b",
        "it's",
        '"$HOME" `ls`',
        "-dash",
        "tab\there",
        "line\nbreak",
        "\x1b[31mred",
        "caf\u00e9",
        "x\udcffy\\'",
        "~",
    ],
)
def test_quoted_paths_are_read_back_by_bash(name: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    quoted = shell_quote(name)
    assert quoted.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == (f"./{name}" if name.startswith("-") else name)
