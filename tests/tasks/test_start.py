"""A run that starts from the weights of another: head, positions and colours, and what does not fit."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import draw_folder, same, tiny, train

from vit.api import load
from vit.data.folders import list_training
from vit.errors import ConfigError
from vit.models.architecture import ModelConfig
from vit.models.build import start_from
from vit.models.file import read_model
from vit.models.vision import VisionTransformer
from vit.tasks.config import Config, OptimConfig, TrainConfig, TuneConfig
from vit.tasks.run import make_task, make_trainer, new_network, set_up


@pytest.fixture(scope="module")
def folder(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "first"
    train(colours, run, tiny(train={"epochs": 2, "ema": 0.5}))
    return run


def test_a_run_can_start_from_another_with_other_classes_and_picture_size(folder: Path, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", train=4, val=2)
    shutil.copytree(data / "train" / "red", data / "train" / "crimson")
    shutil.copytree(data / "val" / "red", data / "val" / "crimson")
    listing = list_training(data, val_fraction=0.2, test_fraction=0.0, seed=0)
    config = tiny(model={"init": str(folder), "image_size": 32}, train={"epochs": 1})
    task = make_task(set_up(listing, config))
    old = read_model(folder).weights()
    new = task.network.state_dict()
    assert new["head.weight"].shape == (3, 32)
    assert not new["head.weight"].any()
    assert (old["pos_embed"].shape[1], new["pos_embed"].shape[1]) == (5, 17)
    torch.testing.assert_close(new["pos_embed"][:, 0], old["pos_embed"][:, 0])
    for name in old.keys() - {"pos_embed", "head.weight", "head.bias"}:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=0)
    setup, _, _ = train(data, tmp_path / "run", config)
    assert setup.preprocessing.size == (32, 32)
    assert load(tmp_path / "run").classes == ("blue", "crimson", "red")


@pytest.mark.parametrize("started", [False, True])
def test_a_new_head_starts_from_the_bias_that_is_set_and_an_old_one_does_not(
    started: bool, folder: Path, colours: Path, tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data", train=2, val=2)
    shutil.copytree(data / "train" / "red", data / "train" / "crimson")
    init = {"init": str(folder)} if started else {}
    config = tiny(model={"head_bias": -1.5, **init})
    for source, new in ((data, True), (colours, not started)):
        listing = list_training(source, val_fraction=0.2, test_fraction=0.0, seed=0)
        bias = make_task(set_up(listing, config)).network.head.bias
        assert bool((bias == -1.5).all()) == new


def test_a_bias_of_the_head_is_for_classes_alone() -> None:
    with pytest.raises(ConfigError, match=r"^model.head_bias: is for classify, got -1.5$"):
        Config(task="caption", model=ModelConfig(head_bias=-1.5))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"optim": OptimConfig(name="lamb")}, "optim.name: must be adamw with fsdp, got 'lamb'"),
        ({"task": "caption"}, "train.strategy: is not for task caption, got 'fsdp'"),
        (
            {"model": ModelConfig(init="run"), "tune": TuneConfig(freeze=1)},
            "train.strategy: is not for tune.method lora, probe and knn, nor tune.freeze, got 'fsdp'",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Config(train=TrainConfig(strategy="fsdp"), **parts)


def test_strategies_that_split_the_model_are_refused_but_for_one() -> None:
    with pytest.raises(ConfigError, match=r"^train.strategy: of those that split the model, only fsdp is supported"):
        TrainConfig(strategy="deepspeed_stage_3")
    with pytest.raises(ConfigError, match=r"^train.compile: is not for fsdp, got True$"):
        TrainConfig(strategy="fsdp", compile=True)


def test_a_job_of_slurm_whose_tasks_do_not_fit_is_an_error_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    for name, value in (("SLURM_JOB_NAME", "job"), ("SLURM_NTASKS", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"devices or strategy: You set `--ntasks=2`.*Use `--ntasks-per-node=2`"):
        make_trainer(tiny(train={"devices": 2, "strategy": "ddp"}), tmp_path)


def test_a_run_that_starts_from_another_keeps_its_colours_and_a_head_that_fits(colours: Path, tmp_path: Path) -> None:
    config = tiny(data={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}, train={"epochs": 1})
    train(colours, tmp_path / "first", config)
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)
    setup = set_up(listing, tiny(model={"init": str(tmp_path / "first"), "image_size": None}))
    assert (setup.preprocessing.mean, setup.preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (setup.config.data.mean, setup.config.data.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert setup.architecture.image_size == setup.config.model.image_size == (16, 16)
    assert same(make_task(setup).network.state_dict(), read_model(tmp_path / "first").raw)
    other = {"crop_fraction": 0.8, "interpolation": "bilinear"}
    setup = set_up(listing, tiny(model={"init": str(tmp_path / "first"), "image_size": None}, data=other))
    preprocessing, data = setup.preprocessing, setup.config.data
    assert (preprocessing.crop_fraction, preprocessing.interpolation, preprocessing.mean) == (
        0.8,
        "bilinear",
        data.mean,
    )
    assert (data.crop_fraction, data.interpolation, data.mean) == (0.8, "bilinear", (0.5, 0.4, 0.3))


def test_a_picture_size_that_the_first_weights_cannot_take_is_refused(folder: Path, colours: Path) -> None:
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)
    config = tiny()
    config.model.init, config.model.image_size = str(folder), 20
    with pytest.raises(
        ConfigError, match=r"^model.image_size: must be a multiple of the patch size 8 x 8, got 20 x 20$"
    ):
        set_up(listing, config)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"dim": 64}, "cls_token", "expected 1 x 1 x 64, found 1 x 1 x 32"),
        ({"depth": 3}, "blocks.2.norm1.weight", "expected 32 values, missing"),
        ({"class_token": False, "pool": "mean"}, "pos_embed", "expected 1 x 4 x 32, found 1 x 5 x 32"),
    ],
)
def test_weights_of_another_shape_are_refused_naming_the_parameter(
    change: dict[str, object], name: str, words: str, folder: Path
) -> None:
    network = VisionTransformer(tiny(model=change).model.resolve(classes=2, picture_size=16))
    with pytest.raises(ConfigError, match=f"^model.init: {name}: {words}$"):
        start_from(read_model(folder), network, ["blue", "red"])


def test_other_class_names_of_the_same_number_get_a_fresh_head(folder: Path, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", train=4, val=2)
    for split in ("train", "val"):
        (data / split / "red").rename(data / split / "apple")
    listing = list_training(data, val_fraction=0.2, test_fraction=0.0, seed=0)
    task = make_task(set_up(listing, tiny(model={"init": str(folder)})))
    assert not task.network.state_dict()["head.weight"].any()


@pytest.mark.parametrize(("key", "value"), [("depth", 3), ("pool", "attention"), ("registers", 1)])
def test_a_shape_that_the_first_weights_do_not_have_is_refused(
    folder: Path, colours: Path, key: str, value: object
) -> None:
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)
    with pytest.raises(ConfigError, match=rf"^model\.{key}: {value}, but the weights of model\.init have"):
        set_up(listing, tiny(model={"init": str(folder), key: value}))


def test_nothing_of_the_shape_need_be_said_to_start_from_weights(folder: Path, colours: Path) -> None:
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)
    setup = set_up(listing, Config(model=ModelConfig(init=str(folder))))
    assert (setup.architecture.dim, setup.architecture.depth) == (32, 2)


@pytest.mark.parametrize(("method", "read"), [("full", True), ("lora", True), ("probe", False)])
def test_what_reads_its_pictures_every_epoch_may_keep_them(
    method: Any, read: bool, folder: Path, colours: Path
) -> None:
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)
    setup = set_up(listing, tiny(model={"init": str(folder)}, tune={"method": method}))
    assert (setup.cache_reason != "each is read once") == read


def test_a_network_that_cannot_fit_into_memory_is_refused_before_any_is_taken() -> None:
    sizes = {"dim": 65_536, "depth": 1_000, "heads": 1_024, "hidden": 262_144}
    architecture = tiny(model=sizes).model.resolve(classes=2, picture_size=16)
    with pytest.raises(
        ConfigError, match=r"^model: its weights take [\d,]+\.\d GB and [\d,]+\.\d GB of memory are free"
    ):
        new_network(lambda: VisionTransformer(architecture))
