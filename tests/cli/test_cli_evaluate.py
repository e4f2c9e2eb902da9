"""`vit evaluate`: the report's files agree with each other and with a count by hand; nothing is dropped in silence."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ["blue", "green", "red"]


@pytest.fixture
def labelled(picture: Any, tmp_path: Path) -> Path:
    """Pictures the model has not seen, some of them in the wrong folder, so that there are mistakes to count."""
    root = tmp_path / "labelled"
    seed = 1000
    for name, shown in (("blue", "bbbbg"), ("green", "ggrgb"), ("red", "rrrbb")):
        (root / name).mkdir(parents=True)
        for i, letter in enumerate(shown):
            seed += 1
            colour = {"b": "blue", "g": "green", "r": "red"}[letter]
            picture(colour, seed).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def report(vit: Any, trained_run: Path, tmp_path: Path) -> Any:
    """Evaluate a folder; gives metrics.json, predictions.csv and what was printed."""

    def evaluate(data: Path, *words: object, model: Path = trained_run) -> tuple[dict[str, Any], list[Any], str]:
        out = tmp_path / "report"
        outcome = vit("evaluate", model, data, "--out", out, "--workers=0", "--accelerator=cpu", *words)
        assert (outcome.code, outcome.err) == (0, "")
        return read_metrics(out), read_table(out / "predictions.csv"), outcome.out

    return evaluate


def read_metrics(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_what_a_count_of_the_predictions_gives(report: Any, labelled: Path, tmp_path: Path) -> None:
    metrics, rows, out = report(labelled)
    assert metrics["count"] == len(rows) == 15
    assert [row["path"] for row in rows] == sorted(str(path) for path in labelled.rglob("*.png"))
    assert all(row["label"] == Path(row["path"]).parent.name for row in rows)
    right = [row["class1"] == row["label"] for row in rows]
    assert 0 < sum(right) < 15
    assert [row["correct"] for row in rows] == [str(int(correct)) for correct in right]
    assert metrics["top1"] == pytest.approx(sum(right) / 15)
    assert metrics["top5"] == 1.0
    losses = [float(row["loss"]) for row in rows]
    assert metrics["loss"] == pytest.approx(sum(losses) / 15, abs=1e-5)
    recalls, f1 = [], []
    for name in CLASSES:
        hits = sum(row["class1"] == row["label"] == name for row in rows)
        count, answers = (sum(row[column] == name for row in rows) for column in ("label", "class1"))
        recalls.append(hits / count)
        f1.append(2 * hits / (count + answers))
        found = metrics["per_class"][name]
        assert (found["count"], found["recall"], found["f1"]) == pytest.approx((count, recalls[-1], f1[-1]))
    assert metrics["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / 3)
    for row, loss in zip(rows, losses, strict=True):
        names = [row[f"class{i}"] for i in (1, 2, 3)]
        chances = [float(row[f"probability{i}"]) for i in (1, 2, 3)]
        assert sorted(names) == CLASSES
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1, abs=3e-6)
        assert -math.log(chances[names.index(row["label"])]) == pytest.approx(loss, abs=1e-5)
    confidence = [float(row["probability1"]) for row in rows]
    bins = np.clip(np.ceil(np.array(confidence) * 15) - 1, 0, 14)
    gaps = [abs(sum(np.array(right)[bins == b]) - sum(np.array(confidence)[bins == b])) for b in set(bins)]
    assert metrics["ece"] == pytest.approx(sum(gaps) / 15, abs=1e-5)
    low, high = metrics["intervals"]["top1"]
    assert 0 <= low <= metrics["top1"] <= high <= 1
    assert f"accuracy           {100 * metrics['top1']:6.2f} %" in out
    assert f"mistakes           {15 - sum(right)}" in out


def test_the_report_is_complete_and_its_pictures_open(report: Any, labelled: Path, tmp_path: Path) -> None:
    _, rows, out = report(labelled)
    folder = tmp_path / "report"
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "predictions.csv",
        "confusion.csv",
        "confusion.png",
        "reliability.png",
        "mistakes.png",
    }
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100
            image.load()
    matrix = {row.pop("true class"): row for row in read_table(folder / "confusion.csv")}
    for true in CLASSES:
        for answered in CLASSES:
            count = sum((row["label"], row["class1"]) == (true, answered) for row in rows)
            assert matrix[true][answered] == str(count)
    assert f"report             {folder}" in out


def test_a_second_report_replaces_the_first(report: Any, labelled: Path, tmp_path: Path, colour_folder: Path) -> None:
    first, rows, _ = report(labelled)
    again, same, _ = report(labelled)
    changing = {"images_per_second"}
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in again.items() if k not in changing
    }
    assert rows == same
    for name in CLASSES:
        for row in rows:
            if row["label"] == name and row["correct"] == "0":
                Path(row["path"]).unlink()
    metrics, _, _ = report(labelled)
    assert metrics["top1"] == 1.0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "metrics.json",
        "predictions.csv",
        "reliability.png",
    ]


def test_without_out_the_report_is_in_the_run_folder(
    vit: Any, trained_run: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained_run, run)
    monkeypatch.chdir(tmp_path)
    assert vit("evaluate", run, labelled, "--workers=0").code == 0
    assert (run / "evaluation" / labelled.stem / "all" / "metrics.json").is_file()
    shutil.rmtree(run / "evaluation")
    assert vit("evaluate", run / "model.safetensors", labelled, "--workers=0").code == 0
    assert (run / "evaluation" / labelled.stem / "all" / "metrics.json").is_file()
    assert not (tmp_path / "evaluation").exists()
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    assert vit("evaluate", tmp_path / "alone.safetensors", labelled, "--workers=0").code == 0
    assert (tmp_path / "evaluation" / labelled.stem / "all" / "metrics.json").is_file()


def test_a_class_that_the_data_lacks_shifts_no_label(report: Any, labelled: Path) -> None:
    whole, rows, _ = report(labelled)
    for name in ("blue", "green"):
        hidden = labelled.parent / "hidden"
        (labelled / name).rename(hidden)
        part, fewer, _ = report(labelled)
        hidden.rename(labelled / name)
        assert part["per_class"][name]["count"] == 0
        assert fewer == [row for row in rows if row["label"] != name]
        for other in set(CLASSES) - {name}:
            assert part["per_class"][other]["recall"] == whole["per_class"][other]["recall"]


def test_a_list_in_any_order_gives_the_same_numbers(report: Any, labelled: Path, tmp_path: Path) -> None:
    whole, rows, _ = report(labelled)
    pictures = sorted(labelled.rglob("*.png"), key=lambda path: path.name[::-1])
    lines = ["label,path", *(f"{path.parent.name},{path}" for path in reversed(pictures))]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    listed, shuffled, _ = report(tmp_path / "list.csv")
    assert sorted(shuffled, key=lambda row: row["path"]) == rows
    for name in ("top1", "balanced_accuracy", "macro_f1", "per_class"):
        assert listed[name] == whole[name]
    assert listed["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_what_cannot_be_counted_is_named_and_counted(report: Any, labelled: Path, picture: Any) -> None:
    _, before, _ = report(labelled)
    broken = labelled / "green" / "0broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 cut")
    (labelled / "green" / "empty.png").touch()
    (labelled / "yellow").mkdir()
    for i in range(2):
        picture("red", i).save(labelled / "yellow" / f"{i}.png")
    metrics, rows, out = report(labelled)
    assert metrics["count"] == 15
    (unreadable,) = metrics["unreadable"]
    assert unreadable["path"] == str(broken)
    assert [entry["path"] for entry in metrics["left_out"]] == [str(labelled / "green" / "empty.png")]
    assert metrics["unknown_classes"] == {"yellow": 2}
    assert rows[:-1] == before
    assert (rows[-1]["path"], rows[-1]["label"], rows[-1]["class1"]) == (str(broken), "green", "")
    assert rows[-1]["error"] == unreadable["reason"]
    assert f"unreadable         {broken}: {unreadable['reason']}" in out
    assert f"left out           {labelled / 'green' / 'empty.png'}: {metrics['left_out'][0]['reason']}" in out
    assert "unknown class      yellow: 2 pictures, not counted" in out


def test_pictures_that_were_trained_on_are_counted_and_told(
    report: Any, trained_run: Path, colour_folder: Path, labelled: Path
) -> None:
    flattering, _, out = report(colour_folder)
    assert flattering["seen_in_training"] == {"train": 30, "val": 6}
    assert "trained on         30 of them" in out
    held_out, rows, out = report(trained_run / "split.csv")
    assert held_out["seen_in_training"] == {"train": 0, "val": len(rows)}
    assert (held_out["split"], held_out["count"]) == ("val", len(rows))
    assert f"note               {len(rows)} of them chose the best epoch" in out
    assert "trained on" not in out
    assert report(labelled)[0]["seen_in_training"] == {"train": 0, "val": 0}


def test_a_split_can_be_chosen_and_must_exist(
    report: Any, refused: Any, trained_run: Path, colour_folder: Path, labelled: Path, tmp_path: Path
) -> None:
    listing = trained_run / "split.csv"
    counts = {split: report(listing, "--split", split)[0]["count"] for split in ("train", "val")}
    assert sum(counts.values()) == 36
    assert report(listing)[0]["count"] == counts["val"]
    assert "no split called test; it has train, val" in refused(
        "evaluate", trained_run, listing, "--split=test", code=1
    )
    assert "no split called val" in refused("evaluate", trained_run, labelled, "--split=val", code=1)


def test_batch_size_and_workers_change_nothing(report: Any, labelled: Path) -> None:
    first, rows, _ = report(labelled, "--batch-size=64")
    second, others, _ = report(labelled, "--batch-size=4", "--workers=1")
    assert [row["class1"] for row in rows] == [row["class1"] for row in others]
    assert second["loss"] == pytest.approx(first["loss"], abs=1e-5)
    assert second["per_class"] == first["per_class"]


def test_data_without_a_known_class_or_a_readable_picture_is_refused(
    refused: Any, trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "purple").mkdir(parents=True)
    (tmp_path / "data" / "purple" / "a.png").write_bytes(b"broken")
    message = refused("evaluate", trained_run, tmp_path / "data", code=1)
    assert "none of the model's classes; it has purple, the model knows blue, green, red" in message
    (tmp_path / "data" / "purple").rename(tmp_path / "data" / "red")
    out = tmp_path / "report"
    message = refused("evaluate", trained_run, tmp_path / "data", "--workers=0", "--out", out, code=1)
    assert message == f"vit: {tmp_path / 'data'}: none of the 1 pictures could be read\n"
    assert not out.exists()


def test_names_of_odd_bytes_survive_in_the_table(report: Any, labelled: Path, picture: Any) -> None:
    name = b'n\xfftab\t,"quote"\nline \xf0\x9f\x90\x88.png'
    odd = labelled / "red" / name.decode("utf-8", "surrogateescape")
    picture("red", 5).save(labelled / "odd.png")
    (labelled / "odd.png").rename(odd)
    _, rows, _ = report(labelled)
    assert sum(row["path"] == str(odd) for row in rows) == 1


def test_two_processes_write_the_report_of_one(report: Any, labelled: Path) -> None:
    (labelled / "red" / "broken.png").write_bytes(b"no picture")
    _, alone, _ = report(labelled)
    metrics, rows, _ = report(labelled, "--devices", 2)
    assert metrics["count"] == 15
    assert rows == alone


def test_a_device_that_is_not_here_is_refused(refused: Any, trained_run: Path, labelled: Path, tmp_path: Path) -> None:
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("this machine has an mps device, so it cannot be asked for one it lacks")
    message = refused("evaluate", trained_run, labelled, "--out", tmp_path / "r", "--accelerator", "mps", code=2)
    assert message == "vit: accelerator: torch finds no mps on this machine\n"


def test_data_whose_name_has_a_dot_has_a_report_of_its_own(
    vit: Any, trained_run: Path, labelled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    for name in ("data", "data.1"):
        shutil.copytree(labelled, tmp_path / name)
        assert vit("evaluate", run, tmp_path / name, "--workers=0").code == 0
    assert {path.name for path in (run / "evaluation").iterdir()} >= {"data", "data.1"}


def test_no_report_replaces_that_of_another_split_data_set_or_model(
    vit: Any, trained_run: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained_run / "model.safetensors", "one.safetensors")
    shutil.copy(trained_run / "model.safetensors", "other.safetensors")
    for place in ("a/photos/val", "a/photos/test", "b/photos/test"):
        shutil.copytree(labelled, place)
    Path("a/photos/val/blue/0.png").unlink()
    Path("b/photos/test/red/0.png").unlink()
    Path("b/photos/test/red/1.png").unlink()
    where = {}
    for model, data, split, count in (
        ("one", "a/photos", "val", 14),
        ("one", "a/photos", "test", 15),
        ("one", "b/photos", "test", 13),
        ("other", "a/photos", "test", 15),
        ("one", "a/photos", "val", 14),  # once more: it replaces its own report and no other
    ):
        words = ["evaluate", f"{model}.safetensors", data, "--split", split, "--workers=0"]
        outcome = vit(*words)
        assert (outcome.code, outcome.err) == (0, "")
        folder = outcome.out.splitlines()[-1].removeprefix("report").strip()
        where[model, data, split] = folder
        metrics = read_metrics(Path(folder))
        assert (metrics["model"], metrics["data"], metrics["split"], metrics["count"]) == (*words[1:3], split, count)
    assert list(where.values()) == [
        "evaluation/photos/val",
        "evaluation/photos/test",
        "evaluation/photos-2/test",
        "evaluation/photos-3/test",
    ]
    monkeypatch.chdir("b")  # the same data by another path
    words = ["evaluate", tmp_path / "one.safetensors", "photos", "--workers=0"]
    assert vit(*words, "--out", "here").code == 0
    assert vit(*words).code == 0
    (tmp_path / "b" / "evaluation").rename(tmp_path / "evaluation-of-b")
    monkeypatch.chdir(tmp_path)
    assert vit("evaluate", "one.safetensors", "b/photos", "--weights=raw", "--workers=0").code == 0
    assert sorted(str(path.parent) for path in Path("evaluation").glob("*/*/metrics.json")) == sorted(where.values())


def test_an_unreadable_report_is_not_replaced(vit: Any, trained_run: Path, labelled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    mine = run / "evaluation" / "labelled" / "all" / "metrics.json"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"top1": 1.0}', encoding="utf-8")
    assert vit("evaluate", run, labelled, "--workers=0").code == 0
    assert mine.read_text(encoding="utf-8") == '{"top1": 1.0}'
    assert (run / "evaluation" / "labelled-2" / "all" / "metrics.json").is_file()
