"""A whole run on a small folder: it learns, leaves its files, repeats itself, and says what went wrong."""

import csv
import itertools
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import NAMES, draw_folder, same, tiny, train

from vit.api import load
from vit.cli.config import compose
from vit.data.folders import list_training
from vit.errors import DataError, VitError
from vit.models.file import read_model
from vit.tasks.classify import Classify
from vit.tasks.run import set_up

State = dict[str, torch.Tensor]


def final_weights(run: Path) -> State:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def folder(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with averaged weights and everything it writes."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny(train={"epochs": 7, "ema": 0.5}, augment={"mixup": 0.2})
    train(colours, run, config, pictures=True)
    return run


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_colours_are_told_apart(folder: Path) -> None:
    assert float(rows(folder)[-1]["val/accuracy"]) == 1.0
    assert float(rows(folder)[-1]["val/loss"]) < 0.4


def test_the_run_folder_holds_what_the_run_was(folder: Path, colours: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "classes.json",
        "split.csv",
        "metrics.csv",
        "environment.json",
        "checkpoints/last.ckpt",
        "checkpoints/last-1.ckpt",
        "checkpoints/best.ckpt",
        "model.safetensors",
    } == {name for name in files if not name.startswith("tensorboard/")}
    assert json.loads((folder / "classes.json").read_text()) == sorted(NAMES)
    with (folder / "split.csv").open(newline="") as file:
        splits = [(row["split"], row["class"]) for row in csv.DictReader(file)]
    assert sorted(set(splits)) == sorted(itertools.product(("train", "val"), NAMES))
    assert len(splits) == 34
    environment = json.loads((folder / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert set(environment) >= {"time", "command", "python", "platform", "cores", "gpus", "versions", "git"}


def test_the_written_configuration_reads_back_to_the_same(folder: Path, colours: Path) -> None:
    config = compose([str(folder / "config.yaml")], [])
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)
    expected = set_up(listing, tiny(train={"epochs": 7, "ema": 0.5}, augment={"mixup": 0.2})).config
    assert config == expected
    assert config.model.image_size == (16, 16)


def test_metrics_have_one_row_an_epoch(folder: Path) -> None:
    table = rows(folder)
    assert [int(row["epoch"]) for row in table] == list(range(1, 8))
    assert [int(row["step"]) for row in table] == list(range(3, 22, 3))
    for row in table:
        assert all(row.values()), row
    rates = [float(row["lr"]) for row in table]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.8 * 3e-3


def test_tensorboard_shows_scalars_and_pictures(folder: Path) -> None:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    scalars = set(tags["scalars"])
    for name in ("loss_step", "loss_epoch", "gradient_norm", "images_per_second", "memory_gb"):
        assert f"train/{name}" in scalars
    for name in ("loss", "accuracy", "top5", "balanced_accuracy", "macro_f1"):
        assert f"val/{name}" in scalars
    assert any(name.startswith("lr-") for name in scalars)
    shown = {"train/as the model sees them", "val/confusion matrix", "val/right", "val/attention"}
    assert shown <= set(tags["images"])
    maps = [event.encoded_image_string for event in events.Images("val/attention")]
    assert len(maps) == len(events.Images("val/confusion matrix"))
    assert len(set(maps)) > 1  # they change as the model learns
    if any(float(row["val/accuracy"]) < 1 for row in rows(folder)):
        assert "val/wrong" in tags["images"]
    accuracy = [event.value for event in events.Scalars("val/accuracy")]
    assert accuracy == pytest.approx([float(row["val/accuracy"]) for row in rows(folder)], abs=1e-5)


def test_the_model_file_is_the_best_checkpoint(folder: Path) -> None:
    model, best = read_model(folder / "model.safetensors"), read_model(folder / "checkpoints" / "best.ckpt")
    assert same(model.raw, best.raw)
    assert model.ema is not None
    assert best.ema is not None
    assert same(model.ema, best.ema)
    assert not same(model.raw, model.ema)
    assert model.origin


def test_the_best_checkpoint_is_of_the_first_best_epoch(folder: Path) -> None:
    accuracy = [float(row["val/accuracy"]) for row in rows(folder)]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == accuracy.index(max(accuracy))


def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(colours: Path, tmp_path: Path) -> None:
    ends = {}
    for name, seed, workers in (("a", 1, 0), ("again", 1, 0), ("workers", 1, 2), ("other", 2, 0)):
        config = tiny(
            data={"workers": workers},
            model={"dropout": 0.2, "drop_path": 0.2},
            augment={"mixup": 0.5, "cutmix": 0.5},
            train={"seed": seed, "epochs": 2},
        )
        train(colours, tmp_path / name, config)
        ends[name] = final_weights(tmp_path / name)
    assert same(ends["a"], ends["again"])
    assert same(ends["a"], ends["workers"])
    assert not same(ends["a"], ends["other"])


class Interrupted(Exception):
    pass


class InterruptAt(L.Callback):
    """Ends the process of training as a power cut would, before the first step of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, task: Classify) -> None:
        if trainer.current_epoch == self.epoch:
            raise Interrupted


def test_a_resumed_run_ends_with_the_same_weights(colours: Path, tmp_path: Path) -> None:
    config = tiny(
        model={"dropout": 0.2, "drop_path": 0.2},
        augment={"mixup": 0.5},
        train={"epochs": 4, "ema": 0.9},
    )
    train(colours, tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(colours, tmp_path / "cut", config, callbacks=(InterruptAt(2),))
    torch.manual_seed(123)
    train(colours, tmp_path / "cut", config, resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    whole, cut = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")
    )
    assert same(whole["state_dict"], cut["state_dict"])
    assert (whole["epoch"], whole["global_step"]) == (cut["epoch"], cut["global_step"])
    assert whole["lr_schedulers"] == cut["lr_schedulers"]
    timeless = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in rows(tmp_path / name)] for name in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


TIMES = ("seconds", "train/images_per_second", "train/memory_gb")


def test_training_stops_early_when_nothing_improves(colours: Path, tmp_path: Path) -> None:
    config = tiny(train={"epochs": 30, "patience": 2})  # accuracy is 1 soon, and cannot rise further
    train(colours, tmp_path / "run", config)
    accuracy = [float(row["val/accuracy"]) for row in rows(tmp_path / "run")]
    assert len(accuracy) < 30
    assert max(accuracy[-2:]) <= max(accuracy[:-2])
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_row_holds_no_numbers_of_an_older_validation(colours: Path, tmp_path: Path) -> None:
    train(colours, tmp_path / "run", tiny(train={"epochs": 4, "validate_every": 2}))
    assert [bool(row["val/loss"]) for row in rows(tmp_path / "run")] == [False, True, False, True]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_precision_of_the_processor_trains(precision: str, colours: Path, tmp_path: Path) -> None:
    _, task, _ = train(colours, tmp_path / "run", tiny(train={"precision": precision, "epochs": 6}))
    assert float(rows(tmp_path / "run")[-1]["val/accuracy"]) == 1.0
    assert all(parameter.dtype == torch.float32 for parameter in task.network.parameters())


def test_recomputed_activations_change_nothing(colours: Path, tmp_path: Path) -> None:
    for checkpointing in (False, True):
        config = tiny(model={"drop_path": 0.2}, train={"checkpointing": checkpointing, "epochs": 1})
        train(colours, tmp_path / str(checkpointing), config)
    for a, b in zip(*(final_weights(tmp_path / name).values() for name in ("True", "False")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_trains_and_its_files_load_without_compiling(colours: Path, tmp_path: Path) -> None:
    _, _task, _ = train(colours, tmp_path / "run", tiny(train={"compile": True, "epochs": 6}))
    assert float(rows(tmp_path / "run")[-1]["val/accuracy"]) == 1.0
    assert load(tmp_path / "run").predict(colours / "val" / "red" / "0.png")[0].classes[0] == "red"


@pytest.mark.parametrize("settings", [{"train": {"validate_every": 3}}, {"train": {}}, {"train": {"ema": 0.9}}])
def test_a_loss_that_is_no_number_ends_training_in_words(
    settings: dict[str, dict[str, float]], colours: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        VitError, match=r"^the loss became (nan|inf) in epoch \d; lower optim\.lr \(now 1e\+30\)"
    ) as caught:
        train(colours, tmp_path / "run", tiny(optim={"lr": 1e30, "clip": 0.0}, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("split", "use"), [("train", "training"), ("val", "validation")])
def test_a_split_without_one_readable_picture_ends_training_in_words(split: str, use: str, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", train=2, val=2)
    for path in (data / split).rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"no picture for {use} could be read"):
        train(data, tmp_path / "run", tiny(train={"epochs": 1}))


def test_some_unreadable_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", train=5, val=2)
    broken = [data / "train" / "red" / f"{i}.png" for i in range(3)] + [data / "val" / "blue" / "1.png"]
    for path in broken:
        path.write_bytes(b"no picture")
    config = tiny(data={"batch_size": 1}, augment={"mixup": 0.3, "cutmix": 0.3}, train={"epochs": 2})
    setup, task, _ = train(data, tmp_path / "run", config)
    named = {Path(setup.listing.splits["train"][index].path) for split, index in task.unreadable if split == "train"}
    assert named == set(broken[:3])
    assert [setup.listing.splits["val"][index].path for index, _ in task.gathered.failures] == [str(broken[3])]
    assert all(float(row["train/loss"]) > 0 for row in rows(tmp_path / "run"))
