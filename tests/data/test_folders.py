"""Listing: layouts, splits, labels by name, and one clear line for what cannot serve."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from vit.data.folders import (
    Listing,
    Sample,
    find_images,
    list_evaluation,
    list_training,
    path_of,
    read_image,
    write_split,
)
from vit.errors import DataError


def fill(folder: Path, count: int = 3, name: str = "{}.jpg") -> None:
    """Put files into a folder that pass for pictures as long as nobody decodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / name.format(number)).write_bytes(b"x")


def train(data: Path, val: float = 0.2, test: float = 0.0, seed: int = 0) -> Listing:
    return list_training(data, val_fraction=val, test_fraction=test, seed=seed)


def names(listing: Listing, split: str) -> list[tuple[str, str]]:
    """(class, path below the root) of each sample."""
    return [(listing.classes[s.label], os.path.relpath(s.path, listing.root)) for s in listing.splits[split]]


def counts(listing: Listing) -> dict[str, int]:
    return {split: len(samples) for split, samples in listing.splits.items()}


def message(call, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders_are_split_with_every_class_in_both_parts(tmp_path):
    for name, count in (("dog", 10), ("cat", 2), ("ant", 1)):
        fill(tmp_path / name, count)
    listing = train(tmp_path)
    assert listing.classes == ("ant", "cat", "dog")
    assert Counter(name for name, _ in names(listing, "train")) == {"ant": 1, "cat": 1, "dog": 8}
    assert Counter(name for name, _ in names(listing, "val")) == {"cat": 1, "dog": 2}
    assert not {s.path for s in listing.splits["train"]} & {s.path for s in listing.splits["val"]}
    assert os.path.isabs(listing.splits["train"][0].path)


def test_a_test_share_is_held_out_when_asked_for(tmp_path):
    fill(tmp_path / "cat", 20)
    fill(tmp_path / "dog", 2)
    listing = train(tmp_path, val=0.2, test=0.1)
    assert counts(listing) == {"train": 14 + 1, "val": 4 + 1, "test": 2}
    paths = [s.path for samples in listing.splits.values() for s in samples]
    assert len(set(paths)) == len(paths) == 22


def test_the_split_depends_on_the_seed_and_the_paths_within_the_folder_alone(tmp_path):
    for copy in ("here", "there"):
        for name in ("cat", "dog"):
            fill(tmp_path / copy / name, 50)
    first = train(tmp_path / "here")
    assert names(first, "val") == names(train(tmp_path / "there"), "val")
    assert names(first, "val") != names(train(tmp_path / "here", seed=1), "val")
    before = set(names(first, "val"))
    fill(tmp_path / "here" / "cat", 1, "new{}.jpg")
    assert len(before & set(names(train(tmp_path / "here"), "val"))) >= 19


def test_split_folders_are_taken_as_they_are(tmp_path):
    for split, count in (("train", 4), ("Validation", 2), ("test", 1)):
        fill(tmp_path / split / "cat", count)
        fill(tmp_path / split / "dog", count)
    assert counts(train(tmp_path, test=0.3)) == {"train": 8, "val": 4, "test": 2}


def test_validation_is_held_out_of_train_where_there_is_none(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name, 10)
        fill(tmp_path / "test" / name, 3)
    listing = train(tmp_path)
    assert counts(listing) == {"train": 16, "val": 4, "test": 6}
    assert all(path.startswith("train") for _, path in names(listing, "val"))


def test_a_class_missing_from_validation_shifts_no_label(tmp_path):
    for name in ("apple", "melon", "pear"):
        fill(tmp_path / "train" / name)
    fill(tmp_path / "val" / "melon")
    assert {s.label for s in train(tmp_path).splits["val"]} == {1}


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "car", "train"):
        fill(tmp_path / name)
    assert train(tmp_path).classes == ("bus", "car", "train")


