"""`vit attention --model-report`: what it writes, what it says, what it leaves out."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit.api import load
from vit.cli import attention_report
from vit.data.config import Preprocessing
from vit.explain.model_views import measured, principal_components
from vit.models.architecture import Rope, VisionArchitecture
from vit.models.file import classifier_file, save_model
from vit.models.vision import VisionTransformer

OF_WEIGHTS = {"positions.png", "filters.png"}
OF_PICTURES = {"attention.png", "norms.png", "features.png"}


def views(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "model_report.json").read_text())
    return found


def test_pictures_are_measured_together(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_report, "_TOKENS", 20)  # batches of five, and a rest
    monkeypatch.setattr(attention_report, "_SHOWN", 7)
    out, folder = tmp_path / "report", colour_folder / "red"
    outcome = vit("attention", trained_run, folder, "--model-report", "--out", out, "--device=cpu")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "positions",
        "filters",
        "attention",
        "norms",
        "features",
        "report",
    ]
    assert lines[-2].endswith("of the variance of 12 pictures, 7 of them drawn")
    assert {path.name for path in out.iterdir()} == OF_WEIGHTS | OF_PICTURES | {"model_report.json"}
    found, model = views(out), load(trained_run, device="cpu")
    paths = sorted(str(path) for path in folder.iterdir())
    assert found["pictures"] == paths
    assert found["unreadable"] == []
    (batch,) = model.batches(paths, 12)
    measures = measured(model.network, batch)
    np.testing.assert_allclose(found["attention"]["distance_in_pixels"], measures.distances.mean(dim=0), rtol=1e-4)
    np.testing.assert_allclose(found["attention"]["entropy_in_nats"], measures.entropies.mean(dim=0), rtol=1e-4)
    largest = measures.patch_norms[..., -1].amax(dim=0)
    np.testing.assert_allclose(found["norms"]["patches"]["largest"], largest, rtol=1e-4)
    np.testing.assert_allclose(found["norms"]["prefix_tokens"], measures.prefix_norms.mean(dim=0), rtol=1e-4)
    shares = principal_components(measures.features.flatten(0, 1), 3).shares
    np.testing.assert_allclose(found["features"]["component_shares"], shares, rtol=1e-4)
    assert found["positions"]["similarity_by_rows_apart"][0] == pytest.approx(1)
    assert found["rotary"] == {"left_out": "the model has no rotary positions"}
    assert found["model"]["prefix_tokens"] == ["class token"]


def test_the_same_report_each_time(vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path) -> None:
    pictures = [colour_folder / "blue" / name for name in ("00.jpg", "01.png")]
    for name in ("a", "b"):
        outcome = vit("attention", trained_run, *pictures, "--model-report", "--out", tmp_path / name, "--device=cpu")
        assert outcome.code == 0
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_without_pictures_the_weights_are_shown_and_the_rest_is_left_out_aloud(
    vit: Any, trained_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    outcome = vit("attention", trained_run, "--model-report", "--out", out, "--device=cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert {path.name for path in out.iterdir()} == OF_WEIGHTS | {"model_report.json"}
    assert outcome.out.count("left out: needs pictures, and none were given") == 3
    for view in ("attention", "norms", "features"):
        assert views(out)[view] == {"left_out": "needs pictures, and none were given"}


def test_broken_pictures_are_named_and_the_others_measured(
    vit: Any, refused: Callable[..., str], trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "report"
    whole = (colour_folder / "red" / "00.jpg").read_bytes()
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        (data / name / "same.jpg").write_bytes(whole)
    (data / "cut.jpg").write_bytes(whole[:-200])
    outcome = vit("attention", trained_run, data, "--model-report", "--out", out, "--device=cpu")
    assert outcome.code == 1
    assert "cut.jpg: truncated" in outcome.err
    found = views(out)
    assert len(found["pictures"]) == 2
    assert [entry["path"] for entry in found["unreadable"]] == [str(data / "cut.jpg")]
    nothing = tmp_path / "nothing"
    said = refused("attention", trained_run, data / "cut.jpg", "--model-report", "--out", nothing, code=1)
    assert "none of the 1 pictures could be read" in said
    assert not list(nothing.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "none", "rope": Rope("mixed"), "pool": "mean", "class_token": False},
        {"positions": "sincos", "rope": Rope("centred"), "pool": "attention", "registers": 2},
    ],
)
def test_rotary_positions_rectangles_bf16_and_no_head(changes: dict[str, Any], vit: Any, tmp_path: Path) -> None:
    network = VisionTransformer(VisionArchitecture((16, 32), (8, 4), 32, 2, 2, 48, classes=0, **changes)).bfloat16()
    model, wide, out = tmp_path / "bare.safetensors", tmp_path / "wide.png", tmp_path / "report"
    save_model(classifier_file(network, [], asdict(Preprocessing((16, 32)))), model)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 900, 3), dtype=np.uint8)).save(wide)
    outcome = vit("attention", model, wide, "--model-report", "--out", out, "--device=cpu")
    assert (outcome.code, outcome.err) == (0, "")
    found = views(out)
    assert (out / "rotary.png").exists()
    assert [row[0] for row in found["rotary"]["by_rows_apart"]] == pytest.approx(
        [1, 1] if "mixed" in str(changes) else [1]
    )
    added = changes["positions"] == "sincos"
    assert (out / "positions.png").exists() == added
    assert ("left_out" in found["positions"]) != added
    assert found["model"]["prefix_tokens"] == (["class token", "register", "register"] if added else [])
    assert "of the variance of 1 picture\n" in outcome.out
