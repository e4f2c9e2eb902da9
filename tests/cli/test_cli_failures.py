"""Every refusal is one to three lines on standard error with the right exit code; `--debug` shows where it arose."""

from pathlib import Path
from typing import Any

import pytest

import vit as package
from vit.errors import ConfigError, DataError, VitError


def test_no_command_shows_help_and_counts_as_wrong_use(vit: Any) -> None:
    outcome = vit()
    assert outcome.code == 2
    assert outcome.out.startswith("usage: vit COMMAND")


def test_version_is_the_packages(vit: Any) -> None:
    assert vit("--version") == (0, f"{package.__version__}\n", "")


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "train"), ("eval", "evaluate"), ("Predict", "predict"), ("model", "models"), ("dat", "data")],
)
def test_an_unknown_command_is_refused_with_the_nearest(refused: Any, word: str, hint: str) -> None:
    assert refused(word, code=2) == f"vit: no command {word}; did you mean {hint}?\n"


@pytest.mark.parametrize(("word", "shown"), [("xyzzy", "xyzzy"), ("", ""), ("--nope", "--nope"), ("a\nb", "a\\nb")])
def test_an_unknown_command_like_no_other_points_to_the_help(refused: Any, word: str, shown: str) -> None:
    assert refused(word, code=2) == f"vit: no command {shown}; see vit --help\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "DATA is missing; see vit train --help"),
        (["train", "A", "B"], "vit train takes one DATA, got 2: A, B"),
        (["train", "A", "--", "--B"], "vit train takes one DATA, got 2: A, --B"),
        (["train", "A", "--resume"], "--resume needs --out"),
        (["evaluate"], "the following arguments are required: MODEL, DATA; see vit evaluate --help"),
        (["evaluate", "A"], "the following arguments are required: DATA"),
        (["evaluate", "A", "B", "--splt", "val"], "unrecognized arguments: --splt val; did you mean --split?"),
        (["evaluate", "A", "B", "--split", "dev"], "argument --split: invalid choice: 'dev'"),
        (["evaluate", "A", "B", "--batch-size", "x"], "argument --batch-size: expected an integer, got x"),
        (["evaluate", "A", "B", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["evaluate", "A", "B", "--workers=-2"], "--workers: must be at least -1, got -2"),
        (["evaluate", "A", "B", "--devices", "none"], "--devices must be auto or a number"),
        (["evaluate", "A", "B", "--devices", "0"], "--devices must be auto or a number"),
        (["predict", "A"], "the following arguments are required: PATH; see vit predict --help"),
        (["predict", "A", "B", "--top", "0"], "--top: must be at least 1, got 0"),
        (["predict", "A", "B", "--batch-size=-1"], "--batch-size: must be at least 1, got -1"),
        (["predict", "A", "B", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["models", "a", "b"], "unrecognized arguments: b; see vit models --help"),
        (["models", "zz*"], "no size and no weights match zz*; try '*'"),
    ],
)
def test_wrong_use_exits_2(refused: Any, words: list[str], message: str) -> None:
    assert message in refused(*words, code=2)


