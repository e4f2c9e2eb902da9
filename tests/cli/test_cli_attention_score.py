"""`vit attention MODEL DATA --score`: what it measures, writes, says and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vit.api import Classifier, load
from vit.cli.attention_score import Found, balanced, mosaics_of, score
from vit.cli.reports import report_facts
from vit.data.config import Preprocessing
from vit.data.folders import Sample
from vit.errors import ConfigError, DataError
from vit.explain import METHODS
from vit.models.architecture import VisionArchitecture
from vit.models.vision import VisionTransformer

SCORES = ["positive", "negative", "deletion", "insertion", "weights"]


@pytest.fixture
def measured(trained_run: Path, colour_folder: Path, tmp_path: Path, vit: Any) -> Any:
    """Run `vit attention --score` on the tiny folder with more words; gives the outcome and what was written."""

    def run(*words: object, data: Path = colour_folder) -> tuple[Any, dict[str, Any]]:
        out = tmp_path / "out"
        outcome = vit("attention", trained_run, data, "--score", *words, "--out", out, "--device=cpu")
        return outcome, json.loads((out / "scores.json").read_text())

    return run


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second; one test looks at what is drawn."""
    monkeypatch.setattr("vit.cli.attention_score._draw", lambda *_: None)


def test_every_method_and_both_baselines_get_every_score_but_pointing_among_three_classes(
    measured: Any, tmp_path: Path
) -> None:
    outcome, written = measured("--limit=7")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.json", "scores.png"}
    with Image.open(tmp_path / "out" / "scores.png") as drawn:
        assert drawn.width > 1000
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("pictures   7 of ")
    assert "no pointing" in outcome.out
    names = [*METHODS, "random", "centre"]
    assert [line.split()[0] for line in lines if "±" in line and not line.startswith("±")] == names
    assert max(map(len, lines[3:-2])) <= 120
    assert list(written["scores"]) == names
    assert (written["pictures"], written["mosaics"]["count"]) == (7, 0)
    for name, scores in written["scores"].items():
        assert set(scores) == {*SCORES, "positive_true_class", "negative_true_class"}
        for what, number in scores.items():
            low, high = number["interval"]
            assert low - 1e-9 <= number["mean"] <= high + 1e-9
            if what in ("deletion", "insertion"):  # all start, or end, at the whole picture
                curves = [written["curves"][name][what]["mean"], written["curves"]["random"][what]["mean"]]
                end = 0 if what == "deletion" else -1
                assert curves[0][end] == pytest.approx(curves[1][end], abs=1e-5)
    for what in SCORES[:-1]:
        assert written["scores"]["random"][what]["minus_random"] == 0
    for name in ("random", "centre"):
        assert written["scores"][name]["weights"]["mean"] == pytest.approx(1)
    assert abs(written["scores"]["generic"]["weights"]["mean"]) < 1


def test_methods_can_be_chosen_and_the_same_pictures_give_the_same_numbers(measured: Any, no_plot: None) -> None:
    words = ("--limit=6", "--method=rollout", "--method=grad-cam", "--method=rollout")
    _, first = measured(*words)
    _, second = measured(*words)
    assert list(first["scores"]) == ["rollout", "grad-cam", "random", "centre"]
    assert first == second


