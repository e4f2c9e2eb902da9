"""Models of words against torch's own transformer, norms before and after, with the same weights in fp64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit.models.encoder_decoder import EncoderDecoder
from vit.models.text import LanguageModel, TextEncoder, TextTransformer
from vit.models.text_architecture import EncoderDecoderArchitecture, TextArchitecture
from vit.nn import Attention, padding_mask

TEXT = TextArchitecture(vocabulary=11, length=12, dim=16, depth=2, heads=2, hidden=24, activation="gelu")
SIZES: dict[str, Any] = {"dim_feedforward": 24, "dropout": 0.0, "activation": "gelu", "batch_first": True}
LENGTHS = torch.tensor([7, 4])


@pytest.fixture(params=[False, True], ids=["pre-norm", "post-norm"])
def post_norm(request: pytest.FixtureRequest) -> bool:
    torch.manual_seed(0)
    return request.param


def lively(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module.double().eval()


def torchs(stack: type[nn.Module], layer: type[nn.Module], post_norm: bool) -> Any:
    """torch's stack; its norm at the end goes with norms before the branches."""
    layers = layer(16, 2, norm_first=not post_norm, **SIZES)
    more = {"enable_nested_tensor": False} if stack is nn.TransformerEncoder else {}
    return lively(stack(layers, 2, norm=None if post_norm else nn.LayerNorm(16), **more))


@torch.no_grad()
def copy_weights(ours: TextTransformer, theirs: Any) -> None:
    def copy_attention(attention: Any, other: nn.MultiheadAttention) -> None:
        assert isinstance(attention, Attention)
        attention.qkv.weight.copy_(other.in_proj_weight)
        attention.qkv.bias.copy_(other.in_proj_bias)
        attention.proj.load_state_dict(other.out_proj.state_dict())

    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        pairs = [("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "linear1"), ("mlp.fc2", "linear2")]
        copy_attention(block.attn, layer.self_attn)
        if block.cross_attn is not None:
            copy_attention(block.cross_attn, layer.multihead_attn)
            pairs[1:2] = [("cross_norm", "norm2"), ("norm2", "norm3")]
        for mine, torchs in pairs:
            block.get_submodule(mine).load_state_dict(layer.get_submodule(torchs).state_dict())
    if theirs.norm is not None:
        ours.norm.load_state_dict(theirs.norm.state_dict())


def words(count: int) -> Tensor:
    return torch.randint(0, TEXT.vocabulary, (2, count))


def later(count: int) -> Tensor:
    """True where torch must not look."""
    return torch.ones(count, count, dtype=torch.bool).triu(1)


@torch.no_grad()
def test_a_text_encoder_equals_torchs(post_norm: bool) -> None:
    ours = lively(TextEncoder(replace(TEXT, post_norm=post_norm)))
    theirs = torchs(nn.TransformerEncoder, nn.TransformerEncoderLayer, post_norm)
    copy_weights(ours, theirs)
    tokens, mask = words(7), padding_mask(LENGTHS, 7)
    expected = theirs(ours.embed(tokens), src_key_padding_mask=~mask[:, 0, 0])
    there = mask[:, 0, 0]
    torch.testing.assert_close(ours.encode(tokens, mask=mask)[there], expected[there], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_decoder_equals_torchs(post_norm: bool) -> None:
    ours = lively(LanguageModel(replace(TEXT, context_dim=16, post_norm=post_norm)))
    theirs = torchs(nn.TransformerDecoder, nn.TransformerDecoderLayer, post_norm)
    copy_weights(ours, theirs)
    tokens, context, mask = words(5), torch.randn(2, 7, 16).double(), padding_mask(LENGTHS, 7)
    hidden = theirs(ours.embed(tokens), context, tgt_mask=later(5), memory_key_padding_mask=~mask[:, 0, 0])
    expected = hidden @ ours.token_embed.weight.T
    torch.testing.assert_close(ours(tokens, context, context_mask=mask), expected, rtol=0, atol=1e-12)
    cache = ours.new_cache()
    parts = [ours(part, context, context_mask=mask, cache=cache) for part in tokens.split([2, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_encoder_and_a_decoder_equal_torchs_transformer(post_norm: bool) -> None:
    """Vaswani et al. 2017 have norms after the sums and none at the end; torch's Transformer adds one to each stack."""
    shape = replace(TEXT, post_norm=post_norm, positions="sincos")
    ours = lively(EncoderDecoder(EncoderDecoderArchitecture(shape, replace(shape, context_dim=16))))
    theirs = nn.Transformer(
        16,
        2,
        custom_encoder=torchs(nn.TransformerEncoder, nn.TransformerEncoderLayer, post_norm),
        custom_decoder=torchs(nn.TransformerDecoder, nn.TransformerDecoderLayer, post_norm),
        batch_first=True,
    ).eval()
    copy_weights(ours.encoder, theirs.encoder)
    copy_weights(ours.decoder, theirs.decoder)
    source, tokens, mask = words(7), words(5), padding_mask(LENGTHS, 7)
    hidden = theirs(
        ours.encoder.embed(source),
        ours.decoder.embed(tokens),
        tgt_mask=later(5),
        src_key_padding_mask=~mask[:, 0, 0],
        memory_key_padding_mask=~mask[:, 0, 0],
    )
    expected = hidden @ ours.decoder.token_embed.weight.T
    torch.testing.assert_close(ours(source, tokens, source_mask=mask), expected, rtol=0, atol=1e-12)
