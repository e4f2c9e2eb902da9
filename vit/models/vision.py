"""A Vision Transformer (Dosovitskiy et al. 2020): patches in, one vector or class scores out.

Letters: B batch, C channels, H W height and width in pixels, N patches, P prefix tokens, D dim.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.models.architecture import VisionArchitecture
from vit.nn import (
    MLP,
    Attention,
    Block,
    LatentPool,
    PatchEmbed,
    SwiGLU,
    Trace,
    Transformer,
    gelu_tanh,
    quick_gelu,
    resample_positions,
    sincos_2d,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


class VisionTransformer(Transformer):
    """Pictures -> patches -> tokens with positions -> blocks -> pool -> head.

    Parameter names are timm's. `forward` is `head(features(images))`; `encode` gives the tokens that a decoder
    attends to.
    """

    sincos: Tensor

    def __init__(self, architecture: VisionArchitecture) -> None:
        a = architecture
        norm = partial(nn.LayerNorm, eps=a.norm_eps)
        super().__init__(_blocks(a, norm), norm(a.dim))
        self.architecture = a
        self.patch_embed = PatchEmbed(a.patch_size, a.channels, a.dim)
        if a.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, a.dim))
        if a.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, a.registers, a.dim))
        self._add_positions(a)
        self.pos_drop = nn.Dropout(a.dropout)
        if a.pool == "attention":
            self.attn_pool = LatentPool(_attention(a), _mlp(a), norm(a.dim))
        self.head: nn.Module = nn.Linear(a.dim, a.classes) if a.classes else nn.Identity()
        initialise(self)

    def forward(self, images: Tensor, *, trace: Trace | None = None) -> Tensor:  # type: ignore[override]  # not tokens
        """images [B, C, H, W] -> class scores [B, classes]."""
        return self.head(self.features(images, trace=trace))

    def features(self, images: Tensor, *, trace: Trace | None = None) -> Tensor:
        """images [B, C, H, W] -> one vector a picture [B, D], what the head sees."""
        return self.pool(self.encode(images, trace=trace), trace=trace)

    def encode(self, images: Tensor, *, trace: Trace | None = None) -> Tensor:
        """images [B, C, H, W] -> tokens [B, P + N, D] after the final norm: class token, registers, patches."""
        return self.transform(self.embed(images), trace=trace)

    def embed(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> tokens [B, P + N, D] before the first block.

        H and W may differ from the architecture's; learned positions are then resampled. Raises ValueError where
        the patch does not divide them.
        """
        x = self.patch_embed(images)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        prefix = [p.expand(x.shape[0], -1, -1) for p in (self._cls_token(), self._reg_token()) if p is not None]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        return self.pos_drop(self._with_positions(x, grid))

    def pool(self, tokens: Tensor, *, trace: Trace | None = None) -> Tensor:
        """tokens [B, P + N, D] -> [B, D]: the class token, the mean of the patches, or attention pooling."""
        if self.architecture.pool == "class":
            return tokens[:, 0]
        if self.architecture.pool == "mean":
            return tokens[:, self.architecture.prefix :].mean(dim=1)
        return self.attn_pool(tokens, trace=None if trace is None else trace.pool)

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one with `classes` outputs (0: none)."""
        self.architecture = replace(self.architecture, classes=classes)
        like = self.norm.weight  # the head belongs where the rest of the model is
        dim = self.architecture.dim
        self.head = nn.Linear(dim, classes, device=like.device, dtype=like.dtype) if classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def _cls_token(self) -> Tensor | None:
        return self.cls_token if self.architecture.class_token else None

    def _reg_token(self) -> Tensor | None:
        return self.reg_token if self.architecture.registers else None

    def _add_positions(self, a: VisionArchitecture) -> None:
        if a.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, a.prefix + a.grid[0] * a.grid[1], a.dim))
        elif a.positions == "sincos":  # fixed, so a buffer that is not saved
            self.register_buffer("sincos", sincos_2d(*a.grid, a.dim)[None], persistent=False)

    def _with_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        a = self.architecture
        if a.positions == "learned":
            return x + resample_positions(self.pos_embed, a.grid, grid, prefix=a.prefix)
        if a.positions == "sincos":
            fixed = self.sincos if grid == a.grid else sincos_2d(*grid, a.dim)[None].to(self.sincos)
            return torch.cat([x[:, : a.prefix], x[:, a.prefix :] + fixed], dim=1)  # fp32 under autocast, like learned
        return x


def _blocks(a: VisionArchitecture, norm: partial[nn.LayerNorm]) -> list[Block]:
    rates = torch.linspace(0, a.drop_path, a.depth, device="cpu").tolist()  # numbers, also under a meta device
    return [Block(_attention(a), _mlp(a), norm=norm, layer_scale=a.layer_scale, drop_path=rate) for rate in rates]


def _attention(a: VisionArchitecture) -> Attention:
    qk_norm = partial(nn.LayerNorm, eps=a.norm_eps) if a.qk_norm else None
    return Attention(
        a.dim,
        a.heads,
        bias=a.qkv_bias,
        qk_norm=qk_norm,
        attention_dropout=a.attention_dropout,
        dropout=a.dropout,
    )


def _mlp(a: VisionArchitecture) -> nn.Module:
    if a.mlp == "swiglu":
        return SwiGLU(a.dim, a.hidden, dropout=a.dropout)
    return MLP(a.dim, a.hidden, activation=ACTIVATIONS[a.activation], dropout=a.dropout)


def initialise(model: VisionTransformer) -> None:
    """Fresh weights, as in the paper's JAX code (Dosovitskiy et al. 2020, google-research/vision_transformer).

    | parameter | values |
    | --- | --- |
    | q, k, v, output projection, MLP | Xavier uniform, each of q, k, v as a matrix of its own |
    | biases | 0, of the MLP normal(0, 1e-6) |
    | patch embedding | LeCun normal, truncated |
    | positions, registers, pooling query | normal(0, 0.02) |
    | class token, head | 0 |
    | norms, LayerScale | 1 and 0; LayerScale its initial value |
    """
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
                nn.init.normal_(linear.bias, std=1e-6)
        elif isinstance(module, PatchEmbed):
            # cutting a normal at two standard deviations leaves 0.8796 of its spread
            std = math.sqrt(1 / module.proj.weight[0].numel()) / 0.87962566
            nn.init.trunc_normal_(module.proj.weight, std=std, a=-2 * std, b=2 * std)
            if module.proj.bias is not None:
                nn.init.zeros_(module.proj.bias)
        elif isinstance(module, LatentPool):
            nn.init.normal_(module.latent, std=0.02)
    for name in ("pos_embed", "reg_token"):
        if (parameter := getattr(model, name, None)) is not None:
            nn.init.normal_(parameter, std=0.02)
    model.reset_head(model.architecture.classes)
