"""`data.max_pixels` travels in the model file: every command refuses the same images, and `--max-pixels` overrides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vit as package
from vit.errors import UnreadableImage
from vit.models.file import read_model, save_model

LIMIT = 24 * 24
REASON = "30 x 30 = 0.0 Mpixel, more than the limit of 0.000576 Mpixel"


@pytest.fixture(scope="module")
def limited(colour_folder: Path, train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images may have 24 x 24 pixels."""
    run = tmp_path_factory.mktemp("limited") / "run"
    tiny = ("--model.name=micro/8", "--model.depth=1", "--model.dim=32", "--model.heads=2", "--model.image_size=16")
    settings = ("--data.workers=0", "--train.accelerator=cpu", f"--data.max_pixels={LIMIT}", "--train.epochs=1")
    train(colour_folder, *tiny, *settings, "--out", run)
    return run


@pytest.fixture
def folder(picture: Any, tmp_path: Path) -> Path:
    """DATA/blue, green and red with one image of 24 x 24 and one of 30 x 30 pixels each."""
    for name in ("blue", "green", "red"):
        (tmp_path / "data" / name).mkdir(parents=True)
        picture(name, 1).save(tmp_path / "data" / name / "small.png")
        picture(name, 2).resize((30, 30)).save(tmp_path / "data" / name / "large.png")
    return tmp_path / "data"


def test_the_model_file_holds_the_limit(limited: Path, folder: Path) -> None:
    assert read_model(limited).preprocessing["max_pixels"] == LIMIT
    with pytest.raises(UnreadableImage, match=r"30 x 30 .* more than the limit"):
        package.load(limited, device="cpu").predict(folder / "red" / "large.png")


def test_predict_attention_and_evaluate_refuse_by_the_limit(vit: Any, limited: Path, folder: Path) -> None:
    out = folder.parent / "out"
    records = [json.loads(line) for line in vit("predict", limited, folder, "--device=cpu").out.splitlines()]
    assert [record.get("error") for record in records] == [REASON, None] * 3
    vit("attention", limited, folder, "--out", out, "--device=cpu", "--method=raw")
    maps = json.loads((out / "maps.json").read_text())
    assert REASON in json.dumps(maps)
    vit("evaluate", limited, folder, "--out", out, "--workers=0", "--accelerator=cpu")
    assert json.loads((out / "metrics.json").read_text())["count"] == 3


def test_the_option_takes_the_place_of_the_limit(vit: Any, limited: Path, folder: Path) -> None:
    out, larger = folder.parent / "out", "--max-pixels=900"
    outcome = vit("predict", limited, folder, larger, "--device=cpu")
    assert (outcome.code, outcome.out.count("error")) == (0, 0)
    assert vit("attention", limited, folder, larger, "--out", out, "--device=cpu", "--method=raw").code == 0
    assert vit("evaluate", limited, folder, larger, "--out", out, "--workers=0", "--accelerator=cpu").code == 0
    assert json.loads((out / "metrics.json").read_text())["count"] == 6
    assert REASON in vit("predict", limited, folder, "--max-pixels", LIMIT, "--device=cpu").out


def test_data_check_takes_the_limit(vit: Any, folder: Path) -> None:
    assert REASON in vit("data", "check", folder, "--max-pixels", LIMIT, "--json").out
    assert REASON not in vit("data", "check", folder, "--json").out


def test_training_from_a_model_keeps_its_limit(limited: Path, folder: Path, vit: Any) -> None:
    words = ("--model.init", limited, "--data.workers=0", "--train.accelerator=cpu", "--train.epochs=1")
    (folder / "red" / "more.png").write_bytes((folder / "red" / "small.png").read_bytes())
    for name in ("blue", "green", "red"):
        Image.new("RGB", (20, 20), name).save(folder / name / "plain.png")
    for limit, settings in ((LIMIT, ()), (900, ("--data.max_pixels=900",))):
        run = folder.parent / f"run{limit}"
        assert vit("train", folder, *words, *settings, "--out", run).code == 0
        assert read_model(run).preprocessing["max_pixels"] == limit


def test_a_model_file_without_a_limit_has_the_default(limited: Path, folder: Path) -> None:
    model = read_model(limited)
    del model.preprocessing["max_pixels"]
    save_model(model, folder.parent / "old.safetensors")
    loaded = package.load(folder.parent / "old.safetensors", device="cpu")
    assert loaded.preprocessing.max_pixels == 100_000_000
    assert loaded.predict(folder / "red" / "large.png")
