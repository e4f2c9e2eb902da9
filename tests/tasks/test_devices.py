"""Which device a process that needs but one takes."""

import pytest
import torch

from vit.errors import ConfigError
from vit.tasks.devices import device_for, devices_for


@pytest.mark.parametrize(
    ("accelerator", "devices", "rank", "expected"),
    [
        ("auto", "auto", None, "cuda:0"),
        ("gpu", 2, "1", "cuda:1"),
        ("gpu", "0,2", None, "cuda:0"),
        ("gpu", "0,2", "1", "cuda:2"),
        ("auto", "3,", None, "cuda:3"),
        ("cpu", "auto", "1", "cpu"),
    ],
)
def test_the_device_is_the_one_of_this_process(
    accelerator: str, devices: int | str, rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert device_for(accelerator, devices) == expected


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_for("auto") == "cpu"
    for accelerator in ("gpu", "mps"):
        with pytest.raises(ConfigError, match=f"torch finds no {accelerator}"):
            device_for(accelerator)


def test_evaluation_takes_all_gpus_or_as_many_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert devices_for("auto", "auto") == 4
    assert devices_for("auto", "3") == 3
    with pytest.raises(ConfigError, match="torch finds 4 on this machine, not 5"):
        devices_for("auto", "5")
