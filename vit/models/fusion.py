"""A picture and a text answer together: one side's tokens attend to the other's, then one class is chosen.

Letters: B pictures, R texts about them, N tokens of the attending side, M of the other, D dim of the attending side.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vit.models.parts import make_blocks, make_norm
from vit.models.text import TextEncoder
from vit.models.text_architecture import FusionArchitecture
from vit.models.vision import VisionTransformer, initialise
from vit.nn import Trace, Transformer


class FusedClassifier(nn.Module):
    """`image` and `text` encoders, `fusion` blocks in which one attends to the other, a `head` on what they pool to.

    Either side may be missing. Without the side that is attended to, the blocks do without cross-attention; without
    the one that attends, one learned token, `absent`, attends in its stead.
    """

    def __init__(self, architecture: FusionArchitecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.image = VisionTransformer(replace(a.image, classes=0))
        self.text = TextEncoder(a.text)
        own, other = (a.image, a.text) if a.attends == "image" else (a.text, a.image)
        shape = replace(own, depth=a.depth)
        self.fusion = Transformer(make_blocks(shape, cross=True), make_norm(shape)(own.dim))
        initialise(self.fusion)
        self.project = nn.Linear(other.dim, own.dim) if other.dim != own.dim else nn.Identity()
        self.absent = nn.Parameter(torch.randn(1, 1, own.dim) * 0.02)
        self.head = nn.Linear(own.dim, a.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        images: Tensor | None,
        tokens: Tensor | None,
        *,
        text_mask: Tensor | None = None,
        owners: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """images [B, C, H, W] or None, tokens [R, M] or None, text_mask [R, 1, 1, M] -> class scores [R, classes].

        `owners` [R] tells which picture each text is about, which is read once for all of them; without it every
        picture has R / B texts, beside each other, that share its keys and values. `trace` is of the fusion's blocks.
        Raises ValueError where both sides are missing.
        """
        if images is None and tokens is None:
            raise ValueError("a picture or a text must be given, both are missing")
        seen = None if images is None else self.image.encode(images)
        read = None if tokens is None else self.text.encode(tokens, mask=text_mask)
        if seen is not None and owners is not None:
            seen = seen[owners]
        elif seen is not None and read is not None and self.architecture.attends == "image":
            seen = seen.repeat_interleave(len(read) // len(seen), dim=0)
        if self.architecture.attends == "image":
            (x, mask), (other, other_mask) = (seen, None), (read, text_mask)
        else:
            (x, mask), (other, other_mask) = (read, text_mask), (seen, None)
        context = None if other is None else self.project(other)
        if x is None:
            assert other is not None
            x, mask = self.absent.expand(other.shape[0], -1, -1), None
        x = self.fusion.transform(x, context, mask=mask, context_mask=other_mask, trace=trace)
        return self.head(self._pool(x, mask))

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, N, D] -> [B, D]: the class token where the attending side is a picture that has one, else the mean."""
        a = self.architecture
        if a.attends == "image" and a.image.class_token:
            return x[:, 0]
        if mask is None:
            return x.mean(dim=1)
        there = mask[:, 0, 0, :, None]
        return (x * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
