"""Which parameter learns how fast: layers, decay, groups, and what an optimizer makes of them."""

from typing import Any

import pytest
import torch
from torch import nn

from vit.errors import ConfigError
from vit.models.architecture import VisionArchitecture
from vit.models.vision import VisionTransformer
from vit.tasks.config import OptimConfig, ScheduleConfig
from vit.tasks.optim import decays, layer_of, make_optimizer, make_schedule, parameter_groups

DEPTH = 2


@pytest.fixture
def network() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        VisionArchitecture(
            (16, 16), (8, 8), 32, DEPTH, 2, 48, classes=3, registers=2, pool="attention", layer_scale=0.1, qk_norm=True
        )
    )


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_parameter_is_in_exactly_one_group(network: VisionTransformer, layer_decay: float) -> None:
    groups = parameter_groups(network, DEPTH, OptimConfig(layer_decay=layer_decay))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())


def test_frozen_parameters_are_in_no_group(network: VisionTransformer) -> None:
    network.blocks[0].requires_grad_(False)
    names = [name for group in parameter_groups(network, DEPTH, OptimConfig()) for name in group["names"]]
    assert names
    assert not any(name.startswith("blocks.0.") for name in names)


def test_layers_count_from_the_embeddings_through_the_blocks_to_the_head(network: VisionTransformer) -> None:
    layers = {name: layer_of(name, DEPTH) for name, _ in network.named_parameters()}
    assert {name for name, layer in layers.items() if layer == 0} == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "pos_embed",
        "cls_token",
        "reg_token",
    }
    for block in range(DEPTH):
        inside = {name for name in layers if name.startswith(f"blocks.{block}.")}
        final = {name for name in layers if name.startswith("norm.") and block == DEPTH - 1}
        assert inside | final == {name for name, layer in layers.items() if layer == block + 1}
    behind = {name.partition(".")[0] for name, layer in layers.items() if layer == DEPTH + 1}
    assert behind == {"attn_pool", "head"}
    assert layer_of("blocks.11.norm1.weight", 12) == 12


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("VisionTransformer", {}),
        ("VisionTransformer", {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True}),
        ("VisionTransformer", {"global_pool": "avg", "fc_norm": True}),
        ("VisionTransformer", {"global_pool": "avg", "fc_norm": False, "class_token": False}),
        ("VisionTransformer", {"global_pool": "map", "class_token": False}),
        ("VisionTransformer", {"pre_norm": True}),
        ("VisionTransformerDistilled", {}),
    ],
)
def test_layer_decay_is_timms(kind: str, changes: dict[str, Any]) -> None:
    """Factor by factor against `param_groups_layer_decay`, whose final norm learns with the last block."""
    import timm.models.deit
    import timm.optim

    import vit

    build: Any = getattr(timm.models.deit, kind)
    module = build(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=3, **changes)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(module, layer_decay=0.5)
    expected = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    network = vit.from_timm(module)
    ours = parameter_groups(network, 3, OptimConfig(lr=1.0, layer_decay=0.5))
    found = {name: group["lr"] for group in ours for name in group["names"]}
    shared = found.keys() & expected.keys()
    assert {name.partition(".")[0] for name in shared} == {name.partition(".")[0] for name in expected}
    assert {name: found[name] for name in shared} == {name: expected[name] for name in shared}


