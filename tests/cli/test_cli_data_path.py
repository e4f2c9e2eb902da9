"""The commands of the data path: preview, pack, shard; and training from what they leave."""

import csv
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def losses(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] + row["val/loss"] for row in csv.DictReader(file)]


def test_a_preview_shows_a_batch_with_mixed_labels(
    vit: Any, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "batch.png"
    outcome = vit("data", "preview", colour_folder, *tiny, "--augment.mixup=0.8", "--data.batch_size=9", "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert "preview    9 of a batch of 9, 16 x 16 pixels" in outcome.out
    first = out.read_bytes()
    with Image.open(out) as image:
        assert min(image.size) > 300
    vit(
        "data", "preview", colour_folder, *tiny, "--augment.mixup=0.8", "--data.batch_size=9", "--out", out, "--epoch=1"
    )
    assert out.read_bytes() != first
    assert "--epoch: must be from 0 to" in refused("data", "preview", colour_folder, "--epoch=999", code=2)


@pytest.mark.parametrize("cache", ["none", "ram", "disk", "device"])
def test_training_is_the_same_whatever_keeps_the_pictures(
    vit: Any, colour_folder: Path, tiny: list[str], tmp_path: Path, cache: str
) -> None:
    """Bit for bit: the pictures are small enough to be kept as they are, and shifted rather than resized."""
    runs = []
    for mode in ("none", cache):
        run = tmp_path / f"run-{len(runs)}"
        settings = ["--augment.crop=pad", "--augment.flip=0.5", "--train.epochs=2", f"--data.cache={mode}"]
        outcome = vit("train", colour_folder, *tiny, *settings, "--out", run)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        runs.append(run)
    assert losses(runs[0]) == losses(runs[1])
    weights = [load_file(run / "model.safetensors") for run in runs]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_pack_is_what_training_from_disk_reads(
    vit: Any, colour_folder: Path, tiny: list[str], tmp_path: Path, cache_home: Path
) -> None:
    outcome = vit("data", "pack", colour_folder, *tiny)
    assert (outcome.code, outcome.err) == (0, "")
    packs = {path: path.read_bytes() for path in cache_home.iterdir()}
    assert len(packs) == 2
    assert f"train      {sum(1 for _ in colour_folder.rglob('*.png'))}" not in outcome.out  # a share is held out
    assert outcome.out.count("pictures, ") == 2
    outcome = vit("train", colour_folder, *tiny, "--train.epochs=1", "--data.cache=disk", "--out", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "cache      on disk" in outcome.out
    assert {path: path.read_bytes() for path in cache_home.iterdir()} == packs


def test_what_auto_chose_is_in_the_runs_settings_and_kept_by_a_resume(
    vit: Any, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = vit("train", colour_folder, *tiny, "--train.epochs=2", "--out", run)
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("cache "))
    chosen = "ram" if "in memory" in line else "none"
    assert f"cache: {chosen}\n" in (run / "config.yaml").read_text()
    assert vit("train", "--out", run, "--resume", "--train.epochs=3").code == 0
    other = "none" if chosen == "ram" else "ram"
    assert "data.cache is" in refused("train", "--out", run, "--resume", f"--data.cache={other}", code=2)


def test_shards_train_evaluate_and_resume(
    vit: Any, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    outcome = vit("data", "shard", colour_folder, "--out", shards, "--data.workers=1")
    assert outcome.code == 0
    assert f"next       vit train {shards}" in outcome.out
    few = [*tiny, "--data.batch_size=6", "--data.workers=0"]
    outcome = vit("train", shards, *few, "--train.epochs=1", "--out", run)
    assert (outcome.code, outcome.err) == (0, "")
    assert "cache      none (shards are streamed)" in outcome.out
    assert json.loads((run / "data.json").read_text()) == {"shards": str(shards)}
    outcome = vit("train", "--out", run, "--resume", "--train.epochs=2")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(losses(run)) == 2
    outcome = vit("evaluate", run, shards)
    assert (outcome.code, outcome.err) == (0, "")
    for setting in ("--data.balanced=true", "--data.repeats=2", "--data.cache=ram"):
        assert "is not for shards" in refused("train", shards, *tiny, setting, "--out", tmp_path / "r", code=2)
    assert "not empty" in refused("data", "shard", colour_folder, "--out", shards, code=1)
    assert "check the folder" in vit("data", "check", shards).out


def test_tars_train_as_the_folder_does(vit: Any, colour_folder: Path, tiny: list[str], tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    assert vit("data", "shard", colour_folder, "--format=webdataset", "--out", tars).code == 0
    assert sorted(path.name for path in tars.iterdir()) == ["train", "val"]
    outcome = vit("train", tars, *tiny, "--train.epochs=1", "--out", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "classes    3" in outcome.out


def test_a_killed_reader_is_named_with_what_to_do(
    start: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to find the process that reads")
    settings = ["--train.epochs=10000", "--data.workers=1", "--data.cache=none", "--out", tmp_path / "run"]
    process = start("train", colour_folder, *tiny, *settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith(b"epoch 2/"):
            break
    (reader, *_) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(reader), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(f"vit: a process that reads pictures (pid {reader}) ".encode())
    assert b"--resume" in err
