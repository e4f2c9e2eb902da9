"""Which weights change how fast: parameter groups, optimizers, learning-rate schedules."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vit.errors import ConfigError
from vit.tasks.config import OptimConfig, ScheduleConfig
from vit.tasks.muon import Muon

NOT_DECAYED = ("pos_embed", "cls_token", "dist_token", "reg_token", "latent", "rope.freqs")
_EMBEDDINGS = (
    "patch_embed.",
    "token_embed.",
    "pos_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "norm_pre.",
    "rope.",
)


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for embeddings, i + 1 for block i, depth + 1 for pooling and head.

    As in timm's `param_groups_layer_decay`, a final norm of all tokens belongs to the last block, one of the pooled
    vector to the head.
    """
    if (block := re.match(r"blocks\.(\d+)\.", name)) is not None:
        return int(block.group(1)) + 1
    if name.startswith("norm."):
        return depth
    if name.startswith(_EMBEDDINGS):
        return 0
    return depth + 1


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices: not for biases, norms and scales (one dimension), positions and tokens."""
    return parameter.ndim > 1 and not name.endswith(NOT_DECAYED)


def parameter_groups(network: nn.Module, depth: int, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups for any torch optimizer, one a layer and kind, each with its own `lr` and `weight_decay`.

    Layer l of L = depth + 1 learns at lr * layer_decay ** (L - l) (Clark et al. 2020, Bao et al. 2021). The rate is
    the group's `lr` itself, so that it holds with every optimizer and schedule.
    """
    lr, layer_decay = config.rates()
    groups: dict[tuple[int, bool, bool, int], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        # without layer decay all layers share one rate, and few large groups are faster than many small ones
        layer = layer_of(name, depth) if layer_decay < 1 else depth + 1
        decayed = decays(name, parameter)
        # Muon is for matrices between hidden layers: not for embeddings and heads (Jordan et al. 2024)
        matrices = config.name == "muon" and parameter.ndim == 2 and "blocks." in name
        parts = 3 if matrices and name.endswith("qkv.weight") else 1
        kind = {"matrices": True, "parts": parts} if matrices else {}
        told = "".join((", matrices" if matrices else "", " of q, k, v" if parts == 3 else ""))
        group = groups.setdefault(
            (layer, decayed, matrices, parts),
            {
                "params": [],
                "names": [],
                # what TensorBoard calls its rate
                "name": f"{'decayed' if decayed else 'not decayed'}{told}, layer {layer}",
                **kind,
                "lr": lr * layer_decay ** (depth + 1 - layer),
                "weight_decay": config.weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(groups: Iterable[dict[str, Any]], config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer that the configuration names. Raises ConfigError for a name that nobody has."""
    groups = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.rates()[0], betas=config.betas, eps=config.eps, fused=fused)
    if config.name == "muon":
        return Muon(groups, config.rates()[0], betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    check_optimizer(config.name)
    from timm.optim import create_optimizer_v2  # five seconds to import

    try:
        extra = {"betas": config.betas, "eps": config.eps} if _takes_two_betas(config.name) else {}
        optimizer = create_optimizer_v2(
            groups, opt=config.name, lr=config.rates()[0], weight_decay=config.weight_decay, **extra
        )
    except (AssertionError, ImportError, RuntimeError) as error:  # some need packages or a GPU
        raise ConfigError(f"optim.name: {config.name} cannot be used here: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ConfigError(f"optim.name: {config.name} needs second derivatives, which training does not compute")
    return optimizer


def check_optimizer(name: str) -> None:
    """Raise ConfigError where neither we nor timm have an optimizer of this name."""
    if name in ("adamw", "muon"):
        return
    import difflib

    from timm.optim import list_optimizers

    known = list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(f"optim.name: no optimizer {name!r}; near it: {', '.join(near) or 'none'}")


def _takes_two_betas(name: str) -> bool:
    import inspect

    from timm.optim import get_optimizer_class

    betas = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters.get("betas")
    return betas is not None and len(betas.default or ()) == 2  # adan has three of its own, adafactor none


def rate(progress: float, warmup: float, config: ScheduleConfig) -> float:
    """The learning rate as a share of the highest, at `progress` in 0..1 of training, `warmup` being its share.

    Cosine: Loshchilov and Hutter 2017. Warm-up, stable, decay: Zhai et al. 2022, Hu et al. 2024.
    """
    if progress < warmup:
        return progress / warmup
    if config.name == "constant":
        return 1.0
    if config.name == "wsd":
        left = min(1.0, (1 - progress) / config.decay_fraction)
        return config.final + (1 - config.final) * max(0.0, left)
    after = min(1.0, (progress - warmup) / max(1e-12, 1 - warmup))
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * after))


def make_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, *, steps: int, steps_per_epoch: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule that is stepped after every optimizer step. In epochs, the rate holds still within one.

    Every group's rate is multiplied, so the ratios of layer decay stay. The first step never has rate zero.
    """
    unit = steps_per_epoch if config.unit == "epochs" else 1.0
    if config.warmup is None:
        warmup = min(0.1, 3 * steps_per_epoch / steps)
    else:
        warmup = min(1.0, config.warmup * unit / steps)

    def factor(step: int) -> float:
        if config.unit == "epochs" and step >= warmup * steps:
            # the rate of the epoch's middle; a warm-up rises step by step, and may end within an epoch
            step = int(max((step // unit + 0.5) * unit, warmup * steps))
        return rate(min(1.0, (step + 1) / steps), warmup, config)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
