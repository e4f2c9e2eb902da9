"""Generated scenes: what they claim about themselves is true, by readings of the truth that share no code with them."""

import csv
import json
import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit.cli.data import main
from vit.data.decode import decode
from vit.data.scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Example,
    Scene,
    Thing,
    ceilings,
    describes,
    make_example,
    make_scenes,
    named_objects,
    parse_caption,
    read_scenes,
)
from vit.errors import ConfigError, DataError

COUNT = 420
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "deep" / "scenes"
    assert main(["make", "scenes", str(out), "--count", str(COUNT)]) == 0
    return out


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    return {row["file_name"]: row for row in rows}


@pytest.fixture(scope="module")
def captions(folder: Path) -> dict[str, list[str]]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return {row["file_name"]: row["captions"] for row in rows}


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[dict[str, str]]:
    with (folder / "questions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [make_example(5, split, index) for split in ("train", "test") for index in range(40)]


def lies(one: dict[str, Any], relation: str, other: dict[str, Any], side: int) -> bool:
    """The test's own reading of a relation: from middle to middle of the boxes, an eighth of the picture or more."""
    (top, left, bottom, right), (top2, left2, bottom2, right2) = one["box"], other["box"]
    across, down = (left2 + right2 - left - right) / 2 / side, (top2 + bottom2 - top - bottom) / 2 / side
    return {"left": across, "right": -across, "above": down, "below": -down}[relation] >= 1 / 8


def test_every_caption_is_read_back_and_is_true(folder, truth, captions):
    scenes = read_scenes(folder)
    assert len(captions) == len(scenes) == COUNT + 84
    templates = set()
    for name, sentences in captions.items():
        assert len(set(sentences)) == 5
        for sentence in sentences:
            assert describes(sentence, scenes[name])
            # and by the test's own reading: what it names, and between which objects each relation stands
            things = {f"{t['size']} {t['colour']} {t['shape']}": t for t in truth[name]["objects"]}
            phrases = [f"a {thing}" for thing in things]
            assert [sentence.count(phrase) for phrase in phrases] == [1] * len(things)
            claim = parse_caption(sentence)
            assert claim is not None
            assert claim.objects == tuple(sorted(tuple(thing.split()) for thing in things))
            for one, relation, other in claim.relations:
                assert lies(
                    things[" ".join(one)], relation.removesuffix(" of"), things[" ".join(other)], truth[name]["side"]
                )
            said = re.findall(r"left of|right of|above|below", sentence)
            assert len(claim.relations) == len(said)
            templates.add(
                re.sub(r"(to the )?(left of|right of|above|below)", "R", re.sub("|".join(phrases), "X", sentence))
            )
    assert len(templates) == 5 + 7 + 6


@pytest.mark.parametrize(
    ("text", "relations"),
    [
        ("a large red cross left of a small blue square", {("cross", "left of", "square")}),
        ("a small blue square to the right of a large red cross", {("cross", "left of", "square")}),
        ("to the left of a small blue square is a large red cross", {("cross", "left of", "square")}),
        ("a large red cross with a small blue square right of it", {("cross", "left of", "square")}),
        ("there is a large red cross below a small blue square", {("square", "above", "cross")}),
        ("Two objects : a small blue square and a large red cross .", set()),
    ],
)
def test_a_sentence_is_read_as_a_person_reads_it(text: str, relations: set[tuple[str, str, str]]):
    claim = parse_caption(text)
    assert claim is not None
    assert claim.objects == (("large", "red", "cross"), ("small", "blue", "square"))
    assert {(one[2], relation, other[2]) for one, relation, other in claim.relations} == relations


def test_a_relation_to_it_and_a_second_relation_are_of_the_first_object():
    first, second, third = ("small", "pink", "star"), ("large", "red", "cross"), ("small", "blue", "square")
    a, b, c = (f"a {' '.join(name)}" for name in (first, second, third))
    expected = {(first, "left of", second), (third, "above", first)}
    for text in (f"{a} left of {b} and below {c}", f"{a} with {b} right of it and {c} above it"):
        claim = parse_caption(text)
        assert claim is not None
        assert claim.relations == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a large red circle and",
        "a large red circle a small blue square",
        "three objects: a large red circle and a small blue square",
        "one object: a large red circle and a small blue square",
        "a large red circle left a small blue square",
        "a large purple circle",
        "a large red circle left of it",
        "there is there is a large red circle",
    ],
)
def test_what_is_no_sentence_of_the_grammar_is_not_read(text: str):
    assert parse_caption(text) is None


