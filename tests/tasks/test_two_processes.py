"""Two processes train and evaluate together: every picture once, the same numbers as one process."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from same_steps import twenty_steps
from tiny_runs import draw_folder, tiny, train

from vit.api import load
from vit.data.folders import list_evaluation
from vit.data.scenes import make_scenes
from vit.errors import ConfigError
from vit.models.build import build_network
from vit.models.file import read_model
from vit.tasks.evaluation import evaluate
from vit.tasks.run import SharedOut

PROGRAM = Path(__file__).with_name("two_processes.py")
STEPS = Path(__file__).with_name("same_steps.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_twice(program: Path | str, *words: object) -> list[str]:
    """Run a program as two processes of one machine, which find each other, to their end; what each said."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), *map(str, words)],
            env={**os.environ, **place, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return said


def test_an_odd_number_of_pictures_is_evaluated_once_each_with_the_numbers_of_one_process(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", train=5, val=4)
    (data / "val" / "red" / "broken.png").write_bytes(b"no picture")  # nine: five and four, in three and two batches
    run_twice(PROGRAM, data, tmp_path / "run", tmp_path)
    found: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]  # both have all rows, and the same weights
    assert found[0]["trained"]["val"] == found[0]["tested"]["indices"] == list(range(8))
    assert [index for index, _ in found[0]["tested"]["failures"]] == [8]

    file = read_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    config = tiny(data={"batch_size": 2})
    listing = list_evaluation(data, file.classes, split="val")
    preprocessing = load(tmp_path / "run").preprocessing
    rows = evaluate(build_network(file, "raw"), listing.splits["val"], preprocessing, config, len(file.classes))
    assert found[0]["tested"]["labels"] == rows.predictions.labels.tolist()
    assert found[0]["tested"]["losses"] == pytest.approx(rows.predictions.losses.tolist(), rel=1e-6)
    assert found[0]["trained"]["accuracy"] == float((rows.predictions.labels == rows.predictions.top[:, 0]).mean())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures to train on, 9 to validate: two processes have five and four of them."""
    root = draw_folder(tmp_path_factory.mktemp("shared"), train=20, val=5)
    (root / "val" / "red" / "4.png").unlink()
    return root


@pytest.fixture(scope="module")
def alone(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that takes all 8 pictures of a step at once."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(shared, run, twenty_steps(8))
    return run


def same_run(run: Path, other: Path) -> None:
    """Weights, averaged weights and every number of every epoch agree to 1e-5 after twenty steps."""
    states = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, other)]
    assert [state["global_step"] for state in states] == [20, 20]
    first, second = (state["state_dict"] for state in states)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    tables = [list(csv.DictReader((r / "metrics.csv").read_text(encoding="utf-8").splitlines())) for r in (run, other)]
    for row, theirs in zip(*tables, strict=True):
        for key in (
            "epoch",
            "step",
            "lr",
            "train/loss",
            "train/gradient_norm",
            "val/loss",
            "val/accuracy",
            "val/balanced_accuracy",
        ):
            assert float(row[key]) == pytest.approx(float(theirs[key]), rel=1e-5, abs=1e-5), key


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(shared: Path, alone: Path, tmp_path: Path) -> None:
    run_twice(STEPS, shared, tmp_path / "run", "strategy=ddp")
    same_run(tmp_path / "run", alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_that_stopped_before_a_validation_go_on_with_it(
    strategy: str, shared: Path, alone: Path, tmp_path: Path
) -> None:
    said = run_twice(STEPS, shared, tmp_path / "run", "stop", f"strategy={strategy}")
    assert all("stopped in epoch 2 after batch 5; go on from there" in words for words in said)
    run_twice(STEPS, shared, tmp_path / "run", "resume", f"strategy={strategy}")
    same_run(tmp_path / "run", alone)


def test_two_batches_accumulated_take_the_step_of_one_twice_as_large(shared: Path, alone: Path, tmp_path: Path) -> None:
    train(shared, tmp_path / "run", twenty_steps(4, accumulate=2))
    same_run(tmp_path / "run", alone)


def test_a_model_shared_out_over_two_processes_takes_the_same_steps_and_leaves_the_same_files(
    shared: Path, alone: Path, tmp_path: Path
) -> None:
    run_twice(STEPS, shared, tmp_path / "run", "strategy=fsdp", "checkpointing=1")
    same_run(tmp_path / "run", alone)
    models = [read_model(run) for run in (tmp_path / "run", alone)]
    assert models[0].architecture == models[1].architecture
    for name, tensor in models[0].weights().items():
        torch.testing.assert_close(tensor, models[1].weights()[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^train.strategy: a run that began without fsdp cannot go on with it"):
        SharedOut().load_checkpoint(alone / "checkpoints" / "last.ckpt")


def test_a_run_that_goes_on_on_other_devices_is_where_its_schedule_would_be(
    shared: Path, alone: Path, tmp_path: Path
) -> None:
    train(shared, tmp_path / "run", twenty_steps(4, epochs=2))  # ten steps an epoch, then five
    run_twice(STEPS, shared, tmp_path / "run", "resume", "strategy=ddp")
    rates = [
        [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())]
        for run in (tmp_path / "run", alone)
    ]
    assert len(rates[0]) == len(rates[1]) == 4
    assert rates[0][2:] == pytest.approx(rates[1][2:])


@pytest.mark.parametrize("task", ["caption", "fuse"])
def test_two_processes_learn_words_though_a_step_may_leave_weights_out(task: str, tmp_path: Path) -> None:
    """A step of fuse may lack a side, an encoder may stand still: DDP must not wait for their gradients."""
    make_scenes(tmp_path / "scenes", count=24, seed=0, side=48)
    data = tmp_path / "scenes" / ("questions.csv" if task == "fuse" else "")
    words = ["train", data, f"--task={task}", "--train.epochs=2", "--data.batch_size=2", "--data.workers=0"]
    words += ["--model.name=micro/8", "--model.image_size=48", "--model.depth=1", "--text.depth=1", "--text.dim=96"]
    words += ["--train.accelerator=cpu", "--train.devices=2", "--train.strategy=ddp", "--out", tmp_path / "run"]
    words += ["--text.drop_side=0.4"] if task == "fuse" else ["--text.freeze_encoder=1"]
    run_twice("-m", "vit.cli", *words)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["val/loss"]) > 0 for row in rows] == [True, True]
