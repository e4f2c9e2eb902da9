"""What the tests of `vit.nn` share: a fixed seed, and a small transformer whose every parameter is random."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from vit.nn import MLP, Attention, Block, Transformer


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomise() -> Callable[[nn.Module], None]:
    """Give every parameter, also the biases and norms that start at 0 and 1, a value of its own."""

    def change(module: nn.Module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)

    return change


@pytest.fixture
def make_transformer(randomise: Callable[[nn.Module], None]) -> Callable[..., Transformer]:
    def make(*, dim: int = 32, heads: int = 4, depth: int = 3, cross: bool = False, qk_norm: bool = False):
        attn = partial(Attention, dim, heads, qk_norm=nn.LayerNorm if qk_norm else None)
        blocks = [
            Block(attn(), MLP(dim, 2 * dim), cross_attn=attn() if cross else None, layer_scale=0.7)
            for _ in range(depth)
        ]
        model = Transformer(blocks, nn.LayerNorm(dim))
        randomise(model)
        return model

    return make
