"""LoRA: nothing changes at first, thin matrices alone are trained, and merging is exact."""

import copy

import pytest
import torch
from torch import nn

from vit.nn import MLP, Attention, Block, Transformer, add_lora, merged


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer([Block(Attention(16, 2), MLP(16, 32)) for _ in range(2)], nn.LayerNorm(16))


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 5, 16)).square().mean().backward()
        optimizer.step()


def test_nothing_changes_until_it_is_trained(model: Transformer) -> None:
    x = torch.randn(2, 5, 16)
    before = model(x)
    add_lora(model.blocks, rank=2, alpha=4.0)
    assert torch.equal(model(x), before)


def test_only_thin_matrices_are_trained_and_merging_gives_the_same_outputs(model: Transformer) -> None:
    plain, frozen = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    add_lora(model.blocks, rank=2, alpha=4.0)
    trained = {name for name, p in model.blocks.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * 2  # blocks, layers, up and down
    assert all(name.endswith((".up", ".down")) for name in trained)
    train(model)
    state = merged(model.state_dict())
    assert state.keys() == frozen.keys()
    changed = {name for name in state if not torch.equal(state[name], frozen[name])}
    assert {name for name in changed if name.startswith("blocks.")} == {
        f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    for i in range(2):  # what is added has the rank that was asked for
        name = f"blocks.{i}.attn.qkv.weight"
        assert torch.linalg.matrix_rank(state[name] - frozen[name], tol=1e-5) == 2
    plain.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-5)


def test_targets_choose_the_layers(model: Transformer) -> None:
    add_lora(model.blocks, rank=1, alpha=1.0, targets=("qkv",))
    trained = {name for name, p in model.blocks.named_parameters() if p.requires_grad}
    assert all(".attn.qkv." in name for name in trained)
    assert len(trained) == 4


def test_a_state_without_lora_is_left_as_it_is(model: Transformer) -> None:
    state = model.state_dict()
    assert merged(state) == dict(state)


def test_cross_attention_sees_the_adapted_rows() -> None:
    torch.manual_seed(0)
    attn = Attention(8, 2)
    blocks = nn.ModuleDict({"attn": attn})
    add_lora(blocks, rank=1, alpha=1.0, targets=("qkv",))
    x, context = torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    before = attn(x, context)
    with torch.no_grad():
        attn.qkv.parametrizations.weight[0].up.fill_(1.0)
    assert not torch.allclose(attn(x, context), before)
