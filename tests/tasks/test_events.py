"""TensorBoard's events: what cannot be written is told once and left out, and the run goes on."""

import errno
import logging
import threading
from pathlib import Path

import pytest

from vit.tasks.events import Events


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("vit"), "propagate", True)
    caplog.set_level(logging.INFO, "vit")
    return caplog


def test_a_full_disk_is_told_once_and_costs_the_events_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.compat.tensorflow_stub.io import gfile

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # the logger puts its own around it
    events = Events(tmp_path)
    events.log_metrics({"loss": 1.0}, step=1)
    events.experiment.flush()
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    before = file.read_bytes()
    monkeypatch.setattr(gfile.LocalFileSystem, "_write", full)
    for step in range(2, 40):
        events.log_metrics({"loss": 1.0}, step=step)
        events.experiment.flush()
    events.finalize("success")
    expected = f"left out   cannot write {tmp_path}/tensorboard: no space left on the disk"
    assert [record.getMessage() for record in told.records] == [expected]
    assert file.read_bytes() == before
    assert capfd.readouterr().err == ""


def test_what_ends_another_thread_is_told_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    Events(tmp_path).experiment.flush()

    def fail() -> None:
        raise OSError("of somebody else")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "OSError: of somebody else" in capfd.readouterr().err
