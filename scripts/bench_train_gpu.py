"""Training on a GPU: images a second of `vit train`'s own loop beside the loop of timm's training script.

    python scripts/bench_train_gpu.py [--names S/16 B/16 L/16] [--batch 256] [--rounds 3] [--json FILE]

The same architecture with timm's names and ours, torch.compile, bf16, the same uint8 pictures lying on the device, the
same optimizer (AdamW), clipping off as in timm's script. Ours runs inside Lightning's Trainer with all that `vit train`
does at every step; between its timed stretches timm's loop takes as many steps on the same card. timm's script is no
part of its package: its loop is written out here with timm's own model, optimizer and loss.

Beside images a second: the share of the card's matrix-product peak that the model's own operations reach (three times
the forward pass, an attention of N x N counted), the most memory each takes, and how often our step makes the host
wait for the device, counted by torch's sync debug mode. `--cifar FOLDER` measures training from the device against
training by timm's loader, on a folder of 32 x 32 pictures. `--photos FOLDER` measures which share of the time a B/16
waits for pictures from the packed disk cache: the files there, many times over.
"""

import argparse
import csv
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench_report import (
    add_json,
    origin,
    ratios,
    seconds,
    source,
    spread,
    with_gpu_columns,
    write_json,
)
from bench_timm import timm_loader, timm_model
from vit.cli.main import main as vit
from vit.data.config import DataConfig, Preprocessing
from vit.data.dataset import Batch
from vit.data.folders import list_training
from vit.models.architecture import ModelConfig, parse_name
from vit.models.vision import VisionTransformer
from vit.tasks.callbacks import Finite, Speed
from vit.tasks.classify import Classify
from vit.tasks.config import Config, OptimConfig, TrainConfig
from vit.tasks.lock import prepare_folder
from vit.tasks.run import fit, flops_per_image, make_task, make_trainer, set_up

STEPS = 12
WARM_UP = 8
CLASSES = 1000