def test_nested_folders_count_as_their_class_and_endings_in_either_case(tmp_path):
    fill(tmp_path / "cat" / "2023" / "may", 2, "{}.JPG")
    fill(tmp_path / "cat", 1, "{}.Png")
    fill(tmp_path / "dog" / "x.jpg", 1)  # a folder whose name ends like a picture
    listing = train(tmp_path)
    assert Counter(name for split in listing.splits for name, _ in names(listing, split)) == {"cat": 3, "dog": 1}


def test_what_systems_leave_behind_is_no_class_and_no_picture(tmp_path):
    for name in ("cat", "dog", ".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        fill(tmp_path / name)
    fill(tmp_path / "cat" / ".ipynb_checkpoints")
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    listing = train(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert sum(counts(listing).values()) == 6
    assert listing.left_out == []


def test_a_link_to_a_parent_multiplies_nothing(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "other").symlink_to(tmp_path / "dog")
    listing = train(tmp_path)
    assert Counter(name for split in listing.splits for name, _ in names(listing, split)) == {"cat": 3, "dog": 3}


def test_a_link_to_itself_is_skipped_with_its_reason(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name)
    for loop in (tmp_path / "cat" / "self.jpg", tmp_path / "loop", tmp_path / "dog" / "loop"):
        loop.symlink_to(loop.name)
    listing = train(tmp_path)
    assert counts(listing) == {"train": 4, "val": 2}
    reasons = {os.path.relpath(item.path, tmp_path): item.reason for item in listing.left_out}
    assert reasons["cat/self.jpg"] == "too many levels of symbolic links"
    assert reasons["."].startswith("other files: 2")


def test_linked_pictures_and_linked_folders_count(tmp_path):
    fill(tmp_path / "elsewhere" / "cats", 3)
    fill(tmp_path / "elsewhere" / "dogs", 1)
    fill(tmp_path / "data" / "dog", 2)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "data" / "dog" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "dogs" / "0.jpg")
    listing = train(tmp_path / "data")
    assert Counter(name for split in listing.splits for name, _ in names(listing, split)) == {"cat": 3, "dog": 3}


def test_what_is_left_out_is_named_with_the_reason(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog")
    (tmp_path / "cat" / "empty.jpg").touch()
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "stray.jpg").write_bytes(b"x")
    (tmp_path / "README").write_bytes(b"x")
    (tmp_path / "cat" / "a.txt").write_bytes(b"x")
    (tmp_path / "cat" / "b.TXT").write_bytes(b"x")
    listing = train(tmp_path)
    assert {os.path.relpath(item.path, tmp_path): item.reason for item in listing.left_out} == {
        "cat/empty.jpg": "empty file",
        "cat/pipe.jpg": "not a regular file",
        "cat/gone.jpg": "no such file or directory",
        "stray.jpg": "lies beside the class folders and so has no class",
        ".": "other files: 3 (.txt 2, no ending 1)",
    }
    assert sum(counts(listing).values()) == 6


def test_what_lies_beside_the_splits_is_named(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name)
        fill(tmp_path / "val" / name)
    fill(tmp_path / "extra")
    assert [(os.path.basename(item.path), item.reason) for item in train(tmp_path).left_out] == [
        ("extra", "lies beside the folders of the splits")
    ]


def test_names_that_are_no_utf8_survive(tmp_path):
    fill(tmp_path / "cat", 2)
    folder = os.fsencode(tmp_path) + b"/d\xff"
    os.mkdir(folder)
    for name in (b"a\xfe.jpg", b"b\n.jpg"):
        with open(folder + b"/" + name, "wb") as stream:
            stream.write(b"x")
    listing = train(tmp_path)
    assert listing.classes == ("cat", "d\udcff")
    for sample in (*listing.splits["train"], *listing.splits["val"]):
        assert os.path.getsize(sample.path) == 1


@pytest.mark.parametrize(
    "columns",
    [
        ("path", "label"),
        ("file", "class"),
        (" Filename ", "Class"),
        ("image", "label"),
        ("file_name", "label"),
        ("filepath", "class"),
        ("image_path", "label"),
    ],
)
def test_a_csv_list_is_read_by_its_column_names(tmp_path, columns):
    fill(tmp_path / "p", 4)
    rows = ["p/0.jpg,cat", "p/1.jpg,cat", '"p/2.jpg","a dog"', f"{tmp_path}/p/3.jpg,a dog"]
    (tmp_path / "list.csv").write_text("\ufeff" + ",".join(columns) + "\r\n" + "\r\n".join(rows), encoding="utf-8")
    listing = train(tmp_path / "list.csv")
    assert listing.classes == ("a dog", "cat")
    assert counts(listing) == {"train": 2, "val": 2}
    assert (listing.name, listing.root) == (str(tmp_path / "list.csv"), str(tmp_path))


def test_a_jsonl_list_with_splits_is_taken_as_it_is(tmp_path):
    fill(tmp_path, 4, "{}.dat")  # the user lists them, whatever their ending
    rows = [("0.dat", 7, "train"), ("1.dat", "x", "train"), ("2.dat", "x", "valid"), ("3.dat", 7, "test")]
    lines = [json.dumps({"path": path, "label": label, "split": split}) for path, label, split in rows]
    (tmp_path / "list.jsonl").write_text("\n\n".join(lines))
    listing = train(tmp_path / "list.jsonl", test=0.5)
    assert {split: names(listing, split) for split in listing.splits} == {
        "train": [("7", "0.dat"), ("x", "1.dat")],
        "val": [("x", "2.dat")],
        "test": [("7", "3.dat")],
    }


def test_a_list_that_names_the_split_of_some_pictures_alone_is_refused(tmp_path):
    fill(tmp_path, 4)
    rows = [{"path": f"{i}.jpg", "label": i % 2, **({"split": "train"} if i < 2 else {})} for i in range(4)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"list\.jsonl: some rows name no split, others are of train$"):
        train(tmp_path / "list.jsonl")


def test_files_that_a_list_names_and_that_are_not_there_are_left_out(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "list.csv").write_text("path,label\n0.jpg,a\n1.jpg,b\ngone.jpg,a\n")
    left_out = train(tmp_path / "list.csv").left_out
    assert [os.path.basename(item.path) for item in left_out] == ["gone.jpg"]
    assert left_out[0].reason == "no such file or directory"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.csv",
            "picture,label\n0.jpg,a\n",
            "line 2: no column called path, file, filename, file_name, filepath, image_path or image",
        ),
        ("a.csv", "path,kind\n0.jpg,a\n", "line 2: no column called label or class"),
        ("a.csv", "path,label\n0.jpg,a\n1.jpg\n", "line 3: label must be text, got None"),
        ("a.csv", "path,label\n0.jpg,a\n1.jpg,\n", "line 3: label must be text, got ''"),
        ("a.csv", "path,label\n0.jpg,a,b\n", "line 2: more fields than columns"),
        ("a.csv", 'path,label\n0.jpg,"a\n', "line 2: unexpected end of data"),
        ("a.csv", "path,label,split\n0.jpg,a,training\n", "line 2: split must be train, val or test, got 'training'"),
        ("a.csv", "", "no pictures"),
        ("a.csv", "path,label\n", "no pictures"),
        ("a.csv", "path,label\ngone.jpg,a\n", "gone.jpg: no such file or directory"),
        ("a.csv", "path,label,split\n0.jpg,a,val\n1.jpg,b,test\n", "has test and val but no train"),
        ("a.jsonl", '{"path": "0.jpg", "label": "a"}\n{"path"\n', "line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("a.jsonl", '{"path": "0.jpg", "label": null}\n', "line 1: label must be text, got None"),
        ("a.jsonl", '{"path": ["0.jpg"], "label": "a"}\n', "line 1: path must be text, got ['0.jpg']"),
        ("a.jsonl", '{"path": "0.jpg", "label": "\\ud800"}\n', "line 1: label is not valid text"),
    ],
)
def test_a_fault_in_a_list_is_named_with_its_line(tmp_path, name, text, words):
    fill(tmp_path, 2)
    (tmp_path / name).write_text(text)
    assert words in message(train, tmp_path / name)


