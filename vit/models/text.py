"""Words through the same blocks: a text encoder, and a language model that writes.

Letters: B batch, N tokens, M tokens of the context, D dim, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vit.models.parts import ACTIVATIONS, make_blocks, make_norm
from vit.models.text_architecture import TextArchitecture
from vit.nn import (
    LayerCache,
    LayerScale,
    TokenEmbed,
    Trace,
    Transformer,
    angles_1d,
    new_cache,
    rotation,
    sincos_1d,
)


class TextTransformer(Transformer):
    """Token ids -> embeddings with positions -> blocks -> tokens: what reads and what writes have in common."""

    sincos: Tensor
    rotation: Tensor

    def __init__(self, architecture: TextArchitecture) -> None:
        a = architecture
        norm = make_norm(a)
        blocks = make_blocks(a, cross=a.context_dim is not None, post_norm=a.post_norm)
        super().__init__(blocks, nn.Identity() if a.post_norm else norm(a.dim))
        self.architecture = a
        self.token_embed = TokenEmbed(a.vocabulary, a.dim)
        if a.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, a.length, a.dim))
        elif a.positions == "sincos":  # fixed, so a buffer that is not saved
            self.register_buffer("sincos", sincos_1d(a.length, a.dim)[None], persistent=False)
        if a.rope:
            angles = angles_1d(a.length, a.dim // a.heads, base=a.rope_base)
            self.register_buffer("rotation", rotation(angles), persistent=False)
        self.embed_norm = norm(a.dim) if a.embed_norm else nn.Identity()
        self.embed_drop = nn.Dropout(a.dropout)
        if a.context_dim is not None and a.context_dim != a.dim:
            self.context_proj: nn.Module = nn.Linear(a.context_dim, a.dim)
        else:
            self.context_proj = nn.Identity()

    def embed(self, tokens: Tensor, *, start: int = 0) -> Tensor:
        """tokens [B, N] at positions start, start + 1, ... -> [B, N, D]. Raises ValueError beyond the last position."""
        a, end = self.architecture, start + tokens.shape[1]
        if end > a.length:
            raise ValueError(f"a text of {end} tokens is too long: this model reads at most {a.length}")
        x = self.token_embed(tokens)
        if a.positions == "learned":
            x = x + self.pos_embed[:, start:end]
        elif a.positions == "sincos":  # embeddings are made as large as the positions (Vaswani et al. 2017, 3.4)
            x = x * math.sqrt(a.dim) + self.sincos[:, start:end].to(self.token_embed.weight.dtype)
        return self.embed_drop(self.embed_norm(x))

    def read(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        causal: bool,
        cache: Sequence[LayerCache] | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """tokens [B, N], context [B, M, D] (as `project` gives it) -> [B, N, D] after the final norm."""
        start = cache[0].self_attention.length if cache is not None else 0
        x = self.embed(tokens, start=start)
        rotations = None
        if self.architecture.rope:
            rotations = [self.rotation[:, start : start + tokens.shape[1]]] * self.architecture.depth
        return self.transform(
            x,
            context,
            mask=mask,
            context_mask=context_mask,
            causal=causal,
            rotations=rotations,
            cache=cache,
            trace=trace,
        )

    def project(self, context: Tensor) -> Tensor:
        """What an encoder gives [B, M, context dim] -> what the blocks attend to [B, M, D]."""
        return self.context_proj(context)


class TextEncoder(TextTransformer):
    """Reads a whole text at once: every token attends to all tokens that `mask` lets it, or to those before it.

    `encode` gives the tokens that a decoder or a classifier attends to, `forward` one vector a text.
    """

    def __init__(self, architecture: TextArchitecture) -> None:
        super().__init__(architecture)
        a = architecture
        self.projection: nn.Module = (
            nn.Identity() if a.projection is None else nn.Linear(a.dim, a.projection, bias=False)
        )
        initialise_text(self)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None) -> Tensor:  # type: ignore[override]  # not tokens
        """tokens [B, N], mask [B, 1, 1, N] (`vit.nn.padding_mask`) -> one vector a text [B, D], or projected."""
        return self.projection(self.pool(self.encode(tokens, mask=mask, trace=trace), tokens, mask))

    def encode(self, tokens: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        """tokens [B, N], mask [B, 1, 1, N] -> [B, N, D] after the final norm."""
        return self.read(tokens, mask=mask, causal=self.architecture.causal, trace=trace)

    def pool(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D], what `encode` made of tokens [B, N] -> [B, D].

        The first, the last that is no padding, the one that ends the text, or the mean of those that are no padding.
        """
        a = self.architecture
        if a.pool == "first":
            return x[:, 0]
        if a.pool == "end":
            marks = tokens if a.end_token is None else tokens == a.end_token
            return x.take_along_dim(marks.int().argmax(dim=1)[:, None, None], dim=1)[:, 0]
        if mask is None:
            return x[:, -1] if a.pool == "last" else x.mean(dim=1)
        there = mask[:, 0, 0, :, None]
        counts = there.sum(dim=1)
        if a.pool == "last":
            return x.take_along_dim((counts - 1).clamp(min=0)[:, None], dim=1)[:, 0]
        return (x * there).sum(dim=1) / counts.clamp(min=1)


