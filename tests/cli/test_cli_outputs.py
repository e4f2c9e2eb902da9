"""What commands write: strict JSON, nothing that is NaN or inf, names of classes as they are."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vit as package
from vit.errors import VitError
from vit.models.file import ModelFile, read_model, save_model

NON_FINITE = "the model's output is NaN or inf"

NAMES = ["comma, name", 'quote "name"', "two\nlines", "=1+1", "-minus", "$\\frac{1$", "caf\u00e9", "'=x", "<b>&amp;"]


def changed(run: Path, out: Path, change: Callable[[str, Tensor], Tensor], **settings: Any) -> Path:
    """Write the model of a run with changed weights, and a checksum that fits them."""
    model = read_model(run)
    states = [
        None if state is None else {k: change(k, v) for k, v in state.items()} for state in (model.raw, model.ema)
    ]
    save_model(replace(model, raw=states[0] or {}, ema=states[1], **settings), out)
    return out


@pytest.fixture
def overflowing(trained_run: Path, tmp_path: Path) -> Path:
    """The model with all its weights 1e30 times as large."""
    return changed(trained_run, tmp_path / "overflowing.safetensors", lambda name, weight: weight * 1e30)


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_predict_gives_a_failed_record_for_scores_that_are_not_finite(
    vit: Any, overflowing: Path, colour_folder: Path
) -> None:
    paths = sorted(str(path) for path in (colour_folder / "red").iterdir())
    outcome = vit("predict", overflowing, *paths)
    assert outcome.code == 1
    assert [strict(line) for line in outcome.out.splitlines()] == [{"path": p, "error": NON_FINITE} for p in paths]
    assert outcome.err.splitlines()[-1] == "vit: no prediction for 12 of the images"
    outcome = vit("predict", overflowing, *paths, "--format=csv")
    assert outcome.code == 1
    assert [row["error"] for row in csv.DictReader(outcome.out.splitlines())] == [NON_FINITE] * 12


def test_images_with_finite_scores_are_predicted_beside_others(
    vit: Any, trained_run: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an activation overflows in half precision for one image alone."""
    good = [json.loads(line) for line in vit("predict", trained_run, colour_folder / "red").out.splitlines()]
    load = package.api.build_network

    def build(*args: Any, **settings: Any) -> Any:
        network = load(*args, **settings)
        forward = network.forward

        def spoiled(images: Tensor) -> Tensor:
            logits: Tensor = forward(images)
            logits[1::2] = float("nan")
            return logits

        network.forward = spoiled
        return network

    monkeypatch.setattr("vit.api.build_network", build)
    outcome = vit("predict", trained_run, colour_folder / "red", "--batch-size", 4)
    found = [strict(line) for line in outcome.out.splitlines()]
    assert outcome.code == 1
    bad = [2, 4, 6, 8, 10]  # the first image is a batch of its own
    assert [i for i, record in enumerate(found) if record.get("error") == NON_FINITE] == bad
    assert all(found[i]["top"][0]["class"] == good[i]["top"][0]["class"] for i in range(12) if i not in bad)


def test_evaluate_refuses_a_model_whose_scores_are_not_finite(
    refused: Any, overflowing: Path, colour_folder: Path, tmp_path: Path
) -> None:
    message = refused("evaluate", overflowing, colour_folder, "--workers=0", "--out", tmp_path / "report", code=1)
    first = colour_folder / "blue" / "00.jpg"
    assert message == (f"vit: {overflowing}: {NON_FINITE} for 36 images, the first is {first}; check its weights\n")
    assert not (tmp_path / "report").exists()


