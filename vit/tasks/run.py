"""A training run and its folder: set up, trained, and left behind as files that explain themselves."""

import csv
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit.data.cache import free_memory
from vit.data.caching import choose_cache
from vit.data.config import PREPARED, DataConfig, Preprocessing
from vit.data.dataset import ImageDataset
from vit.data.decode import picture_size
from vit.data.folders import SHARDS, Listing, Sample, write_split
from vit.data.module import EpochData, ImageFolderData
from vit.data.shards import ShardListing
from vit.errors import (
    ConfigError,
    ModelFileError,
    OutOfMemory,
    UnreadableImage,
    VitError,
    display_path,
    is_out_of_memory,
)
from vit.files import dump_json, open_text, write_text
from vit.models.architecture import ModelConfig, VisionArchitecture, pick
from vit.models.build import architecture_from, image_encoder, start_from
from vit.models.file import ModelFile, first_line, load_checkpoint, read_model, save_model
from vit.models.sources import load_model
from vit.models.vision import VisionTransformer
from vit.signals import Stop, signals
from vit.tasks.base import Task
from vit.tasks.callbacks import Finite, MetricsFile, Pictures, Progress, ReadableClasses, Samples, Speed
from vit.tasks.checkpoints import WholeCheckpoints, newest_whole
from vit.tasks.classify import Classify
from vit.tasks.config import Config
from vit.tasks.devices import settled_precision
from vit.tasks.events import Events
from vit.tasks.keeper import Best, Keeper, Patience, rewind
from vit.tasks.rows import from_all_processes
from vit.tasks.tune import Unfreeze, prepare

log = logging.getLogger("vit")

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_SHAPE = {"dim", "depth", "heads", "hidden", "class_token", "registers", "positions", "rope", "mlp"}
_SHAPE |= {"activation", "norm", "patch_norm", "qk_norm", "layer_scale"}


@dataclass
class Setup:
    """All that a run needs, decided before the first step."""

    config: Config
    listing: Listing
    architecture: VisionArchitecture
    preprocessing: Preprocessing
    start: ModelFile | None
    cache_reason: str = ""
    """why `data.cache` was chosen, where it was left open"""

    @property
    def new_head(self) -> bool:
        """Whether the first weights know other classes than the pictures have."""
        return self.start is not None and self.start.classes != list(self.listing.classes)


def set_up(listing: Listing, config: Config) -> Setup:
    """Settle what the configuration left open, from the machine, the pictures, or the weights to start with.

    Raises ConfigError where settings, pictures and weights do not go together.
    """
    config = replace(config, train=replace(config.train, precision=settled_precision(config.train)))
    config = replace(config, augment=config.augment.settled())
    tuning = config.model.init is not None and config.tune.method == "full"
    lr, layer_decay = config.optim.rates(tuning=tuning)
    config = replace(config, optim=replace(config.optim, lr=lr, layer_decay=layer_decay))
    shards = isinstance(listing, ShardListing)
    if shards:
        _check_for_shards(config)
    paths = [sample.path for sample in listing.splits["train"]]
    typical = listing.side if isinstance(listing, ShardListing) else typical_side(paths)
    config, architecture, preprocessing, start = settle_encoder(config, typical, len(listing.classes))
    if config.augment.half_size and any(
        side % (2 * patch) for side, patch in zip(architecture.image_size, architecture.patch_size, strict=True)
    ):
        halved = " x ".join(str(side / 2) for side in architecture.image_size)
        raise ConfigError(f"augment.half_size: patches do not divide pictures of {halved} pixels")
    decode = config.tune.method in ("full", "lora") and not shards
    config, reason = settle_cache(config, paths, preprocessing, decode=decode)
    return Setup(config, listing, architecture, preprocessing, start, "shards are streamed" if shards else reason)


def _check_for_shards(config: Config) -> None:
    """Raise ConfigError for what shards cannot do: the engine that streams them draws each picture once an epoch."""
    data = config.data
    for key, value, usual in (
        ("data.balanced", data.balanced, (False,)),
        ("data.repeats", data.repeats, (1,)),
        ("data.cache", data.cache, ("auto", "none")),
    ):
        if value not in usual:
            raise ConfigError(f"{key}: is not for shards, which are streamed, got {value}")


