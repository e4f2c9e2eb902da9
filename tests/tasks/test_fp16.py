"""Training in fp16 with torch's gradient scaler: on the CPU, which has one; Lightning offers it for GPUs alone."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny_runs import draw_folder, tiny, train

import vit.tasks.run
from vit.tasks.classify import Classify


class Steps(L.Callback):
    """Of every step: whether a weight moved, the scale after it, and the gradient's norm that was logged."""

    def __init__(self) -> None:
        self.moved: list[bool] = []
        self.scales: list[float] = []
        self.norms: list[float] = []
        self.before: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, task: Classify, *_: Any) -> None:
        self.before = [parameter.detach().clone() for parameter in task.network.parameters()]

    def on_train_batch_end(self, trainer: L.Trainer, task: Classify, *_: Any) -> None:
        pairs = zip(self.before, task.network.parameters(), strict=True)
        self.moved.append(any(not torch.equal(before, now) for before, now in pairs))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(1.0 if scaler is None else scaler.get_scale())
        self.norms.append(float(trainer.callback_metrics["train/gradient_norm"]))


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers take fp16 on the CPU, with a scale that is too large at first."""
    made = vit.tasks.run._trainer

    def trainer(**options: Any) -> L.Trainer:
        if options.pop("precision") != "16-mixed":
            return made(**options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        return made(**{**options, "plugins": [*options["plugins"], MixedPrecision("16-mixed", "cpu", scaler)]})

    monkeypatch.setattr(vit.tasks.run, "_trainer", trainer)


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch takes a step that is skipped for one that is forgotten
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_that_overflow_are_not_taken_until_the_scale_fits(optimizer: str, scaled: None, tmp_path: Path) -> None:
    draw_folder(tmp_path / "data")
    found = {}
    for precision in ("fp16", "fp32"):
        steps = Steps()
        config = tiny(
            optim={"name": optimizer, "clip": 0.1}, train={"epochs": 5, "precision": precision}, data={"batch_size": 6}
        )
        train(tmp_path / "data", tmp_path / precision, config, callbacks=(steps,))
        found[precision] = steps
    half, single = found["fp16"], found["fp32"]
    skipped = half.moved.index(True)
    assert 0 < skipped < 10
    assert all(half.moved[skipped:])
    assert half.scales[: skipped + 1] == [2.0 ** (23 - step) for step in range(skipped)] + [half.scales[skipped]]
    assert half.scales[-1] == half.scales[skipped - 1]  # it fits
    # unscaled before it is clipped and logged: the weights are still those of the first step
    assert 0.2 < half.norms[skipped] / single.norms[0] < 5
