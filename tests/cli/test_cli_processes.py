"""What only a process of its own shows: signals, closed pipes, full disks."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import vit as package

PIPE = subprocess.PIPE


def read_until(process: "subprocess.Popen[bytes]", words: bytes) -> bytes:
    """Lines of a process's standard output up to the one that has `words`."""
    seen = b""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} never came: {seen!r}")


def test_a_run_that_is_interrupted_or_terminated_ends_in_order(
    start: Any, colour_folder: Path, tiny: list[str], tmp_path: Path
) -> None:
    # both at once: most of the time goes into imports
    sent = {signal.SIGINT: 130, signal.SIGTERM: 143}
    runs = {number: tmp_path / number.name for number in sent}
    words = ["train", colour_folder, *tiny, "--train.epochs=100000", "--out"]
    processes = {number: start(*words, runs[number], stdout=PIPE, stderr=PIPE) for number in sent}
    for number, process in processes.items():
        read_until(process, b"epoch 2/100000")
        process.send_signal(number)
    for number, process in processes.items():
        _, err = process.communicate(timeout=60)
        assert process.returncode == sent[number], err
        assert err.startswith(b"vit: stopped in epoch "), err
        assert err.count(b"\n") == 1, err
        checkpoint = torch.load(runs[number] / "checkpoints" / "last.ckpt", weights_only=True)
        rows = (runs[number] / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]["completed"]
        within = loops["epoch_loop.batch_progress"]["current"]["completed"]
        # a step an epoch: the row of the last one is written with the epoch's end, so that a resumed run repeats none
        assert checkpoint["global_step"] == epochs + within
        assert len(rows) == epochs
        answer = package.load(runs[number]).predict(colour_folder / "red" / "00.jpg")
        assert sum(answer[0].probabilities) == pytest.approx(1)


def test_readers_that_leave_early_end_a_command_quietly(
    start: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    listing = 200 * [str(colour_folder / "red" / "00.jpg")]
    for words in (
        ["predict", trained_run, *listing],
        ["evaluate", trained_run, colour_folder, "--workers=0", "--out", tmp_path / "report"],
        ["models"],
        ["train", "--help"],
    ):
        process = start(*words, stdout=PIPE, stderr=PIPE)
        if words[0] == "predict":
            process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert (process.wait(timeout=60), err) == (0, b""), words
    assert (tmp_path / "report" / "metrics.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_a_failure(start: Any) -> None:
    with open("/dev/full", "wb") as full:
        process = start("models", stdout=full, stderr=PIPE)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"vit: no space left on the disk\n")


def test_the_first_answer_comes_before_the_whole_list_is_read(
    start: Any, trained_run: Path, colour_folder: Path
) -> None:
    pictures = sorted(map(str, colour_folder.rglob("*.*")))
    process = start("predict", trained_run, *(20 * pictures), stdout=PIPE, stderr=PIPE)
    first = process.stdout.readline()
    assert pictures[0].encode() in first
    assert process.poll() is None  # the others are still to come
    process.communicate(timeout=60)


def test_a_signal_leaves_no_unfinished_file(start: Any, trained_run: Path, colour_folder: Path, tmp_path: Path) -> None:
    sent = {
        signal.SIGINT: (130, b"interrupted"),
        signal.SIGTERM: (143, b"terminated"),
        signal.SIGHUP: (129, b"hung up"),
    }
    processes = {}
    for number in sent:
        (tmp_path / number.name).mkdir()
        (tmp_path / number.name / "old.jsonl").write_text("old", encoding="utf-8")
        words = ["predict", trained_run, "-", "--out", tmp_path / number.name / "old.jsonl", "--batch-size=1"]
        processes[number] = start(*words, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        processes[number].stdin.write(f"{colour_folder}/red/00.jpg\n".encode() * 4)
        processes[number].stdin.flush()  # and never closed: the command waits for more
    for number, process in processes.items():
        while not list((tmp_path / number.name).glob(".*.part")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
    for number, process in processes.items():
        process.wait(timeout=60)
        err = process.stderr.read()
        assert process.returncode == sent[number][0], err
        assert err.startswith(b"vit: " + sent[number][1]), err
        assert err.count(b"\n") == 1, err
        assert [path.name for path in (tmp_path / number.name).iterdir()] == ["old.jsonl"]
        assert (tmp_path / number.name / "old.jsonl").read_text(encoding="utf-8") == "old"
