"""Tensors of files, and how they get into a network: what does not fit is named, with what is expected and found."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit.errors import ModelFileError, display_path

_ALIGNMENT = 64
"""bytes to which torch aligns what it allocates on the CPU"""
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name. Raises ModelFileError for what is not a whole safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        pickled = start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04")
        reason = "a pickle under another name" if pickled else f"truncated or corrupt? {error}"
        message = f"{display_path(path)}: not a valid safetensors file ({display_path(reason)[:160]})"
        raise ModelFileError(message) from error


def load_exactly(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make `network` hold the tensors of `state`, or copies of those whose memory torch would have laid out otherwise.

    CPU kernels round differently by alignment: a tensor of a memory-mapped file would give other last digits than an
    equal one. Raises ValueError naming the first that does not fit.
    """
    reason = misfit(state, network.state_dict())
    if reason is not None:
        raise ValueError(reason)
    network.load_state_dict({name: _laid_out(tensor) for name, tensor in state.items()}, assign=True)


def _laid_out(tensor: Tensor) -> Tensor:
    aligned = tensor.device.type != "cpu" or tensor.data_ptr() % _ALIGNMENT == 0
    return tensor if aligned and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def misfit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return in which tensor `found` first differs from `expected` in shape, kind of numbers or presence, or None."""
    for name, like in expected.items():
        if name in found and found[name].shape != like.shape:
            return f"{display_path(name)}: expected {_shape(like)}, found {_shape(found[name])}"
    for name, like in expected.items():
        if name in found and like.is_floating_point() and found[name].dtype not in _REAL:
            return f"{name}: expected floating-point numbers of 16 to 64 bits, found {_dtype(found[name])}"
    if missing := next((name for name in expected if name not in found), None):
        return f"{display_path(missing)}: expected {_shape(expected[missing])}, missing"
    if extra := next((name for name in found if name not in expected), None):
        return f"{display_path(extra)}: not expected, found {_shape(found[extra])}"
    return None


def require_blocks(state: Mapping[str, Tensor], depth: int) -> None:
    """Raise ValueError where the tensors are of fewer blocks, before so many are built."""
    numbers = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    if len(numbers) < depth:
        raise ValueError(f"blocks: expected {depth}, found {len(numbers)}")


def _shape(tensor: Tensor) -> str:
    return f"{len(tensor)} values" if tensor.dim() == 1 else " x ".join(map(str, tensor.shape)) or "one value"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
