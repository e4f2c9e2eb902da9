"""Pretrained weights on the command line: tune, probe, neighbours, export, soup, the list."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vit.api import load
from vit.cli.train import _check_same_data, _resumed_config
from vit.data.config import Preprocessing
from vit.errors import ConfigError
from vit.models.architecture import VisionArchitecture
from vit.models.file import classifier_file, read_model, save_model
from vit.models.timm import from_timm, to_timm
from vit.models.vision import VisionTransformer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MODEL of a small architecture of timm, with random weights in a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return f"timm:test_vit.r160_in1k@{path}"


QUICK = ["--model.image_size=32", "--data.workers=0", "--train.accelerator=cpu", "--train.epochs=1"]


@pytest.fixture(scope="module")
def tuned(weights: str, colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that started from timm's weights."""
    from vit.cli.main import main

    from_conftest = tmp_path_factory.mktemp("tuned") / "run"
    code = main(["train", str(colour_folder), f"--model.init={weights}", *QUICK, "--out", str(from_conftest)])
    assert code == 0
    return from_conftest


def test_training_says_whose_weights_they_are_and_what_becomes_of_the_head(tuned: Path, weights: str) -> None:
    said = (tuned / "log.txt").read_text()
    assert f"weights    {weights}, licence apache-2.0" in said
    assert "head       new, for 3 classes; the weights know 1000 others" in said
    assert "head       fitted on the pictures' features first" in said
    assert "rate 0.0003, from block to block x 0.75" in said
    model = read_model(tuned)
    assert (model.origin, model.licence) == (f"fine-tuned from {weights}", "apache-2.0")
    assert model.classes == ["blue", "green", "red"]
    assert model.architecture["timm"] == "test_vit"


def test_a_tuned_model_goes_back_to_timm_and_comes_again(vit: Any, tuned: Path, tmp_path: Path) -> None:
    outcome = vit("export", tuned, "--format", "timm", "--out", tmp_path / "timm")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"timm.create_model('local-dir:{tmp_path}/timm', pretrained=True)" in outcome.out
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    images, ours = torch.randn(2, 3, 32, 32), load(tuned)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours.network(images), rtol=0, atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == ["blue", "green", "red"]
    config = timm.data.resolve_model_data_config(theirs)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), ours.preprocessing.crop_fraction)
    again = load(tmp_path / "timm")
    assert again.classes == ours.classes
    state = dict(ours.network.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_a_model_from_scratch_is_exported_too(vit: Any, trained_run: Path, tmp_path: Path) -> None:
    assert vit("export", trained_run, "--out", tmp_path / "timm").code == 0
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), load(trained_run).network(images), rtol=0, atol=1e-5)


def test_export_bit_for_bit(vit: Any, weights: str, tmp_path: Path) -> None:
    assert vit("export", weights, "--out", tmp_path).code == 0
    before, after = load_file(weights.partition("@")[2]), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "test_vit"