def test_data_that_cannot_train_is_refused_in_one_line(tmp_path):
    assert message(train, tmp_path / "absent") == f"{tmp_path}/absent: no such file or folder"
    (tmp_path / "a.zip").write_bytes(b"x")
    assert message(train, tmp_path / "a.zip").startswith(f"{tmp_path}/a.zip: not a folder; expected")
    (tmp_path / "nothing").mkdir()
    assert message(train, tmp_path / "nothing") == f"{tmp_path}/nothing: no pictures"
    fill(tmp_path / "one" / "cat")
    assert message(train, tmp_path / "one") == f"{tmp_path}/one: only one class, cat; a classifier needs two"
    fill(tmp_path / "flat", 2)
    expected = f"pictures lie directly in it; put each class in a folder of its own, as {tmp_path}/flat/cat/0.jpg"
    assert message(train, tmp_path / "flat") == f"{tmp_path}/flat: {expected}"


def test_a_folder_around_the_class_folders_is_pointed_out(tmp_path):
    fill(tmp_path / "animals" / "cat")
    fill(tmp_path / "animals" / "dog")
    assert message(train, tmp_path) == f"{tmp_path}: only one class, animals; did you mean {tmp_path}/animals?"


def test_an_empty_class_is_refused_by_name(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog")
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "0.jpg").touch()
    assert message(train, tmp_path) == f"{tmp_path}: no pictures of emu; remove the class or add pictures"


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_refused_by_name(tmp_path, split):
    for name in ("cat", "dog"):
        fill(tmp_path / "train" / name)
    fill(tmp_path / split / "me\nlon")
    assert message(train, tmp_path) == f"{tmp_path}: {split} has pictures of me\\nlon, which train lacks"


