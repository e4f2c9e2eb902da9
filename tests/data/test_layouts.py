"""Layouts that can be read in two ways, files listed twice, spellings of class names, and runs among the data."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from vit.data.check import check
from vit.data.folders import Listing, find_images, list_evaluation, list_training, read_split, write_split
from vit.data.tars import write_tars
from vit.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def fill(folder: Path, count: int = 3, name: str = "{}.jpg") -> None:
    """Put files into a folder that pass for images as long as nobody decodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / name.format(number)).write_bytes(b"x")


def train(data: Path, val: float = 0.2) -> Listing:
    return list_training(data, val_fraction=val, test_fraction=0.0, seed=0)


def counts(listing: Listing) -> dict[str, int]:
    """Images by class, over all splits."""
    return Counter(listing.classes[s.label] for samples in listing.splits.values() for s in samples)


def refusal(data: Path) -> str:
    with pytest.raises(DataError) as caught:
        train(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(path: Path, *rows: str, columns: str = "path,label") -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["train", "Test", "val"])
def test_a_split_with_class_folders_beside_other_folders_of_images_is_refused_with_both_readings(tmp_path, name):
    for folder in ("car", "bus", f"{name}/steam", f"{name}/diesel"):
        fill(tmp_path / folder)
    assert refusal(tmp_path) == (
        f"{tmp_path}: ambiguous: either {name} is a split with the classes diesel, steam, or {name}, bus, car are the "
        "classes; move or rename the folders of one reading"
    )


def test_folders_without_images_beside_train_are_no_second_reading(tmp_path):
    for folder in ("train/steam", "train/diesel"):
        fill(tmp_path / folder)
    fill(tmp_path / "labels", 3, "{}.txt")
    assert train(tmp_path).classes == ("diesel", "steam")


def test_train_without_folders_in_it_is_a_class_among_others(tmp_path):
    for folder in ("car", "bus", "train"):
        fill(tmp_path / folder)
    assert train(tmp_path).classes == ("bus", "car", "train")


def test_a_list_that_names_each_file_twice_is_split_by_distinct_file(tmp_path):
    fill(tmp_path / "p", 36)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "p" / "0.jpg")
    rows = [f"p/{i}.jpg,{'ab'[i % 2]}" for i in range(36)]
    again = [f"./p/../p/{i}.jpg,{'ab'[i % 2]}" for i in range(1, 35)]
    listing = train(table(tmp_path / "list.csv", *rows, "link.jpg,a", *again, f"{tmp_path}/p/35.jpg,b"))
    assert counts(listing) == {"a": 18, "b": 18}
    train_files, val_files = ({os.path.realpath(s.path) for s in listing.splits[name]} for name in ("train", "val"))
    assert len(train_files) + len(val_files) == 36
    assert not train_files & val_files
    assert len(listing.left_out) == 36
    assert listing.left_out[0].path == f"{tmp_path}/link.jpg"
    assert listing.left_out[0].reason == (f"{tmp_path}/list.csv, line 38: the same file as {tmp_path}/list.csv, line 2")


@pytest.mark.parametrize("spelling", ["p/1.jpg", "./p/1.jpg", "{root}/p/1.jpg", "link.jpg", "hard.jpg"])
def test_a_file_with_two_labels_in_a_list_is_refused_with_both_lines(tmp_path, spelling):
    fill(tmp_path / "p", 4)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "p" / "1.jpg")
    os.link(tmp_path / "p" / "1.jpg", tmp_path / "hard.jpg")
    other = spelling.format(root=tmp_path)
    rows = ["p/0.jpg,a", "p/1.jpg,a", "p/2.jpg,b", f"{other},b"]
    words = refusal(table(tmp_path / "list.csv", *rows))
    path = tmp_path / "list.csv"
    assert (
        words
        == f"{path}, line 5: {os.path.join(tmp_path, other)}: labeled b, but a in {path}, line 3; keep one of the two"
    )
    with pytest.raises(DataError, match="labeled b, but a"):
        list_evaluation(tmp_path / "list.csv", ["a", "b"])
    assert check(tmp_path / "list.csv").must_mend == [words]


def test_a_file_in_two_splits_of_a_list_is_refused_for_training_and_may_be_evaluated(tmp_path):
    fill(tmp_path, 4)
    rows = ["0.jpg,a,train", "1.jpg,b,train", "2.jpg,a,val", "./0.jpg,a,val"]
    path = table(tmp_path / "list.csv", *rows, columns="path,label,split")
    assert refusal(path) == (f"{path}, line 5: the same file is in train ({path}, line 2) and in val; remove one")
    assert len(list_evaluation(path, ["a", "b"]).splits["val"]) == 2


