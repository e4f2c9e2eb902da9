"""From pixels and from token ids to vectors.

Letters: B batch, C channels, H W height and width, P patch, D dim, N tokens, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts pictures into patches and embeds each linearly (Dosovitskiy et al. 2020).

    images [B, C, H, W] -> [B, D, H / P, W / P]. A convolution whose stride is its size is that linear map; its
    weight [D, C, P, P] has the layout that everyone's checkpoints have.
    """

    def __init__(self, patch_size: tuple[int, int], channels: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.patch_size[0] or width % self.patch_size[1]:
            rows, columns = self.patch_size
            raise ValueError(f"pictures of {height} x {width} pixels cannot be cut into patches of {rows} x {columns}")
        return self.proj(images)


class TokenEmbed(nn.Embedding):
    """Token ids [B, N] -> [B, N, D]; the same weight [V, D] turns vectors back into logits (`unembed`)."""

    def unembed(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> logits [B, N, V], tied to the embedding (Press and Wolf 2017)."""
        return F.linear(x, self.weight)
