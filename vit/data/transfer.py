"""Batches on their way to a GPU, beside what it computes."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def sent(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """The tensors on `device`.

    From pinned memory to a GPU they are copied in a stream of its own: while the GPU works on what it was given
    before, and without anybody waiting but what comes after.
    """
    device = torch.device(device)
    if device.type != "cuda" or not all(tensor.is_pinned() for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    copying, computing = _stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        there = [tensor.to(device, non_blocking=True) for tensor in tensors]
    computing.wait_stream(copying)
    for tensor in there:
        tensor.record_stream(computing)  # its memory is not given to the next copy before the work on it is done
    return there


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
