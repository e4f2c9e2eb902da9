"""Rotary positions (Su et al. 2021, RoPE): queries and keys are turned by an angle that grows with their position.

The product of a turned query and a turned key depends on the distance of their positions alone. One function turns,
for words and for patches; what differs is the angles. Letters: B batch, H heads, N tokens, P prefix tokens, K dim of
one head.

Tables of angles are made on the CPU, also while a module is built on the meta device: they are no weights that a file
would bring.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Order = Literal["yx", "xy"]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn x [B, H, N, K] by a rotation [2, N, K / 2] or [2, H, N, K / 2], its cosines and sines; -> [B, H, N, K].

    Channel i and channel i + K / 2 are the two coordinates that angle i turns. In the precision of the rotation,
    then back to that of x.
    """
    cos, sin = rotation.unbind(0)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def rotation(angles: Tensor, prefix: int = 0) -> Tensor:
    """Angles [..., N, K / 2] -> cosines and sines [2, ..., prefix + N, K / 2]; prefix tokens have no place, angle 0."""
    angles = F.pad(angles, (0, 0, prefix, 0))
    return torch.stack([angles.cos(), angles.sin()])


def angles_1d(length: int, head_dim: int, *, base: float = 10_000.0, start: int = 0) -> Tensor:
    """Angles of the positions start, start + 1, ... of a sequence, [length, K / 2]."""
    positions = torch.arange(start, start + length, dtype=torch.float32, device="cpu")
    return positions[:, None] * _frequencies(head_dim // 2, base)


def angles_2d(coordinates: Tensor, head_dim: int, *, base: float = 10_000.0) -> Tensor:
    """Angles of places in the plane: coordinates [N, 2] -> [N, K / 2], half of them for each coordinate."""
    return (coordinates[:, :, None] * _frequencies(head_dim // 4, base)).flatten(1)


def grid_coordinates(
    rows: int, columns: int, *, order: Order = "yx", offset: float = 0.0, reference: tuple[int, int] | None = None
) -> Tensor:
    """Row and column of every cell of a grid, [rows * columns, 2], counted from `offset`.

    With a `reference` grid, the coordinates are scaled to its extent, so that a model meets the angles it was trained
    with at any picture size (Fang et al. 2023, EVA-02).
    """
    y, x = (torch.arange(count, dtype=torch.float32, device="cpu") + offset for count in (rows, columns))
    if reference is not None:
        y, x = y / rows * reference[0], x / columns * reference[1]
    return _pairs(y, x, order)


def centred_coordinates(rows: int, columns: int, *, order: Order = "yx") -> Tensor:
    """The centres of a grid's cells, [rows * columns, 2], each side of the picture reaching from -2 pi to 2 pi.

    Independent of the picture's size (Simeoni et al. 2025, DINOv3).
    """
    y, x = (
        (2 * (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) / count - 1) for count in (rows, columns)
    )
    return 2 * math.pi * _pairs(y, x, order)


class MixedAngles(nn.Module):
    """Learned frequencies, for every block and head a direction of its own (Heo et al. 2024, RoPE-Mixed).

    `freqs` [2, depth, H, K / 2] turn coordinates [N, 2] on the same device into angles [depth, H, N, K / 2].
    """

    def __init__(self, depth: int, heads: int, head_dim: int, *, base: float = 10.0) -> None:
        super().__init__()
        self.base = base
        self.freqs = nn.Parameter(torch.empty(2, depth, heads, head_dim // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Axial frequencies, turned by a random angle in every block and head."""
        _, depth, heads, half = self.freqs.shape
        size = _frequencies(half // 2, self.base).to(self.freqs.device)
        turn = 2 * math.pi * torch.rand(depth, heads, 1, device=self.freqs.device)
        directions = torch.cat([turn.expand(-1, -1, half // 2), (turn + math.pi / 2).expand(-1, -1, half // 2)], -1)
        with torch.no_grad():
            self.freqs.copy_(torch.stack([directions.cos(), directions.sin()]) * torch.cat([size, size]))

    def forward(self, coordinates: Tensor) -> Tensor:
        first, second = coordinates.unbind(1)
        # products of numbers, not of matrices: autocast would take those to bf16
        return first[:, None] * self.freqs[0, :, :, None] + second[:, None] * self.freqs[1, :, :, None]


def _frequencies(count: int, base: float) -> Tensor:
    return base ** (-torch.arange(count, dtype=torch.float32, device="cpu") / count)


def _pairs(y: Tensor, x: Tensor, order: Order) -> Tensor:
    y, x = y[:, None].expand(len(y), len(x)), x[None, :].expand(len(y), len(x))
    return torch.stack([y, x] if order == "yx" else [x, y], dim=-1).flatten(0, 1)