def test_a_probe_can_be_evaluated_and_asked(vit: Any, weights: str, colour_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = vit("train", colour_folder, f"--model.init={weights}", *QUICK, "--tune.method=probe", "--out", run)
    assert outcome.code == 0, outcome
    assert "best       rate" in outcome.out
    assert f"vit evaluate {run} {run}/split.csv" in outcome.out
    with (run / "probe.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    outcome = vit("evaluate", run, run / "split.csv", "--workers", "0", "--accelerator", "cpu")
    assert outcome.code == 0, outcome
    picture = next((colour_folder / "red").iterdir())
    outcome = vit("predict", run, picture, "--top", "1", "--device", "cpu")
    assert json.loads(outcome.out)["top"][0]["class"] in ("blue", "green", "red")
    assert "licence apache-2.0" in outcome.err


def test_neighbours_print_a_line_a_number(vit: Any, weights: str, colour_folder: Path, tmp_path: Path) -> None:
    words = [f"--model.init={weights}", *QUICK, "--tune.method=knn", "--tune.neighbours=[1, 3]"]
    outcome = vit("train", colour_folder, *words, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert "  1 neighbours   val accuracy" in outcome.out
    assert f"report     {tmp_path}/run" in outcome.out
    assert "next" not in outcome.out


def test_a_model_without_classes_has_features_and_no_predictions(
    refused: Callable[..., str], colour_folder: Path, tmp_path: Path
) -> None:
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    model, picture = f"timm:test_vit@{tmp_path}/w.safetensors", next((colour_folder / "red").iterdir())
    assert load(model, device="cpu").features(picture).shape == (1, 64)
    assert "the model has no classes" in refused("predict", model, picture, "--device", "cpu", code=2)[-120:]


def test_an_export_does_not_replace_what_is_there(vit: Any, refused: Any, trained_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    assert vit("export", trained_run, "--out", folder).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert f"--out {folder}: not empty; choose another folder" in refused(
        "export", trained_run, "--out", folder, code=2
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_soup_of_a_run_with_itself_is_the_run(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "soup.safetensors"
    outcome = vit("soup", trained_run, trained_run, "--out", out)
    assert outcome.code == 0, outcome
    before, after = read_model(trained_run), read_model(out)
    assert all(torch.equal(tensor, after.raw[name]) for name, tensor in before.weights().items())
    assert after.ema is None
    assert (after.origin, after.classes) == ("soup of 2: trained by vit", before.classes)
    words = ["--data", trained_run / "split.csv", "--workers", "0", "--accelerator", "cpu"]
    outcome = vit("soup", trained_run, trained_run, *words, "--out", out)
    assert outcome.code == 0, outcome
    assert outcome.out.count("accuracy") == 3
    assert f"{trained_run} + {trained_run}" in outcome.out
    assert "was trained on" not in outcome.out
    outcome = vit("soup", trained_run, trained_run, *words, "--split", "train", "--out", out)
    assert f"note       {trained_run} was trained on 30 of the 30 pictures to choose by" in outcome.out


def test_models_that_do_not_belong_together_make_no_soup(
    refused: Callable[..., str], trained_run: Path, tuned: Path, tmp_path: Path
) -> None:
    words = refused("soup", trained_run, tuned, "--out", tmp_path / "soup.safetensors", code=2)
    assert "other preprocessing than" in words
    assert "at least two models" in refused("soup", trained_run, "--out", tmp_path / "x.safetensors", code=2)
    assert not (tmp_path / "soup.safetensors").exists()


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("norm.bias"), "norm.bias: expected 16 values, missing"),
        (lambda w: w.update({"extra": torch.zeros(3)}), "extra: not expected, found 3 values"),
        (lambda w: w.update({"head.weight": w["head.weight"][:, :4]}), "head.weight: expected 3 x 16, found 3 x 4"),
        (lambda w: w.update({"norm.bias": torch.zeros(16, dtype=torch.int8)}), "int8"),
        (lambda w: w["norm.bias"].fill_(torch.nan), "the weights hold NaN or infinity (norm.bias)"),
    ],
)
def test_a_soup_of_models_that_could_not_be_used_is_refused_and_nothing_is_written(
    refused: Callable[..., str], change: Any, words: str, both: bool, tmp_path: Path
) -> None:
    """Also where all of them are wrong alike, so that they could be averaged."""
    architecture = VisionArchitecture((16, 16), (8, 8), dim=16, depth=1, heads=2, hidden=8, classes=3)
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for number, path in enumerate(paths):
        file = classifier_file(VisionTransformer(architecture), ["a", "b", "c"], asdict(Preprocessing((16, 16))))
        if number or both:
            change(file.raw)
        save_model(file, path)
    out = tmp_path / "soup.safetensors"
    said = refused("soup", *paths, "--out", out, code=1)
    assert words in said
    assert str(paths[0 if both else 1]) in said
    assert not out.exists()


def test_the_list_says_what_there_is_and_whether_it_is_here(
    vit: Any, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    outcome = vit("models")
    assert outcome.code == 0
    assert "pretrained weights: vit models" in outcome.out
    outcome = vit("models", "*dinov2*")
    assert "size " not in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if "timm:vit_small_patch14_dinov2.lvd142m" in line]
    assert line.split()[1:] == ["22.1", "M", "93.4", "518", "x", "518", "no", "apache-2.0"]
    folder = tmp_path / "models--timm--vit_small_patch14_dinov2.lvd142m" / "snapshots" / "x"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    outcome = vit("models", "vit_small_patch14_dinov2.lvd142m")
    assert " yes " in outcome.out
    assert "no size and no weights match vit_smal" in refused("models", "vit_smal", code=2)


def test_the_python_names_are_there() -> None:
    import vit

    assert vit.from_timm is from_timm
    assert vit.to_timm is to_timm
    assert callable(vit.from_huggingface)


def test_a_run_goes_on_by_the_command_that_began_it(
    tuned: Path, weights: str, colour_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the run settled by itself, or by its first weights, is no change; nor is another way to its folder."""
    words = [f"--model.init={weights}", *QUICK, "--data.cache=auto", "--data.mean=[0.485,0.456,0.406]"]
    config, changes = _resumed_config(str(tuned), [], words)
    assert changes == []
    assert config.data.mean == (0.5, 0.5, 0.5)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    other = Path(os.path.relpath(colour_folder, tmp_path / "here"))
    assert ".." in other.parts
    _check_same_data(other, str(colour_folder / "red" / "00.jpg"))
    with pytest.raises(ConfigError, match="the run's pictures are not in"):
        _check_same_data(tmp_path, str(colour_folder / "red" / "00.jpg"))


def test_models_of_other_activations_make_no_soup(
    refused: Callable[..., str], trained_run: Path, tmp_path: Path
) -> None:
    file = read_model(trained_run)
    path = tmp_path / "other.safetensors"
    save_model(replace(file, architecture=file.architecture | {"activation": "quick_gelu"}), path)
    said = refused("soup", trained_run, path, "--out", tmp_path / "soup.safetensors", code=2)
    assert said == f"vit: {path}: other architecture than {trained_run}\n"