def test_one_word_changed_makes_a_caption_wrong(examples):
    changes = Counter()
    for example in examples:
        for sentence in example.captions:
            words = sentence.split()
            for position, word in enumerate(words):
                plain, end = re.fullmatch(r"(\w+)(\W*)", word).groups()
                for kind in (set(SIZES), set(COLOURS), set(SHAPES), {"left", "right"}, {"above", "below"}):
                    for other in kind - {plain} if plain in kind else ():
                        wrong = " ".join([*words[:position], other + end, *words[position + 1 :]])
                        assert parse_caption(wrong) is not None
                        assert not describes(wrong, example.scene), wrong
                        changes[plain] += 1
    assert set(changes) == {*SIZES, *COLOURS, *SHAPES, *OPPOSITES}


def test_an_object_left_out_added_or_said_twice_makes_a_caption_wrong(examples):
    one, two = (next(e for e in examples if len(e.scene.objects) == n) for n in (1, 2))
    first, second = (f"a {' '.join(thing.name)}" for thing in two.scene.objects)
    assert describes(f"{first} and {second}", two.scene)
    assert not describes(first, two.scene)
    assert not describes(f"{first} and {first}", two.scene)
    assert not describes(f"{first}, {second} and {second}", two.scene)
    assert not describes(f"there is {first} left of {first}", two.scene)
    only = f"a {' '.join(one.scene.objects[0].name)}"
    assert describes(only, one.scene)
    assert not describes(f"{only} and {only}", one.scene)


def test_a_relation_holds_from_an_eighth_of_the_picture_on():
    def scene(x: int) -> Scene:
        still, moved = Thing("small", "red", "cross", (0, 0, 8, 8)), Thing("small", "blue", "star", (20, x, 28, x + 8))
        return Scene(64, (still, moved))

    left = "a small red cross left of a small blue star"
    assert [describes(left, scene(x)) for x in (0, 7, 8, 40)] == [False, False, True, True]
    assert describes("a small red cross above a small blue star", scene(0))


def test_a_word_names_the_object_in_whose_box_that_colour_is(examples):
    for example in examples:
        for sentence in example.captions:
            words = [word.strip(",:.") for word in sentence.split()]
            named = named_objects(sentence, example.scene)
            assert [*named] == [i for i, word in enumerate(words) if word in COLOURS or word in SHAPES]
            for position, thing in named.items():
                assert words[position] in (thing.colour, thing.shape)
                top, left, bottom, right = thing.box
                colour = COLOURS[thing.colour]
                inside = (example.pixels[top:bottom, left:right] == colour).all(2)
                assert inside.mean() > 0.15  # a star fills a third of its box, and its edges are mixed colours
            assert {thing.name for thing in named.values()} == {thing.name for thing in example.scene.objects}
    wrong = examples[0].captions[0].replace("a ", "a large ", 1)
    assert named_objects(wrong, examples[0].scene) == {}


@pytest.mark.parametrize("side", [48, 64, 100])
def test_boxes_hold_every_pixel_that_is_drawn_and_not_more(side: int):
    for index in range(30):
        example = make_example(1, "train", index, side)
        pixels = example.pixels.astype(int)
        spread, bright = pixels.max(2) - pixels.min(2), pixels.max(2)
        drawn = (spread > 0) | (bright > 140)  # the ground is grey, and darker than that
        outside = drawn.copy()
        for thing in example.scene.objects:
            top, left, bottom, right = thing.box
            outside[top:bottom, left:right] = False
            rows, columns = np.nonzero(drawn[top:bottom, left:right])
            found = rows.min(), columns.min(), bottom - top - 1 - rows.max(), right - left - 1 - columns.max()
            assert max(found) <= 1
        assert not outside.any()
        for one, other in combinations(example.scene.objects, 2):
            (top, left, bottom, right), (top2, left2, bottom2, right2) = one.box, other.box
            assert bottom <= top2 or bottom2 <= top or right <= left2 or right2 <= left


