"""timm's own model in one of our shapes, and its loader, for the scripts that train both."""

from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from timm.models.vision_transformer import VisionTransformer

from vit.models.architecture import parse_name


def timm_model(name: str, side: int, classes: int, **options: Any) -> VisionTransformer:
    """timm's VisionTransformer with the sizes that NAME/PATCH has here, for square pictures of `side` pixels."""
    size, patch = parse_name(name)
    return VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.hidden / size.dim,
        num_classes=classes,
        **options,
    )


def timm_loader(folder: Path, side: int, batch: int, workers: int, device: str) -> Any:
    """timm's loader of a folder of class folders: random-resized crops of 35 % and more, flips, no colours."""
    return create_loader(
        create_dataset("folder", root=str(folder), split="train", is_training=True),
        input_size=(3, side, side),
        batch_size=batch,
        is_training=True,
        scale=(0.35, 1.0),
        color_jitter=None,
        num_workers=workers,
        interpolation="bicubic",
        device=torch.device(device),
    )
