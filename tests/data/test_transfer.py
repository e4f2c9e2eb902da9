"""Batches on their way to a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import vit.data.transfer
from vit.data.transfer import sent


def test_on_the_cpu_nothing_is_copied() -> None:
    tensors = [torch.arange(3), torch.arange(4)]
    assert [there is here for there, here in zip(sent(tensors, "cpu"), tensors, strict=True)] == [True, True]


def test_pinned_tensors_are_copied_in_a_stream_of_their_own_that_the_next_step_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of the calls; without a GPU there is nothing else to see."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            calls.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        calls.append(f"begin {stream.name}")
        yield
        calls.append(f"end {stream.name}")

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        calls.append(f"copy {len(tensor)} {device} {non_blocking}")
        return tensor

    def record(tensor: Tensor, stream: Any) -> None:
        calls.append(f"keep {len(tensor)} for {stream.name}")

    monkeypatch.setattr(vit.data.transfer, "_stream", lambda device: Stream("copying"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: True)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", record)
    sent([torch.arange(3), torch.arange(4)], "cuda:1")
    assert calls == [
        "begin copying",
        "copy 3 cuda:1 True",
        "copy 4 cuda:1 True",
        "end copying",
        "computing waits for copying",
        "keep 3 for computing",
        "keep 4 for computing",
    ]
