"""A Vision Transformer (Dosovitskiy et al. 2020): patches in, one vector or class scores out.

Letters: B batch, C channels, H W height and width in pixels, N patches, P prefix tokens, D dim.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vit.models.architecture import VisionArchitecture
from vit.models.parts import ACTIVATIONS, make_blocks, make_norm
from vit.models.tensors import load_exactly, require_blocks
from vit.nn import (
    MLP,
    Attention,
    LatentPool,
    MixedAngles,
    PatchEmbed,
    SwiGLU,
    Trace,
    Transformer,
    angles_2d,
    centred_coordinates,
    grid_coordinates,
    resample_patches,
    resample_positions,
    rotation,
    sincos_2d,
)

_TABLES = 64
"""tables of grids that a model keeps, at the most: pictures may come in any size"""


class VisionTransformer(Transformer):
    """Pictures -> patches -> tokens with positions -> blocks -> pool -> head.

    Parameter names are timm's. `forward` is `score(encode(images))`, for all but distilled models the same as
    `head(features(images))`; `encode` gives the tokens that a decoder attends to.
    """

    sincos: Tensor
    rotation: Tensor

    def __init__(self, architecture: VisionArchitecture) -> None:
        a = architecture
        norm = make_norm(a)
        super().__init__(make_blocks(a), norm(a.dim) if a.final_norm == "tokens" else nn.Identity())
        self.architecture = a
        self.patch_embed = _patch_embed(a)
        if a.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, a.dim))
        if a.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, a.dim))
        if a.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, a.registers, a.dim))
        self._add_positions(a)
        self.pos_drop = nn.Dropout(a.dropout)
        self.norm_pre = norm(a.dim) if a.pre_norm else nn.Identity()
        if a.pool == "attention":
            self.attn_pool = _latent_pool(a)
        self.fc_norm = norm(a.dim) if a.final_norm == "pooled" else nn.Identity()
        self.head: nn.Module = self._new_head(a.classes)
        if a.distilled:
            self.head_dist: nn.Module = self._new_head(a.classes)
        initialise(self)

    def forward(self, images: Tensor, *, trace: Trace | None = None) -> Tensor:  # type: ignore[override]  # not tokens
        """images [B, C, H, W] -> class scores [B, classes]."""
        return self.score(self.encode(images, trace=trace), trace=trace)

    def score(self, tokens: Tensor, *, trace: Trace | None = None) -> Tensor:
        """tokens [B, P + N, D] after the final norm -> class scores [B, classes]."""
        if self.architecture.distilled:
            return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2
        return self.head(self.fc_norm(self.pool(tokens, trace=trace)))

    def features(self, images: Tensor, *, trace: Trace | None = None) -> Tensor:
        """images [B, C, H, W] -> one vector a picture [B, D], what the head sees."""
        return self.fc_norm(self.pool(self.encode(images, trace=trace), trace=trace))

    def encode(self, images: Tensor, *, trace: Trace | None = None) -> Tensor:
        """images [B, C, H, W] -> tokens [B, P + N, D] after the final norm: class token, registers, patches."""
        rows, columns = self.architecture.patch_size
        grid = (images.shape[-2] // rows, images.shape[-1] // columns)
        return self.transform(self.embed(images), rotations=self._rotations(grid), trace=trace)

    def embed(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> tokens [B, P + N, D] before the first block.

        H and W may differ from the architecture's; learned positions are then resampled. Raises ValueError where
        the patch does not divide them, unless it does not divide the architecture's image size either: such a model
        ignores the pixels at the bottom and right that do not fill a patch.
        """
        x = self.patch_embed(images)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        prefix = [p.expand(x.shape[0], -1, -1) for p in self._prefix_tokens()]
        if not self.architecture.prefix_positions:
            x = self._with_positions(x, grid)
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        if self.architecture.prefix_positions:
            x = self._with_positions(x, grid)
        if self.training and self.architecture.patch_dropout:
            x = some_patches(x, self.architecture.prefix, self.architecture.patch_dropout)
        return self.norm_pre(self.pos_drop(x))

    def pool(self, tokens: Tensor, *, trace: Trace | None = None) -> Tensor:
        """tokens [B, P + N, D] -> [B, D]: the class token, the mean of the patches, or attention pooling.

        With a distillation token, the mean of it and the class token.
        """
        a = self.architecture
        if a.pool == "class":
            return tokens[:, :2].mean(dim=1) if a.distilled else tokens[:, 0]
        if a.pool == "mean":
            return tokens[:, a.prefix :].mean(dim=1)
        tokens = tokens if a.pool_prefix else tokens[:, a.prefix :]
        return self.attn_pool(tokens, trace=None if trace is None else trace.pool)

    def compile(self, **options: Any) -> None:
        """As torch's `nn.Module.compile`; the tables of a grid become constants of its graph, made once there too."""
        torch.compiler.assume_constant_result(VisionTransformer._table)  # here, as it takes a second to import
        super().compile(**options)

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one with `classes` outputs (0: none), its weights zero."""
        self.architecture = replace(self.architecture, classes=classes)
        self.head = self._new_head(classes)
        if self.architecture.distilled:
            self.head_dist = self._new_head(classes)

    def set_input_size(
        self, image_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the picture size, the patch size or both: resamples learned positions and the patch embedding.

        Raises ConfigError where the patch does not divide the picture.
        """
        old = self.architecture
        new = replace(old, image_size=image_size or old.image_size, patch_size=patch_size or old.patch_size)
        if (new.image_size, new.patch_size) != (old.image_size, old.patch_size):
            new.require_whole_patches()
        state, like = resampled(self.state_dict(), old, new), self.patch_embed.proj.weight
        self.architecture = new
        self.patch_embed = _patch_embed(new)
        self._add_positions(new)
        self.to(like.device, like.dtype).load_state_dict(state)

    def _new_head(self, classes: int) -> nn.Module:
        if not classes:
            return nn.Identity()
        like = self.patch_embed.proj.weight  # the head belongs where the rest of the model is
        head = nn.Linear(self.architecture.dim, classes, device=like.device, dtype=like.dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def _prefix_tokens(self) -> list[Tensor]:
        a = self.architecture
        there = {"cls_token": a.class_token, "dist_token": a.distilled, "reg_token": a.registers > 0}
        return [getattr(self, name) for name, wanted in there.items() if wanted]

    def _add_positions(self, a: VisionArchitecture) -> None:
        self._tables: dict[tuple[str, tuple[int, int], torch.device, torch.dtype], Tensor] = {}
        if a.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, a.positioned + a.grid[0] * a.grid[1], a.dim))
        elif a.positions == "sincos":  # fixed, so a buffer that is not saved
            self.register_buffer("sincos", sincos_2d(*a.grid, a.dim)[None], persistent=False)
        if a.rope is not None and a.rope.kind == "mixed":
            self.rope = MixedAngles(a.depth, a.heads, a.dim // a.heads, base=a.rope.base)
        elif a.rope is not None:
            self.register_buffer("rotation", _rotation(a, a.grid), persistent=False)

    def _with_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        a = self.architecture
        if a.positions == "learned":
            return x + resample_positions(self.pos_embed, a.grid, grid, prefix=a.positioned)
        if a.positions == "sincos":
            fixed = self.sincos if grid == a.grid else self._table("sincos", grid, self.sincos.dtype)
            fixed = fixed.to(self.patch_embed.proj.weight.dtype)  # weights from a file in bf16 leave the table in fp32
            patches = x.shape[1] - fixed.shape[1]
            return torch.cat([x[:, :patches], x[:, patches:] + fixed], dim=1)  # fp32 under autocast, like learned
        return x

    def _rotations(self, grid: tuple[int, int]) -> Sequence[Tensor] | None:
        """Rotary positions for every block, or None."""
        a = self.architecture
        if a.rope is None:
            return None
        if a.rope.kind == "mixed":
            angles = self.rope(self._table("coordinates", grid, torch.float32))
            return rotation(angles, a.prefix).unbind(1)
        one = self.rotation if grid == a.grid else self._table("rotation", grid, self.rotation.dtype)
        return [one] * a.depth

    def _table(self, kind: str, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Fixed numbers of any grid, made once: a GPU that is to copy them at every step would be waited for."""
        a = self.architecture
        key = (kind, grid, self.patch_embed.proj.weight.device, dtype)
        if key not in self._tables:
            if len(self._tables) == _TABLES:
                self._tables.clear()
            with torch.inference_mode(False):  # training must be able to use what validation made
                if kind == "sincos":
                    made = sincos_2d(*grid, a.dim)[None]
                elif kind == "rotation":
                    made = _rotation(a, grid)
                else:
                    assert a.rope is not None
                    made = grid_coordinates(*grid, order=a.rope.order)
                self._tables[key] = made.to(key[2], dtype)
        return self._tables[key]


def some_patches(x: Tensor, prefix: int, dropout: float) -> Tensor:
    """tokens [B, P + N, D] -> [B, P + M, D]: the prefix tokens, and M = N - round(N * dropout) >= 1 patches.

    Other ones of each picture, at random (Liu et al. 2023, PatchDropout).
    """
    count = x.shape[1] - prefix
    kept = torch.rand(x.shape[0], count, device=x.device).argsort(dim=1)[:, : max(1, count - round(count * dropout))]
    patches = x[:, prefix:].gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
    return torch.cat([x[:, :prefix], patches], dim=1)


def with_weights(architecture: VisionArchitecture, state: Mapping[str, Tensor]) -> VisionTransformer:
    """A network that holds the tensors of `state` themselves: no time is spent on drawing weights to be replaced.

    Raises ValueError naming the first tensor that is missing, not expected, or of another shape.
    """
    require_blocks(state, architecture.depth)
    with torch.device("meta"):
        network = VisionTransformer(architecture)
    load_exactly(network, state)
    return network


def resampled(state: Mapping[str, Tensor], old: VisionArchitecture, new: VisionArchitecture) -> dict[str, Tensor]:
    """A state for the picture and patch size of `new`: learned positions and the patch embedding are resampled."""
    state = dict(state)
    if "pos_embed" in state:
        state["pos_embed"] = resample_positions(state["pos_embed"], old.grid, new.grid, prefix=old.positioned)
    state["patch_embed.proj.weight"] = resample_patches(state["patch_embed.proj.weight"], new.patch_size)
    return state


def _rotation(a: VisionArchitecture, grid: tuple[int, int]) -> Tensor:
    """Cosines and sines [2, P + N, K / 2] of rotary positions that are not learned."""
    assert a.rope is not None
    if a.rope.kind == "centred":
        coordinates = centred_coordinates(*grid, order=a.rope.order)
    else:
        coordinates = grid_coordinates(*grid, order=a.rope.order, offset=a.rope.offset, reference=a.rope.reference)
    return rotation(angles_2d(coordinates, a.dim // a.heads, base=a.rope.base), a.prefix)


def _patch_embed(a: VisionArchitecture) -> PatchEmbed:
    norm = make_norm(a)(a.dim) if a.patch_norm else None
    partial = not a.has_whole_patches
    return PatchEmbed(a.patch_size, a.channels, a.dim, bias=not a.pre_norm, norm=norm, partial=partial)


def _latent_pool(a: VisionArchitecture) -> LatentPool:
    heads, hidden = a.pool_heads or a.heads, a.pool_hidden or a.hidden
    attn = Attention(a.dim, heads, attention_dropout=a.attention_dropout, dropout=a.dropout)
    return LatentPool(
        attn, MLP(a.dim, hidden, activation=ACTIVATIONS[a.activation], dropout=a.dropout), make_norm(a)(a.dim)
    )


def initialise(model: nn.Module) -> None:
    """Fresh weights, as in the paper's JAX code (Dosovitskiy et al. 2020, google-research/vision_transformer).

    | parameter | values |
    | --- | --- |
    | q, k, v, output projection, MLP | Xavier uniform, each of q, k, v as a matrix of its own |
    | biases | 0, of the MLP normal(0, 1e-6) |
    | patch embedding | LeCun normal, truncated |
    | positions, registers, distillation token, pooling query | normal(0, 0.02) |
    | class token, head | 0 |
    | norms, LayerScale | 1 and 0; LayerScale its initial value |
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # no numbers yet; drawing them all the same would take torch a second of imports
    for module in model.modules():
        if isinstance(module, Attention):
            bound = math.sqrt(6 / (2 * module.dim))
            nn.init.uniform_(module.qkv.weight, -bound, bound)
            nn.init.xavier_uniform_(module.proj.weight)
            for bias in (module.qkv.bias, module.proj.bias):
                if bias is not None:
                    nn.init.zeros_(bias)
        elif isinstance(module, MLP | SwiGLU):
            for linear in (module.fc1, module.fc2):
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.normal_(linear.bias, std=1e-6)
        elif isinstance(module, PatchEmbed):
            # cutting a normal at two standard deviations leaves 0.8796 of its spread
            std = math.sqrt(1 / module.proj.weight[0].numel()) / 0.87962566
            nn.init.trunc_normal_(module.proj.weight, std=std, a=-2 * std, b=2 * std)
            if module.proj.bias is not None:
                nn.init.zeros_(module.proj.bias)
        elif isinstance(module, LatentPool):
            nn.init.normal_(module.latent, std=0.02)
    for name in ("pos_embed", "reg_token", "dist_token"):
        if (parameter := getattr(model, name, None)) is not None:
            nn.init.normal_(parameter, std=0.02)
