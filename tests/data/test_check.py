"""The check of a data set: what must be mended is named and counted, nothing is changed."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit.cli.data import main
from vit.data import check as check_module
from vit.data.check import check, report_lines, write_good
from vit.data.duplicates import fingerprint, fingerprints, near_pairs
from vit.data.folders import list_training


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A cloudy picture, uint8 [H, W, 3], unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def put(path: Path, pixels: np.ndarray, **options: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def fill(root: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 10) -> Path:
    """A data set without a fault."""
    for number, split in enumerate(splits):
        for label in range(2):
            for place in range(count):
                put(root / split / "ab"[label] / f"{place}.png", picture(1000 * number + 100 * label + place))
    return root


def checksums(root: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def test_a_sound_data_set_passes(tmp_path, capsys):
    fill(tmp_path)
    before = checksums(tmp_path)
    report = check(tmp_path)
    assert report.counts == {"train": {"a": 10, "b": 10}, "val": {"a": 10, "b": 10}}
    assert report.sizes == {"height": (48, 48, 48), "width": (64, 64, 64)}
    assert report.must_mend == report.worth_a_look == []
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "train: 20 pictures of 2 classes" in out
    assert out.endswith("nothing must be mended\n")
    assert checksums(tmp_path) == before


def test_unreadable_files_are_named_with_the_reason(tmp_path, capsys):
    fill(tmp_path)
    (tmp_path / "train" / "a" / "empty.jpg").touch()
    (tmp_path / "train" / "a" / "text.jpg").write_text("<html>")
    data = (tmp_path / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "val" / "b" / "cut\n.png").write_bytes(data[: len(data) // 2])
    report = check(tmp_path)
    reasons = {os.path.basename(item.path): item.reason for item in report.unreadable}
    assert reasons.pop("cut\n.png").startswith("truncated")
    assert reasons == {"empty.jpg": "empty file", "text.jpg": "not a picture of a known format"}
    assert report.must_mend == ["files that cannot be used: 3"]
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path}/train/a/text.jpg: not a picture of a known format" in out
    assert "cut\\n.png: truncated" in out


def test_the_pixel_limit_is_passed_on(tmp_path):
    fill(tmp_path)
    assert len(check(tmp_path, max_pixels=3000).unreadable) == 40


def test_the_same_picture_in_two_splits_is_a_leak_whatever_its_format(tmp_path):
    fill(tmp_path)
    first = put(tmp_path / "train" / "a" / "x.png", picture(7777))
    second = put(tmp_path / "val" / "a" / "y.bmp", picture(7777))
    report = check(tmp_path)
    assert report.leaks == [[first, second]]
    assert report.near_leaks == report.conflicts == report.copies == []
    assert report.must_mend == ["the same picture in several splits: 1"]


def test_a_picture_made_smaller_and_packed_harder_in_another_split_is_worth_a_look(tmp_path):
    fill(tmp_path)
    first = put(tmp_path / "train" / "a" / "x.png", picture(7777, 240, 320))
    second = put(tmp_path / "val" / "a" / "y.jpg", picture(7777, 120, 160), quality=40)
    report = check(tmp_path)
    assert report.near_leaks == [[first, second]]
    assert report.leaks == report.must_mend == []
    assert report.worth_a_look == ["pictures that look alike in different splits: 1"]


def test_the_same_picture_under_two_labels_is_a_conflict(tmp_path):
    fill(tmp_path, ("",))
    paths = [put(tmp_path / label / "x.png", picture(7777)) for label in "ab"]
    report = check(tmp_path)
    assert report.counts == {"all": {"a": 11, "b": 11}}
    assert report.conflicts == [paths]
    assert report.must_mend == ["the same picture in several classes: 1"]


def test_copies_within_a_class_and_lookalikes_across_classes_are_worth_a_look(tmp_path):
    fill(tmp_path, ("",))
    copies = [put(tmp_path / "a" / f"{name}.png", picture(7777)) for name in "xy"]
    put(tmp_path / "b" / "z.jpg", picture(7777), quality=60)
    report = check(tmp_path)
    assert report.copies == [copies]
    assert report.near_conflicts == [[copies[0], str(tmp_path / "b" / "z.jpg")]]
    assert report.must_mend == []
    assert report.worth_a_look == [
        "pictures that look alike in different classes: 1",
        "the same picture several times in a class: 1",
    ]


def test_flat_pictures_and_gradients_are_not_taken_for_copies(tmp_path):
    fill(tmp_path)
    ramp = np.repeat(np.linspace(0, 250, 64).astype(np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    for number, (split, label) in enumerate([("train", "a"), ("train", "b"), ("val", "a")]):
        put(tmp_path / split / label / "flat.png", np.full((48, 64, 3), 100 + number, np.uint8))
        put(tmp_path / split / label / "ramp.png", ramp + np.uint8(number))
        put(tmp_path / split / label / "tiny.png", np.full((1, 1, 3), number, np.uint8))
    report = check(tmp_path)
    assert report.must_mend == report.worth_a_look == []


def plain_search(greys: np.ndarray, bits: int) -> list[tuple[int, int, int]]:
    """Every pair compared with every other."""
    signs = (greys[:, :, 1:] > greys[:, :, :-1]).reshape(len(greys), 64)
    return [
        (i, j, int(distance))
        for i in range(len(greys))
        for j in range(i + 1, len(greys))
        if (distance := (signs[i] != signs[j]).sum()) <= bits
        and np.abs(greys[i].astype(int) - greys[j].astype(int)).mean() <= 8
    ]


@pytest.mark.parametrize("bits", [0, 1, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_are_those_of_a_plain_search(seed, bits):
    rng = np.random.default_rng(seed)
    originals = rng.integers(0, 256, (40, 8, 9), np.uint8)
    noise = rng.integers(-8, 9, (360, 8, 9)) * rng.integers(0, 2, (360, 1, 1))
    greys = np.clip(originals[rng.integers(0, 40, 360)].astype(int) + noise, 0, 255).astype(np.uint8)
    expected = plain_search(greys, bits)
    assert len({distance for _, _, distance in expected}) == bits + 1
    assert sorted(near_pairs(greys, bits)) == expected


def test_near_pairs_are_found_across_the_tiles_of_a_large_bucket():
    greys = np.repeat(fingerprint(picture(1)).grey[None], 1100, 0)
    assert sorted((i, j) for i, j, _ in near_pairs(greys)) == [(i, j) for i in range(1100) for j in range(i + 1, 1100)]


def test_the_search_for_lookalikes_says_when_it_ends_early(tmp_path, monkeypatch):
    fill(tmp_path)
    for place in range(4):
        put(tmp_path / "train" / "a" / f"alike{place}.png", picture(7777) // 2 + np.uint8(place))
    assert check(tmp_path).more_alike is False
    monkeypatch.setattr(check_module, "_ALIKE", 5)
    report = check(tmp_path)
    assert report.more_alike is True
    assert report.worth_a_look == [
        "near-duplicates within a class: 1",
        "more pictures look alike; the search ended after 5 pairs",
    ]
    monkeypatch.setattr(check_module, "_ALIKE", 6)
    assert check(tmp_path).more_alike is False


def test_pictures_wait_for_a_thread_in_small_numbers():
    asked = []

    def paths():
        for number in range(100_000):
            asked.append(number)
            yield f"absent/{number}.png"

    results = fingerprints(paths(), 100)
    assert next(results).path == "absent/0.png"
    assert len(asked) < 2000
    assert [next(results).path for _ in range(20)] == [f"absent/{number}.png" for number in range(1, 21)]
    results.close()


def test_trouble_with_classes_must_be_mended(tmp_path):
    fill(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    put(tmp_path / "val" / "new" / "0.png", picture(7777))
    (tmp_path / "train" / "bad").mkdir()
    (tmp_path / "train" / "bad" / "0.png").write_text("no picture")
    report = check(tmp_path)
    assert report.must_mend == [
        f"{tmp_path}: no pictures of empty; remove the class or add pictures",
        f"{tmp_path}: val has pictures of new, which train lacks",
        "files that cannot be used: 1",
        "no readable picture of bad",
    ]


def test_lopsided_and_missing_classes_are_worth_a_look(tmp_path):
    for number in range(22):
        put(tmp_path / "train" / "many" / f"{number}.png", picture(number))
    for number in range(2):
        put(tmp_path / "train" / "few" / f"{number}.png", picture(100 + number))
    put(tmp_path / "val" / "many" / "0.png", picture(200))
    (tmp_path / "README").write_text("about")
    report = check(tmp_path)
    assert report.must_mend == []
    assert report.worth_a_look == [
        "fewer than 10 pictures to train on of few",
        "11 times as many pictures of many (22) as of few (2); data.balanced draws them equally often",
        "val has no pictures of few",
    ]


@pytest.mark.parametrize("make", [lambda at: None, lambda at: at.mkdir(), lambda at: put(at / "0.png", picture(0))])
def test_data_that_cannot_be_listed_is_reported_and_not_raised(tmp_path, make, capsys):
    make(tmp_path / "data")
    assert main(["check", str(tmp_path / "data"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["must_mend"]) == 1
    assert report["must_mend"][0].startswith(f"{tmp_path}/data: ")


def test_json_is_clean_and_complete(tmp_path, capsys):
    fill(tmp_path)
    name = os.fsencode(tmp_path / "train" / "a") + b"/\xff.png"
    with open(name, "wb") as stream:
        stream.write(b"x")
    assert main(["check", str(tmp_path), "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["unreadable"] == [{"path": os.fsdecode(name), "reason": "not a picture of a known format"}]
    assert report["counts"]["val"] == {"a": 10, "b": 10}
    assert captured.err == ""  # no progress where nobody watches


def test_long_lists_are_cut_short_in_the_text(tmp_path):
    fill(tmp_path)
    for number in range(12):
        (tmp_path / "train" / "a" / f"bad{number}.png").write_text("x")
    lines = list(report_lines(check(tmp_path)))
    assert sum("not a picture" in line for line in lines) == 10
    assert "  and 2 more (--json lists all)" in lines


def test_progress_is_told_picture_by_picture(tmp_path):
    seen = []
    check(fill(tmp_path, count=2), progress=lambda done, count: seen.append((done, count)))
    assert seen == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize("argv", [[], ["check"], ["check", "a", "--jsn"], ["make", "letters", "a"], ["make", "digits"]])
def test_wrong_usage_exits_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("vit: ")
    assert error.count("\n") == 1


def test_help_imports_nothing_heavy():
    code = "import sys, vit.cli.data; print([m for m in ('numpy', 'torch', 'PIL', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_good_pictures_are_a_list_to_train_on(tmp_path, capsys):
    fill(tmp_path / "data")
    first = put(tmp_path / "data" / "train" / "a" / "x.png", picture(7777))
    put(tmp_path / "data" / "val" / "a" / "y.bmp", picture(7777))  # a leak: kept to measure on
    put(tmp_path / "data" / "train" / "a" / "z.png", picture(8888))  # two classes: neither
    put(tmp_path / "data" / "train" / "b" / "z.png", picture(8888))
    (tmp_path / "data" / "train" / "b" / "broken.jpg").write_text("<html>")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert main(["check", str(tmp_path / "data"), "--list", str(tmp_path / "good.csv")]) == 1
    capsys.readouterr()
    listing = list_training(tmp_path / "good.csv", val_fraction=0.2, test_fraction=0.0, seed=0)
    used = {split: {sample.path for sample in samples} for split, samples in listing.splits.items()}
    assert {split: len(paths) for split, paths in used.items()} == {"train": 20, "val": 21}
    assert first not in used["train"]
    assert str(tmp_path / "data" / "val" / "a" / "y.bmp") in used["val"]
    assert check(tmp_path / "good.csv").must_mend == []
    assert all(path.read_bytes() == data for path, data in before.items())


def test_data_without_splits_gives_a_list_without_splits(tmp_path):
    fill(tmp_path / "data", ("",))
    report = check(tmp_path / "data")
    write_good(report, tmp_path / "good.csv")
    assert (tmp_path / "good.csv").read_text().splitlines()[0] == "class,path"
    assert check(tmp_path / "good.csv").counts == report.counts


def test_the_page_shows_the_pictures_in_question_and_names_as_text(tmp_path, capsys):
    fill(tmp_path)
    put(tmp_path / "train" / "a" / "<b>&.png", picture(7777))
    put(tmp_path / "val" / "a" / "y.bmp", picture(7777))
    (tmp_path / "train" / "a" / "text.jpg").write_text("<html>")
    assert main(["check", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 1
    capsys.readouterr()
    page = (tmp_path / "page.html").read_text()
    assert "train/a/&lt;b&gt;&amp;.png" in page
    assert "<b>&" not in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "text.jpg: not a picture of a known format" in page
    shown = re.findall(r"base64,([^']+)'", page)
    with Image.open(io.BytesIO(base64.b64decode(shown[0]))) as image:
        assert max(image.size) <= 128
