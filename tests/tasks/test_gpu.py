"""Steps as a GPU takes them, without one: nothing is mixed with the CPU, and nobody waits.

Backward passes are torch's own affair, and left out.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, moved, pretended_gpu
from tiny_runs import draw_folder, tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from vit.data.augment import TrainingTransform
from vit.data.config import AugmentConfig, Preprocessing
from vit.data.dataset import Batch, ImageDataset
from vit.data.device import DeviceLoader
from vit.data.folders import list_training
from vit.data.sampling import EpochSampler
from vit.data.tokenizer import Tokenizer
from vit.data.words import WordBatch
from vit.models.architecture import VisionArchitecture
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.fusion import FusedClassifier
from vit.models.text import LanguageModel
from vit.models.text_architecture import EncoderDecoderArchitecture, FusionArchitecture, TextArchitecture
from vit.models.vision import VisionTransformer
from vit.tasks.base import Task
from vit.tasks.classify import Classify
from vit.tasks.config import Config, TextConfig
from vit.tasks.fuse import Fuse
from vit.tasks.optim import make_optimizer, parameter_groups
from vit.tasks.write import Write

SIDE = 32
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "mixed": {"augment": {"mixup": 0.2, "cutmix": 1.0}},
    "averaged": {"train": {"ema": 0.99}},
    "unclipped": {"optim": {"clip": 0.0}},
    "muon": {"optim": {"name": "muon"}, "train": {"ema": 0.99}},
    "balanced": {"loss": {"class_weights": "balanced"}},
    "yes or no": {"loss": {"name": "bce", "class_weights": "balanced"}, "augment": {"mixup": 0.2}},
    "drop path": {"model": {"drop_path": 0.4}},
    "patch dropout": {"model": {"patch_dropout": 0.4}},
    "sincos": {"model": {"positions": "sincos"}},
    "axial": {"model": {"rope": "axial"}},
    "centred": {"model": {"rope": "centred"}},
    "mixed angles": {"model": {"rope": "mixed"}},
    "attention pool": {"model": {"pool": "attention", "registers": 2}},
    "small, learned": {"augment": {"half_size": 0.5}},
    "small, sincos": {"augment": {"half_size": 0.5}, "model": {"positions": "sincos"}},
    "small, centred": {"augment": {"half_size": 0.5}, "model": {"rope": "centred"}},
    "small, mixed angles": {"augment": {"half_size": 0.5}, "model": {"rope": "mixed"}},
}
TOKENIZER = Tokenizer.train(["a red square above a blue circle"], "words", 20)
TEXT = TextArchitecture(vocabulary=len(TOKENIZER), length=16, dim=32, depth=2, heads=2, hidden=48)
PICTURE = VisionArchitecture((SIDE, SIDE), (8, 8), dim=48, depth=1, heads=2, hidden=48, classes=0)


def waited(task: Task, batch: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the second step of a task waits; the first may, to make what is kept."""
    task.train()
    progress = SimpleNamespace(total_batch_idx=7)
    trainer: Any = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_loop=progress),
        precision_plugin=SimpleNamespace(),
        current_epoch=0,
        global_step=7,
        global_rank=0,
        world_size=1,
        num_training_batches=9,
    )
    monkeypatch.setattr(task, "_trainer", trainer)
    monkeypatch.setattr(task, "_device", GPU)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    with pretended_gpu(monkeypatch) as waits:
        moved(task)
        groups = parameter_groups(task.network, task.depth, task.config.optim)
        optimizer = make_optimizer(groups, task.config.optim, fused=True)
        for _ in range(2):
            waits.clear()
            seen = batch()
            with torch.autocast("cuda", torch.bfloat16):  # as `train.precision auto` on a GPU
                assert (there(2, 2, dtype=torch.float32) @ there(2, 2, dtype=torch.float32)).dtype == torch.bfloat16
                loss = task.training_step(seen, 0)
            assert loss.device == GPU
            assert loss.requires_grad
            for parameter in task.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            task.configure_gradient_clipping(optimizer)
            optimizer.step()
            if task.ema is not None:
                task._average(task.ema)
        assert optimizer.found_inf.device == GPU  # type: ignore[attr-defined]
        return list(waits)


def there(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=GPU)


def pictures(count: int = 6) -> Batch:
    return Batch(there(count, 3, SIDE, SIDE, dtype=torch.uint8), there(count), there(count), [])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_of_a_classifier_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"image_size": SIDE, "patch_size": 4}
    config = tiny(**{**VARIANTS[name], "model": {**tiny().model.__dict__, **shape, **VARIANTS[name].get("model", {})}})
    network = VisionTransformer(config.model.resolve(classes=3, picture_size=SIDE))
    task = Classify(network, list("abc"), Preprocessing((SIDE, SIDE)), config, counts=[1, 2, 3])
    assert waited(task, pictures, monkeypatch) == []