def test_only_matrices_decay(network: VisionTransformer) -> None:
    decayed = {name for name, parameter in network.named_parameters() if decays(name, parameter)}
    expected = {
        f"{prefix}.weight"
        for name, module in network.named_modules()
        for prefix in [name]
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert decayed == expected
    kept = {name for name, _ in network.named_parameters()} - decayed
    assert {"pos_embed", "cls_token", "reg_token", "attn_pool.latent", "norm.weight"} <= kept
    groups = parameter_groups(network, DEPTH, OptimConfig(weight_decay=0.3, layer_decay=0.5))
    assert {name for group in groups if group["weight_decay"] == 0.3 for name in group["names"]} == decayed
    assert {name for group in groups if group["weight_decay"] == 0.0 for name in group["names"]} == kept


@pytest.mark.parametrize(("base", "samples", "expected"), [(0, 1024, 0.001), (512, 1024, 0.002), (256, 64, 0.00025)])
def test_the_rate_follows_the_samples_of_a_step_in_every_layer(
    network: VisionTransformer, base: int, samples: int, expected: float
) -> None:
    config = OptimConfig(lr=0.001, lr_base_batch=base, layer_decay=0.5).scaled(samples)
    assert config.rates() == (pytest.approx(expected), 0.5)
    assert config.scaled(samples) == config  # once
    rates = sorted({group["lr"] for group in parameter_groups(network, DEPTH, config)})
    assert rates == pytest.approx([expected * 0.5**layer for layer in (3, 2, 1, 0)])


def test_a_base_batch_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^optim.lr_base_batch: must be 0 \(off\) or a number of samples, got -1$"):
        OptimConfig(lr_base_batch=-1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_layer_decay_scales_the_actual_steps_also_after_the_schedule_has_moved(
    network: VisionTransformer, name: str
) -> None:
    network.double()  # the comparison is of differences of weights
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.0, layer_decay=0.5)
    optimizer = make_optimizer(parameter_groups(network, DEPTH, config), config, fused=False)
    schedule = make_schedule(optimizer, ScheduleConfig(unit="steps", warmup=2), steps=6, steps_per_epoch=6)
    layers = {
        "patch_embed.proj.bias": 0,
        "blocks.0.attn.qkv.weight": 1,
        "blocks.1.mlp.fc1.weight": 2,
        "head.weight": 3,
    }
    parameters = dict(network.named_parameters())
    sizes = []
    for _ in range(5):
        before = {key: parameters[key].detach().clone() for key in layers}
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        steps = {key: (before[key] - parameters[key].detach()).mean() for key in layers}
        for key, layer in layers.items():
            torch.testing.assert_close(steps[key] / steps["head.weight"], torch.tensor(0.5 ** (3 - layer)).double())
        sizes.append(float(steps["head.weight"]))
    assert min(sizes) > 0
    assert len({round(size, 9) for size in sizes}) > 2  # the schedule did move


def test_adamw_is_torchs_and_fused_where_asked(network: VisionTransformer) -> None:
    config = OptimConfig(betas=(0.8, 0.9), eps=1e-6, lr=0.5, weight_decay=0.2)
    optimizer = make_optimizer(parameter_groups(network, DEPTH, config), config, fused=True)
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert group["fused"] is True
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 0.5)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.2]


@pytest.mark.parametrize("name", ["lamb", "lion", "sgd", "adafactor", "adan", "nadamw", "muon"])
def test_optimizers_of_timm_descend(network: VisionTransformer, name: str) -> None:
    config = OptimConfig(name=name, lr=1e-3, weight_decay=0.0)
    optimizer = make_optimizer(parameter_groups(network, DEPTH, config), config, fused=False)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "near"), [("adamww", "adamw"), ("lambda", "lamb"), ("SGD", "")])
def test_an_unknown_optimizer_is_refused_with_near_names(network: VisionTransformer, name: str, near: str) -> None:
    config = OptimConfig(name=name)
    with pytest.raises(ConfigError, match=rf"^optim.name: no optimizer '{name}'; near it: .*{near}"):
        make_optimizer(parameter_groups(network, DEPTH, config), config, fused=False)


@pytest.mark.parametrize(("name", "reason"), [("fusedadam", "cannot be used here"), ("adahessian", "derivatives")])
def test_an_optimizer_that_cannot_work_is_refused_in_words(network: VisionTransformer, name: str, reason: str) -> None:
    if name == "fusedadam" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, where fusedadam may be usable and is not refused")
    config = OptimConfig(name=name)
    with pytest.raises(ConfigError, match=f"^optim.name: {name} .*{reason}"):
        make_optimizer(parameter_groups(network, DEPTH, config), config, fused=False)
