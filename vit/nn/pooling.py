"""From a sequence of tokens to one vector. Class token and mean are one line where they are used; this is the third."""

import torch
from torch import Tensor, nn

from vit.nn.attention import Attention
from vit.nn.state import Record


class LatentPool(nn.Module):
    """Attention pooling: a learned query attends to all tokens, then an MLP (Zhai et al. 2022, "Scaling ViT").

    x [B, N, D] -> [B, D].
    """

    def __init__(self, attn: Attention, mlp: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, attn.dim))
        self.attn = attn
        self.norm = norm
        self.mlp = mlp

    def forward(self, x: Tensor, *, trace: list[Record] | None = None) -> Tensor:
        latent = self.latent.expand(x.shape[0], -1, -1)
        y = self.attn(latent, x, trace=trace)
        return (y + self.mlp(self.norm(y)))[:, 0]
