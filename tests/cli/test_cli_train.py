"""`vit train`: what it prints, and what it leaves in the run folder."""

import csv
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vit as package
from vit.cli.config import compose
from vit.errors import ConfigError


def log_lines(run: Path) -> list[str]:
    """log.txt without the times, of which every line has one."""
    lines = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    stamped = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)", line) for line in lines]
    assert all(stamped)
    return [match[1] for match in stamped if match]


@pytest.fixture
def printed(vit: Any, colour_folder: Path, tiny: list[str], tmp_path: Path, monkeypatch: Any) -> tuple[Path, str]:
    """One epoch without --out, in a folder of its own: the run folder and what was printed."""
    monkeypatch.chdir(tmp_path)
    outcome = vit("train", colour_folder, *tiny, "--train.epochs=1", "--data.test_fraction=0.25")
    assert (outcome.code, outcome.err) == (0, "")
    (run,) = (tmp_path / "runs").iterdir()
    return run, outcome.out


def test_a_run_explains_itself_on_standard_output_and_in_its_log(
    printed: tuple[Path, str], colour_folder: Path, tmp_path: Path
) -> None:
    run, out = printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # and nothing else is written here
    assert re.fullmatch(r"colours-\d{4}-\d\d-\d\d-\d{6}", run.name)
    shown = f"runs/{run.name}"
    for line in (
        f"data       {colour_folder}",
        "pictures   train 21   val 6   test 9",
        "classes    3, with 7 training pictures each",
        "skipped    none",
        "model      micro/8, 2 blocks of width 32, 2 heads",
        "input      16 x 16 pixels, 2 x 2 patches",
        "training   1 epochs x 1 step, batch size 64, fp32, rate 0.001",
        "warning    only 1 step per epoch; lower data.batch_size (now 64) for more weight updates",
        f"run        {shown}",
        f"model      {shown}/model.safetensors",
        f"next       vit evaluate {shown} {shown}/split.csv",
        f"           vit predict {shown} PICTURE...",
    ):
        assert line in out.splitlines()
    assert re.search(r"^size       0\.\d\d M parameters, [\d.]+ GFLOPs a picture$", out, re.MULTILINE)
    epoch = r"^epoch 1/1   loss [\d.]+   val loss [\d.]+   val accuracy [\d.]+ %   [\d,]+ images/s$"
    assert re.search(epoch, out, re.MULTILINE)
    assert re.search(r"^best       epoch 1: val accuracy [\d.]+ %, val loss [\d.]+ ", out, re.MULTILINE)
    assert log_lines(run) == out.splitlines()