def settle_encoder(
    config: Config, typical: int, classes: int
) -> tuple[Config, VisionArchitecture, Preprocessing, ModelFile | None]:
    """What reads the pictures, of typical short side `typical` pixels, and the weights to start with, if any.

    The config comes back with what it left open.
    """
    if config.model.init is None:
        name = pick(typical)[0] if config.model.name == "auto" else config.model.name
        architecture = config.model.resolve(classes=classes, picture_size=typical)
        preprocessing = _preprocessing(config, architecture)
        model = replace(config.model, name=name, image_size=architecture.image_size)
        return replace(config, model=model), architecture, preprocessing, None
    start = image_encoder(load_model(config.model.init), config.model.init)
    architecture = _architecture_like(start, config.model, classes)
    # what the first weights know is pictures prepared in their way, unless another is asked for
    preprocessing = replace(Preprocessing.from_json(start.preprocessing), size=architecture.image_size)
    asked, usual = ({name: getattr(data, name) for name in PREPARED} for data in (config.data, DataConfig()))
    preprocessing = replace(preprocessing, **{name: asked[name] for name in PREPARED if asked[name] != usual[name]})
    kept = {name: getattr(preprocessing, name) for name in PREPARED}
    model, data = replace(config.model, image_size=architecture.image_size), replace(config.data, **kept)
    return replace(config, model=model, data=data), architecture, preprocessing, start


def settle_cache(
    config: Config, paths: Sequence[str], preprocessing: Preprocessing, *, decode: bool = True
) -> tuple[Config, str]:
    """With `auto` decided for the training pictures, by measuring, and why.

    A run's config tells what it did, for a resumed run to do the same. `decode` is whether they are read every epoch.
    """
    if config.data.cache != "auto":
        return config, ""
    from vit.data.augment import TrainingTransform  # takes a second, and evaluation does without

    transform = TrainingTransform(config.augment, preprocessing, kept_side=config.data.cache_side)
    dataset = ImageDataset([Sample(path, 0) for path in paths], transform)
    times = config.train.epochs if decode else 1
    choice = choose_cache(dataset, times=times, processes=max(1, torch.cuda.device_count()))
    return replace(config, data=replace(config.data, cache=choice.cache)), choice.reason


