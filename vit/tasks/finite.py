"""Steps whose loss or gradient is no number: they never change a weight, and are told of."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit.tasks.muon import Muon


@dataclass
class Step:
    """One step of the optimizer: its number from 1, its highest learning rate, the training samples it learned from.

    `numbers` holds the loss and the norm of the gradient, float [2], on the CPU once `arrived`.
    """

    number: int
    rate: float
    indices: Sequence[Tensor]
    numbers: Tensor
    arrived: Any = None

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.numbers).all())


class Watch:
    """Looks at every step before it is taken.

    On the CPU, and with optimizers that cannot, the gradient of a bad step is taken away from the optimizer. Torch's
    fused optimizers and Muon skip it on a GPU by themselves, as they do for fp16's scaler (`found_inf`), and the
    numbers come here while the next steps run: nothing waits for the GPU.
    """

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()

    def look(self, optimizer: torch.optim.Optimizer, step: Step, *, scaled: bool) -> None:
        """Keep a step whose numbers are not finite from changing weights; `scaled`: fp16's scaler does so."""
        skips = optimizer.defaults.get("fused") or isinstance(optimizer, Muon)
        if step.numbers.device.type == "cuda" and skips and not scaled:
            optimizer.found_inf = (~torch.isfinite(step.numbers).all()).float()  # type: ignore[attr-defined]
            there = torch.empty(2, pin_memory=True)
            step.numbers = there.copy_(step.numbers, non_blocking=True)
            step.arrived = torch.cuda.Event()
            step.arrived.record()
        else:
            step.numbers = step.numbers.cpu()
            if not step.finite and not scaled:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
        self._steps.append(step)

    def seen(self, *, wait: bool) -> list[Step]:
        """The steps whose numbers have come since the last call; with `wait`, all that were taken."""
        come = []
        while self._steps and (self._steps[0].arrived is None or wait or self._steps[0].arrived.query()):
            step = self._steps.popleft()
            if step.arrived is not None:
                step.arrived.synchronize()
            come.append(step)
        return come
