"""What a transformer is: attention, blocks, embeddings, positions, pooling. Knows neither pictures nor words."""

from vit.nn.attention import Attention
from vit.nn.block import Block, LayerScale, drop_path
from vit.nn.embeddings import PatchEmbed, TokenEmbed, resample_patches, whole_patches
from vit.nn.functional import attention, attention_weights, causal_mask, padding_mask
from vit.nn.lora import add_lora, merged
from vit.nn.mlp import MLP, SwiGLU, gelu_tanh, quick_gelu
from vit.nn.pooling import LatentPool
from vit.nn.positions import resample_positions, sincos_1d, sincos_2d
from vit.nn.rotary import MixedAngles, angles_1d, angles_2d, centred_coordinates, grid_coordinates, rotate, rotation
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
    "MixedAngles",
    "PatchEmbed",
    "Record",
    "SwiGLU",
    "TokenEmbed",
    "Trace",
    "Transformer",
    "add_lora",
    "angles_1d",
    "angles_2d",
    "attention",
    "attention_weights",
    "causal_mask",
    "centred_coordinates",
    "drop_path",
    "gelu_tanh",
    "grid_coordinates",
    "merged",
    "new_cache",
    "padding_mask",
    "quick_gelu",
    "resample_patches",
    "resample_positions",
    "rotate",
    "rotation",
    "sincos_1d",
    "sincos_2d",
    "whole_patches",
]