def test_evaluate_names_single_images_whose_scores_are_not_finite(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vit.models.build as build

    load = build.build_network

    def spoiling(*args: Any, **settings: Any) -> Any:
        network = load(*args, **settings)
        forward = network.forward

        def spoiled(images: Tensor) -> Tensor:
            logits: Tensor = forward(images)
            logits[0] = float("inf")
            return logits

        network.forward = spoiled
        return network

    monkeypatch.setattr("vit.models.build.build_network", spoiling)
    out = tmp_path / "report"
    outcome = vit("evaluate", trained_run, colour_folder, "--workers=0", "--batch-size=18", "--out", out)
    assert (outcome.code, outcome.err) == (1, "")
    metrics = strict((out / "metrics.json").read_text(encoding="utf-8"))
    bad = [str(colour_folder / "blue" / "00.jpg"), str(colour_folder / "green" / "06.jpg")]
    assert metrics["unreadable"] == [{"path": path, "reason": NON_FINITE} for path in bad]
    assert metrics["count"] == 34
    for path in bad:
        assert f"{path}: {NON_FINITE}" in outcome.out


@pytest.mark.parametrize("words", [[], ["--score"], ["--model-report"]])
def test_attention_draws_no_map_of_outputs_that_are_not_finite(
    refused: Any, vit: Any, overflowing: Path, colour_folder: Path, tmp_path: Path, words: list[str]
) -> None:
    data = colour_folder if words else colour_folder / "red" / "00.jpg"
    outcome = vit("attention", overflowing, data, "--out", tmp_path / "maps", *words)
    assert outcome.code == 1
    assert "NaN or inf" in outcome.err
    assert "Traceback" not in outcome.err
    for path in (tmp_path / "maps").rglob("*.json"):
        strict(path.read_text(encoding="utf-8"))


def test_one_path_without_an_image_does_not_cost_the_maps_of_the_others(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    good, missing = colour_folder / "red" / "00.jpg", tmp_path / "missing.jpg"
    outcome = vit("attention", trained_run, good, missing, "--out", tmp_path / "maps")
    assert outcome.code == 1
    assert outcome.err == f"vit: {missing}: no such file or folder\n"
    first, second = strict((tmp_path / "maps" / "maps.json").read_text(encoding="utf-8"))
    assert (first["path"], second) == (str(good), {"path": str(missing), "error": "no such file or folder"})
    assert (tmp_path / "maps" / "00.generic.png").is_file()
    outcome = vit("attention", trained_run, good, missing, "--model-report", "--out", tmp_path / "report")
    assert outcome.code == 1
    report = strict((tmp_path / "report" / "model_report.json").read_text(encoding="utf-8"))
    assert report["unreadable"] == [{"path": str(missing), "error": "no such file or folder"}]


def test_features_that_are_not_finite_are_refused(overflowing: Path, colour_folder: Path) -> None:
    model = package.load(overflowing, device="cpu")
    assert isinstance(model, package.Classifier)
    for compute in (model.predict, model.features):
        with pytest.raises(VitError, match=NON_FINITE):
            compute(colour_folder / "red" / "00.jpg")


def test_neighbours_of_features_that_are_not_finite_are_refused(
    refused: Any, overflowing: Path, colour_folder: Path, tmp_path: Path
) -> None:
    words = ["--model.init", overflowing, "--tune.method=knn", "--data.workers=0", "--train.accelerator=cpu"]
    message = refused("train", colour_folder, *words, "--out", tmp_path / "run", code=1)
    assert f": {NON_FINITE}; check its weights" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["caption", "no-model", "no-image", "--out", "c.csv"], "--out c.csv: .csv is not supported; use .jsonl"),
        (["data", "check", "no-data", "--list", "good.jsonl"], "--list good.jsonl: .jsonl is not supported; use .csv"),
        (["data", "check", "no-data", "--html", "page.pdf"], "--html page.pdf: .pdf is not supported; use .html"),
        (["data", "preview", "no-data", "--out", "p.jpg"], "--out p.jpg: .jpg is not supported; use .png"),
    ],
)
def test_no_file_holds_something_else_than_its_name_says(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(*words, code=2) == f"vit: {message}\n"
    assert list(tmp_path.iterdir()) == []


# 1,000 classes, names that break tables and plots


@pytest.fixture
def thousand(trained_run: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A model of 1,000 classes with raw weights, and averaged ones that rank the classes the other way round."""
    names = [*NAMES, *(f"class {i}" for i in range(len(NAMES), 1000))]
    model = read_model(trained_run)
    architecture = {**model.architecture, "classes": 1000}
    generator = torch.Generator().manual_seed(0)
    raw = dict(model.raw)
    raw["head.weight"] = torch.randn(1000, raw["head.weight"].shape[1], generator=generator)
    raw["head.bias"] = torch.randn(1000, generator=generator)
    raw["head.bias"][: len(NAMES)] += 60 - torch.arange(len(NAMES)) * 3.0  # the names in this order, far ahead
    ema = {name: weight.clone() for name, weight in raw.items()} | {
        "head.weight": -raw["head.weight"],
        "head.bias": -raw["head.bias"],
    }
    ema["head.bias"][: len(NAMES)] = 90 + torch.arange(len(NAMES)) * 3.0
    path = tmp_path / "thousand.safetensors"
    save_model(ModelFile(model.kind, architecture, names, model.preprocessing, raw=raw, ema=ema), path)
    return path, names


def expected(path: Path, weights: Any, image: Path, top: int) -> list[str]:
    """The best classes by the logits alone."""
    model = package.load(path, weights=weights, device="cpu")
    assert isinstance(model, package.Classifier)
    with torch.inference_mode():
        (batch,) = model.batches(image, 1)
        return [model.classes[i] for i in model.network(batch)[0].argsort(descending=True)[:top].tolist()]


@pytest.mark.parametrize("weights", ["ema", "raw", None])
def test_the_top_classes_of_a_thousand_are_right_in_every_format(
    vit: Any, thousand: tuple[Path, list[str]], colour_folder: Path, tmp_path: Path, weights: str | None
) -> None:
    path, _ = thousand
    image = colour_folder / "red" / "00.jpg"
    best = expected(path, weights, image, 5)
    assert set(best) < set(NAMES)
    words = ["predict", path, image, *([] if weights is None else ["--weights", weights])]
    (line,) = vit(*words).out.splitlines()
    top = strict(line)["top"]
    assert [entry["class"] for entry in top] == best
    assert vit(*words, "--csv-raw", "--out", tmp_path / "raw.csv").code == 0
    with (tmp_path / "raw.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[f"class{i}"] for i in range(1, 6)] == best
    assert [float(row[f"probability{i}"]) for i in range(1, 6)] == [entry["probability"] for entry in top]
    assert vit(*words, "--out", tmp_path / "safe.csv").code == 0
    with (tmp_path / "safe.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[f"class{i}"] for i in range(1, 6)] == [f"'{name}" if name[0] in "=-'" else name for name in best]
    model = package.load(path, weights=weights, device="cpu")  # type: ignore[arg-type]
    assert isinstance(model, package.Classifier)
    assert list(model.predict(image)[0].classes) == best


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_evaluation_of_a_thousand_odd_names_is_right_in_every_file(
    vit: Any, thousand: tuple[Path, list[str]], colour_folder: Path, tmp_path: Path, weights: str
) -> None:
    path, names = thousand
    images = sorted(colour_folder.rglob("*.*"))
    ranked = {image: expected(path, weights, image, 5) for image in images}
    labels = {image: ranked[image][i % 6] if i % 6 < 5 else names[999] for i, image in enumerate(images)}
    listing = tmp_path / "list.jsonl"
    rows = [json.dumps({"path": str(image), "label": label}) for image, label in labels.items()]
    listing.write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "report"
    words = ["evaluate", path, listing, "--workers=0", "--weights", weights, "--out", out]
    outcome = vit(*words, "--csv-raw")
    assert (outcome.code, outcome.err) == (0, "")
    metrics = strict((out / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["top1"], metrics["top5"]) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
    assert list(metrics["per_class"]) == names
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        predictions = {row["path"]: row for row in csv.DictReader(file)}
    for image in images:
        row = predictions[str(image)]
        assert row["label"] == labels[image]
        assert [row[f"class{i}"] for i in range(1, 6)] == ranked[image]
    with (out / "confusion.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0][1:] == [row[0] for row in table[1:]] == names
    assert sum(int(cell) for row in table[1:] for cell in row[1:]) == 36
    assert {path.name for path in out.iterdir()} >= {"confusion.png", "mistakes.png", "reliability.png"}
    assert vit(*words).code == 0
    with (out / "confusion.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file))[1:10] == [f"'{name}" if name[0] in "=-'" else name for name in NAMES]