def test_broken_pictures_are_named_and_left_out(
    measured: Any, no_plot: None, colour_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for name in ("blue", "green", "red", "pink"):
        (data / name).mkdir(parents=True)
        source = (colour_folder / ("red" if name == "pink" else name) / "00.jpg").read_bytes()
        (data / name / "good.jpg").write_bytes(source)
    (data / "red" / "cut.jpg").write_bytes(source[:-200])
    outcome, written = measured("--method=raw", data=data)
    assert outcome.code == 1
    assert outcome.err == f"vit: {data}/red/cut.jpg: truncated: Premature end of JPEG file\n"
    assert written["pictures"] == 3
    assert [entry["path"] for entry in written["unreadable"]] == [f"{data}/red/cut.jpg"]
    assert written["unknown_classes"] == {"pink": 1}


@pytest.fixture(scope="module")
def four_colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A network that knows four colours for sure, and their folder."""
    colours = {"blue": (0, 0, 255), "green": (0, 200, 0), "red": (255, 0, 0), "white": (255, 255, 255)}
    root = tmp_path_factory.mktemp("four") / "four"
    random = np.random.default_rng(0)
    pictures = []
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(np.array(colour) + random.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
            pictures.append(torch.from_numpy(pixels).permute(2, 0, 1))
    torch.manual_seed(0)
    architecture = VisionArchitecture((16, 16), (8, 8), dim=16, depth=2, heads=2, hidden=32, classes=4, pool="mean")
    classifier = Classifier(VisionTransformer(architecture), list(colours), Preprocessing((16, 16)))
    images, labels = classifier.normalise(torch.stack(pictures)), torch.arange(4).repeat_interleave(12)
    optimizer = torch.optim.Adam(classifier.network.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier.network(images), labels).backward()
        optimizer.step()
    return classifier, root


def test_the_pointing_game_is_played_on_mosaics_of_four_classes(
    four_colours: tuple[Classifier, Path], no_plot: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier, root = four_colours
    methods = ["raw", "grad-cam", "generic"]
    with caplog.at_level("INFO", logger="vit"):
        assert score(classifier, report_facts("model", str(root), "raw"), methods, 44, lambda split: tmp_path) == 0
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (written["pictures"], written["accuracy"], written["mosaics"]["count"]) == (44, 1.0, 11)
    assert written["mosaics"]["answered_with_one_of_the_four"] == 1.0
    assert written["mosaics"]["pointing_by_blanking_quarters"] > 0.5
    assert "mosaics    11, of four pictures" in caplog.text
    pointing = {name: scores["pointing"] for name, scores in written["scores"].items()}
    for name in ("raw", "centre"):  # of no class: what one quarter gains, others lose
        assert pointing[name]["mean"] == pytest.approx(0.25)
    assert pointing["random"]["interval"][0] < 0.25 < pointing["random"]["interval"][1]
    assert pointing["grad-cam"]["mean"] > 0.5
    assert pointing["grad-cam"]["than_random"] == "better"
    assert "pointing" not in written["curves"]["generic"]


def test_pictures_are_chosen_by_class_in_turn_and_by_chance_within_one() -> None:
    samples = [Sample(f"{label}/{number}", label) for label, count in enumerate((50, 3, 20)) for number in range(count)]
    chosen = balanced(samples, 20)
    assert [sum(sample.label == label for sample in chosen) for label in range(3)] == [9, 3, 8]
    assert chosen == balanced(samples, 20)
    assert len(set(chosen)) == 20
    assert {sample.path for sample in chosen if sample.label == 0} != {f"0/{number}" for number in range(9)}
    assert sorted(balanced(samples, 100), key=samples.index) == samples
    assert [sample.label for sample in chosen[:6]] == [0, 1, 2, 0, 1, 2]


def test_mosaics_hold_sure_right_answers_of_four_classes_each_once() -> None:
    found = Found(labels=[0, 1, 2, 3, 4] * 8, answers=[0, 1, 2, 3, 4] * 8, probabilities=[0.9] * 40)
    found.answers[0] = 1
    found.probabilities[6] = 0.4
    mosaics = mosaics_of(found)
    assert len(mosaics) == 9  # 38 pictures can stand in one
    used = [place for places in mosaics for place in places]
    assert len(set(used)) == len(used)
    assert not {0, 6} & set(used)
    assert all(len({found.labels[place] for place in places}) == 4 for places in mosaics)
    found.probabilities = [0.4] * 40
    assert mosaics_of(found) == []


def test_a_model_without_classes_and_data_without_any_are_refused(
    refused: Callable[..., str], trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes((colour_folder / "red" / "00.jpg").read_bytes())
    words = ("--score", "--out", tmp_path / "out", "--device=cpu")
    assert str(tmp_path / "flat") in refused("attention", trained_run, tmp_path / "flat", *words, code=1)
    (tmp_path / "other" / "pink").mkdir(parents=True)
    (tmp_path / "other" / "pink" / "a.jpg").write_bytes((colour_folder / "red" / "00.jpg").read_bytes())
    said = refused("attention", trained_run, tmp_path / "other", *words, code=1)
    assert "has none of the model's classes" in said
    (tmp_path / "broken" / "red").mkdir(parents=True)
    (tmp_path / "broken" / "red" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    assert not (tmp_path / "out" / "scores.json").exists()
    headless = load(trained_run, device="cpu")
    headless.network.reset_head(0)
    headless.classes = ()
    with pytest.raises(ConfigError, match="the model has no classes;\nthe maps themselves, by raw, rollout and norm"):
        score(headless, report_facts("model", str(colour_folder), "raw"), None, 5, lambda split: tmp_path)
    facts = report_facts("model", str(tmp_path / "broken"), "raw")
    with pytest.raises(DataError, match="none of the 1 pictures could be read"):
        score(load(trained_run, device="cpu"), facts, None, 5, lambda split: tmp_path)
