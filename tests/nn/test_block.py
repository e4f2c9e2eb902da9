"""The block against torch's own layers, norms before and after, and its parts against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit.nn import MLP, Attention, Block, LayerScale, SwiGLU, TokenEmbed, drop_path, gelu_tanh, quick_gelu

B, N, M, D, H = 3, 5, 7, 24, 3


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    ours.qkv.weight.copy_(theirs.in_proj_weight)
    ours.qkv.bias.copy_(theirs.in_proj_bias)
    ours.proj.load_state_dict(theirs.out_proj.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("post_norm", [False, True])
def test_a_block_equals_torchs_encoder_layer(post_norm: bool) -> None:
    theirs = nn.TransformerEncoderLayer(D, H, 2 * D, 0.0, F.gelu, batch_first=True, norm_first=not post_norm)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = Block(Attention(D, H), MLP(D, 2 * D), post_norm=post_norm)
    copy_attention(ours.attn, theirs.self_attn)
    for mine, torchs in (
        (ours.norm1, theirs.norm1),
        (ours.norm2, theirs.norm2),
        (ours.mlp.fc1, theirs.linear1),
        (ours.mlp.fc2, theirs.linear2),
    ):
        mine.load_state_dict(torchs.state_dict())
    x = torch.randn(B, N, D)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    causal = nn.Transformer.generate_square_subsequent_mask(N)
    torch.testing.assert_close(ours(x, causal=True), theirs(x, src_mask=causal), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("post_norm", [False, True])
def test_a_block_with_a_context_equals_torchs_decoder_layer(post_norm: bool) -> None:
    theirs = nn.TransformerDecoderLayer(D, H, 2 * D, 0.0, F.gelu, batch_first=True, norm_first=not post_norm)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = Block(Attention(D, H), MLP(D, 2 * D), cross_attn=Attention(D, H), post_norm=post_norm)
    copy_attention(ours.attn, theirs.self_attn)
    copy_attention(ours.cross_attn, theirs.multihead_attn)
    for mine, torchs in (
        (ours.norm1, theirs.norm1),
        (ours.cross_norm, theirs.norm2),
        (ours.norm2, theirs.norm3),
        (ours.mlp.fc1, theirs.linear1),
        (ours.mlp.fc2, theirs.linear2),
    ):
        mine.load_state_dict(torchs.state_dict())
    x, context = torch.randn(B, N, D), torch.randn(B, M, D)
    padded = torch.zeros(B, M, dtype=torch.bool)
    padded[1, 4:] = True
    causal = torch.ones(N, N, dtype=torch.bool).triu(1)
    expected = theirs(x, context, tgt_mask=causal, memory_key_padding_mask=padded)
    output = ours(x, context, causal=True, context_mask=~padded[:, None, None])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_a_block_with_cross_attention_skips_it_without_a_context() -> None:
    with_cross, without = (Block(Attention(D, H), MLP(D, D), cross_attn=cross) for cross in (Attention(D, H), None))
    without.load_state_dict(with_cross.state_dict(), strict=False)
    x = torch.randn(B, N, D)
    assert torch.equal(with_cross(x), without(x))


def test_a_context_for_a_block_without_cross_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="no cross-attention"):
        Block(Attention(D, H), MLP(D, D))(torch.randn(B, N, D), torch.randn(B, M, D))


def test_layer_scale_multiplies_each_branch() -> None:
    x = torch.randn(B, N, D)
    assert torch.equal(LayerScale(D, 0.25)(x), 0.25 * x)
    block = Block(Attention(D, H), MLP(D, D), cross_attn=Attention(D, H), layer_scale=0.0)
    assert torch.equal(block(x, torch.randn(B, M, D)), x)
    for scale, other in ((block.ls1, block.attn), (block.cross_ls, block.cross_attn), (block.ls2, block.mlp)):
        with torch.no_grad():
            scale.gamma.fill_(1.0)
        changed = block(x, torch.randn(B, M, D))
        assert not torch.equal(changed, x), other
        with torch.no_grad():
            scale.gamma.zero_()


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    x = torch.ones(4000, 2, 3)
    y = drop_path(x, 0.25)
    assert (y == y[:, :1, :1]).all()
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.046)  # five standard deviations of the mean


def test_a_block_drops_paths_in_training_alone_and_each_branch_by_itself() -> None:
    block = Block(Attention(D, H), MLP(D, D), drop_path=0.5)
    with torch.no_grad():  # one branch remains: what it adds is either nothing or twice itself
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
    x = torch.randn(64, N, D)
    branch = block.eval()(x) - x
    assert torch.equal(block(x), block(x))
    added = block.train()(x) - x
    dropped = added.abs().amax((1, 2)) == 0
    assert 16 < dropped.sum() < 48
    torch.testing.assert_close(added[~dropped], 2 * branch[~dropped], rtol=0, atol=1e-5)


def test_mlp_and_swiglu_are_their_formulas() -> None:
    x = torch.randn(B, N, D)
    mlp = MLP(D, 10)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    expected = (0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-6)
    glu = SwiGLU(D, 10)
    both = x @ glu.fc1.weight.T + glu.fc1.bias
    gate, value = both[..., :10], both[..., 10:]
    expected = (gate / (1 + (-gate).exp()) * value) @ glu.fc2.weight.T + glu.fc2.bias
    torch.testing.assert_close(glu(x), expected, rtol=0, atol=1e-6)


def test_activations_are_their_formulas() -> None:
    x = torch.linspace(-6, 6, 101)
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(gelu_tanh(x), tanh, rtol=0, atol=1e-6)
    torch.testing.assert_close(quick_gelu(x), x / (1 + (-1.702 * x).exp()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("module", [MLP(D, 10, dropout=0.5), SwiGLU(D, 10, dropout=0.5)])
def test_dropout_acts_in_training_alone(module: nn.Module) -> None:
    x = torch.randn(B, N, D)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize("count", [N, 100])
def test_token_embedding_and_its_transpose_share_one_weight(count: int) -> None:
    embed = TokenEmbed(11, D)
    ids = torch.randint(11, (B, count))
    x = embed(ids)
    assert torch.equal(x, embed.weight[ids])
    logits = embed.unembed(x)
    torch.testing.assert_close(logits, torch.einsum("bnd,vd->bnv", x, embed.weight), rtol=0, atol=1e-5)
    assert [name for name, _ in embed.named_parameters()] == ["weight"]


def test_stochastic_depth_skips_the_work_of_dropped_samples_and_keeps_the_expectation() -> None:
    seen: list[int] = []
    block = Block(Attention(D, H), MLP(D, D), drop_path=0.25)
    block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    x = torch.randn(16, N, D)
    plain, total = block.eval()(x), torch.zeros_like(x)
    block.train()
    with torch.no_grad():
        for _ in range(600):
            total += block(x)
    assert seen == [16] + [12] * 600
    # the second branch sees the first, so only roughly the mean
    assert ((total / 600 - plain).abs().mean() / (plain - x).abs().mean()) < 0.25
    untouched = sum(bool(torch.equal(row, before)) for row, before in zip(block(x), x, strict=True))
    assert untouched <= 4


def test_stochastic_depth_of_a_batch_that_would_drop_every_sample() -> None:
    block = Block(Attention(D, H), MLP(D, D), drop_path=0.6).train()
    for size in (1, 2):
        assert block(torch.randn(size, N, D)).isfinite().all()
