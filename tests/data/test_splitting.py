"""Splits that keep duplicates together: exact and near ones, within and across classes, without swallowing a class."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit.data import duplicates, remembered
from vit.data.captions import list_captions
from vit.data.check import check, report_lines
from vit.data.config import DataConfig
from vit.data.digits import make_digits
from vit.data.duplicates import duplicate_groups, fingerprint
from vit.data.folders import list_for_training, list_training
from vit.data.questions import list_questions
from vit.data.splitting import hold_out
from vit.errors import DataError


def cloudy(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A cloudy image, uint8 [H, W, 3], unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def put(path: Path, pixels: np.ndarray, **options: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def paths(label: str, count: int) -> list[str]:
    return [f"/data/{label}/{number:03}" for number in range(count)]


def sizes(held: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, int]]:
    return {split: {label: len(of_class) for label, of_class in classes.items()} for split, classes in held.items()}


def test_groups_stay_whole_and_the_fractions_hold():
    classes = {"a": paths("a", 60), "b": paths("b", 30)}
    groups = [classes["a"][i : i + 3] for i in range(0, 60, 3)] + [classes["b"][i : i + 2] for i in range(0, 20, 2)]
    for seed in range(5):
        held = hold_out(classes, {"val": 0.2, "test": 0.1}, "/data", seed, groups)
        assert sizes(held) == {"train": {"a": 42, "b": 21}, "val": {"a": 12, "b": 6}, "test": {"a": 6, "b": 3}}
        place = {path: split for split, by_class in held.items() for part in by_class.values() for path in part}
        assert all(len({place[path] for path in group}) == 1 for group in groups)


def test_without_groups_the_order_is_that_of_single_paths_and_moves_little():
    classes = {"a": paths("a", 50)}
    before = hold_out(classes, {"val": 0.2}, "/data", 3)["val"]["a"]
    moved = hold_out({"a": [path.replace("/data", "/other") for path in classes["a"]]}, {"val": 0.2}, "/other", 3)
    assert [path.replace("/other", "/data") for path in moved["val"]["a"]] == before
    grouped = hold_out(classes, {"val": 0.2}, "/data", 3, [classes["a"][:2]])["val"]["a"]
    assert len({*before} & {*grouped}) >= 8


def test_a_group_of_two_classes_is_in_one_split():
    classes = {"a": paths("a", 10), "b": paths("b", 10)}
    groups = [[classes["a"][i], classes["b"][i]] for i in range(10)]
    for seed in range(5):
        held = hold_out(classes, {"val": 0.2}, "/data", seed, groups)
        assert sizes(held) == {"train": {"a": 8, "b": 8}, "val": {"a": 2, "b": 2}}
        assert [path[-3:] for path in held["val"]["a"]] == [path[-3:] for path in held["val"]["b"]]


@pytest.mark.parametrize(
    ("count", "group", "val"), [(12, 12, 0), (12, 7, 2), (12, 6, 2), (5, 4, 1), (2, 2, 0), (4, 2, 2)]
)
def test_something_of_each_class_stays_in_train_and_a_group_larger_than_half_does(count, group, val):
    classes = {"a": paths("a", count), "b": paths("b", 10)}
    groups = [classes["a"][:group], classes["a"][group:]] if count == 4 else [classes["a"][:group]]
    for seed in range(5):
        held = hold_out(classes, {"val": 0.2}, "/data", seed, groups)
        assert len(held["val"]["a"]) == val
        assert len(held["train"]["a"]) == count - val > 0


def ramps(count: int) -> list[np.ndarray]:
    """A chain of images: each is alike to the next ones, the first and the last have nothing in common."""
    first, last = cloudy(1).astype(float), cloudy(2).astype(float)
    return [(first + (last - first) * i / (count - 1)).round().astype(np.uint8) for i in range(count)]


def test_a_long_chain_of_near_duplicates_is_cut_and_a_short_one_is_one_group():
    frames = [fingerprint(pixels) for pixels in ramps(60)]
    groups, cut = duplicate_groups(frames, ["a"] * 60)
    assert cut == 60
    assert len(groups) > 3
    assert max(map(len, groups)) < 30
    chain = frames[:28:2]
    groups, cut = duplicate_groups(chain, ["a"] * 14)
    assert (len(groups), cut) == (3, 14)
    others = [fingerprint(cloudy(seed)) for seed in range(100, 400)]
    assert duplicate_groups(chain + others, ["a"] * 314) == ([list(range(14))], 0)
    assert duplicate_groups(chain + others, ["a"] * 14 + ["b"] * 300) == (groups, 14)  # it is all of class a


def test_many_variants_of_one_image_are_one_group(monkeypatch):
    rng = np.random.default_rng(0)
    noisy = [np.clip(cloudy(5) + rng.integers(-6, 7, (48, 64, 3)), 0, 255).astype(np.uint8) for _ in range(30)]
    marks = [fingerprint(pixels) for pixels in noisy]
    assert duplicate_groups(marks, ["a"] * 30) == ([list(range(30))], 0)
    # where there are more pairs than can be gone through, only what is more alike counts
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 10)
    groups, _ = duplicate_groups([*marks, marks[3]], ["a"] * 31)
    assert [3, 30] in groups


def test_plain_drawings_and_flat_colors_are_not_one_group(tmp_path):
    make_digits(tmp_path / "digits")
    listing = list_training(
        tmp_path / "digits" / "train", val_fraction=0.2, test_fraction=0.0, seed=0, group_duplicates=True
    )
    (note,) = listing.notes
    assert int(note.split()[0]) < 40  # of 1,438
    counts = Counter(sample.label for sample in listing.splits["val"])
    assert all(27 <= count <= 30 for count in counts.values())
    for number in range(20):
        for label, channel in (("a", 0), ("b", 1)):
            pixels = np.zeros((16, 16, 3), np.uint8)
            pixels[..., channel] = 100 + number
            put(tmp_path / "flat" / label / f"{number}.png", pixels)
    listing = list_training(tmp_path / "flat", val_fraction=0.2, test_fraction=0.0, seed=0, group_duplicates=True)
    assert listing.notes == []
    assert len(listing.splits["val"]) == 8


def test_a_class_of_copies_of_one_image_stays_in_train_with_a_note(tmp_path):
    for number in range(10):
        put(tmp_path / "same" / f"{number}.png", cloudy(1))
        put(tmp_path / "other" / f"{number}.png", cloudy(10 + number))
    listing = list_for_training(tmp_path, DataConfig(), seed=0)
    assert {split: Counter(s.label for s in samples) for split, samples in listing.splits.items()} == {
        "train": {0: 8, 1: 10},
        "val": {0: 2},
    }
    assert listing.notes == [
        "10 images are duplicates, in 1 groups; each group is in one split",
        "val has no image of same: the images of such a class are all duplicates of one another",
    ]
    assert listing.notes[1] in check(tmp_path).worth_a_look


def test_a_group_with_several_labels_is_named(tmp_path):
    for number in range(10):
        for label in "ab":
            put(tmp_path / label / f"{number}.png", cloudy(100 * (label == "b") + number))
    put(tmp_path / "b" / "z.jpg", cloudy(3), quality=70)
    listing = list_for_training(tmp_path, DataConfig(), seed=0)
    assert "1 groups of duplicates have several labels; `vit data check` lists them" in listing.notes


def test_unreadable_files_are_skipped_and_a_class_of_them_is_refused(tmp_path):
    for label in "ab":
        for number in range(5):
            put(tmp_path / label / f"{number}.png", cloudy(100 * (label == "b") + number))
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    listing = list_for_training(tmp_path, DataConfig(), seed=0)
    assert [(os.path.basename(item.path), item.reason) for item in listing.left_out] == [
        ("x.png", "not a picture of a known format")
    ]
    assert not any(s.path.endswith("x.png") for samples in listing.splits.values() for s in samples)
    for number in range(5):
        (tmp_path / "b" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no readable image of b, for example \S+/b/0.png: not a picture"):
        list_for_training(tmp_path, DataConfig(), seed=0)


def test_fingerprints_are_remembered_as_long_as_their_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "MANY", 5)
    files = [put(tmp_path / "data" / f"{number}.png", cloudy(number)) for number in range(8)]
    for file in files:
        os.utime(file, (1_600_000_000, 1_600_000_000))
    asked: list[str] = []
    ordinary = duplicates.fingerprints
    monkeypatch.setattr(remembered, "fingerprints", lambda p, most: ordinary([asked.append(x) or x for x in p], most))

    def marks() -> list[object]:
        asked.clear()
        found = remembered.remembered_fingerprints(str(tmp_path / "data"), files, 100_000)
        return [(mark.size, mark.digest, mark.grey.tolist()) for mark in found]

    first = marks()
    assert asked == files
    assert marks() == first
    assert asked == []
    put(tmp_path / "data" / "3.png", cloudy(99))
    assert [new != old for new, old in zip(marks(), first, strict=True)] == [i == 3 for i in range(8)]
    assert asked == [files[3]]
    (file,) = (tmp_path / "cache" / "fingerprints").iterdir()
    file.write_bytes(file.read_bytes()[:300])
    assert len(marks()) == len(asked) == 8


def test_the_check_reports_near_duplicates_within_a_class_and_the_split_of_training(tmp_path):
    for label in "ab":
        for number in range(20):
            put(tmp_path / label / f"{number:02}.png", cloudy(100 * (label == "b") + number))
            put(tmp_path / label / f"{number:02}-again.jpg", cloudy(100 * (label == "b") + number), quality=60)
    report = check(tmp_path)
    assert len(report.near_copies) == 40
    assert [f"{tmp_path}/a/00-again.jpg", f"{tmp_path}/a/00.png"] in report.near_copies
    assert report.worth_a_look == ["near-duplicates within a class: 40"]
    assert report.must_mend == report.split_leaks == []
    listing = list_for_training(tmp_path, DataConfig(), seed=0)
    assert report.split == {
        split: dict(Counter(listing.classes[s.label] for s in samples)) for split, samples in listing.splits.items()
    }
    assert "  vit train would use 64 images for training and 16 for validation" in report_lines(report)


def test_the_check_names_near_duplicates_that_training_would_separate(tmp_path):
    for number, pixels in enumerate(ramps(60)):
        put(tmp_path / "a" / f"{number:02}.png", pixels)
        put(tmp_path / "b" / f"{number:02}.png", cloudy(1000 + number))
    report = check(tmp_path)
    assert report.split_leaks
    assert f"near-duplicates that vit train would put into different splits: {len(report.split_leaks)}" in (
        report.worth_a_look
    )
    _, cut = list_for_training(tmp_path, DataConfig(), seed=0).notes
    assert cut == "60 images form long chains of near-duplicates; a chain may be in several splits"


def test_duplicates_with_captions_or_questions_are_in_one_split(tmp_path):
    captions, questions = [], ["image,question,answer"]
    for number in range(20):
        put(tmp_path / "images" / f"{number:02}.png", cloudy(number))
        put(tmp_path / "images" / f"{number:02}x.jpg", cloudy(number), quality=60)
        for name in (f"{number:02}.png", f"{number:02}x.jpg"):
            captions.append(json.dumps({"file_name": name, "text": f"cloud {number}"}))
            questions.append(f"{name},which {name}?,{'yes' if number % 2 else 'no'}")
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(captions))
    shares = {"val_fraction": 0.2, "test_fraction": 0.0, "seed": 0}
    found = list_captions(tmp_path / "images", **shares, group_duplicates="auto")
    assert {split: len(items) for split, items in found.splits.items()} == {"train": 32, "val": 8}
    held = {Path(item.path).stem.removesuffix("x") for item in found.splits["val"]}
    assert len(held) == 4
    (tmp_path / "images" / "metadata.jsonl").unlink()
    (tmp_path / "images" / "questions.csv").write_text("\n".join(questions))
    asked = list_questions(tmp_path / "images", **shares, group_duplicates="auto")
    assert len({Path(item.path or "").stem.removesuffix("x") for item in asked.splits["val"]}) == 4