def words(*, images: bool = False, source: bool = False, labels: bool = False, even: bool = True) -> WordBatch:
    """Eight texts of four samples."""
    return WordBatch(
        there(8, 7),
        there(8),
        there(8),
        there(8),
        even,
        there(4),
        images=there(4, 3, SIDE, SIDE, dtype=torch.uint8) if images else None,
        source=there(4, 9) if source else None,
        source_lengths=there(4) if source else None,
        labels=there(8) if labels else None,
    )


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("kind", ["captioner", "translator", "language"])
def test_a_step_of_writing_waits_for_nothing(kind: str, even: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = {"captioner": PICTURE, "translator": replace(TEXT, rope=True)}
    network: nn.Module = LanguageModel(TEXT)
    if kind in encoders:
        decoder = replace(TEXT, context_dim=encoders[kind].dim)
        network = EncoderDecoder(EncoderDecoderArchitecture(encoders[kind], decoder))
    task_name: Any = {"captioner": "caption", "translator": "translate", "language": "language"}[kind]
    config = Config(task=task_name, text=TextConfig(word_dropout=0.1))
    task = Write(network, TOKENIZER, config, kind=kind, preprocessing=Preprocessing((SIDE, SIDE)))  # type: ignore[arg-type]
    batch = lambda: words(images=kind == "captioner", source=kind == "translator", even=even)  # noqa: E731
    assert waited(task, batch, monkeypatch) == []


@pytest.mark.parametrize("drop_side", [0.0, 0.5])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("attends", ["image", "text"])
def test_a_step_of_fusion_waits_for_nothing(
    attends: Any, even: bool, drop_side: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = FusedClassifier(FusionArchitecture(PICTURE, TEXT, 5, depth=1, attends=attends))
    config = Config(task="fuse", text=TextConfig(drop_side=drop_side))
    task = Fuse(network, list("abcde"), TOKENIZER, Preprocessing((SIDE, SIDE)), config)
    assert waited(task, lambda: words(images=True, labels=True, even=even), monkeypatch) == []


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop="pad", policy="trivialaugment", color_jitter=0.2, erase=0.5),
        AugmentConfig(crop="none", policy="randaugment"),
        AugmentConfig(policy="three-augment"),
        AugmentConfig(),
    ],
    ids=lambda augment: f"{augment.crop}, {augment.policy}",
)
def test_batches_of_pictures_on_the_device_come_without_waiting(
    augment: AugmentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = list_training(draw_folder(tmp_path), val_fraction=0.2, test_fraction=0.0, seed=0)
    samples = listing.splits["train"]
    dataset = ImageDataset(samples, TrainingTransform(augment, Preprocessing((16, 16))), seed=0)
    with pretended_gpu(monkeypatch) as waits:
        sampler = EpochSampler([sample.label for sample in samples], seed=0)
        loader = DeviceLoader(dataset, sampler, device=GPU, batch_size=4)
        images = loader._loaded()
        indices, copies = sampler.order()
        for start in (0, 4):
            waits.clear()
            batch = loader._batch(images, loader._drawn(indices[start : start + 4], copies[start : start + 4]))
            assert (batch.images.device, batch.labels.device, batch.indices.device) == (GPU, GPU, GPU)
            assert batch.images.shape == (4, 3, 16, 16)
        assert waits == []


@pytest.mark.parametrize("kind", ["pictures", "words"])
def test_batches_go_to_the_device_from_pinned_memory_without_waiting(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, numbers = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    batch: Batch | WordBatch = Batch(images, numbers, numbers.clone(), [])
    if kind == "words":
        batch = WordBatch(tokens, numbers, numbers.clone(), numbers.clone(), True, numbers.clone(), images=images)
    with pretended_gpu(monkeypatch) as waits:
        batch.pin_memory().to(GPU)
        assert waits == []
        batch.to(GPU)
        assert len(waits) == (3 if kind == "pictures" else 6)


def test_the_pretended_gpu_notices_what_waits_and_what_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch) as waits:
        numbers = torch.zeros(3, device=GPU)
        numbers + 1
        assert waits == []
        torch.from_numpy(np.zeros(3)).to(GPU)
        assert len(waits) == 1
        numbers.cpu()
        assert len(waits) == 2
        with pytest.raises(DataDependentOutputException):
            numbers.sum().item()
        with pytest.raises(RuntimeError, match="device"):
            numbers + torch.zeros(3)
