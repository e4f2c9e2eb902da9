"""What every task shares: averaged weights, accumulated and clipped gradients."""

import copy
import itertools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_runs import tiny, train
from torch import Tensor, nn

from vit.tasks.classify import Classify

PLAIN = {"crop": "none", "flip": 0.0}


class Record(L.Callback):
    """Copies of the weights: raw and averaged ones after every optimizer step and every batch."""

    def __init__(self) -> None:
        self.raw: list[list[Tensor]] = []
        self.ema: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, task: Classify, *_: Any) -> None:
        self.raw.append(copies(task.network))
        if task.ema is not None:
            self.ema.append(copies(task.ema))


def copies(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def differ(a: list[Tensor], b: list[Tensor]) -> bool:
    return any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_averaged_weights_are_the_moving_average_of_the_raw_ones(colours: Path, tmp_path: Path) -> None:
    record = Record()
    first: list[list[Tensor]] = []

    class First(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, task: Classify) -> None:
            first.append(copies(task.network))

    train(colours, tmp_path / "run", tiny(train={"ema": 0.25, "epochs": 2}), callbacks=(record, First()))
    average = first[0]
    assert len(record.raw) == 6
    for step, (raw, ema) in enumerate(zip(record.raw, record.ema, strict=True)):
        decay = min(0.25, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, raw, strict=True)]
        for found, expected in zip(ema, average, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert differ(record.raw[-1], record.ema[-1])


def test_validation_uses_the_averaged_weights(colours: Path, tmp_path: Path) -> None:
    _, task, trainer = train(
        colours, tmp_path / "run", tiny(train={"ema": 0.999, "epochs": 1}, optim={"lr": 1e-2}, schedule={"warmup": 0})
    )
    assert task.ema is not None
    batches = list(trainer.val_dataloaders)
    losses = {}
    for name, network in (("ema", task.ema), ("raw", task.network)):
        network.eval()
        with torch.no_grad():
            logits = torch.cat([network(task.normalise(batch.images)) for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        losses[name] = float(nn.functional.cross_entropy(logits, labels))
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(losses["ema"], rel=1e-5)
    assert losses["raw"] != pytest.approx(losses["ema"], rel=1e-3)


def test_without_ema_there_is_one_network_and_it_is_validated(colours: Path, tmp_path: Path) -> None:
    _, task, _ = train(colours, tmp_path / "run", tiny(train={"epochs": 1}))
    assert task.ema is None
    assert task.evaluated is task.network


def test_nothing_moves_in_the_middle_of_an_accumulation(colours: Path, tmp_path: Path) -> None:
    record = Record()
    config = tiny(data={"batch_size": 4}, train={"ema": 0.5, "epochs": 1, "accumulate": 3})
    _, _, trainer = train(colours, tmp_path / "run", config, callbacks=(record,))
    assert trainer.global_step == 2
    for weights in (record.raw, record.ema):
        moved = [differ(a, b) for a, b in itertools.pairwise(weights)]
        assert moved == [False, True, False, False, True]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_two_accumulated_halves_are_one_step_of_the_whole_batch(name: str, colours: Path, tmp_path: Path) -> None:
    ends = {}
    for size, accumulate in ((8, 1), (4, 2)):
        config = tiny(
            data={"batch_size": size},
            augment=PLAIN,
            optim={"name": name, "lr": 1e-3, "eps": 1e-3},  # Adam divides rounding errors by tiny gradients
            train={"epochs": 1, "accumulate": accumulate},
        )
        _, task, trainer = train(colours, tmp_path / str(size), config)
        assert trainer.global_step == 3
        ends[size] = copies(task.network)
    for whole, halves in zip(ends[8], ends[4], strict=True):
        torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)


def test_the_last_step_of_an_epoch_takes_the_mean_of_the_batches_that_are_left(colours: Path, tmp_path: Path) -> None:
    """Six batches, accumulated by four: the second step has the gradient of the last two."""
    found: list[Tensor] = []
    batches: list[Any] = []
    before: list[nn.Module] = []

    class Last(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, task: Classify, batch: Any, index: int) -> None:
            if index == 4:
                before.append(copy.deepcopy(task.network))
            if index >= 4:
                batches.append(task.inputs(batch))

        def on_train_batch_end(self, trainer: L.Trainer, task: Classify, *_: Any) -> None:
            found[:] = [p.grad.clone() for p in task.network.parameters() if p.grad is not None]

    config = tiny(data={"batch_size": 4}, optim={"clip": 0.0}, train={"epochs": 1, "accumulate": 4})
    _, task, trainer = train(colours, tmp_path / "run", config, callbacks=(Last(),))
    assert (trainer.global_step, len(batches)) == (2, 2)
    losses = [task._loss(before[0](images), labels) for images, labels in batches]
    (torch.stack(losses).sum() / 8).backward()
    expected = [p.grad for p in before[0].parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_logged(
    clip: float, colours: Path, tmp_path: Path
) -> None:
    seen: list[float] = []

    class Norm(L.Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, task: Classify, *_: Any) -> None:
            squares = [p.grad.square().sum() for p in task.network.parameters() if p.grad is not None]
            if squares:
                seen.append(float(torch.stack(squares).sum().sqrt()))

    # zero_grad comes before the backward pass of the next step, hence sees the gradients that the last one took
    _, _, _trainer = train(
        colours,
        tmp_path / "run",
        tiny(optim={"clip": clip}, train={"epochs": 1}),
        callbacks=(Norm(), LoggedNorm(log := [])),
    )
    assert len(log) == 3
    assert len(seen) >= 2
    if clip:
        assert all(norm == pytest.approx(clip, rel=1e-3) for norm in seen)
        assert all(norm > 2 * clip for norm in log)
    else:
        assert seen[:2] == pytest.approx(log[:2], rel=1e-5)


class LoggedNorm(L.Callback):
    """What `train/gradient_norm` was after every step."""

    def __init__(self, log: list[float]) -> None:
        self.log_ = log

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.log_.append(float(trainer.callback_metrics["train/gradient_norm"]))
