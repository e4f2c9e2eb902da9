"""Two processes train and evaluate together: every picture once, the same numbers as one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import draw_folder, tiny

from vit.api import load
from vit.data.folders import list_evaluation
from vit.data.module import ImageFolderData
from vit.models.build import build_network
from vit.models.file import read_model
from vit.tasks.classify import Classify
from vit.tasks.run import make_trainer

PROGRAM = Path(__file__).with_name("two_processes.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_odd_number_of_pictures_is_evaluated_once_each_with_the_numbers_of_one_process(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", train=5, val=4)
    (data / "val" / "red" / "broken.png").write_bytes(b"no picture")  # nine: five and four, in three and two batches
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    command = [sys.executable, str(PROGRAM), str(data), str(tmp_path / "run"), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
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
    found: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]  # both have all rows, and the same weights
    assert found[0]["trained"]["val"] == found[0]["tested"]["indices"] == list(range(8))
    assert [index for index, _ in found[0]["tested"]["failures"]] == [8]

    file = read_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    config = tiny(data={"batch_size": 2})
    task = Classify(build_network(file, "raw"), file.classes, load(tmp_path / "run").preprocessing, config)
    listing = list_evaluation(data, file.classes, split="val")
    listing.splits = {"test": listing.splits["val"]}
    trainer = make_trainer(config, run=None)
    trainer.test(
        task, datamodule=ImageFolderData(listing, config.data, config.augment, task.preprocessing, 0), verbose=False
    )
    rows = task.gathered
    assert found[0]["tested"]["labels"] == rows.predictions.labels.tolist()
    assert found[0]["tested"]["losses"] == pytest.approx(rows.predictions.losses.tolist(), rel=1e-6)
    assert found[0]["trained"]["accuracy"] == float((rows.predictions.labels == rows.predictions.top[:, 0]).mean())
