"""Low-rank adaptation (Hu et al. 2021, LoRA): train two thin matrices beside a weight that stands still.

A parametrization of torch's: `weight` becomes original + scale * up @ down, wherever it is used, and nothing else about
the model changes. Merged, it is a plain weight again.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TARGETS = ("qkv", "proj", "fc1", "fc2")
"""the linear layers of a block, by the last part of their names"""

_ORIGINAL = ".parametrizations.weight.original"


class LowRank(nn.Module):
    """weight [O, I] -> weight + alpha / rank * up [O, rank] @ down [rank, I]; up starts at zero, so nothing changes."""

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device, dtype=weight.dtype))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device, dtype=weight.dtype))
        self.register_buffer("scale", torch.tensor(alpha / rank, device=weight.device))
        nn.init.normal_(self.down, std=weight.shape[1] ** -0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_lora(blocks: nn.Module, rank: int, alpha: float, targets: Sequence[str] = TARGETS) -> None:
    """Freeze `blocks`, and give their linear layers called `targets` trainable low-rank matrices."""
    blocks.requires_grad_(False)
    chosen = [
        module
        for name, module in blocks.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets
    ]
    for linear in chosen:
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank, alpha))


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with every low-rank pair added to its weight, under the names of a model without LoRA."""
    plain = {name: tensor for name, tensor in state.items() if ".parametrizations." not in name}
    for name in state:
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            scale, up, down = (state[f"{layer}.parametrizations.weight.0.{part}"] for part in ("scale", "up", "down"))
            plain[f"{layer}.weight"] = state[name] + scale * (up @ down)
    return plain