def matrix_peak() -> float:
    """Floating-point operations a second of a bf16 product of 8192 x 8192 matrices of random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    return 20 * 2 * 8192**3 / seconds(lambda: [a @ b for _ in range(20)], "cuda")


def attention_kernels(name: str, side: int, batch: int) -> dict[str, float]:
    """Milliseconds of attention, forward and backward in bf16, by each kernel that torch has, and by its own choice."""
    size, patch = parse_name(name)
    tokens = (side // patch) ** 2 + 1
    shape = (3, batch, size.heads, tokens, size.dim // size.heads)
    q, k, v = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True).unbind(0)

    def work() -> None:
        for _ in range(10):
            torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward(retain_graph=True)

    found = {}
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for kernel in kernels:
        with sdpa_kernel(kernel):
            work()
            found[kernel.name] = 100 * min(seconds(work, "cuda") for _ in range(3))
    work()
    found["torch's choice"] = 100 * min(seconds(work, "cuda") for _ in range(3))
    return found


class Pool:
    """A loader that hands out slices of pictures that lie on the device."""

    def __init__(self, batch: int, side: int, batches: int) -> None:
        count = 4 * batch
        self.images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device="cuda")
        self.labels = torch.randint(0, CLASSES, (count,), device="cuda")
        self.batch_size, self.batches = batch, batches
        self.batch_sampler, self.sampler = None, range(batches)
        self.dataset = self

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.batches):
            start = number % 4 * self.batch_size
            part = slice(start, start + self.batch_size)
            yield Batch(self.images[part], self.labels[part], self.labels[part], [])


class TimmLoop:
    """One step after another, as timm's script takes them with --amp --amp-dtype bfloat16 --torchcompile."""

    def __init__(self, name: str, side: int, pool: Pool, drop_path: float) -> None:
        self.model = timm_model(name, side, CLASSES, drop_path_rate=drop_path).cuda()
        self.optimizer = create_optimizer_v2(self.model, opt="adamw", lr=1e-3, weight_decay=0.05)
        self.compiled = torch.compile(self.model)
        self.loss = LabelSmoothingCrossEntropy(0.1)
        self.pool = pool
        self.mean = torch.tensor([0.485, 0.456, 0.406], device="cuda").view(1, 3, 1, 1) * 255
        self.std = torch.tensor([0.229, 0.224, 0.225], device="cuda").view(1, 3, 1, 1) * 255
        self.model.train()

    def steps(self, count: int) -> None:
        batches = iter(self.pool)
        for _ in range(count):
            batch = next(batches)
            images = batch.images.float().sub_(self.mean).div_(self.std)  # as its prefetching loader does
            with torch.autocast("cuda", torch.bfloat16):
                loss = self.loss(self.compiled(images), batch.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


class Turns(L.Callback):
    """Times stretches of our steps, and lets timm's loop take its turn between them."""

    def __init__(self, rounds: int, timm_turn: Callable[[], float]) -> None:
        self.rounds, self.timm_turn = rounds, timm_turn
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.watching = False
        self.peak = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step < WARM_UP:
            return
        stretch, place = divmod(step - WARM_UP, STEPS)
        if place or stretch > self.rounds + 1:
            return
        if self.watching:
            torch.cuda.set_sync_debug_mode("default")
            self.watching = False
            return
        torch.cuda.synchronize()
        now = time.perf_counter()
        if stretch:
            self.ours.append(now - self.started)
        else:
            self.peak = torch.cuda.max_memory_allocated() / 1e9
        if len(self.ours) == self.rounds:  # one more stretch, which is not timed
            self.watching = True
            torch.cuda.set_sync_debug_mode("warn")
            return
        self.theirs.append(self.timm_turn())
        torch.cuda.synchronize()
        self.started = time.perf_counter()


def compare(name: str, side: int, batch: int, rounds: int, drop_path: float) -> dict[str, Any]:
    """One model, ours and timm's in turn."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    batches = WARM_UP + STEPS * (rounds + 1)
    config = Config(
        data=DataConfig(batch_size=batch),
        model=ModelConfig(name=name, image_size=side, drop_path=drop_path),
        optim=OptimConfig(lr=1e-3, clip=0.0),
        train=TrainConfig(epochs=1, precision="bf16", compile=True, accelerator="gpu", devices=1, validate_every=1),
    )
    architecture = config.model.resolve(classes=CLASSES, picture_size=side)
    network = VisionTransformer(architecture)
    task = Classify(network, [str(i) for i in range(CLASSES)], Preprocessing((side, side)), config)
    network.compile()
    pool = Pool(batch, side, batches)
    loop: list[TimmLoop] = []
    their_peak = 0.0

    def timm_turn() -> float:
        nonlocal their_peak
        if not loop:
            rest = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            loop.append(TimmLoop(name, side, pool, drop_path))
            loop[0].steps(WARM_UP)
            torch.cuda.synchronize()
            their_peak = (torch.cuda.max_memory_allocated() - rest) / 1e9
        return seconds(lambda: loop[0].steps(STEPS), "cuda")

    turns = Turns(rounds, timm_turn)
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(config, Path(out))
        # what `vit train` does at every step; not what it does once an epoch
        each_step = (Finite, Speed, LearningRateMonitor)
        trainer.callbacks = [turns, *(callback for callback in trainer.callbacks if isinstance(callback, each_step))]
        trainer.limit_val_batches = 0
        trainer.fit(task, train_dataloaders=pool)
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    for warning in {f"{w.filename}:{w.lineno}" for w in waits}:
        print(f"  the host waits at {warning}", file=sys.stderr)
    return {
        "name": name,
        "side": side,
        "batch": batch,
        "drop_path": drop_path,
        "ours": [batch * STEPS / taken for taken in turns.ours],
        "timm": [batch * STEPS / taken for taken in turns.theirs],
        "flops": 3 * flops_per_image(architecture),
        "ours_gb": turns.peak,
        "timm_gb": their_peak,
        "waits_in_steps": [len(waits), STEPS],
    }


class Waits(L.Callback):
    """Seconds between the end of one step and the start of the next, and all seconds, after the first epoch.

    The device may have work queued meanwhile, so that it waits for less than that.
    """

    def __init__(self) -> None:
        self.waited, self.all = 0.0, 0.0
        self.ended: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.ended = None

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.ended is not None:
            self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        if trainer.current_epoch > 0:
            if self.ended is not None:
                self.all += now - self.ended
            self.ended = now


def photos(folder: Path, config: Config, times: int) -> dict[str, float]:
    """Images a second and the share of waiting in epochs over the files of a folder, each `times` times over."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    with tempfile.TemporaryDirectory() as made:
        for number, path in enumerate(files * times):
            place = Path(made, "data", str(number % 2), f"{number}{path.suffix}")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        listing = list_training(Path(made, "data"), val_fraction=0.02, test_fraction=0.0, seed=0)
        setup = set_up(listing, config)
        run, task, waits = Path(made, "run"), make_task(setup), Waits()
        prepare_folder(run)
        trainer = make_trainer(setup.config, run)
        trainer.callbacks.append(waits)
        fit(setup, run, trainer, task)
        with (run / "metrics.csv").open(newline="") as file:
            rate = float(list(csv.DictReader(file))[-1]["train/images_per_second"])
    return {"images_per_second": rate, "waiting": waits.waited / waits.all}


def cifar(folder: Path, name: str, batch: int, workers: int) -> dict[str, float]:
    """Images a second of an epoch: `vit train` with the pictures on the device, and timm's loop after its loader."""
    with tempfile.TemporaryDirectory() as out:
        settings = {
            "model.name": name,
            "model.image_size": 32,
            "data.batch_size": batch,
            "data.cache": "device",
            "data.val_fraction": 0.01,
            "train.epochs": 4,
            "train.validate_every": 4,
            "train.compile": "true",
        }
        code = vit(
            ["train", str(folder), "--out", f"{out}/run", *(f"--{key}={value}" for key, value in settings.items())]
        )
        assert code == 0
        with open(f"{out}/run/metrics.csv", newline="") as file:
            ours = float(list(csv.DictReader(file))[2]["train/images_per_second"])
    model = timm_model(name, 32, 10).cuda()
    optimizer, compiled = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05), torch.compile(model)
    loader = timm_loader(folder / "train", 32, batch, workers, "cuda")
    loss_function = LabelSmoothingCrossEntropy(0.1)
    for _ in range(2):
        torch.cuda.synchronize()
        started, images = time.perf_counter(), 0
        for pictures, labels in loader:
            with torch.autocast("cuda", torch.bfloat16):
                loss = loss_function(compiled(pictures), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            images += len(labels)
        torch.cuda.synchronize()
    return {"ours": ours, "timm": images / (time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", default=["S/16", "B/16", "L/16"])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drop-path", type=float, nargs="+", default=[0.0])
    parser.add_argument("--cifar", type=Path, help="folder of 32 x 32 pictures, train/CLASS/*.jpg")
    parser.add_argument("--cifar-name", default="mini/4")
    parser.add_argument("--cifar-batch", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=14, help="of timm's loader")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    add_json(parser)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this measures training on a GPU, and there is none; scripts/bench_train_cpu.py is for processors")
    torch.set_float32_matmul_precision("high")
    peak = matrix_peak()
    report: dict[str, Any] = {
        **origin("Training on a GPU, images/s"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "matrix_peak": peak,
        "rows": [],
    }
    print(f"{source(report)}\nbf16 product of 8192 x 8192: {peak / 1e12:.0f} TFLOP/s")
    report["attention_ms"] = attention_kernels("B/16", options.side, options.batch)
    told = ", ".join(f"{kernel} {took:.2f} ms" for kernel, took in report["attention_ms"].items())
    print(f"attention of B/16, batch {options.batch}, forward and backward: {told}")
    print("model  drop  batch   images/s  timm   ratio (lowest to highest)  of peak, timm   memory, timm    waits")
    for name in options.names:
        for drop_path in options.drop_path:
            row = compare(name, options.side, options.batch, options.rounds, drop_path)
            report["rows"].append(row)
            ours, theirs = statistics.median(row["ours"]), statistics.median(row["timm"])
            print(
                f"{name:6} {drop_path:4} {options.batch:6} {ours:9.0f} {theirs:6.0f}  "
                f"{spread(ratios(row['ours'], row['timm']), 3)}  {ours * row['flops'] / peak:12.1%} "
                f"{theirs * row['flops'] / peak:6.1%} {row['ours_gb']:8.1f} GB {row['timm_gb']:5.1f} GB "
                f"{row['waits_in_steps'][0]:4} in {row['waits_in_steps'][1]} steps",
                flush=True,
            )
            if options.json:
                write_json(with_gpu_columns(report), options.json)
    if options.cifar:
        report["cifar"] = cifar(options.cifar, options.cifar_name, options.cifar_batch, options.workers)
        print(f"CIFAR-10, {options.cifar_name}: {report['cifar']}")
    if options.photos:
        config = Config(
            data=DataConfig(batch_size=options.batch, cache="disk"),
            model=ModelConfig(name="B/16", image_size=options.side),
            train=TrainConfig(epochs=3, precision="bf16", compile=True, accelerator="gpu", devices=1, validate_every=3),
        )
        report["photos"] = photos(options.photos, config, times=100)
        print(f"photographs from the disk cache, B/16: {report['photos']}")
    if options.json:
        write_json(with_gpu_columns(report), options.json)


if __name__ == "__main__":
    main()
