"""Muon against torch's own, AdamW's part against torch's AdamW, and what the steps look like."""

import copy

import torch
from torch import nn

from vit.tasks.config import OptimConfig
from vit.tasks.muon import Muon, orthogonalised
from vit.tasks.optim import make_optimizer, parameter_groups


def _steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def _fresh(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def test_matrices_take_the_steps_of_torchs_muon() -> None:
    """torch's works in bf16, hence the tolerance: a hundredth of the size of the steps."""
    shapes = ((12, 20), (20, 12), (12, 20), (16, 16))
    ours, theirs = _fresh(*shapes), _fresh(*shapes)
    mine = _steps(ours, Muon([{"params": ours, "matrices": True}], 0.01, weight_decay=0.1))
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for one, other in zip(mine, _steps(theirs, reference), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-4)


def test_all_else_takes_the_steps_of_torchs_adamw() -> None:
    ours, theirs = _fresh((7,), (3, 4, 5)), _fresh((7,), (3, 4, 5))
    mine = _steps(ours, Muon(ours, 0.01, betas=(0.8, 0.95), weight_decay=0.1))
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for one, other in zip(mine, _steps(theirs, reference), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_queries_keys_and_values_are_matrices_of_their_own() -> None:
    (together,), apart = _fresh((24, 8)), _fresh((8, 8), (8, 8), (8, 8))
    gradient = torch.randn(24, 8)
    together.grad = gradient
    before = together.detach().clone()
    Muon([{"params": [together], "matrices": True, "parts": 3}], 0.1, weight_decay=0.0).step()
    for parameter, part, rows in zip(apart, gradient.chunk(3), before.chunk(3), strict=True):
        parameter.data, parameter.grad = rows.clone(), part.clone()
    Muon([{"params": apart, "matrices": True}], 0.1, weight_decay=0.0).step()
    torch.testing.assert_close(together.detach(), torch.cat([p.detach() for p in apart]))


def test_singular_values_come_near_one() -> None:
    matrices = torch.randn(3, 20, 12) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_only_hidden_matrices_are_made_orthogonal() -> None:
    network = nn.Module()
    network.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 4, 8)))
    network.blocks = nn.ModuleList([nn.Module()])
    network.blocks[0].qkv, network.blocks[0].fc1 = nn.Linear(8, 24), nn.Linear(8, 16)
    network.head = nn.Linear(8, 2)
    config = OptimConfig(name="muon", lr=0.01)
    groups = parameter_groups(network, 1, config)
    matrices = {name: group["parts"] for group in groups if group.get("matrices") for name in group["names"]}
    assert matrices == {"blocks.0.qkv.weight": 3, "blocks.0.fc1.weight": 1}
    assert sum(len(group["params"]) for group in groups) == 7
    assert isinstance(make_optimizer(groups, config, fused=False), Muon)


def test_its_state_goes_on_where_it_was_left() -> None:
    ours, again = _fresh((6, 5), (4,)), _fresh((6, 5), (4,))

    def made(parameters: list[nn.Parameter]) -> Muon:
        return Muon([{"params": parameters[:1], "matrices": True}, {"params": parameters[1:]}], 0.01)

    optimizer, other = made(ours), made(again)
    _steps(ours, optimizer)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, two in zip(ours, again, strict=True):
        two.data = one.detach().clone()
    for one, two in zip(_steps(ours, optimizer), _steps(again, other), strict=True):
        assert torch.equal(one, two)


def test_a_step_that_is_no_number_changes_no_weight_and_the_next_ones_are_taken() -> None:
    parameters = _fresh((6, 5), (4,))
    optimizer = Muon([{"params": parameters[:1], "matrices": True}, {"params": parameters[1:]}], 0.01)
    _steps(parameters, optimizer)
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad[2, 3] = torch.nan
    parameters[1].grad[0] = torch.inf
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))
    optimizer.found_inf = torch.tensor(0.0)
    for after, old in zip(_steps(parameters, optimizer, 1), before, strict=True):
        assert after.isfinite().all()
        assert (after != old).all()
