"""A GPU without one: tensors that have a device, a shape and a type, but no numbers (torch's fake tensors).

What is computed on it mixes no devices, else torch refuses, as it does on a real one. And nothing can wait for it:
whoever asks it for a number, or how many numbers are not zero, gets torch's error. What is left are copies, which wait
unless they come from pinned memory; those are counted here.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vit.data.transfer

GPU = torch.device("cuda", 0)


class _Copies(TorchDispatchMode):
    """Computes on the CPU what is there, with numbers; notes what is copied to the GPU or back and has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._pin_memory.default:
            with unset_fake_temporarily():
                self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if func is torch.ops.aten.is_pinned.default:
            return self._is_pinned(args[0])
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors) and GPU.type not in map(_type, leaves):
            pinned = kwargs.pop("pin_memory", False)
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
            if pinned:
                self._pinned.append(result)
            return result
        result = func(*args, **kwargs)
        there = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        large = {tensor.device.type for tensor in [*tensors, *there] if tensor.ndim or tensor.is_cuda}
        if len(large) > 1 and not (
            (kwargs.get("non_blocking") or any(arg is True for arg in args))
            and all(self._is_pinned(tensor) for tensor in tensors if not tensor.is_cuda)
        ):
            ours = [frame for frame in traceback.extract_stack() if "/vit/" in frame.filename.replace("\\", "/")]
            self.waits.append(f"{func}, {ours[-1].filename}:{ours[-1].lineno}" if ours else str(func))
        return result

    def _is_pinned(self, tensor: Tensor) -> bool:
        memory = tensor.untyped_storage().data_ptr()
        return any(memory == other.untyped_storage().data_ptr() for other in self._pinned)


def _type(leaf: Any) -> str | None:
    return leaf.type if isinstance(leaf, torch.device) else None


class _Event:
    """Stands for `torch.cuda.Event`, of what has happened."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream:
    """Stands for `torch.cuda.Stream`."""

    def wait_stream(self, other: "_Stream") -> None: ...


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done inside may use `GPU`; gives the list of the places that waited for it, which grows."""
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: _Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(vit.data.transfer, "_stream", lambda device: _Stream())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(allow_non_fake_inputs=True), _Copies() as copies:
        yield copies.waits


def moved(module: nn.Module) -> None:
    """Put weights and buffers on the GPU, where they lose their numbers; `Module.to` cannot."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = torch.empty(parameter.shape, dtype=parameter.dtype, device=GPU)
                part._parameters[name] = nn.Parameter(there, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