def test_large_is_larger_than_small_for_every_shape(truth):
    widths: dict[tuple[str, str], list[int]] = {(size, shape): [] for size in SIZES for shape in SHAPES}
    for row in truth.values():
        for thing in row["objects"]:
            widths[thing["size"], thing["shape"]].append(thing["box"][3] - thing["box"][1])
    for shape in SHAPES:
        assert min(widths["large", shape]) > max(widths["small", shape])


def test_held_out_combinations_are_in_every_test_scene_and_in_no_other(truth):
    names = {name: {(t["size"], t["colour"], t["shape"]) for t in row["objects"]} for name, row in truth.items()}
    assert all(len({name[1:] for name in names[file]}) == len(row["objects"]) for file, row in truth.items())
    seen = set().union(*(found for file, found in names.items() if truth[file]["split"] != "test"))
    assert len(HELD_OUT) == len({name[1:] for name in HELD_OUT}) == 12
    assert seen == set(product(SIZES, COLOURS, SHAPES)) - set(HELD_OUT)
    tested = [found & set(HELD_OUT) for file, found in names.items() if truth[file]["split"] == "test"]
    assert len(tested) == 42
    assert all(tested)
    assert set().union(*tested) == set(HELD_OUT)
    for place, words in enumerate((SIZES, COLOURS, SHAPES)):
        assert {name[place] for name in HELD_OUT} == set(words)


def answers(text: str, row: dict[str, Any]) -> set[str]:
    """Every answer to a question, by going through the objects one after the other."""
    things = row["objects"]
    if text == "how many objects are there?":
        return {["no", "one", "two", "three"][len(things)]}
    if match := re.fullmatch(r"what (colour|shape|size) is the (\w+)( object)?\?", text):
        asked, word = match[1], match[2]
        return {t[asked] for t in things if word == (t["colour"] if match[3] else t["shape"])}
    match = re.fullmatch(r"what (is|colour is the object) (left of|right of|above|below) the (\w+)\?", text)
    assert match is not None, text
    asked = "shape" if match[1] == "is" else "colour"
    return {
        t[asked]
        for reference in things
        for t in things
        if reference["shape"] == match[3] and lies(t, match[2].removesuffix(" of"), reference, row["side"])
    }


def test_every_question_has_one_answer_and_it_is_the_label(truth, questions):
    assert list(questions[0]) == ["file_name", "text", "label", "split"]
    asked = Counter(row["file_name"] for row in questions)
    training = {name for name, row in truth.items() if row["split"] == "train"}
    assert {name: asked[name] for name in asked if name not in training} == dict.fromkeys(truth.keys() - training, 3)
    assert asked.keys() == truth.keys()
    assert min(asked[name] for name in training) >= 4
    for row in questions:
        assert answers(row["text"], truth[row["file_name"]]) == {row["label"]}, row
        assert row["split"] == truth[row["file_name"]]["split"]
    assert len({(row["file_name"], row["text"]) for row in questions}) == len(questions)
    assert {row["label"] for row in questions} == {*SIZES, *COLOURS, *SHAPES, "one", "two", "three"}
    assert len({re.sub(r"\w+(?= object\?)|\w+(?=\?)", "", row["text"]) for row in questions}) >= 12


def test_neither_the_picture_nor_the_text_alone_answers_the_questions(questions):
    by_hand = [
        {"file_name": "a", "text": "t", "label": "x"},
        {"file_name": "a", "text": "u", "label": "y"},
        {"file_name": "b", "text": "t", "label": "x"},
        {"file_name": "b", "text": "u", "label": "z"},
        {"file_name": "c", "text": "t", "label": "z"},
    ]
    assert ceilings(by_hand) == {"text": 3 / 5, "picture": 3 / 5}
    for training in (True, False):  # of few rows the ceilings are high: most texts are asked once
        highest = ceilings([row for row in questions if (row["split"] == "train") == training])
        assert 0.2 < highest["text"] < 0.65
        assert 0.25 < highest["picture"] < 0.5