class LanguageModel(TextTransformer):
    """Writes: scores every word of the vocabulary as the next one, at every position at once (Radford et al. 2018).

    With a `context_dim` its blocks attend to a context too, which makes it the decoder of `EncoderDecoder`.
    """

    def __init__(self, architecture: TextArchitecture) -> None:
        super().__init__(architecture)
        a = architecture
        if a.head_transform:
            self.head_fc, self.head_norm = nn.Linear(a.dim, a.dim), make_norm(a)(a.dim)
            self.head_bias = nn.Parameter(torch.zeros(a.vocabulary))
        if not a.tied:
            self.head = nn.Linear(a.dim, a.vocabulary, bias=False)
        initialise_text(self)

    def forward(  # type: ignore[override]  # not tokens
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        *,
        context_mask: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """tokens [B, N], context [B, M, D] -> logits [B, N, V], those at position n of the word after it.

        Padding stands behind a text, where no word before it looks. With a `cache` the tokens follow those that it has
        seen. Raises ValueError where there are more than the model reads.
        """
        x = self.read(tokens, context, context_mask=context_mask, causal=True, cache=cache, trace=trace)
        return self.unembed(x)

    def unembed(self, x: Tensor) -> Tensor:
        """x [B, N, D] after the final norm -> logits [B, N, V]."""
        a = self.architecture
        if a.head_transform:
            x = self.head_norm(ACTIVATIONS[a.activation](self.head_fc(x)))
        logits = self.token_embed.unembed(x) if a.tied else self.head(x)
        return logits + self.head_bias if a.head_transform else logits

    def new_cache(self) -> list[LayerCache]:
        """An empty cache for one pass of generation."""
        return new_cache(self.architecture.depth)


def initialise_text(model: TextTransformer) -> None:
    """Fresh weights as GPT-2 has them (Radford et al. 2019; its code, and nanoGPT's reading of it).

    | parameter | values |
    | --- | --- |
    | matrices, learned positions | normal(0, 0.02); what writes to the residual stream / sqrt(branches) |
    | embedding | normal(0, 0.02), or normal(0, 1 / sqrt(D)) beside sine positions |
    | biases | 0 |
    """
    a = model.architecture
    branches = a.depth * (3 if a.context_dim is not None else 2)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            writes = name.endswith((".proj", ".fc2"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(branches) if writes else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale) and a.layer_scale is not None:
            nn.init.constant_(module.gamma, a.layer_scale)
    nn.init.normal_(model.token_embed.weight, std=a.dim**-0.5 if a.positions == "sincos" else 0.02)
    if a.positions == "learned":
        nn.init.normal_(model.pos_embed, std=0.02)
