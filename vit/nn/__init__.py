"""What a transformer is: attention, blocks, embeddings, positions, pooling. Knows neither pictures nor words."""

from vit.nn.attention import Attention
from vit.nn.block import Block, LayerScale, drop_path
from vit.nn.embeddings import PatchEmbed, TokenEmbed
from vit.nn.functional import attention, attention_weights, causal_mask, padding_mask
from vit.nn.mlp import MLP, SwiGLU, gelu_tanh, quick_gelu
from vit.nn.pooling import LatentPool
from vit.nn.positions import resample_positions, sincos_1d, sincos_2d
from vit.nn.state import KeyValues, LayerCache, Record, Trace, new_cache
from vit.nn.transformer import Transformer

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "KeyValues",
    "LatentPool",
    "LayerCache",
    "LayerScale",
    "PatchEmbed",
    "Record",
    "SwiGLU",
    "TokenEmbed",
    "Trace",
    "Transformer",
    "attention",
    "attention_weights",
    "causal_mask",
    "drop_path",
    "gelu_tanh",
    "new_cache",
    "padding_mask",
    "quick_gelu",
    "resample_positions",
    "sincos_1d",
    "sincos_2d",
]
