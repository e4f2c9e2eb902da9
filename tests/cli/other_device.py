"""Runs commands on a device that is not the CPU: what mixes the two fails, as it does on a GPU.

    python other_device.py COMMANDS.json

COMMANDS.json is a list of commands, each a list of words, that run one after another until one fails, each where it
can say so by `--device other:0`, as the machine's only GPU otherwise. The device keeps its numbers in the CPU's memory
and lets the CPU compute: a backend written in Python, which torch provides for (PrivateUse1). It has neither inference
mode, autocast nor numbers of double precision.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("other")
OTHER = torch.device("other", 0)
CPU = torch.device("cpu")
_MOVES = ("aten::copy_", "aten::_to_copy")
_PICKS = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""take indices that lie on the CPU, as on a GPU"""
_ANSWERS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")


class There(Tensor):
    """A tensor of the other device; `here` is what it stands for, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        there = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=OTHER,
        )
        there.here = here
        assert isinstance(there, There)
        return there

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)  # a file holds plain tensors

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


def here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def there(value: Any) -> Any:
    return There(value) if isinstance(value, Tensor) and not isinstance(value, There) else value


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device that its tensors are on. Raises RuntimeError where they are on two."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_other = any(isinstance(tensor, There) for tensor in tensors)
    # a single number may come from anywhere
    alien = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, There) and tensor.ndim]
    if on_other and alien and name not in (*_MOVES, *_PICKS):
        raise RuntimeError(f"{name}: tensors on two devices; on the CPU are {alien}")
    asked = kwargs.get("device")
    if asked is not None:
        stays = torch.device(asked).type == OTHER.type
        kwargs["device"] = CPU
    else:
        stays = isinstance(args[0], There) if name == "aten::copy_" else on_other
    result = func(*tree_map(here, args), **tree_map(here, kwargs))
    if name in _ANSWERS:
        return result
    in_place = name.endswith("_") and not name.endswith("__")
    if in_place and isinstance(result, Tensor) and isinstance(args[0], There):
        return args[0]
    if stays and any(leaf.dtype == torch.float64 for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
        raise RuntimeError(f"{name}: the device has no numbers of 64 bits, as Apple's GPUs")
    return tree_map(there, result) if stays else result


class Factories(TorchDispatchMode):
    """Tensors that are made on the other device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    return There(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    here(target).copy_(here(source))
    return target


class _Gradients(contextlib.ContextDecorator):
    """Stands for torch.inference_mode."""

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(not self.mode)

    def __exit__(self, *_: Any) -> None:
        torch.set_grad_enabled(self.before)


class _Generator:
    """Stands for torch.Generator."""

    on_cpu = torch.Generator

    def __new__(cls, device: Any = None) -> Any:
        return cls.on_cpu()


def _pretend() -> torch.library.Library:
    """Let torch, Lightning and vit take the other device for the machine's GPU."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("empty.memory_format", _empty),
        ("empty_strided", _empty_strided),
        ("_copy_from", _copy_from),
    ):
        library.impl(name, function, "PrivateUse1")
    torch.__future__.set_swap_module_params_on_conversion(True)
    changes: dict[str, Any] = {
        "inference_mode": _Gradients,
        "autocast": lambda *_, **__: contextlib.nullcontext(),
        "Generator": _Generator,
    }
    for name, stand_in in changes.items():
        setattr(torch, name, stand_in)
    import vit.tasks.devices

    vit.tasks.devices.device_for = lambda *_: str(OTHER)  # before others take it from there
    import vit.api

    vit.api.best_device = lambda: str(OTHER)
    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.strategies import SingleDeviceStrategy

    import vit.tasks.run

    class OtherAccelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None: ...

    made = vit.tasks.run._trainer

    def trainer(**options: Any) -> Any:
        options.pop("accelerator")
        return made(**{**options, "strategy": SingleDeviceStrategy(OTHER, OtherAccelerator()), "devices": 1})

    vit.tasks.run._trainer = trainer
    return library


if __name__ == "__main__":
    library = _pretend()
    from vit.cli.main import main

    with Factories():
        for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            print(*words, flush=True)
            if (code := main(["--debug", *words])) != 0:
                sys.exit(code)
