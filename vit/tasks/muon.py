"""Muon: momentum whose matrices are made orthogonal before they are taken as a step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups with `matrices`, AdamW (Loshchilov and Hutter 2019) for the others.

    A step has the root mean square that AdamW's would have (Liu et al. 2025, "Muon is scalable"), so rates and weight
    decay are AdamW's. `torch.optim.Muon` gives the same steps matrix by matrix; here those of one shape are
    multiplied together, since small models wait for the launches rather than for the products.

    A group's `parts` says of how many square matrices each parameter [parts * R, C] is made: q, k and v are three.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "matrices": False, "parts": 1})
        self.found_inf: Tensor | None = None
        """float [], 1 where the gradient is not finite: such a step changes no weight, and nobody has to wait for it"""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; what `closure` gives, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        keep = 1.0 if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"] * keep)
            steps = (self._orthogonal if group["matrices"] else self._adam)(
                self._gradients(parameters), parameters, group
            )
            if self.found_inf is not None:
                torch._foreach_mul_(steps, keep)
            torch._foreach_add_(parameters, steps, alpha=-group["lr"])
        return loss

    def _gradients(self, parameters: list[Tensor]) -> list[Tensor]:
        """The gradients, zero where one of them is not finite."""
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        if self.found_inf is None:
            return gradients
        flat = torch.where(self.found_inf > 0, 0.0, torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def _orthogonal(self, gradients: list[Tensor], parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        momenta = [self._kept(p, "momentum") for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # Nesterov's
        by_shape: dict[torch.Size, list[int]] = {}
        for place, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape, []).append(place)
        for shape, places in by_shape.items():
            rows, columns = shape[0] // group["parts"], shape[1]
            stacked = torch.stack([ahead[place] for place in places]).view(-1, rows, columns)
            scaled = orthogonalised(stacked).to(stacked.dtype) * (0.2 * math.sqrt(max(rows, columns)))
            for place, step in zip(places, scaled.view(len(places), *shape).unbind(0), strict=True):
                ahead[place] = step
        return ahead

    def _adam(self, gradients: list[Tensor], parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        first = [self._kept(p, "exp_avg") for p in parameters]
        second = [self._kept(p, "exp_avg_sq") for p in parameters]
        group["step"] = step = group.get("step", 0) + 1
        one, two = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - one)
        torch._foreach_mul_(second, two)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - two)
        spread = torch._foreach_sqrt(second)
        torch._foreach_div_(spread, math.sqrt(1 - two**step))
        torch._foreach_add_(spread, group["eps"])
        steps = torch._foreach_div(first, spread)
        torch._foreach_div_(steps, 1 - one**step)
        return list(steps)

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def orthogonalised(matrices: Tensor) -> Tensor:
    """matrices [B, R, C] with their singular values brought near 1 (0.7 to 1.2), by five steps of Newton and Schulz.

    In bf16, on the processor in fp32, where bf16 is slow.
    """
    a, b, c = _QUINTIC
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    return x.mT if tall else x
