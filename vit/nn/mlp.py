"""The part of a block that works on every token alone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016), as in GPT-2 and SigLIP."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Two linear layers with an activation between: x [B, N, D] -> [B, N, D].

    `norm` is one of the hidden width, before the second layer (Wang et al. 2022, Magneto).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: Activation = F.gelu,
        bias: bool = True,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.norm = norm or nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))  # the name is used again so that memory is, too
        x = self.norm(self.drop(x))
        return self.drop(self.fc2(x))


class SwiGLU(nn.Module):
    """silu(gate) * value, then a linear layer (Shazeer 2020): x [B, N, D] -> [B, N, D].

    `fc1` [2 hidden, D] holds the rows of the gate, then those of the value; `norm` as in `MLP`.
    """

    def __init__(
        self, dim: int, hidden: int, *, bias: bool = True, norm: nn.Module | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=bias)
        self.norm = norm or nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        x = self.norm(self.drop(F.silu(gate) * value))
        return self.drop(self.fc2(x))
