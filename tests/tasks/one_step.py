"""One SGD step of every task over the same 32 samples, cut into micro-batches and devices in any way.

usage, as one of two processes: one_step.py OUT (writes OUT/RANK.pt: by layout and case what `step` returns)
"""

import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from tiny_runs import tiny
from torch.utils.data import DataLoader

import vit.tasks.write
from vit.data.config import Preprocessing
from vit.data.dataset import Batch
from vit.data.tokenizer import Tokenizer
from vit.data.words import WordBatch, WordItem, collate_words
from vit.models.architecture import VisionArchitecture
from vit.models.beam import Generated
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.fusion import FusedClassifier
from vit.models.text import LanguageModel
from vit.models.text_architecture import EncoderDecoderArchitecture, FusionArchitecture, TextArchitecture
from vit.models.vision import VisionTransformer
from vit.tasks.base import Task
from vit.tasks.callbacks import Finite
from vit.tasks.classify import Classify
from vit.tasks.config import Config, OptimConfig, ScheduleConfig, TextConfig, TrainConfig
from vit.tasks.fuse import Fuse
from vit.tasks.run import make_trainer
from vit.tasks.write import Write

COUNT, CLASSES = 32, 5
Layout = list[list[Sequence[int]]]
"""of each device its micro-batches, as indices of samples"""
LAYOUTS: dict[str, Layout] = {
    "whole": [[range(32)]],
    "8 x 4": [[range(start, start + 4) for start in range(0, 32, 4)]],
    "uneven": [[range(12), range(12, 13), [], range(13, 32)]],
    "2 devices": [[range(0, 32, 2)], [range(1, 32, 2)]],
    "2 uneven devices": [[range(5), range(5, 18)], [range(18, 32), []]],
}
TOKENIZER = Tokenizer.train(["a red square above a blue circle"], "words", 20)
TEXT = TextArchitecture(vocabulary=len(TOKENIZER), length=24, dim=32, depth=1, heads=2, hidden=32)
IMAGE = VisionArchitecture((16, 16), (8, 8), dim=32, depth=1, heads=2, hidden=32, classes=0)
_numbers = np.random.default_rng(0)
PIXELS = torch.from_numpy(_numbers.integers(0, 256, (COUNT, 3, 16, 16), dtype=np.uint8))
LABELS = torch.from_numpy(_numbers.choice(CLASSES, COUNT, p=[0.6, 0.2, 0.1, 0.05, 0.05]))
SOFT = 0.7 * torch.eye(CLASSES)[LABELS] + 0.3 * torch.eye(CLASSES)[LABELS.roll(1)]
"""labels as MixUp leaves them; its partners come from the micro-batch, so they are fixed here"""


def _texts(index: int, count: int) -> list[np.ndarray]:
    """`count` texts of a sample, from 2 to 24 tokens long."""
    rng = np.random.default_rng((1, index))
    return [rng.integers(1, len(TOKENIZER), rng.choice([2, 3, 4, 23, 24])) for _ in range(count)]


def _images(indices: Sequence[int]) -> Batch:
    chosen = torch.tensor(indices, dtype=torch.int64)
    return Batch(PIXELS[chosen], LABELS[chosen], chosen, [])


def _words(kind: str) -> Callable[[Sequence[int]], WordBatch]:
    def item(index: int) -> WordItem:
        counts = {"captioner": 1 + index % 3, "fused": 1 + index % 3}
        texts = _texts(index, counts.get(kind, 1))
        if kind == "language":
            texts = [np.resize(texts[0], 24 if index else 9)]  # all windows are equally long but the last one
        item = WordItem(index, texts=texts, places=list(range(len(texts))))
        if kind in ("captioner", "fused"):
            item.image = PIXELS[index]
        if kind == "translator":
            item.source = _texts(100 + index, 1)[0]
        if kind == "fused":
            item.labels = [(index + place) % CLASSES for place in range(len(texts))]
        return item

    return lambda indices: collate_words([item(i) for i in indices] or [WordItem(0, failure="cut")])


def _soft_inputs(task: Classify, batch: Batch) -> Any:
    return task.normalise(batch.images), SOFT[batch.indices]


def _classify(loss: dict[str, Any], *, soft: bool = False) -> tuple[Task, Callable[..., Any]]:
    config = tiny(loss=loss)
    network = VisionTransformer(config.model.resolve(classes=CLASSES, picture_size=16))
    torch.nn.init.normal_(network.head.weight)  # fresh heads are zero, and pass no gradient on
    counts = LABELS.bincount(minlength=CLASSES).tolist()
    task = Classify(network, list("abcde"), Preprocessing((16, 16)), config, counts=counts)
    if soft:
        task.inputs = MethodType(_soft_inputs, task)  # type: ignore[method-assign]
    return task, _images