def test_the_files_are_those_of_the_examples_and_nothing_else(folder, captions, truth, questions):
    assert [*captions] == [*truth] == list(dict.fromkeys(row["file_name"] for row in questions))
    assert Counter(row["split"] for row in truth.values()) == {"train": COUNT, "val": 42, "test": 42}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*captions, "metadata.jsonl", "questions.csv", "scenes.jsonl", "README.txt"}
    assert len((folder / "README.txt").read_text().splitlines()) == 3
    example = make_example(0, "val", 7)
    assert example.file_name == "images/val-000007.png"
    assert np.array_equal(decode(folder / example.file_name), example.pixels)
    assert captions[example.file_name] == example.captions
    assert read_scenes(folder)[example.file_name] == example.scene


def test_a_picture_is_made_from_seed_split_and_number_alone():
    one = make_example(3, "train", 9)
    for seed, split, number in ((4, "train", 9), (3, "val", 9), (3, "train", 10)):
        assert not np.array_equal(make_example(seed, split, number).pixels, one.pixels)
    for index in range(20):
        sizes = [make_example(3, "train", index, side) for side in (48, 64, 96)]
        assert len({tuple(thing.name for thing in example.scene.objects) for example in sizes}) == 1
        assert sizes[0].questions == sizes[1].questions == sizes[2].questions


def test_the_same_seed_makes_the_same_bytes_and_a_set_is_left_as_it_is(tmp_path, capsys):
    words = ["--count", "12", "--size", "48", "--seed"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["make", "scenes", str(tmp_path / name), *words, seed]) == 0
    contents = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    ]
    assert len(contents[0]) == 14 + 4
    assert contents[0] == contents[1]
    assert all(contents[0][name] != contents[2][name] for name in contents[0])
    capsys.readouterr()
    assert main(["make", "scenes", str(tmp_path / "a"), *words, "1"]) == 0
    assert "already" in capsys.readouterr().out
    with pytest.raises(DataError, match="already there and not this set"):
        make_scenes(tmp_path / "a", count=12, side=48, seed=2)


def test_progress_counts_the_pictures(tmp_path):
    told = []
    make_scenes(tmp_path / "a", count=3, side=48, progress=lambda done, count: told.append((done, count)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 1_000_001}, {"side": 16}, {"side": 4096}, {"seed": -1}])
def test_what_cannot_be_made_is_refused_by_name(wrong: dict[str, int], tmp_path):
    with pytest.raises(ConfigError) as caught:
        make_scenes(tmp_path / "out", **wrong)
    ((key, value),) = wrong.items()
    assert str(caught.value).startswith(f"{'size' if key == 'side' else key}: {value}, but it must be from ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [None, "{}\n", "no json\n", '{"file_name": "a", "side": 64, "objects": [{}]}\n'])
def test_a_folder_without_the_truth_is_refused(text: str | None, tmp_path):
    if text is not None:
        (tmp_path / "scenes.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"scenes\.jsonl: (no such file|not the truth)"):
        read_scenes(tmp_path)


def test_a_simple_scene_has_one_caption_and_it_is_canonical(tmp_path: Path):
    assert make_scenes(tmp_path / "simple", count=300, simple=True)
    scenes = read_scenes(tmp_path / "simple")
    rows = [json.loads(line) for line in (tmp_path / "simple" / "metadata.jsonl").read_text().splitlines()]
    counts = Counter()
    for row in rows:
        (caption,), scene = row["captions"], scenes[row["file_name"]]
        assert describes(caption, scene)
        phrases = [f"a {' '.join(thing.name)}" for thing in sorted(scene.objects, key=lambda thing: thing.box[1])]
        assert caption == " left of ".join(phrases)
        counts[len(phrases)] += 1
    assert set(counts) == {1, 2}
    assert "--simple" in (tmp_path / "simple" / "README.txt").read_text()
    assert [row["captions"] for row in rows[:3]] == [
        make_example(0, "train", index, simple=True).captions for index in range(3)
    ]