def test_two_folders_for_one_split_are_refused(tmp_path):
    for split in ("train", "val", "valid"):
        fill(tmp_path / split / "cat")
    assert message(train, tmp_path) == f"{tmp_path}: two folders for one split, val and valid; keep one of them"


def test_splits_without_train_are_refused(tmp_path):
    fill(tmp_path / "val" / "cat")
    fill(tmp_path / "test" / "cat")
    assert message(train, tmp_path) == f"{tmp_path}: has test and val but no train"


def test_evaluation_labels_by_the_models_classes(tmp_path):
    fill(tmp_path / "pear", 2)
    fill(tmp_path / "apple", 1)
    fill(tmp_path / "kiwi", 3)
    listing = list_evaluation(tmp_path, ["melon", "pear", "apple"])
    assert listing.classes == ("melon", "pear", "apple")
    assert names(listing, "all") == [("pear", "pear/0.jpg"), ("pear", "pear/1.jpg"), ("apple", "apple/0.jpg")]
    assert listing.unknown == {"kiwi": 3}


def test_evaluation_takes_test_then_val_or_the_split_that_is_named(tmp_path):
    for split, count in (("train", 4), ("valid", 2), ("test", 1)):
        fill(tmp_path / split / "cat", count)
    assert counts(list_evaluation(tmp_path, ["cat"])) == {"test": 1}
    assert counts(list_evaluation(tmp_path, ["cat"], split="val")) == {"val": 2}
    assert counts(list_evaluation(tmp_path, ["cat"], split="train")) == {"train": 4}
    assert counts(list_evaluation(tmp_path / "valid", ["cat"])) == {"all": 2}
    (tmp_path / "test").rename(tmp_path / ".test")
    assert counts(list_evaluation(tmp_path, ["cat"])) == {"val": 2}
    assert message(list_evaluation, tmp_path, ["cat"], split="test") == (
        f"{tmp_path}: no split called test; it has train, val"
    )
    (tmp_path / "valid").rename(tmp_path / ".valid")
    assert (
        message(list_evaluation, tmp_path, ["cat"]) == f"{tmp_path}: neither test nor val to measure on; it has train"
    )


