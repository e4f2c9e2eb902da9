"""Where --out and its like may point: files, links, devices, FIFOs, open descriptors; never at the input."""

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs links and FIFOs")


@pytest.fixture
def image(colour_folder: Path, tmp_path: Path) -> Path:
    """An image of the user's own, which no command may overwrite."""
    return Path(shutil.copy(sorted((colour_folder / "red").iterdir())[0], tmp_path / "mine.jpg"))


def records(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@needs_posix
def test_predictions_go_through_links_and_into_fifos(
    vit: Callable[..., Any], trained_run: Path, image: Path, tmp_path: Path
) -> None:
    link, target, fifo = tmp_path / "link.csv", tmp_path / "below" / "there.csv", tmp_path / "fifo"
    target.parent.mkdir()
    link.symlink_to(Path("below", "there.csv"))
    assert vit("predict", trained_run, image, "--out", link).code == 0
    assert link.is_symlink()
    assert str(image) in target.read_text()
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(fifo.read_text)
        assert vit("predict", "--out", fifo, trained_run, image).code == 0
        assert [record["path"] for record in records(read.result())] == [str(image)]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@needs_posix
def test_predictions_are_appended_by_dev_stdout(
    start: Callable[..., Any], trained_run: Path, image: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text('{"path": "before"}\n')
    with log.open("a") as file:
        process = start("predict", trained_run, image, "--out", "/dev/stdout", stdout=file, stderr=subprocess.PIPE)
        assert process.communicate(timeout=120)[1] == b""
    assert [record["path"] for record in records(log.read_text())] == ["before", str(image)]


def refusals(run: Path, image: Path, folder: Path) -> list[tuple[list[object], str]]:
    """Commands with their --out last, and what they are refused for."""
    listed = folder / "list.csv"
    listed.write_text(
        "path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in (folder / "data").rglob("*.*"))
    )
    own = sorted((folder / "data").rglob("*.png"))[0]
    weights = Path(shutil.copy(run / "model.safetensors", folder / "weights.safetensors"))
    return [
        (
            ["predict", run, image, "--format=jsonl", "--out", image],
            f"--out {image}: is the input {image}; name another file",
        ),
        (
            ["predict", run, image, "--format=jsonl", "--out", weights.parent / "alias.jpg"],
            f"alias.jpg: is the input {image}",
        ),
        (["predict", weights, image, "--format=jsonl", "--out", weights], f"--out {weights}: is the input {weights}"),
        (["soup", weights, run, "--out", weights], f"--out {weights}: is the input {weights}"),
        (["data", "check", listed, "--list", listed], f"--list {listed}: is the input {listed}"),
        (["data", "check", listed, "--html", listed], f"--html {listed}: is the input {listed}"),
        (["data", "preview", listed, "--out", listed], f"--out {listed}: is the input {listed}"),
        (["data", "preview", listed, "--data.val_fraction=0.5", "--out", own], f"--out {own}: is the input {own}"),
        (["evaluate", run, folder / "data", "--out", folder / "data"], "data: holds the input data; choose another"),
        (["attention", run, folder / "data", "--out", folder / "data"], "data: holds the input data; choose another"),
    ]


def test_an_input_is_never_overwritten(
    refused: Callable[..., str], trained_run: Path, colour_folder: Path, image: Path, tmp_path: Path
) -> None:
    shutil.copytree(colour_folder, tmp_path / "data")
    os.link(image, tmp_path / "alias.jpg")
    cases = refusals(trained_run, image, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words, message in cases:
        assert message in refused(*words, code=2), words
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_place_that_cannot_be_written_is_refused_before_any_work(refused: Callable[..., str], tmp_path: Path) -> None:
    """The model is not even looked for."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for command, flag in (
        (["predict", "M", "I"], "--out"),
        (["caption", "M", "I"], "--out"),
        (["data", "preview", "D"], "--out"),
        (["data", "check", "D"], "--html"),
        (["data", "check", "D"], "--list"),
    ):
        for place, reason in (
            (tmp_path / "folder", "is a folder; name a file"),
            (tmp_path / "missing" / "file", f"no such folder {tmp_path / 'missing'}"),
            (tmp_path / "file" / "below", f"no such folder {tmp_path / 'file'}"),
            (tmp_path / "loop", "too many levels of symbolic links"),
            ("", "is empty; name a file"),
        ):
            shown = str(place) or "''"
            assert refused(*command, flag, place, code=2) == f"vit: {flag} {shown}: {reason}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop"]


def test_a_file_where_a_folder_is_needed_is_refused(
    refused: Callable[..., str], trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for words in (
        ["evaluate", trained_run, colour_folder],
        ["attention", trained_run, colour_folder],
        ["export", trained_run],
    ):
        message = refused(*words, "--out", tmp_path / "file", code=2)
        assert message == f"vit: --out {tmp_path / 'file'}: not a folder\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_is_refused(
    refused: Callable[..., str], trained_run: Path, image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    access = os.access  # which lets root do everything
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and access(path, mode))
    for command, out in (("predict", locked / "file"), ("attention", locked)):
        assert refused(command, trained_run, image, "--out", out, code=2) == f"vit: --out {out}: permission denied\n"
