"""Making pretrained weights fit new pictures: what stands still, LoRA, and heads fitted on features computed once."""

import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor, nn

from vit.data.folders import Sample
from vit.errors import ConfigError
from vit.evaluate.knn import knn_logits
from vit.evaluate.probe import Probe, best_probe, fit_probes
from vit.files import open_text
from vit.models.file import classifier_file, save_model
from vit.models.vision import VisionTransformer
from vit.nn import add_lora
from vit.tasks.config import TuneConfig
from vit.tasks.devices import device_for
from vit.tasks.evaluation import outputs_of

if TYPE_CHECKING:
    from vit.tasks.run import Setup

log = logging.getLogger("vit")

_HEADS = ("head.", "head_dist.")


def prepare(network: VisionTransformer, tune: TuneConfig) -> None:
    """Let stand still what is not trained from the first step to the last, and add LoRA's matrices."""
    if tune.method == "lora":
        freeze(network, -1)
        add_lora(network.blocks, tune.lora_rank, tune.lora_alpha)
    elif not tune.unfreeze_after:
        freeze(network, tune.freeze)


def freeze(network: VisionTransformer, blocks: int) -> None:
    """Let the embeddings and the first `blocks` blocks stand still; -1: everything but the head; 0: nothing."""
    if blocks == 0:
        return
    kept = tuple(f"blocks.{i}." for i in range(blocks, network.architecture.depth)) if blocks > 0 else ()
    behind = ("norm.", "fc_norm.", "attn_pool.") if blocks > 0 else ()
    for name, parameter in network.named_parameters():
        if not name.startswith(kept + behind + _HEADS):
            parameter.requires_grad_(False)


class Unfreeze(L.Callback):
    """Lets the first blocks stand still for some epochs, and trains everything after."""

    def __init__(self, blocks: int, after: int) -> None:
        self.blocks = blocks
        self.after = after

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if trainer.world_size > 1:  # each step of DDP waits for the gradient of every weight it saw at the start
            raise ConfigError("tune.unfreeze_after: works on one device; on several, tune in two runs")
        self.on_train_epoch_start(trainer, task)  # which is not called for an epoch that goes on

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        network = task.network
        assert isinstance(network, VisionTransformer)
        network.requires_grad_(True)
        if trainer.current_epoch < self.after:
            freeze(network, self.blocks)


def features_of(network: VisionTransformer, samples: Sequence[Sample], setup: "Setup") -> tuple[Tensor, Tensor]:
    """What the head would see of pictures, prepared as for evaluation: features [N, D], labels [N], on the CPU."""
    training = network.training
    network.to(device_for(setup.config.train.accelerator, setup.config.train.devices)).eval()
    outputs = outputs_of(network.features, samples, setup.preprocessing, setup.config)
    network.train(training)
    return outputs


def fit_head(network: VisionTransformer, setup: "Setup", *, to_go_on: bool = False) -> list[Probe]:
    """Fit linear heads at all of `tune.probe_rates` on the features at once, and give the network the best one.

    The most accurate in validation, or, `to_go_on` training from, the one of lowest loss: an overconfident head would
    throw the features far off in the first steps. Raises ConfigError where all heads diverged.
    """
    tune, splits = setup.config.tune, setup.listing.splits
    train, validation = (features_of(network, splits[name], setup) for name in ("train", "val"))
    classes = len(setup.listing.classes)
    probes = fit_probes(
        *train, classes, validation, rates=tune.probe_rates, epochs=tune.probe_epochs, seed=setup.config.train.seed
    )
    best = best_probe(probes)
    if to_go_on:
        best = min(probes, key=lambda probe: probe.validation_loss)
    for head in (network.head, getattr(network, "head_dist", None)):
        if isinstance(head, nn.Linear):
            with torch.no_grad():
                head.weight.copy_(best.weight)
                head.bias.copy_(best.bias)
    return probes


def run_probe(network: VisionTransformer, setup: "Setup", run: Path) -> None:
    """Fit a linear head, and leave RUN/model.safetensors and RUN/probe.csv, a row a learning rate."""
    started = time.perf_counter()
    probes = fit_head(network, setup)
    with open_text(run / "probe.csv") as file:
        table = csv.writer(file)
        table.writerow(["rate", "val/accuracy", "val/loss"])
        for probe in probes:
            table.writerow([probe.rate, f"{probe.validation_accuracy:.6f}", f"{probe.validation_loss:.6f}"])
            log.info("rate %-8g val accuracy %.2f %%", probe.rate, 100 * probe.validation_accuracy)
    start = setup.start
    assert start is not None
    preprocessing, classes = asdict(setup.preprocessing), list(setup.listing.classes)
    origin = f"linear head on {setup.config.model.init}"
    model = classifier_file(network.cpu(), classes, preprocessing, licence=start.licence, origin=origin)
    save_model(model, run / "model.safetensors")
    best = best_probe(probes)
    log.info("")
    log.info(
        "best       rate %g: val accuracy %.2f %%, val loss %.4f   (%.0f s in all)",
        best.rate,
        100 * best.validation_accuracy,
        best.validation_loss,
        time.perf_counter() - started,
    )


def run_knn(network: VisionTransformer, setup: "Setup", run: Path) -> None:
    """Vote by the nearest training pictures, and leave RUN/knn.csv, a row a number of neighbours."""
    splits, classes = setup.listing.splits, len(setup.listing.classes)
    features, labels = features_of(network, splits["train"], setup)
    held_out = {name: features_of(network, splits[name], setup) for name in ("val", "test") if splits.get(name)}
    with open_text(run / "knn.csv") as file:
        table = csv.writer(file)
        table.writerow(["neighbours", *(f"{name}/accuracy" for name in held_out)])
        for neighbours in setup.config.tune.neighbours:
            if neighbours > len(features):
                log.info("%3d neighbours   left out, there are %d training pictures", neighbours, len(features))
                continue
            found = {}
            for name, (queries, truth) in held_out.items():
                votes = knn_logits(queries, features, labels, classes, neighbours=neighbours)
                found[name] = float((votes.argmax(dim=1) == truth).float().mean())
            table.writerow([neighbours, *(f"{accuracy:.6f}" for accuracy in found.values())])
            shown = "   ".join(f"{name} accuracy {100 * accuracy:.2f} %" for name, accuracy in found.items())
            log.info("%3d neighbours   %s", neighbours, shown)