def test_data_that_cannot_be_trained_on_is_refused(refused: Any, picture: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("no data", encoding="utf-8")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    picture("red", 0).save(tmp_path / "one" / "cat" / "a.png")
    (tmp_path / "flat").mkdir()
    picture("red", 0).save(tmp_path / "flat" / "a.png")
    for name, reason in (
        ("missing", "no such file or folder"),
        ("empty", "no pictures"),
        ("file.txt", "not a folder; expected a folder with one folder a class"),
        ("one", "only one class, cat"),
        ("flat", "pictures lie directly in it; put each class in a folder of its own"),
    ):
        message = refused("train", tmp_path / name, "--out", tmp_path / "run", code=1)
        assert message.startswith(f"vit: {tmp_path / name}: {reason}"), message
        assert not (tmp_path / "run").exists()


def test_an_out_folder_in_use_or_in_the_way_is_refused(
    refused: Any, colour_folder: Path, trained_run: Path, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    before = sorted(trained_run.rglob("*"))
    for out, reason in (
        (trained_run, "not empty; name another, or go on with its run by --resume"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "file" / "below" / "run", "not a directory"),
    ):
        assert refused("train", colour_folder, *tiny, "--out", out, code=2) == f"vit: --out {out}: {reason}\n"
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert sorted(trained_run.rglob("*")) == before


@pytest.mark.parametrize(
    ("setting", "named"),
    [("--train.strategy=none such", "none such"), ("--train.devices=7,9", "CPUAccelerator` should be an int")],
)
def test_settings_that_the_machine_refuses_leave_no_run_folder(
    setting: str, named: str, refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    message = refused("train", colour_folder, *tiny, setting, "--out", tmp_path / "run", code=2)
    assert message.startswith("vit: train.accelerator, devices or strategy: ")
    assert named in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_optimizer_is_refused_before_the_run_folder_is_made(
    refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    message = refused("train", colour_folder, *tiny, "--optim.name=adamww", "--out", tmp_path / "run", code=2)
    assert message.startswith("vit: optim.name: no optimizer 'adamww'")
    assert "adamw" in message.partition("near it")[2]
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint_cannot_be_resumed(refused: Any, colour_folder: Path, tmp_path: Path) -> None:
    message = refused("train", colour_folder, "--out", tmp_path / "run", "--resume", code=2)
    run = tmp_path / "run"
    assert message == f"vit: --resume: {run} holds no checkpoints/last.ckpt to continue from; begin without --resume\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_what_is_no_model_is_refused(refused: Any, colour_folder: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    for name, content in (("empty", b""), ("text", b"hello, this is no model at all\n")):
        for suffix in (".safetensors", ".ckpt", ""):
            (tmp_path / f"{name}{suffix}").write_bytes(content)
    for name, reason in (
        ("missing", "no such file or folder"),
        ("folder", "no model in it, that is none of model.safetensors"),
        *((f"empty{suffix}", "empty file") for suffix in (".safetensors", ".ckpt", "")),
        *((f"text{suffix}", "cut, damaged, or no ") for suffix in (".safetensors", ".ckpt", "")),
    ):
        message = refused(command, tmp_path / name, colour_folder, code=1)
        assert message.startswith(f"vit: {tmp_path / name}: {reason}"), message


def test_averaged_weights_that_are_not_there_are_refused(refused: Any, colour_folder: Path, trained_run: Path) -> None:
    for command in ("evaluate", "predict"):
        assert "--weights ema: this model keeps no" in refused(
            command, trained_run, colour_folder, "--weights=ema", code=2
        )


def test_a_device_that_is_not_there_is_refused(refused: Any, colour_folder: Path, trained_run: Path) -> None:
    message = refused("predict", trained_run, colour_folder, "--device", "abacus", code=2)
    assert message.startswith("vit: --device abacus: ")


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["nope"], ConfigError), (["train", "/nowhere"], DataError), (["evaluate", "/nowhere", "x"], VitError)],
)
def test_debug_raises_wherever_it_stands(words: list[str], kind: type[Exception]) -> None:
    from vit.cli.main import main

    for place in range(len(words) + 1):
        with pytest.raises(kind):
            main([*words[:place], "--debug", *words[place:]])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "vit: interrupted\n"),
        (
            MemoryError(),
            1,
            "vit: out of memory; lower data.batch_size or --batch-size, or set train.checkpointing true\n",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "vit: out of memory; lower data.batch_size"),
        (OSError(28, "No space left on device"), 1, "vit: no space left on the disk\n"),
        (PermissionError(13, "Permission denied", "/a\nb"), 1, "vit: /a\\nb: permission denied\n"),
        (ZeroDivisionError("division\nby zero"), 1, "vit: internal error: ZeroDivisionError: division (--debug shows"),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            1,
            "vit: a process that reads pictures (pid 71) is killed by signal: Killed; if memory ran out, lower",
        ),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Bus error."),
            1,
            "vit: a process that reads pictures (pid 71) is killed by signal: Bus error; /dev/shm is too small",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid(s) 71) exited unexpectedly with exit code 28. Details are lost due to "
                "multiprocessing. Rerunning with num_workers=0 may give better error trace."
            ),
            1,
            "vit: a process that reads pictures (pid 71) exited unexpectedly with exit code 28; /dev/shm is too small",
        ),
        (
            DataError(
                "Caught DataError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nvit.DataError: a: b"
            ),
            1,
            "vit: a: b\n",
        ),
        (DataError("the data: bad"), 1, "vit: the data: bad\n"),
        (ConfigError("a key: bad"), 2, "vit: a key: bad\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_inside_a_command_is_told_in_words(
    vit: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("vit.cli.models.main", fail)
    outcome = vit("models")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1
