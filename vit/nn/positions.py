"""Where a token stands, as vectors that are added to it. Tables are made on the CPU, as those of `vit.nn.rotary`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_1d(length: int, dim: int) -> Tensor:
    """Fixed sine and cosine positions of a sequence, [length, dim], sine and cosine interleaved (Vaswani 2017)."""
    if dim % 2:
        raise ValueError(f"sine positions need an even dim, got {dim}")
    frequencies = 10_000 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def sincos_2d(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions of a grid, [rows * columns, dim]: sine, cosine of the column, then of the row.

    Order as in MoCo v3 (Chen et al. 2021); frequencies from 1 to 1/10000, both included, as in "Better plain ViT
    baselines" (Beyer et al. 2022).
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"2-D sine positions need a dim that 4 divides, at least 8, got {dim}")
    frequencies = 10_000 ** -torch.linspace(0, 1, dim // 4, dtype=torch.float64, device="cpu")
    row = torch.arange(rows, dtype=torch.float64, device="cpu").repeat_interleave(columns)[:, None] * frequencies
    column = torch.arange(columns, dtype=torch.float64, device="cpu").repeat(rows)[:, None] * frequencies
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], *, prefix: int = 0) -> Tensor:
    """Learned positions of a grid `old` (rows, columns) for a grid `new`: bicubic, antialiased, in fp32.

    positions [1, prefix + old rows * old columns, D] -> [1, prefix + new rows * new columns, D]. The first `prefix`
    positions (class token, registers) have no place in the grid and stay.
    """
    if old == new:
        return positions
    head, grid = positions[:, :prefix], positions[:, prefix:]
    grid = grid.unflatten(1, old).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([head, grid], dim=1)
