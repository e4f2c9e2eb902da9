"""Plain text and pairs of texts: splits, every letter kept, faults with their place."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vit.data.text import (
    Corpus,
    Pair,
    PairListing,
    list_evaluation_pairs,
    list_pairs,
    read_corpus,
    read_evaluation_corpus,
)
from vit.errors import DataError


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def corpus(data: Path, val: float = 0.1) -> Corpus:
    return read_corpus(data, val_fraction=val)


def pairs(data: Path, val: float = 0.2, test: float = 0.0, seed: int = 0) -> PairListing:
    return list_pairs(data, val_fraction=val, test_fraction=test, seed=seed)


def message(call: Callable, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_last_share_of_a_file_is_held_out(tmp_path):
    text = "".join(chr(97 + number % 26) for number in range(1005))
    found = corpus(put(tmp_path / "input.txt", text))
    assert (found.train, found.val, found.test) == (text[:904], text[904:], "")
    assert found.root == str(tmp_path)
    assert len(corpus(tmp_path / "input.txt", val=0.5).val) == 503


@pytest.mark.skipif("VIT_TEST_DATA" not in os.environ, reason="VIT_TEST_DATA names no folder")
def test_tiny_shakespeare_is_split_as_nanogpt_does():
    found = corpus(Path(os.environ["VIT_TEST_DATA"]) / "tinyshakespeare.txt")
    assert (len(found.train), len(found.val)) == (1_003_854, 111_540)


def test_text_is_kept_to_the_letter(tmp_path):
    text = "line\r\nother\rthird\n\n\0 tab\t שלום \u202e👩‍👩‍👧 e\u0301\u2028end"
    found = corpus(put(tmp_path / "a.txt", b"\xef\xbb\xbf" + text.encode()))
    assert found.train + found.val == text
    assert read_evaluation_corpus(tmp_path / "a.txt") == ("all", text)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train.txt", "val.txt", "test.txt"),
        ("a.train.txt", "a.valid.txt", "a.test.txt"),
        ("train.raw", "dev.raw", "test.raw"),
    ],
)
def test_files_of_other_splits_beside_that_of_train_count(tmp_path, train, val, test):
    for name, text in ((train, "of train"), (val, "of val"), (test, "of test"), ("other.txt", "x")):
        put(tmp_path / name, text)
    assert corpus(tmp_path / train) == Corpus(str(tmp_path), "of train", "of val", "of test")
    assert read_evaluation_corpus(tmp_path / train) == ("all", "of train")
    put(tmp_path / "more.txt", "0123456789")
    assert corpus(tmp_path / "more.txt").val == "9"


def test_a_folder_is_read_in_order_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for name, text in (("b.txt", "two\n"), ("a.txt", "one"), ("c/d.TXT", "three"), ("e.md", "x")):
        put(tmp_path / name, text)
    found = corpus(tmp_path)
    assert found.train + found.val == "one\ntwo\nthree"
    assert read_evaluation_corpus(tmp_path) == ("all", "one\ntwo\nthree")


def test_a_folder_may_have_splits(tmp_path):
    put(tmp_path / "train" / "test_of_time.txt", "one")
    put(tmp_path / "train" / "b.txt", "zwei")
    put(tmp_path / "valid.txt", "val")
    assert corpus(tmp_path) == Corpus(str(tmp_path), "zwei\none", "val")
    assert read_evaluation_corpus(tmp_path) == ("val", "val")
    assert message(read_evaluation_corpus, tmp_path, split="test").endswith("no split called test; it has train, val")
    put(tmp_path / "stray.txt", "x")
    assert message(corpus, tmp_path) == f"{tmp_path}/stray.txt: in no split, though others are in train, val or test"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"good\n\xff bad", "a.txt: not valid UTF-8, byte 0xff at 5"),
        ("a.txt", b"\xef\xbb\xbfcut \xe2\x82", "a.txt: not valid UTF-8, byte 0xe2 at 7"),
        ("a.txt", b"", "a.txt: no text"),
        ("val.txt", b"x", ": has val but no train"),
        ("train.txt", b"", ": no text in train"),
        ("a.md", b"x", ": no text"),
    ],
)
def test_text_that_cannot_serve_is_refused(tmp_path, name, content, words):
    file = put(tmp_path / name, content)
    assert message(corpus, file if words.startswith("a.txt") else tmp_path).endswith(words)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for call in (corpus, pairs):
        assert message(call, tmp_path / "gone") == f"{tmp_path}/gone: no such file or folder"
        assert message(call, tmp_path / "pipe.txt") == f"{tmp_path}/pipe.txt: not a regular file"


PAIRS = [Pair(f"source {number}, é", f'target "{number}"') for number in range(10)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.tsv", "".join(f"{s}\t{t}\n" for s, t in PAIRS)),
        ("p.txt", "".join(f"{s}\t{t}\r\n" for s, t in PAIRS)),
        ("p.tsv", "target\tsource\n" + "".join('"{}"\t{}\n'.format(t.replace('"', '""'), s) for s, t in PAIRS)),
        ("p.csv", "".join('"{}","{}"\n'.format(s, t.replace('"', '""')) for s, t in PAIRS)),
        ("p.csv", "id,Input,Output\n" + "".join('3,"{}","{}"\n'.format(s, t.replace('"', '""')) for s, t in PAIRS)),
        ("p.jsonl", "".join(json.dumps({"src": s, "tgt": t}) + "\n" for s, t in PAIRS)),
    ],
)
def test_every_form_of_pairs_is_read(tmp_path, name, text):
    file = put(tmp_path / name, "\ufeff" + text)
    assert list_evaluation_pairs(file).splits == {"all": PAIRS}
    listing = pairs(tmp_path)
    assert {split: len(found) for split, found in listing.splits.items()} == {"train": 8, "val": 2}
    assert sorted(pair for found in listing.splits.values() for pair in found) == PAIRS
    assert listing.root == str(tmp_path)


def test_pairs_of_one_source_stay_together(tmp_path):
    file = put(tmp_path / "p.tsv", "".join(f"s{number % 20}\tt{number}\n" for number in range(60)))
    listing = pairs(file, test=0.1)
    assert {split: len(found) for split, found in listing.splits.items()} == {"train": 42, "val": 12, "test": 6}
    sources = [{pair.source for pair in found} for found in listing.splits.values()]
    assert sum(map(len, sources)) == 20
    assert listing.splits == pairs(file, test=0.1).splits
    assert listing.splits["val"] != pairs(file, test=0.1, seed=1).splits["val"]


def test_splits_of_pairs_by_file_and_by_column(tmp_path):
    for split in ("train", "val", "test"):
        put(tmp_path / "files" / f"{split}.tsv", f"a\t{split}\nb\t{split}\n")
    assert pairs(tmp_path / "files").splits["test"] == [Pair("a", "test"), Pair("b", "test")]
    assert list_evaluation_pairs(tmp_path / "files", split="val").splits == {
        "val": [Pair("a", "val"), Pair("b", "val")]
    }
    put(tmp_path / "p.csv", "source,target,split\na,x,train\nb,y,valid\nc,z,train\n")
    assert pairs(tmp_path / "p.csv").splits == {"train": [Pair("a", "x"), Pair("c", "z")], "val": [Pair("b", "y")]}


def test_pairs_with_an_empty_side_are_counted_and_nulls_are_fine(tmp_path):
    listing = list_evaluation_pairs(put(tmp_path / "p.tsv", "a\tb\n\tc\nd\t \ne\0\tf\n"))
    assert listing.splits == {"all": [Pair("a", "b"), Pair("e\0", "f")]}
    assert listing.counts == {"pairs with an empty side": 2}
    assert [item.path for item in listing.left_out] == [f"{tmp_path}/p.tsv, line 2", f"{tmp_path}/p.tsv, line 3"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.tsv", "a\tb\nc\n", "line 2: expected two columns, source and target, got 1"),
        ("p.tsv", "a\tb\nc\td\te\n", "line 2: expected two columns, source and target, got 3"),
        ("p.tsv", b"a\tb\nc\t\xff\n", "line 2: target is not valid UTF-8 at character 1"),
        ("p.csv", 'a,b\n"c,d\n', "line 2: unexpected end of data"),
        ("p.csv", "source,target\na\n", "only empty"),
        ("p.csv", "a,b,c\n", "no pairs of texts; expected a .tsv or .csv of two columns"),
        ("p.md", "a\tb\n", "no pairs of texts; expected"),
        ("p.jsonl", '{"source": "a", "target": 3}', "line 1: target must be text, got 3"),
        ("p.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}', "line 2: no target"),
        ("p.tsv", "a\tb\n", "1 to train on, too few to hold out val"),
    ],
)
def test_a_fault_in_pairs_is_named_with_its_line(tmp_path, name, text, words):
    file = put(tmp_path / name, text)
    assert words.replace("only empty", "no pairs of texts (pairs with an empty side 1)") in message(pairs, file)
