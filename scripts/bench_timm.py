"""timm's own model in one of our shapes, for the scripts that train both."""

from typing import Any

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