def test_evaluation_without_a_known_class_is_refused(tmp_path):
    for number in range(7):
        fill(tmp_path / f"c{number}")
    assert message(list_evaluation, tmp_path, ["cat", "dog"]) == (
        f"{tmp_path}: has none of the model's classes; it has c0, c1, c2, c3, c4 and 2 more, the model knows cat, dog"
    )
    (tmp_path / "x" / "cat").mkdir(parents=True)
    assert message(list_evaluation, tmp_path / "x", ["cat"]) == f"{tmp_path}/x: no pictures"


def test_a_written_split_reads_back_exactly_and_trains_again(tmp_path):
    odd = ['a "quoted", one', "two\nlines", "carriage\rreturn", "d\udcff", "ünï", " spaced "]
    for name in odd:
        fill(tmp_path / name, 5)
    listing = train(tmp_path, test=0.2)
    write_split(listing, tmp_path / "split.csv")
    with open(tmp_path / "split.csv", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["split"], row["class"], row["path"]) for row in rows] == [
        (split, listing.classes[s.label], s.path) for split, samples in listing.splits.items() for s in samples
    ]
    again = train(tmp_path / "split.csv")
    assert again.classes == listing.classes
    assert {k: set(v) for k, v in again.splits.items()} == {k: set(v) for k, v in listing.splits.items()}


def test_a_sample_is_a_value():
    assert Sample("a.jpg", 1) == Sample("a.jpg", 1)


def test_images_are_found_as_files_folders_and_patterns(tmp_path):
    fill(tmp_path / "a" / "b", 2, "{}.PNG")
    fill(tmp_path / "a", 2)
    fill(tmp_path, 1, "[{}]*.jpg")
    fill(tmp_path, 2, "{}.dat")
    at = str(tmp_path)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert list(find_images([f"{at}/a/b"])) == [f"{at}/a/b/0.PNG", f"{at}/a/b/1.PNG"]
    assert list(find_images([f"{at}/0.dat", f"{at}/0.dat"])) == [f"{at}/0.dat"] * 2
    assert list(find_images([f"{at}/a/*"])) == [f"{at}/a/0.jpg", f"{at}/a/1.jpg"]
    assert list(find_images([f"{at}/a/**/*.PNG"])) == [f"{at}/a/b/0.PNG", f"{at}/a/b/1.PNG"]
    assert list(find_images([f"{at}/[0]*.jpg"])) == [f"{at}/[0]*.jpg"]  # the file of that very name
    found = list(find_images([f"{at}/a"]))
    assert found[:4] == [f"{at}/a/0.jpg", f"{at}/a/1.jpg", f"{at}/a/b/0.PNG", f"{at}/a/b/1.PNG"]
    assert len(found) == 5  # the loop leads back to the parent, whose own picture counts once


def test_paths_without_an_image_fail_alone_when_they_are_read(tmp_path):
    fill(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (f"{tmp_path}/gone.jpg", "no such file or folder"),
        (f"{tmp_path}/*.png", "no image matches this pattern"),
        (f"{tmp_path}/empty", "no images in this folder"),
    ):
        good, bad, again = find_images([f"{tmp_path}/0.jpg", path, f"{tmp_path}/0.jpg"])
        assert good == again == f"{tmp_path}/0.jpg"
        assert path_of(bad) == path
        assert message(read_image, str, bad) == f"{path}: {reason}"
        assert read_image(str.upper, good) == good.upper()
