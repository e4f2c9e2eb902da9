"""Texts with an answer from a fixed list: columns, splits by picture, answers by name."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vit.data.questions import Asked, QuestionListing, list_evaluation_questions, list_questions
from vit.errors import DataError


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def train(
    data: Path, val: float = 0.25, test: float = 0.0, seed: int = 0, images: str | None = None
) -> QuestionListing:
    return list_questions(data, val_fraction=val, test_fraction=test, seed=seed, images=images)


def message(call: Callable, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS = [("a.jpg", "what?", "cat"), ("a.jpg", "how many?", "2"), ("b.jpg", "what?", "dog"), ("c.jpg", "what?", "cat")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        put(tmp_path / "images" / name, "x")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.csv", "image,question,answer\n" + "".join(f"{n},{t},{a}\n" for n, t, a in ROWS)),
        ("q.csv", "Label, file_name ,TEXT\n" + "".join(f"{a},{n},{t}\n" for n, t, a in ROWS)),
        ("q.tsv", "image\ttext\tlabel\n" + "".join(f"{n}\t{t}\t{a}\n" for n, t, a in ROWS)),
        (
            "q.jsonl",
            "".join(
                json.dumps({"image": n, "question": t, "answer": int(a) if a.isdigit() else a}) + "\n"
                for n, t, a in ROWS
            ),
        ),
    ],
)
def test_every_form_of_table_is_read(data, name, text):
    file = put(data / name, text)
    for argument in (data, file):
        listing = train(argument, val=0.0)
        assert [(os.path.basename(one.path), one.text, one.label) for one in listing.splits["train"]] == ROWS
        assert listing.classes == ("2", "cat", "dog")
        assert listing.images == str(data / "images")
        assert listing.root == str(data)
        assert (listing.counts, listing.unknown) == ({}, {})
    line = 1 if name.endswith("l") else 2
    assert list_evaluation_questions(file, ["cat", "dog", "2"]).splits["all"][0] == Asked(
        str(data / "images" / "a.jpg"), "what?", "cat", str(line)
    )


def test_all_questions_about_a_picture_are_in_one_split(tmp_path):
    rows = [f"{number}.jpg,q{turn},{number % 2}" for turn in range(3) for number in range(40)]
    for number in range(40):
        put(tmp_path / f"{number}.jpg", "x")
    put(tmp_path / "q.csv", "\n".join(["image,text,label", *rows]))
    listing = train(tmp_path, test=0.1)
    assert {split: len(asked) for split, asked in listing.splits.items()} == {"train": 78, "val": 30, "test": 12}
    paths = [{one.path for one in asked} for asked in listing.splits.values()]
    assert sum(map(len, paths)) == len(set().union(*paths)) == 40
    assert listing.classes == ("0", "1")
    assert train(tmp_path, test=0.1, seed=1).splits["val"] != listing.splits["val"]


def test_texts_alone_have_no_picture_and_equal_ones_stay_together(tmp_path):
    rows = [f"text {number % 10},{number % 2},{number}" for number in range(40)]
    file = put(tmp_path / "reviews.csv", "\n".join(["text,class,id", *rows]))
    listing = train(file)
    assert {one.path for asked in listing.splits.values() for one in asked} == {None}
    texts = [{one.text for one in asked} for asked in listing.splits.values()]
    assert texts[0].isdisjoint(texts[1])
    assert [len(part) for part in texts] == [8, 2]
    assert {one.id for asked in listing.splits.values() for one in asked} == {str(number) for number in range(40)}


def test_splits_by_column_and_by_file(data):
    put(
        data / "q.csv",
        "image,text,label,split\na.jpg,x,cat,train\nb.jpg,x,dog,train\nc.jpg,y,emu,test\nc.jpg,z,dog,test\n",
    )
    listing = train(data, val=0.0)
    assert listing.classes == ("cat", "dog")
    assert {split: [one.text for one in asked] for split, asked in listing.splits.items()} == {
        "train": ["x", "x"],
        "test": ["z"],
    }
    assert listing.unknown == {"emu": 1}
    os.rename(data / "q.csv", data / "train.csv")
    put(data / "val.csv", "image,text,label\nb.jpg,x,dog\nb.jpg,y,emu\n")
    put(data / "train.csv", "image,text,label\na.jpg,x,cat\nc.jpg,x,dog\n")
    listing = train(data)
    assert listing.classes == ("cat", "dog")
    assert [one.text for one in listing.splits["val"]] == ["x"]
    assert listing.unknown == {"emu": 1}


def test_evaluation_goes_by_the_models_classes(data):
    file = put(data / "q.csv", "image,text,label\n" + "".join(f"{n},{t},{a}\n" for n, t, a in ROWS))
    listing = list_evaluation_questions(file, ["dog", "cat"])
    assert listing.classes == ("dog", "cat")
    assert [one.label for one in listing.splits["all"]] == ["cat", "dog", "cat"]
    assert listing.unknown == {"2": 1}
    assert message(list_evaluation_questions, file, ["emu"]).endswith(
        "no answer that the model knows; it has 2, cat, dog, not emu"
    )
    assert message(list_evaluation_questions, file, ["cat"], split="val").endswith("no split called val; it has none")


def test_missing_and_foreign_pictures_are_counted(data):
    put(data / "secret.jpg", "x")
    rows = [*ROWS, ("gone.jpg", "x", "cat"), ("../secret.jpg", "x", "cat"), ("/etc/hostname", "x", "cat")]
    listing = train(
        put(data / "images" / "q.csv", "image,text,label\n" + "".join(f"{n},{t},{a}\n" for n, t, a in rows))
    )
    assert sum(map(len, listing.splits.values())) + sum(listing.unknown.values()) == 4
    assert listing.counts == {"pictures that are not there": 1, "pictures outside their folder": 2}
    assert [item.path for item in listing.left_out][1:] == ["../secret.jpg", "/etc/hostname"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,text,label\na.jpg,,cat\n", "line 2: text must be text, got ''"),
        ("image,text,label\na.jpg,x\n", "line 2: label must be text, got None"),
        ("image,text,label\n,x,cat\n", "line 2: image must be text, got ''"),
        ("image,text,label,split\na.jpg,x,cat,best\n", "line 2: split must be train, val or test, got 'best'"),
        ("image,text,label\na.jpg,x,cat\nb.jpg,x,cat\n", "only one answer, cat; a classifier needs two"),
        ("image,text,label\ngone.jpg,x,cat\n", "no questions (pictures that are not there 1; the first is"),
        ("image,text,label\n", "no questions; expected a .csv, .tsv or .jsonl with columns such as"),
        ("image,text\na.jpg,x\n", "no table of questions; expected"),
    ],
)
def test_a_fault_is_named(data, text, words):
    assert words in message(train, put(data / "q.csv", text))


def test_a_folder_without_a_table_is_refused(data):
    assert message(train, data).startswith(f"{data}: no questions; expected a .csv, .tsv or .jsonl")


def test_an_answer_without_a_readable_image_is_refused(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,what,{'red' if number % 2 else 'blue'}" for number in range(6)]
    table = put(tmp_path / "q.csv", "\n".join(["image,question,answer", *rows]))
    train(table).require_readable(1000)
    for number in (0, 2, 4):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    reason = message(train(table).require_readable, 1000)
    assert "no readable image of blue, for example" in reason
    assert reason.endswith(".png: not a picture of a known format; remove the class or add images")