def test_the_run_folder_is_complete_and_consistent(trained_run: Path, colour_folder: Path, tiny: list[str]) -> None:
    files = {path.relative_to(trained_run).as_posix() for path in trained_run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    assert files - events - {"tensorboard/hparams.yaml"} == {
        "config.yaml",
        "classes.json",
        "split.csv",
        "metrics.csv",
        "environment.json",
        "log.txt",
        "model.safetensors",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/last-1.ckpt",
    }
    assert json.loads((trained_run / "classes.json").read_text(encoding="utf-8")) == ["blue", "green", "red"]
    settled = compose([str(trained_run / "config.yaml")], [])
    assert settled.model.image_size == (16, 16)
    assert settled.train.precision != "auto"
    given = [*tiny, "--train.epochs=2", f"--train.precision={settled.train.precision}"]
    assert settled.train == compose([], given).train
    with (trained_run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in ("train/loss", "val/loss", "val/accuracy", "lr"):
        assert all(0 <= float(row[name]) < 10 for row in rows)
    environment = json.loads((trained_run / "environment.json").read_text(encoding="utf-8"))
    assert {"time", "command", "python", "platform", "versions", "git"} <= environment.keys()
    with (trained_run / "split.csv").open(encoding="utf-8", newline="") as file:
        split = list(csv.DictReader(file))
    listed = sorted(str(path) for path in colour_folder.rglob("*.*"))
    assert sorted(row["path"] for row in split) == listed
    assert {(row["split"], row["class"]) for row in split} == {
        (part, name) for part in ("train", "val") for name in ("blue", "green", "red")
    }


def test_model_file_run_folder_and_checkpoint_are_the_same_model(trained_run: Path, colour_folder: Path) -> None:
    picture = colour_folder / "red" / "00.jpg"
    for name in ("", "model.safetensors", "checkpoints/best.ckpt"):
        model = package.load(trained_run / name)
        assert model.classes == ("blue", "green", "red")
        assert model.predict([picture]) == package.load(trained_run).predict([picture])


def test_the_data_folder_is_not_touched(
    vit: Any, colour_folder: Path, trained_run: Path, tmp_path: Path, tiny: list[str]
) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [colour_folder, *colour_folder.rglob("*")]}

    before = state()
    assert vit("train", colour_folder, *tiny, "--train.epochs=1", "--out", tmp_path / "run").code == 0
    assert vit("evaluate", trained_run, colour_folder, "--out", tmp_path / "report", "--workers=0").code == 0
    assert vit("predict", trained_run, colour_folder).code == 0
    assert state() == before


def test_a_run_goes_on_from_its_last_checkpoint_with_its_log_and_metrics(
    vit: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert vit("train", colour_folder, *tiny, "--train.epochs=1", "--out", run).code == 0
    first = log_lines(run)
    outcome = vit("train", colour_folder, *tiny, "--train.epochs=2", f"--out={run}", "--resume")
    assert (outcome.code, outcome.err) == (0, "")
    assert "epoch 2/2" in outcome.out
    assert "epoch 1/2" not in outcome.out
    assert log_lines(run) == [*first, *outcome.out.splitlines()]
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_resumed_run_keeps_its_settings_and_its_pictures(
    vit: Any, refused: Any, picture: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(colour_folder, data)
    assert vit("train", data, *tiny, "--train.epochs=1", "--out", run).code == 0
    split = (run / "split.csv").read_bytes()
    picture("red", 99).save(data / "red" / "later.png")
    # neither DATA nor the settings need be said again, and a picture that came later changes nothing
    outcome = vit("train", f"--out={run}", "--resume", "--train.epochs=2")
    assert (outcome.code, outcome.err) == (0, "")
    assert "epoch 2/2" in outcome.out
    assert (run / "split.csv").read_bytes() == split
    for key, value in [("train.seed", "3"), ("optim.lr", "0.5"), ("model.depth", "3"), ("data.val_fraction", "0.5")]:
        message = refused("train", data, f"--out={run}", "--resume", f"--{key}={value}", code=2)
        assert message.startswith(f"vit: --resume: {key} is ")


def test_a_run_that_refuses_new_settings_can_still_be_resumed_with_its_own(
    vit: Any, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert vit("train", colour_folder, *tiny, "--train.epochs=3", "--out", run).code == 0
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    message = refused("train", "--out", run, "--resume", "--train.epochs=2", code=2)
    assert message == "vit: train.epochs: 2, but the run has started epoch 3; set 3 or more\n"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files

    def refuse(*_: Any) -> None:
        raise ConfigError("--resume: the run stopped within an epoch on 1 devices, not 2")

    with monkeypatch.context() as patched:  # refused late, by the batches that the checkpoint belongs to
        patched.setattr("vit.data.module.EpochData.load_state_dict", refuse)
        refused("train", "--out", run, "--resume", "--train.epochs=4", "--train.patience=9", code=2)
    assert (run / "config.yaml").read_bytes() == files[run / "config.yaml"]
    assert vit("train", "--out", run, "--resume").code == 0
    assert vit("train", "--out", run, "--resume", "--train.patience=9").code == 0  # no epoch is left: none to refuse it
    assert compose([str(run / "config.yaml")], []).train.patience == 9


def test_a_resumed_run_of_another_length_follows_its_new_schedule(
    vit: Any, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    def rates(run: Path) -> list[str]:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return [row["lr"] for row in csv.DictReader(file)]

    long, short = tmp_path / "long", tmp_path / "short"
    assert vit("train", colour_folder, *tiny, "--train.epochs=4", "--out", long).code == 0
    assert vit("train", colour_folder, *tiny, "--train.epochs=2", "--out", short).code == 0
    assert vit("train", colour_folder, "--out", short, "--resume", "--train.epochs=4").code == 0
    assert rates(short)[2:] == rates(long)[2:]
    assert compose([str(short / "config.yaml")], []).train.epochs == 4
    (tmp_path / "elsewhere").mkdir()
    message = refused("train", tmp_path / "elsewhere", "--out", short, "--resume", code=2)
    assert message == f"vit: --resume: the run's pictures are not in {tmp_path / 'elsewhere'}; leave DATA out\n"


def test_a_rate_for_a_base_batch_is_scaled_once_and_told_also_by_a_run_that_goes_on(
    vit: Any, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    scaled, plain = tmp_path / "scaled", tmp_path / "plain"
    words = [*tiny, "--train.epochs=2", "--data.batch_size=4", "--train.accumulate=2"]
    assert vit("train", colour_folder, *words, "--optim.lr=0.0005", "--out", plain).code == 0
    words += ["--optim.lr=0.001", "--optim.lr_base_batch=16"]
    outcome = vit("train", colour_folder, *words, "--train.epochs=1", "--out", scaled)
    assert "fp32, rate 0.0005 (0.001 x 8/16)\n" in outcome.out
    kept = compose([str(scaled / "config.yaml")], []).optim
    assert (kept.lr, kept.lr_base_batch) == (0.001, 16)
    outcome = vit("train", colour_folder, *words, "--out", scaled, "--resume")
    assert "fp32, rate 0.0005 (0.001 x 8/16)\n" in outcome.out
    rates = []
    for run in (scaled, plain):
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        rates.append((checkpoint["lr_schedulers"][0]["base_lrs"], checkpoint["optimizer_states"][0]["param_groups"]))
    assert rates[0] == rates[1]
    message = refused("train", "--out", scaled, "--resume", "--optim.lr_base_batch=8", code=2)
    assert message.startswith("vit: --resume: optim.lr_base_batch is 16 in the run and 8 now")


def test_a_later_command_of_the_same_process_writes_to_no_earlier_log(
    vit: Any, printed: tuple[Path, str], colour_folder: Path, tmp_path: Path
) -> None:
    run, _ = printed
    before = (run / "log.txt").read_bytes()
    assert vit("evaluate", run, colour_folder, "--workers=0", "--out", tmp_path / "report").code == 0
    assert (run / "log.txt").read_bytes() == before
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger("vit").handlers)


def test_unreadable_training_pictures_are_left_out_and_named(
    vit: Any, picture: Any, tiny: list[str], tmp_path: Path
) -> None:
    for name in ("red", "green"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            picture(name, i).save(tmp_path / "data" / name / f"{i}.png")
    for name in ("red", "green"):  # whichever of them are trained on
        for i in range(5):
            (tmp_path / "data" / name / f"broken{i}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "data" / "red" / "empty.png").touch()
    outcome = vit(
        "train",
        tmp_path / "data",
        *tiny,
        "--train.epochs=1",
        "--data.group_duplicates=false",
        "--out",
        tmp_path / "run",
    )
    assert outcome.code == 0
    with (tmp_path / "run" / "split.csv").open(encoding="utf-8", newline="") as file:
        trained = {row["path"] for row in csv.DictReader(file) if row["split"] == "train"}
    broken = sorted(path for path in trained if "broken" in path)
    assert broken
    for path in broken:
        assert re.search(rf"^left out   {re.escape(path)}: \w", outcome.out, re.MULTILINE)
    assert re.search(rf"^skipped    {re.escape(str(tmp_path))}/data/red/empty.png: empty", outcome.out, re.MULTILINE)
    assert not any("empty" in path for path in trained)