def typical_side(paths: Sequence[str], sample: int = 32) -> int:
    """Median short side in pixels of some pictures, from their headers."""
    if paths and paths[0].startswith(SHARDS):
        from vit.data.shards import shard_side  # needs the extra `stream`

        return shard_side(paths[0])
    sides = []
    for path in paths[:: max(1, len(paths) // sample)]:
        try:
            sides.append(min(picture_size(path)))
        except (UnreadableImage, OSError):
            continue
    return int(statistics.median(sides)) if sides else 224


N = TypeVar("N", bound=nn.Module)


def new_network(make: Callable[[], N]) -> N:
    """Build a network. Raises ConfigError, before any memory is taken, where its weights cannot fit into it."""
    with torch.device("meta"):
        size = 4 * sum(parameter.numel() for parameter in make().parameters())
    if size > (free := free_memory()):
        rule = (
            f"its weights take {size / 1e9:,.1f} GB and {free / 1e9:,.1f} GB of memory are free; choose a smaller one"
        )
        raise ConfigError(f"model: {rule}")
    return make()


def make_network(setup: Setup) -> VisionTransformer:
    """The network, fresh or from the weights to start with."""
    network = new_network(lambda: VisionTransformer(setup.architecture))
    if setup.start is not None:
        start_from(setup.start, network, setup.listing.classes)
    if setup.start is None or setup.new_head:
        for head in (network.head, getattr(network, "head_dist", None)):
            if isinstance(head, nn.Linear):
                nn.init.constant_(head.bias, setup.config.model.head_bias)
    return network


def make_task(setup: Setup, network: VisionTransformer | None = None) -> Classify:
    """A network, or that of `make_network`, inside its task."""
    network = make_network(setup) if network is None else network
    prepare(network, setup.config.tune)
    network.checkpointing = setup.config.train.checkpointing
    counts = Counter(sample.label for sample in setup.listing.splits["train"])
    classes = setup.listing.classes
    task = Classify(
        network, classes, setup.preprocessing, setup.config, counts=[counts[label] for label in range(len(classes))]
    )
    if setup.start is not None:
        task.licence, task.origin = setup.start.licence, f"fine-tuned from {setup.config.model.init}"
    if setup.config.train.compile:
        network.compile(dynamic=False)  # few shapes come, and a graph of one shape is faster
    return task


def make_trainer(config: Config, run: Path) -> L.Trainer:
    """Lightning's Trainer for a run folder."""
    train = config.train
    shared: dict[str, Any] = {
        "accelerator": train.accelerator,
        "devices": int(train.devices) if re.fullmatch(r"-?\d+", str(train.devices)) else train.devices,
        "num_nodes": train.nodes,
        "strategy": SharedOut() if train.strategy == "fsdp" else train.strategy,
        "precision": _PRECISIONS[settled_precision(train)],
        "use_distributed_sampler": False,  # ours share the pictures out exactly
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = _trainer(
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate,
        check_val_every_n_epoch=train.validate_every,
        log_every_n_steps=10,
        logger=Events(run),
        callbacks=_callbacks(config, run),
        plugins=[WholeCheckpoints()],
        default_root_dir=run,
        **shared,
    )
    if isinstance(trainer.strategy, DDPStrategy) and config.task != "classify":
        # a step may do without one side, or an encoder may stand still; by itself DDP waits for their gradients
        trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
    return trainer


class SharedOut(ModelParallelStrategy):
    """Weights shared out among the devices of a machine; leaves one file of whole weights, as every other run does.

    Raises ConfigError for a checkpoint of another strategy, whose optimizer numbers its weights in another order.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """As every strategy does: rank 0 writes, by the checkpoint plugin; Lightning's refuses `storage_options`."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        groups = load_checkpoint(Path(checkpoint_path))["optimizer_states"][0]["param_groups"]
        numbers = [number for group in groups for number in group["params"]]
        if numbers == sorted(numbers):  # group by group, as optimizers number; here it is by the network's order
            raise ConfigError("train.strategy: a run that began without fsdp cannot go on with it; leave it out")
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)


def _trainer(**options: Any) -> L.Trainer:
    """Lightning's Trainer; what it says of devices and strategies that are not here, and of a Slurm job's tasks, is an
    error of the settings.
    """
    try:
        return L.Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"train.accelerator, devices or strategy: {' '.join(str(error).split())}") from error


def fit(setup: Setup, run: Path, trainer: L.Trainer, task: Classify, *, resume: Path | None = None) -> None:
    """Train, then leave the best weights as RUN/model.safetensors. Raises Interrupted after a signal."""
    config = setup.config
    data = ImageFolderData(setup.listing, config.data, config.augment, setup.preprocessing, config.train.seed)
    train_on(task, data, trainer, run, resume=resume)
    paths = {split: [sample.path for sample in samples] for split, samples in setup.listing.splits.items()}
    gather_unreadable(task, paths, trainer, run)
    if trainer.is_global_zero:
        export(run)


def gather_unreadable(task: Any, paths: Mapping[str, Sequence[str]], trainer: L.Trainer, run: Path) -> None:
    """Let the task know which pictures any process could not read, of `paths` by split, and write unreadable.csv."""
    parts = from_all_processes(list(task.unreadable.items()))
    task.unreadable = dict(sorted({pair for part in parts for pair in part}))
    if trainer.is_global_zero:
        add_skipped(run, [(split, paths[split][index], reason) for (split, index), reason in task.unreadable.items()])


def train_on(task: Task, data: EpochData, trainer: L.Trainer, run: Path, *, resume: Path | None = None) -> None:
    """Train on `data`, from the checkpoint `resume` on where one is given.

    Raises Interrupted after a signal, when last.ckpt is written, and model.safetensors so far; OutOfMemory.
    """
    if resume is not None:
        # FSDP has yet to distribute the weights, whose names are other ones until then
        state = None if isinstance(trainer.strategy, SharedOut) else task.state_dict()
        resume, checkpoint, faults = newest_whole(resume, state)
        if trainer.is_global_zero:
            for fault in faults:
                log.info("damaged    %s; going on from %s", fault, resume.name)
            rewind(run, checkpoint)
    (keeper,) = (callback for callback in trainer.callbacks if isinstance(callback, Keeper))
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        signals.check()
    except Stop as stop:
        signals.orderly = True
        if trainer.is_global_zero and keeper.last.is_file():
            export(run)
        raise keeper.told(stop.number) from stop
    except Exception as error:
        if isinstance(error, VitError):
            raise
        if resume is not None and not keeper.stepped and not is_out_of_memory(error):
            reason = first_line(error)
            raise ModelFileError(
                f"{display_path(resume)}: not a checkpoint of this run, or damaged ({reason})"
            ) from error
        if not is_out_of_memory(error):
            raise
        size, times = task.config.data.batch_size, task.config.train.accumulate
        message = (
            f"out of memory with data.batch_size {size}; {max(1, size // 2)} with train.accumulate {2 * times} keeps "
            "the batch of a step (train.on_memory halve does so by itself), or set train.checkpointing true"
        )
        begins = keeper.place is None or keeper.place[1] == 0
        raise OutOfMemory(message, again=begins and trainer.world_size == 1) from error


def add_skipped(run: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Add split, path and reason of skipped files to RUN/unreadable.csv; files skipped at listing have no split.

    Rows that are there already stay: a resumed run has not seen the files that were skipped before.
    """
    path = run / "unreadable.csv"
    header, known = ("split", "path", "reason"), list[tuple[str, ...]]()
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            known = [tuple(row) for row in csv.reader(file)][1:]
    if rows:
        with open_text(path) as file:
            csv.writer(file).writerows(dict.fromkeys([header, *known, *rows]))


def export(run: Path) -> ModelFile:
    """Write RUN/model.safetensors from the best checkpoint, or from the last where nothing was validated."""
    best, last = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    model = read_model(best if best.exists() else last)
    save_model(model, run / "model.safetensors")
    return model


def describe_folder(setup: Setup, run: Path, config_yaml: str) -> None:
    """Write what is known before training: config.yaml, classes.json, split.csv or data.json, environment.json, and
    unreadable.csv where files were skipped.
    """
    write_text(run / "config.yaml", config_yaml)
    write_text(run / "classes.json", dump_json(list(setup.listing.classes), indent=1) + "\n")
    if isinstance(setup.listing, ShardListing):
        write_text(run / "data.json", dump_json({"shards": setup.listing.root}, indent=1) + "\n")
    else:
        write_split(setup.listing, run / "split.csv")
        add_skipped(run, [("", item.path, item.reason) for item in setup.listing.left_out])
    write_text(run / "environment.json", dump_json(environment(), indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Versions, machine, command and the state of the code, for whoever reads the run later."""
    packages = ("vit-pipeline", "torch", "torchvision", "timm", "lightning", "albumentations", "numpy", "pillow")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions,
        "git": _git_state(),
    }


def flops_per_image(architecture: VisionArchitecture) -> int:
    """Floating-point operations of one forward pass, a multiplication and an addition counted as two."""
    with torch.device("meta"):
        network = VisionTransformer(architecture).to("meta")  # with the tables of fixed positions
        image = torch.empty(1, architecture.channels, *architecture.image_size)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def _callbacks(config: Config, run: Path) -> list[L.Callback]:
    monitor = f"val/{config.train.monitor}"
    mode = "min" if config.train.monitor == "loss" else "max"
    writes = config.task in ("caption", "language", "translate")
    callbacks: list[L.Callback] = [
        # first: all processes take part, before the main one alone waits for the others' metrics
        *([ReadableClasses()] if config.task == "classify" else []),
        Finite(),
        Keeper(run, config),
        Speed(),
        Progress("images" if config.task in ("classify", "caption") else "texts"),
        MetricsFile(run / "metrics.csv", words=writes),
        *([Pictures()] if config.task == "classify" else []),
        *([Samples()] if writes else []),
        LearningRateMonitor(logging_interval="step"),
        Best(run / "checkpoints", "best", monitor=monitor, mode=mode, enable_version_counter=False),
    ]
    if config.tune.freeze and config.tune.unfreeze_after:
        callbacks.append(Unfreeze(config.tune.freeze, config.tune.unfreeze_after))
    if config.train.patience:
        validations = -(-config.train.patience // config.train.validate_every)
        callbacks.append(Patience(monitor, mode=mode, patience=validations))
    return callbacks


def _preprocessing(config: Config, architecture: VisionArchitecture) -> Preprocessing:
    return Preprocessing(architecture.image_size, **{name: getattr(config.data, name) for name in PREPARED})


def _architecture_like(start: ModelFile, model: ModelConfig, classes: int) -> VisionArchitecture:
    """The file's architecture with this run's classes, picture size and regularisation.

    Raises ConfigError for a setting that asks for another shape than the file's.
    """
    old = architecture_from(start.architecture)
    asked, ordinary = asdict(model), asdict(ModelConfig())
    if model.name != "auto":
        named = model.resolve(classes=classes, picture_size=224)
        asked |= {key: getattr(named, key) for key in ("dim", "depth", "heads", "hidden")}
        _require_patch(named.patch_size, old.patch_size, model)
    for key, value in asked.items():
        there = ("none" if old.rope is None else old.rope.kind) if key == "rope" else getattr(old, key, value)
        if key in _SHAPE and value != ordinary.get(key) and value != there:
            raise ConfigError(f"model.{key}: {value}, but the weights of model.init have {there}; leave it out")
    pool = old.pool if model.pool == "class" else model.pool
    if pool == "attention" != old.pool:
        raise ConfigError(f"model.pool: attention, but the weights of model.init have {old.pool}; leave it out")
    size = model.image_size if model.image_size is not None else old.image_size
    height, width = (size, size) if isinstance(size, int) else size
    new = replace(
        old,
        classes=classes,
        pool=pool,
        image_size=(height, width),
        patch_size=old.patch_size if model.patch_size is None else (model.patch_size, model.patch_size),
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        drop_path=model.drop_path,
        patch_dropout=model.patch_dropout,
    )
    if (new.image_size, new.patch_size) != (old.image_size, old.patch_size):
        new.require_whole_patches()
    return new


def _require_patch(named: tuple[int, int], there: tuple[int, int], model: ModelConfig) -> None:
    """A patch in a name is no wish to resample; `model.patch_size` is."""
    if named != there and model.patch_size is None:
        patch = f"patches of {there[0]} x {there[1]}"
        raise ConfigError(f"model.name: {model.name}, but the weights of model.init have {patch}; leave it out")


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the working folder, where it is a git checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "clean": not dirty.stdout.strip()}
