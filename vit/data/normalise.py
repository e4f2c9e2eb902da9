"""The last steps before the network: arrays to tensors, and, on the network's device, bytes to numbers."""

import numpy as np
import torch
from torch import Tensor, nn

from vit.data.config import Preprocessing


def as_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]; an array turned about or not to be written to is copied."""
    flags = pixels.flags
    if flags.writeable and pixels.transpose(2, 0, 1).flags.c_contiguous:
        return torch.from_numpy(pixels.transpose(2, 0, 1))
    if not (flags.c_contiguous and flags.writeable):
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)


class Normalise(nn.Module):
    """uint8 [B, 3, H, W] -> float with the mean and spread that the network is trained on; `dtype` is the network's.

    Pictures travel as bytes, a quarter of the size; this module moves to the device with the network and adds
    nothing to its saved weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = (images / 255).sub_(self.mean).div_(self.std)  # in the order of timm and torchvision: the same bits
        return images.to(self.dtype)