def test_links_between_class_folders_are_refused_and_links_within_one_count_once(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, 10)
    (tmp_path / "cat" / "again.jpg").symlink_to(tmp_path / "cat" / "3.jpg")
    os.link(tmp_path / "dog" / "4.jpg", tmp_path / "dog" / "hard.jpg")
    listing = train(tmp_path)
    assert counts(listing) == {"cat": 10, "dog": 10}
    assert {(os.path.basename(item.path), item.reason) for item in listing.left_out} == {
        ("again.jpg", f"the same file as {tmp_path}/cat/3.jpg"),
        ("hard.jpg", f"the same file as {tmp_path}/dog/4.jpg"),
    }
    (tmp_path / "dog" / "cat.jpg").symlink_to(tmp_path / "cat" / "5.jpg")
    assert refusal(tmp_path) == (
        f"{tmp_path}/dog/cat.jpg: labeled dog, but cat as {tmp_path}/cat/5.jpg; keep one of the two"
    )


def test_the_images_of_one_tar_are_different_files(tmp_path):
    write_tars(((b"x", "jpg", {"cls": "ab"[i % 2]}) for i in range(20)), tmp_path / "tars", megabytes=1)
    listing = train(tmp_path / "tars")
    write_split(listing, tmp_path / "split.csv")
    assert counts(train(tmp_path / "split.csv")) == counts(listing) == {"a": 10, "b": 10}


def test_blanks_around_labels_and_paths_do_not_count(tmp_path):
    fill(tmp_path, 4)
    fill(tmp_path, 1, " blank{}.jpg")
    rows = ["0.jpg, cat", " 1.jpg,\ufeffcat\u200b ", "2.jpg ,dog\u2060", "3.jpg\t,\u3000 dog", " blank0.jpg,dog"]
    listing = train(table(tmp_path / "list.csv", *rows))
    assert listing.classes == ("cat", "dog")
    assert counts(listing) == {"cat": 2, "dog": 3}
    assert listing.left_out == []


def test_class_names_are_one_in_either_unicode_form(tmp_path):
    fill(tmp_path / "data" / NFC, 5)
    fill(tmp_path / "data" / NFD, 5, "more{}.jpg")
    fill(tmp_path / "data" / "cafd", 5)  # sorts between the two
    os.link(tmp_path / "data" / NFC / "0.jpg", tmp_path / "data" / NFD / "same.jpg")
    listing = train(tmp_path / "data")
    assert listing.classes == ("cafd", NFC)
    assert counts(listing) == {"cafd": 5, NFC: 10}
    assert len(listing.left_out) == 1

    rows = [f"data/{NFC}/{i}.jpg,{(NFC, NFD)[i % 2]}" for i in range(5)] + ["data/cafd/0.jpg,b"]
    assert train(table(tmp_path / "list.csv", *rows)).classes == ("b", NFC)
    lines = [json.dumps({"path": row.split(",")[0], "label": row.split(",")[1]}) for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert train(tmp_path / "list.jsonl").classes == ("b", NFC)

    samples = ((b"x", "jpg", {"cls": (NFC, NFD, "b")[i % 3]}) for i in range(9))
    write_tars(samples, tmp_path / "tars", megabytes=1)
    assert counts(train(tmp_path / "tars")) == {"b": 3, NFC: 6}


@pytest.mark.parametrize(("known", "there"), [(NFC, NFD), (NFD, NFC)])
def test_a_model_and_an_evaluation_set_may_spell_a_class_in_different_forms(tmp_path, known, there):
    fill(tmp_path / "data" / there, 2)
    listing = list_evaluation(tmp_path / "data", ["dog", known])
    assert [sample.label for sample in listing.splits["all"]] == [1, 1]
    assert not listing.unknown
    split = table(tmp_path / "split.csv", f"train,{there},data/{there}/0.jpg", columns="split,class,path")
    assert [sample.label for sample in read_split(split, ["dog", known]).splits["train"]] == [1]


def test_run_folders_among_the_data_are_skipped_with_the_reason(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name)
    for run in ("run", "runs/first", "runs/second", "cat/old"):
        fill(tmp_path / run / "evaluation", 1, "confusion{}.png")
        (tmp_path / run / "checkpoints").mkdir()
        (tmp_path / run / "config.yaml").write_text("data: {}\n")
    fill(tmp_path / "report", 1, "mistakes{}.png")
    for file in ("metrics.json", "predictions.csv"):
        (tmp_path / "report" / file).write_text("")
    listing = train(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert sum(counts(listing).values()) == 6
    assert {os.path.relpath(item.path, tmp_path): item.reason for item in listing.left_out} == dict.fromkeys(
        ("run", "runs/first", "runs/second", "cat/old", "report"), "a run or report folder of vit, not data"
    )
    assert len(list(find_images([str(tmp_path)]))) == 6
    # a run beside the folders of splits is no second reading of them
    for name in ("cat", "dog"):
        fill(tmp_path / "set" / "train" / name)
    (tmp_path / "runs").rename(tmp_path / "set" / "runs")
    assert train(tmp_path / "set").classes == ("cat", "dog")


def test_a_folder_of_images_with_a_settings_file_is_still_a_class(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name)
        (tmp_path / name / "config.yaml").write_text("a camera's settings\n")
    assert train(tmp_path).classes == ("cat", "dog")
