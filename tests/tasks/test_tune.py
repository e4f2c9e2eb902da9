"""Fine-tuning: what stands still, what learns how fast, LoRA, heads fitted on features, neighbours."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_runs import draw_folder, same, tiny, train

from vit.api import load
from vit.data.folders import list_training
from vit.errors import ConfigError
from vit.models.file import read_model
from vit.models.vision import VisionTransformer
from vit.tasks.config import Config
from vit.tasks.run import Setup, make_network, make_task, set_up
from vit.tasks.tune import features_of, fit_head, freeze, run_knn, run_probe


@pytest.fixture(scope="module")
def pretrained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on red and blue."""
    run = tmp_path_factory.mktemp("runs") / "first"
    train(colours, run, tiny(train={"epochs": 2}))
    return run


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other classes than the pretrained weights know."""
    root = draw_folder(tmp_path_factory.mktemp("others"))
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / "scarlet")
        (root / split / "blue").rename(root / split / "azure")
    return root


def setup_for(data: Path, pretrained: Path, **parts: Any) -> Setup:
    listing = list_training(data, val_fraction=0.2, test_fraction=0.0, seed=0)
    return set_up(listing, tuning(pretrained, **parts))


def tuning(pretrained: Path, **parts: Any) -> Config:
    model = {"name": "auto", "dim": None, "depth": None, "heads": None, "hidden": None, "init": str(pretrained)}
    return tiny(**{**parts, "model": {**model, **parts.get("model", {})}})


def test_left_open_rate_and_layer_decay_are_those_of_the_way_of_training(colours: Path, pretrained: Path) -> None:
    listing = list_training(colours, val_fraction=0.2, test_fraction=0.0, seed=0)

    def settled(config: Config) -> tuple[float | None, float | None]:
        optim = set_up(listing, config).config.optim
        return optim.lr, optim.layer_decay

    open_rates = {"optim": {"lr": None}}
    assert settled(tiny(**open_rates)) == (1e-3, 1.0)
    assert settled(tuning(pretrained, **open_rates)) == (3e-4, 0.75)
    assert settled(tuning(pretrained, **open_rates, tune={"method": "lora"})) == (1e-3, 1.0)
    assert settled(tuning(pretrained, optim={"lr": 0.5, "layer_decay": 0.9})) == (0.5, 0.9)


def test_layer_decay_reaches_the_optimizer(others: Path, pretrained: Path, tmp_path: Path) -> None:
    """The rates that Lightning's optimizer holds at the first step, one a layer."""
    _, _, trainer = train(
        others, tmp_path / "run", tuning(pretrained, optim={"lr": 1e-2}, schedule={"name": "constant", "warmup": 0.0})
    )
    rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    expected = {3: 1e-2, 2: 0.75e-2, 1: 0.75**2 * 1e-2, 0: 0.75**3 * 1e-2}  # head, two blocks, embeddings
    assert rates == {
        f"{kind}, layer {layer}": pytest.approx(rate)
        for layer, rate in expected.items()
        for kind in ("decayed", "not decayed")
    }


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts of the model whose tensors are not what they were: embeddings, blocks.0, norm, head."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in names}


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (0, {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1", "norm", "head"}),
        (1, {"blocks.1", "norm", "head"}),
        (-1, {"head"}),
    ],
)
def test_what_is_frozen_stands_still(
    frozen: int, expected: set[str], others: Path, pretrained: Path, tmp_path: Path
) -> None:
    config = tuning(pretrained, tune={"freeze": frozen}, train={"epochs": 1})
    setup, task, _ = train(others, tmp_path / "run", config)
    before = make_network(setup).state_dict()
    assert changed(before, task.network.state_dict()) == expected


def test_after_some_epochs_everything_is_trained(others: Path, pretrained: Path, tmp_path: Path) -> None:
    def after(epochs: int) -> set[str]:
        config = tuning(pretrained, tune={"freeze": -1, "unfreeze_after": 1}, train={"epochs": epochs})
        setup, task, _ = train(others, tmp_path / f"{epochs}", config)
        return changed(make_network(setup).state_dict(), task.network.state_dict())

    assert after(1) == {"head"}
    assert {"blocks.0", "patch_embed", "head"} <= after(2)


def test_lora_trains_little_and_leaves_a_plain_model(others: Path, pretrained: Path, tmp_path: Path) -> None:
    config = tuning(pretrained, tune={"method": "lora", "lora_rank": 2}, train={"epochs": 2, "ema": 0.5})
    setup, task, _ = train(others, tmp_path / "run", config)
    trained = [name for name, p in task.network.named_parameters() if p.requires_grad]
    assert all(name.endswith((".up", ".down")) or name.startswith("head.") for name in trained)
    file = read_model(tmp_path / "run")
    before = make_network(setup).state_dict()
    assert file.raw.keys() == before.keys()
    assert changed(before, file.raw) == {"blocks.0", "blocks.1", "head"}
    pictures = sorted((others / "val" / "azure").iterdir())
    assert len(load(tmp_path / "run").predict(pictures)) == len(pictures)
    assert file.origin == f"fine-tuned from {pretrained}"


class CutOff(Exception):
    pass


