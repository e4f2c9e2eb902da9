"""From pixels and from token ids to vectors.

Letters: B batch, C channels, H W height and width, P patch, D dim, N tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts pictures into patches and embeds each linearly (Dosovitskiy et al. 2020).

    images [B, C, H, W] -> [B, H / P, W / P, D]. A convolution whose stride is its size is that linear map, and its
    weight [D, C, P, P] the layout that everyone's checkpoints have; as one matrix product it is faster. `norm` is one
    of every patch's vector. With `partial`, pixels at the bottom and right that do not fill a patch are ignored, as the
    convolution ignores them (SigLIP has 27 patches of 14 pixels in 384); otherwise such images raise ValueError.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        channels: int,
        dim: int,
        *,
        bias: bool = True,
        norm: nn.Module | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size, self.partial = patch_size, partial
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.norm = norm or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = self.patch_size
        if self.partial:
            images = whole_patches(images, self.patch_size)
        elif height % rows or width % columns:
            raise ValueError(f"pictures of {height} x {width} pixels cannot be cut into patches of {rows} x {columns}")
        patches = images.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.norm(F.linear(patches, self.proj.weight.flatten(1), self.proj.bias))


def whole_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Crop images [..., H, W] at the bottom and right to whole patches."""
    height, width = (side // patch * patch for side, patch in zip(images.shape[-2:], patch_size, strict=True))
    return images[..., :height, :width]


def resample_patches(weight: Tensor, new: tuple[int, int]) -> Tensor:
    """A patch embedding's weight for patches of another size: [D, C, P, Q] -> [D, C, *new].

    The new weight gives to an enlarged patch what the old one gives to the patch itself: the pseudo-inverse of
    resizing (Beyer et al. 2022, FlexiViT). Bicubic, antialiased, in fp32.
    """
    old = weight.shape[2:]
    if tuple(old) == new:
        return weight
    each_pixel = torch.eye(old.numel(), device=weight.device).view(-1, 1, *old)
    resize = F.interpolate(each_pixel, size=new, mode="bicubic", antialias=True).flatten(1)  # [old pixels, new pixels]
    return (weight.float().flatten(2) @ torch.linalg.pinv(resize).T).unflatten(2, new).to(weight.dtype)


class TokenEmbed(nn.Embedding):
    """Token ids [B, N] -> [B, N, D]; the same weight [V, D] turns vectors back into logits (`unembed`)."""

    def unembed(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> logits [B, N, V], tied to the embedding (Press and Wolf 2017)."""
        if x.device.type == "cpu" and x.shape[:-1].numel() <= 64:
            # so few rows, as in generation, MKL multiplies 1.3 to 2 times as fast the other way round
            logits = self.weight @ x.flatten(0, -2).T
            return logits.T.contiguous().unflatten(0, x.shape[:-1])
        return F.linear(x, self.weight)
