"""Tables as people save them: separators, encodings, line ends, labels; what is no table is named."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from vit.data.captions import list_captions
from vit.data.folders import Listing, list_evaluation, list_training
from vit.data.questions import list_evaluation_questions, list_questions
from vit.data.tables import read_rows, text_of
from vit.data.text import list_pairs
from vit.errors import DataError

ODD_SPACES = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
"""where `str.splitlines` cuts, and text does not"""


def images(folder: Path, count: int = 8) -> list[str]:
    names = [f"{number}.jpg" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(b"x")
    return names


def train(data: Path) -> Listing:
    return list_training(data, val_fraction=0.25, test_fraction=0, seed=0)


def message(call: Callable, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert len(text) < 1000
    assert text.count("\n") <= 2
    return text


def captions(data: Path) -> list[str]:
    splits = list_captions(data, val_fraction=0.25, test_fraction=0, seed=0).splits
    return sorted(caption for entries in splits.values() for entry in entries for caption in entry.captions)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_are_compared_without_white_space_around_them(tmp_path, suffix):
    names = images(tmp_path)
    labels = [" cat", "cat", "cat\t", "\u00a0cat", "dog", "dog ", " dog", "dog\r"]
    rows = zip(names, labels, strict=True)
    if suffix == "csv":
        text = " path , label \n" + "".join(f'{name},"{label}"\n' for name, label in rows)
    else:
        text = "".join(json.dumps({"path": name, " Label": label}) + "\n" for name, label in rows)
    (tmp_path / f"list.{suffix}").write_text(text, newline="")
    assert train(tmp_path / f"list.{suffix}").classes == ("cat", "dog")
    listing = list_evaluation(tmp_path / f"list.{suffix}", ["dog ", "cat"])
    assert len(listing.splits["all"]) == 8
    assert not listing.unknown


def test_answers_are_compared_without_white_space_around_them(tmp_path):
    rows = "".join(f"question {n},{label}\n" for n, label in enumerate(["yes", " yes", "no", "no ", "yes", "no"]))
    (tmp_path / "q.csv").write_text("question,answer\n" + rows)
    assert list_questions(tmp_path / "q.csv", val_fraction=0.2, test_fraction=0, seed=0).classes == ("no", "yes")
    assert list_evaluation_questions(tmp_path / "q.csv", ["yes", "no"]).unknown == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n0.jpg,  \n", "line 2: label must be text, got ''"),
        (f"path,label\n0.jpg,{'x' * 1001}\n", "line 2: label has 1,001 characters, at most 1,000 are allowed"),
        (f"path,label\n0.jpg,{'x' * 200_000}\n", "line 2: a field of more than 131,072 characters; is a closing quote"),
        ("path,label,Label\n0.jpg,a,b\n", "line 1: several columns of the same name: 'label'"),
        ("path,label\r0.jpg,a\r", r"line 1: a carriage return without a line feed outside quotes; save the file with"),
        ("path;kind\n0.jpg;a\n", "no column called label or class; the columns are 'path, kind'"),
        ("path|label\n0.jpg|a\n", "the columns are 'path|label'"),
    ],
)
def test_a_list_that_would_be_misread_is_refused(tmp_path, text, words):
    images(tmp_path)
    (tmp_path / "list.csv").write_text(text, newline="")
    assert words in message(train, tmp_path / "list.csv")


def test_values_of_any_size_make_a_short_message(tmp_path):
    images(tmp_path)
    huge = "x" * 3_000_000
    good = {"path": "0.jpg", "label": "a"}
    for row in (
        *({**good, key: value} for key in [*good, "split"] for value in (huge, [huge])),
        {"path": "0.jpg", huge: 1},
    ):
        (tmp_path / "list.jsonl").write_text(json.dumps(row))
        message(train, tmp_path / "list.jsonl")


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_may_be_separated_by_commas_semicolons_or_tabs(tmp_path, name, separator, end, mark):
    names = images(tmp_path)
    rows = [["path", "label"], *([name, '"a, b"' if number % 2 else "c"] for number, name in enumerate(names))]
    text = mark + "".join(separator.join(row) + end for row in rows)
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert train(tmp_path / name).classes == ("a, b", "c")


def test_captions_questions_and_pairs_may_be_separated_by_semicolons(tmp_path):
    images(tmp_path)
    (tmp_path / "c.csv").write_text("image;caption\n0.jpg;one, two\n1.jpg;three\n2.jpg;four\n")
    assert captions(tmp_path / "c.csv") == ["four", "one, two", "three"]
    (tmp_path / "q.csv").write_text("file_name;question;answer\n0.jpg;one, two?;yes\n1.jpg;three?;no\n2.jpg;four?;no\n")
    listing = list_questions(tmp_path / "q.csv", val_fraction=0.2, test_fraction=0, seed=0)
    assert "one, two?" in {asked.text for asked in chain(*listing.splits.values())}
    (tmp_path / "p.csv").write_text("source;target\na, b;c\nd;e\nf;g\n")
    pairs = list_pairs(tmp_path / "p.csv", val_fraction=0.2, test_fraction=0, seed=0)
    assert ("a, b", "c") in chain(*pairs.splits.values())


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("xl/workbook.xml", "x")
    return stream.getvalue()


TABLE = "path,label,caption\n0.jpg,a,x\n1.jpg,b,y\n2.jpg,a,z\n3.jpg,b,w\n"
FOREIGN = {
    "UTF-16 text; save it as UTF-8": TABLE.encode("utf-16"),
    "UTF-16 text; save": b"\xfe\xff" + TABLE.encode("utf-16-be"),
    "UTF-16 text without a byte order mark; save": TABLE.encode("utf-16-le"),
    "UTF-32 text": TABLE.encode("utf-32"),
    "gzip-compressed; decompress it first": gzip.compress(TABLE.encode()),
    "bzip2-compressed": bz2.compress(TABLE.encode()),
    "xz-compressed": lzma.compress(TABLE.encode()),
    "a zip archive or an Excel workbook": zipped(),
    "a Parquet table; convert it": b"PAR1\x15\x04" + bytes(20),
}


@pytest.mark.parametrize("words", FOREIGN)
def test_what_is_no_utf8_text_is_named_with_what_to_do(tmp_path, words):
    images(tmp_path)
    for name in ("list.csv", "list.jsonl", "list.csv.gz", "list.xlsx", "list.parquet"):
        (tmp_path / name).write_bytes(FOREIGN[words])
        if name.endswith(("csv", "jsonl")) or "without" not in words:
            assert f"{name}: {words}" in message(train, tmp_path / name)
    if "without" not in words:
        assert f"list.csv: {words}" in message(captions, tmp_path / "list.csv")
        assert words in message(captions, tmp_path)


@pytest.mark.parametrize("space", ODD_SPACES)
def test_lines_end_at_line_feeds_alone(tmp_path, space):
    names = images(tmp_path, 4)
    odd = [f"a{space}b {number}" for number in range(4)]
    rows = list(zip(names, odd, strict=True))
    forms = {
        "c.csv": "image,caption\n" + "".join(f"{name},{text}\n" for name, text in rows),
        "c.tsv": "".join(f"{name}\t{text}\r\n" for name, text in rows),
        "c.token": "".join(f"{name}#0\t{text}\n" for name, text in rows),
        "c.jsonl": "".join(json.dumps({"image": n, "text": t}, ensure_ascii=False) + "\n" for n, t in rows),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert captions(tmp_path / name) == odd
    (tmp_path / "beside").mkdir()
    for name, text in rows:
        (tmp_path / "beside" / name).write_bytes(b"x")
        (tmp_path / "beside" / name).with_suffix(".txt").write_text(f"{text}\r\nsecond {text}\n", newline="")
    assert captions(tmp_path / "beside") == sorted(odd + [f"second {text}" for text in odd])
    pairs = "".join(f"{text}\t{text}\n" for text in odd)
    (tmp_path / "pairs.tsv").write_text(pairs, encoding="utf-8", newline="")
    found = list_pairs(tmp_path / "pairs.tsv", val_fraction=0.25, test_fraction=0, seed=0).splits.values()
    assert sorted(chain(*found)) == [(text, text) for text in odd]


def test_a_lone_carriage_return_belongs_to_the_text(tmp_path):
    rows = [(name, f"a\rb {number}") for number, name in enumerate(images(tmp_path, 3))]
    (tmp_path / "c.tsv").write_text("".join(f"{name}\t{text}\r\n" for name, text in rows), newline="")
    assert captions(tmp_path / "c.tsv") == [text for _, text in rows]
    (tmp_path / "c.csv").write_text("image,caption\n" + "".join(f'{n},"{t}"\n' for n, t in rows), newline="")
    assert captions(tmp_path / "c.csv") == [text for _, text in rows]


def test_a_null_character_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.jpg", "label": "x"}\n{"path": "a\\u0000.jpg", "label": "x"}\n')
    rows = list(read_rows(str(path)))
    assert text_of(rows[0][1], ("path",), str(path), 1) == "a.jpg"
    with pytest.raises(DataError, match=r"list\.jsonl, line 2: path holds a null character"):
        text_of(rows[1][1], ("path",), str(path), 2)