class CutOffAt(L.Callback):
    """Ends the process of training as a power cut would, before the first step of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise CutOff


@pytest.mark.parametrize("tune", [{"method": "lora"}, {"freeze": -1, "unfreeze_after": 2}])
def test_a_resumed_run_ends_with_the_same_weights(
    tune: dict[str, Any], others: Path, pretrained: Path, tmp_path: Path
) -> None:
    config = tuning(pretrained, tune=tune, train={"epochs": 3})
    _, whole, _ = train(others, tmp_path / "whole", config)
    with pytest.raises(CutOff):
        train(others, tmp_path / "cut", config, callbacks=(CutOffAt(1),))
    _, resumed, _ = train(others, tmp_path / "cut", config, resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert same(dict(whole.network.state_dict()), dict(resumed.network.state_dict()))


def test_a_fitted_head_is_the_networks_head_and_knows_the_pictures(others: Path, pretrained: Path) -> None:
    setup = setup_for(others, pretrained)
    network = make_network(setup)
    probes = fit_head(network, setup)
    features, labels = features_of(network, setup.listing.splits["val"], setup)
    accuracy = float((network.head(features).argmax(dim=1) == labels).float().mean())
    assert accuracy == pytest.approx(max(probe.validation_accuracy for probe in probes))
    assert accuracy == 1.0  # two colours
    assert all(module.training for module in network.modules())  # as it was


def test_heads_that_all_diverge_are_no_start(others: Path, pretrained: Path) -> None:
    setup = setup_for(others, pretrained, tune={"probe_rates": (1e38,)})
    with pytest.raises(ConfigError, match="diverged at every learning rate"):
        fit_head(make_network(setup), setup, to_go_on=True)


def test_a_distilled_model_has_two_heads_that_agree(others: Path, pretrained: Path) -> None:
    from dataclasses import replace

    setup = setup_for(others, pretrained)
    setup.architecture = replace(setup.architecture, distilled=True, registers=0)
    network = VisionTransformer(setup.architecture).eval()
    fit_head(network, setup)
    assert torch.equal(network.head.weight, network.head_dist.weight)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(network(images), network.head(network.features(images)), rtol=0, atol=1e-5)


def test_a_probe_leaves_a_model_and_a_row_a_rate(others: Path, pretrained: Path, tmp_path: Path) -> None:
    setup = setup_for(others, pretrained, tune={"method": "probe", "probe_rates": (0.01, 0.1), "probe_epochs": 20})
    run_probe(make_network(setup), setup, tmp_path)
    with (tmp_path / "probe.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rate"] for row in rows] == ["0.01", "0.1"]
    model, before = read_model(tmp_path), make_network(setup).state_dict()
    assert changed(before, model.raw) == {"head"}
    assert model.classes == ["azure", "scarlet"]
    assert load(tmp_path).predict(sorted((others / "val" / "azure").iterdir())[0]).pop().classes[0] == "azure"


def test_neighbours_leave_a_row_a_number(others: Path, pretrained: Path, tmp_path: Path) -> None:
    setup = setup_for(others, pretrained, tune={"method": "knn", "neighbours": (1, 3)})
    run_knn(make_network(setup), setup, tmp_path)
    with (tmp_path / "knn.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["neighbours"] for row in rows] == ["1", "3"]
    assert float(rows[0]["val/accuracy"]) == 1.0


def test_features_leave_unreadable_pictures_out(others: Path, pretrained: Path, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data")
    broken = data / "train" / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    setup = setup_for(data, pretrained)
    features, labels = features_of(make_network(setup), setup.listing.splits["train"], setup)
    assert len(features) == len(labels) == len(setup.listing.splits["train"]) - 1


def test_freezing_reaches_from_the_embeddings_to_a_block() -> None:
    network = VisionTransformer(tiny(model={"registers": 1, "rope": "mixed"}).model.resolve(classes=2, picture_size=16))
    freeze(network, 1)
    still = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert still == {"cls_token", "reg_token", "pos_embed", "patch_embed", "rope", "blocks"}
    assert not any(p.requires_grad for p in network.blocks[0].parameters())
    assert all(p.requires_grad for p in network.blocks[1].parameters())


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"unfreeze_after": 3}, "needs tune.freeze"),
        ({"freeze": 1, "method": "lora"}, "is for tune.method full"),
        ({"freeze": -2}, "must be -1"),
        ({"probe_rates": ()}, "must be positive numbers"),
        ({"neighbours": (0,)}, "must be positive"),
        ({"lora_rank": 0}, "must be at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tune: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(tune=tune)


@pytest.mark.parametrize("tune", [{"method": "probe"}, {"method": "lora"}, {"freeze": 2}])
def test_without_weights_there_is_nothing_to_tune(tune: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^tune\.(method|freeze): needs model.init"):
        tiny(tune=tune)


def test_patches_of_another_size_are_resampled(others: Path, pretrained: Path) -> None:
    setup = setup_for(others, pretrained, model={"patch_size": 4})
    network = make_task(setup).network
    assert isinstance(network, VisionTransformer)
    assert (network.architecture.patch_size, network.architecture.grid) == ((4, 4), (4, 4))
    assert not same(network.state_dict(), read_model(pretrained).raw)
    with pytest.raises(ConfigError, match="patches of 8 x 8; leave it out"):
        setup_for(others, pretrained, model={"name": "micro/4", "dim": 32, "depth": 2, "heads": 2, "hidden": 48})


def test_the_mean_of_patches_can_take_the_class_tokens_place(others: Path, pretrained: Path) -> None:
    assert setup_for(others, pretrained, model={"pool": "mean"}).architecture.pool == "mean"