def _write(kind: str, **text: Any) -> tuple[Task, Callable[..., Any]]:
    encoders = {"captioner": IMAGE, "translator": replace(TEXT, rope=True)}
    network: Any = LanguageModel(TEXT)
    if kind in encoders:
        decoder = replace(TEXT, context_dim=encoders[kind].dim)
        network = EncoderDecoder(EncoderDecoderArchitecture(encoders[kind], decoder))
    task_name: Any = {"captioner": "caption", "translator": "translate", "language": "language"}[kind]
    config = Config(task=task_name, text=TextConfig(**text))
    references = [tuple(TOKENIZER.decode(text.tolist()) for text in _texts(200 + i, 2)) for i in range(COUNT)]
    preprocessing = Preprocessing((16, 16))
    task = Write(network, TOKENIZER, config, kind=kind, preprocessing=preprocessing, references=references)
    return task, _words(kind)


def _drawn(indices: Sequence[int]) -> list[list[Generated]]:
    """Captions as sampling would draw them, but for each image always the same."""

    def one(index: int, number: int) -> Generated:
        rng = random.Random(10 * index + number)
        ended = rng.random() < 0.5
        return Generated(rng.choices(range(4, len(TOKENIZER)), k=rng.choice([1, 2, 20])), 0.0, [], ended)

    return [[one(index, number) for number in range(Write.DRAWN)] for index in indices]


def _rewarded() -> tuple[Task, Callable[..., Any]]:
    task, collate = _write("captioner", reward_epochs=1)
    losses = task.losses

    def fixed(batch: WordBatch) -> Any:
        vit.tasks.write.write_about = lambda *_, **__: _drawn(batch.indices.tolist())
        return losses(batch)

    task.losses = fixed  # type: ignore[method-assign]
    return task, collate


def _fuse(drop_side: float) -> tuple[Task, Callable[..., Any]]:
    network = FusedClassifier(FusionArchitecture(IMAGE, TEXT, CLASSES, depth=1, attends="image"))
    config = Config(task="fuse", text=TextConfig(drop_side=drop_side))
    return Fuse(network, list("abcde"), TOKENIZER, Preprocessing((16, 16)), config), _words("fused")


CASES: dict[str, Callable[[], tuple[Task, Callable[..., Any]]]] = {
    "classify": lambda: _classify({}),
    "classify, balanced": lambda: _classify({"class_weights": "balanced"}),
    "classify, balanced, mixed": lambda: _classify({"class_weights": "balanced"}, soft=True),
    "classify, bce": lambda: _classify({"name": "bce"}),
    "classify, bce, balanced, mixed": lambda: _classify({"name": "bce", "class_weights": "balanced"}, soft=True),
    "caption": lambda: _write("captioner"),
    "caption, reward": _rewarded,
    "fuse": lambda: _fuse(0.0),
    "fuse, one side": lambda: _fuse(0.5),
    "language": lambda: _write("language"),
    "translate": lambda: _write("translator"),
}


def step(case: str, layout: str) -> dict[str, Any]:
    """Take one step, of some cases a clipped one too; return the weights after it, and what it logged."""
    devices, rank = LAYOUTS[layout], 0
    found = {}
    for clip in (0.0, 0.05) if case in ("classify", "translate") else (0.0,):
        torch.manual_seed(0)
        task, collate = CASES[case]()
        several = len(devices) > 1
        train = TrainConfig(
            epochs=1,
            accelerator="cpu",
            devices=len(devices),
            strategy="ddp" if several else "auto",
            accumulate=len(devices[0]) + (layout == "uneven"),  # the last step of an epoch may have fewer
            precision="fp32",
            monitor="loss",
        )
        optim = OptimConfig(name="sgd", lr=0.1, weight_decay=0.0, clip=clip)
        task.config = replace(task.config, train=train, optim=optim, schedule=ScheduleConfig(name="constant", warmup=0))
        before = {name: p.detach().clone() for name, p in task.network.named_parameters()}
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(task.config, Path(folder))
            trainer.callbacks = [Finite()]
            trainer.loggers = []
            rank = trainer.global_rank
            loader = DataLoader([collate(indices) for indices in devices[rank]], batch_size=None)  # type: ignore[arg-type]
            trainer.fit(task, loader)
        assert trainer.global_step == 1
        names = ("train/loss_step", "train/loss_epoch", "train/gradient_norm", "train/reward_epoch")
        logged = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        after = dict(task.network.named_parameters())
        moved = {name: (after[name] - weights).detach() for name, weights in before.items()}
        found[f"clip {clip}"] = {"logged": logged, "moved": moved, "after": {k: v.detach() for k, v in after.items()}}
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {(name, case): step(case, name) for name in LAYOUTS if len(LAYOUTS[name]) > 1 for case in CASES}
    rank = torch.distributed.get_rank()
    torch.save(results, Path(sys.argv[1]) / f"{rank}.pt")
