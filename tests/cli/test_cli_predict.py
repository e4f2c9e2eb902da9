"""`vit predict`: one record a picture, in order, clean to pipe, whatever the pictures are called and whichever fail."""

import csv
import gzip
import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import vit as package
from vit.cli import predict as predict_command
from vit.errors import DataError

ODD_NAMES = [
    b"-rf.jpg",
    b"a,b.png",
    b'say "cheese".png',
    b"two\nlines.png",
    b"carriage\rreturn.png",
    b"tab\there.png",
    "ünï \N{CAT FACE}\u200d.png".encode(),
    "separator\u2028\x1c\x85.png".encode(),
    b"latin-\xe9-1.png",
    b"  spaces  .png",
    b"[1].png",
]


@pytest.fixture
def odd_folder(picture: Any, tmp_path: Path) -> Path:
    """A folder of pictures with names that trip up shells, tables and decoders."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for seed, name in enumerate(ODD_NAMES):
        picture("red", seed).save(tmp_path / "picture.png")
        (tmp_path / "picture.png").rename(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    return folder


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.*"))


def give_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_json_lines_hold_classes_and_probabilities(vit: Any, trained_run: Path, colour_folder: Path) -> None:
    outcome = vit("predict", trained_run, colour_folder)
    assert (outcome.code, outcome.err) == (0, "")
    found = records(outcome.out)
    assert len(found) == outcome.out.count("\n") == 36
    assert [record["path"] for record in found] == files(colour_folder)
    for record in found:
        assert record.keys() == {"path", "top"}
        chances = [entry["probability"] for entry in record["top"]]
        assert sorted(entry["class"] for entry in record["top"]) == ["blue", "green", "red"]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1, abs=3e-6)


@pytest.mark.parametrize(("top", "given"), [(1, 1), (2, 2), (3, 3), (1000, 3)])
def test_top_gives_that_many_classes_as_far_as_there_are(
    vit: Any, trained_run: Path, colour_folder: Path, top: int, given: int
) -> None:
    words = ["predict", trained_run, colour_folder / "red", "--top", top]
    lines, rows = records(vit(*words).out), table(vit(*words, "--format=csv").out)
    for record, row in zip(lines, rows, strict=True):
        assert len(record["top"]) == given
        assert sum(entry["probability"] for entry in record["top"]) <= 1 + 3e-6
        names = [f"{what}{i}" for i in range(1, given + 1) for what in ("class", "probability")]
        assert list(row) == ["path", "error", *names]
        for i, entry in enumerate(record["top"], 1):
            assert (row[f"class{i}"], float(row[f"probability{i}"])) == (entry["class"], entry["probability"])


def test_the_batch_size_changes_no_answer(vit: Any, trained_run: Path, colour_folder: Path) -> None:
    one, seven = (records(vit("predict", trained_run, colour_folder, f"--batch-size={size}").out) for size in (1, 7))
    assert [record["path"] for record in one] == [record["path"] for record in seven]
    for first, second in zip(one, seven, strict=True):
        chances = [{entry["class"]: entry["probability"] for entry in record["top"]} for record in (first, second)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-5)


def test_python_gives_the_same_answers(vit: Any, trained_run: Path, colour_folder: Path) -> None:
    found = records(vit("predict", trained_run, colour_folder).out)
    answers = package.load(trained_run).predict([record["path"] for record in found])
    for record, answer in zip(found, answers, strict=True):
        shown = {entry["class"]: entry["probability"] for entry in record["top"]}
        assert dict(zip(answer.classes, answer.probabilities, strict=True)) == pytest.approx(shown, abs=1e-5)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_every_file_name_comes_back_byte_for_byte(vit: Any, trained_run: Path, odd_folder: Path, form: str) -> None:
    outcome = vit("predict", trained_run, odd_folder, "--format", form)
    assert (outcome.code, outcome.err) == (0, "")
    found = records(outcome.out) if form == "jsonl" else table(outcome.out)
    names = [os.fsencode(record["path"]) for record in found]
    assert sorted(names) == sorted(os.fsencode(odd_folder) + b"/" + name for name in ODD_NAMES)


def test_json_lines_are_text_that_any_tool_can_read(vit: Any, trained_run: Path, odd_folder: Path) -> None:
    out = vit("predict", trained_run, odd_folder).out
    out.encode("utf-8")  # no bytes that are no UTF-8
    assert len(out.splitlines()) == len(ODD_NAMES)  # by any notion of a line
    assert all(line.isprintable() for line in out.splitlines())


def test_words_after_two_dashes_are_paths(
    vit: Any, trained_run: Path, odd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(odd_folder)
    outcome = vit("predict", trained_run, "--", "-rf.jpg")
    assert [record["path"] for record in records(outcome.out)] == ["-rf.jpg"]
    assert (odd_folder / "-rf.jpg").is_file()


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
def test_a_list_on_standard_input_names_pictures(
    vit: Any, trained_run: Path, odd_folder: Path, monkeypatch: pytest.MonkeyPatch, separator: bytes
) -> None:
    names = [name for name in ODD_NAMES if separator not in name]
    paths = [os.fsencode(odd_folder) + b"/" + name for name in names]
    for end in (b"", separator):
        give_input(monkeypatch, separator.join(paths) + end)
        outcome = vit("predict", trained_run, "-")
        assert (outcome.code, outcome.err) == (0, "")
        assert [os.fsencode(record["path"]) for record in records(outcome.out)] == paths


def test_files_folders_patterns_and_lists_mix_in_the_order_given(
    vit: Any, trained_run: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(colour_folder)
    give_input(monkeypatch, b"green/03.png\ngreen/02.jpg\n")
    outcome = vit("predict", trained_run, "red/01.png", "-", "blue/*.png", "red", "green/0[01].*")
    assert [record["path"] for record in records(outcome.out)] == [
        "red/01.png",
        "green/03.png",
        "green/02.jpg",
        *(f"blue/{i:02}.png" for i in range(1, 12, 2)),
        *(f"red/{i:02}.{'png' if i % 2 else 'jpg'}" for i in range(12)),
        "green/00.jpg",
        "green/01.png",
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_unreadable_pictures_are_recorded_and_the_others_answered_in_order(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path, form: str
) -> None:
    good = colour_folder / "red" / "00.jpg"
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:400])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a letter", encoding="utf-8")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    bad = [tmp_path / name for name in ("cut.jpg", "empty.png", "text.png", "nowhere.png", "pipe.png")]
    paths = [str(path) for wrong in bad for path in (wrong, good)]
    outcome = vit("predict", trained_run, *paths, "--batch-size=3", "--format", form)
    assert outcome.code == 1
    found = records(outcome.out) if form == "jsonl" else table(outcome.out)
    assert [record["path"] for record in found] == paths
    reasons = {record["path"]: record["error"] for record in found[::2]}
    assert all(reasons.values())
    assert [str(path) for path in bad] == list(reasons)
    for record in found[1::2]:
        assert not record.get("error")
        assert record == found[1]
    assert outcome.err.splitlines() == [
        *(f"vit: {path}: {reason}" for path, reason in reasons.items()),
        "vit: no prediction for 5 of the images",
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_out_gets_the_whole_output_and_standard_output_nothing(
    vit: Any, trained_run: Path, odd_folder: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "answers"
    out.write_text("an older file", encoding="utf-8")
    printed = vit("predict", trained_run, odd_folder, "--format", form)
    written = vit("predict", trained_run, odd_folder, "--format", form, "--out", out)
    assert written == (0, "", "")
    assert out.read_bytes() == printed.out.encode("utf-8", "surrogateescape")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "odd"]


def test_out_that_cannot_be_written_is_refused(
    refused: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out, reason in (
        (tmp_path / "file" / "x", f"no such folder {tmp_path / 'file'}"),
        (tmp_path, "is a folder; name a file"),
    ):
        message = refused("predict", trained_run, colour_folder / "red" / "00.jpg", "--out", out, code=2)
        assert message == f"vit: --out {out}: {reason}\n"
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_a_list_names_in_vain_is_recorded_and_the_others_answered(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    good = colour_folder / "red" / "00.jpg"
    paths = [str(path) for path in (tmp_path / "missing.png", good, tmp_path, tmp_path / "*.png", good)]
    give_input(monkeypatch, "\n".join(paths).encode())
    outcome = vit("predict", trained_run, "-", "--format", form)
    assert outcome.code == 1
    found = records(outcome.out) if form == "jsonl" else table(outcome.out)
    assert [record["path"] for record in found] == paths
    assert [record.get("error") or "" for record in found] == [
        "no such file or directory",
        "",
        "not a regular file (folder)",
        "no such file or directory",
        "",
    ]
    assert outcome.err.splitlines()[-1] == "vit: no prediction for 3 of the images"


class Trickle(io.RawIOBase):
    """A stream that gives one piece after the other, and counts them."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
def test_the_paths_of_a_list_are_taken_as_they_come_in(separator: bytes) -> None:
    paths = [b"one", b"\xff two", b"three"]
    text = separator.join(paths)
    stream = Trickle(*(text[i : i + 4] for i in range(0, len(text), 4)))
    listed = predict_command._listed(io.BufferedReader(stream))
    assert next(listed) == "one"
    assert len(stream.pieces) == 3
    assert [os.fsencode(path) for path in listed] == paths[1:]


def listed(*pieces: bytes) -> list[str]:
    return list(predict_command._listed(io.BufferedReader(Trickle(*pieces))))


def test_the_lines_of_a_list_may_end_as_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd\r").touch()
    text = b"\xef\xbb\xbfa b.jpg\r\n\r\nodd\r\nx.tar#512+9\r\nlast.jpg\r"
    assert listed(text) == ["a b.jpg", "odd\r", "x.tar#512+9", "last.jpg"]
    assert listed(text[:9], text[9:30], text[30:]) == listed(text)
    assert listed(b"a\r\0b\0") == ["a\r", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg\n".encode("utf-16"), "standard input: the list is UTF-16 text; save it as UTF-8"),
        (gzip.compress(b"a.jpg\n", mtime=0), "standard input: the list is gzip-compressed; decompress it first"),
    ],
)
def test_a_list_that_is_not_text_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        listed(content)


def test_a_place_outside_of_a_tar_fails_alone(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = colour_folder / "red" / "00.jpg"
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(good, "0.jpg")
    size = good.stat().st_size
    paths = [f"{tmp_path}/x.tar#{place}" for place in ("0+9999999999999", f"{'9' * 30}+1", f"512+{size}")]
    give_input(monkeypatch, "".join(f"{path}\r\n" for path in [*paths, str(good)]).encode())
    outcome = vit("predict", trained_run, "-")
    assert outcome.code == 1
    found = records(outcome.out)
    assert [record["path"] for record in found] == [*paths, str(good)]
    assert [record.get("error") for record in found] == ["truncated: the tar ends early"] * 2 + [None] * 2
    assert found[2]["top"] == found[3]["top"]


class Watched(io.StringIO):
    """Text that goes to a terminal, or that does not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("out_watched", "error_watched", "to_file", "shown"),
    [
        (True, True, False, False),
        (True, True, True, True),
        (False, True, False, True),
        (False, False, False, False),
        (True, False, True, False),
    ],
)
def test_progress_is_shown_where_somebody_watches_and_no_records_go(
    monkeypatch: pytest.MonkeyPatch, out_watched: bool, error_watched: bool, to_file: bool, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", Watched(out_watched))
    monkeypatch.setattr(sys, "stderr", Watched(error_watched))
    with predict_command._progress([["a", "b"], ["c"]], to_file=to_file) as bar:
        assert bar.disable is not shown
        assert not shown or (bar.total, bar.delay) == (3, 2)
        for _ in range(3):
            bar.update()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]  # it was over before two seconds


def test_progress_through_a_list_knows_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Watched(True))
    with predict_command._progress([["a"], iter(["b"])], to_file=True) as bar:
        assert bar.total is None


@pytest.mark.parametrize("device", ["cuda", "xpu"])  # of two, one at least that torch is not built for
def test_a_gpu_that_is_not_there_is_refused(refused: Any, trained_run: Path, colour_folder: Path, device: str) -> None:
    if getattr(torch, device).is_available():
        pytest.skip(f"this machine has a working {device} device")
    message = refused("predict", trained_run, colour_folder, "--device", device, code=2)
    assert message.startswith(f"vit: --device {device}: ")


def unreadable(folder: Path) -> dict[str, str]:
    """Arguments that name no image, and the reasons."""
    (folder / "empty").mkdir()
    return {
        str(folder / "missing.png"): "no such file or folder",
        str(folder / "*.png"): "no image matches this pattern",
        str(folder / "empty"): "no images in this folder",
    }


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_arguments_that_name_no_image_are_recorded_and_the_others_predicted(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path, form: str
) -> None:
    good, reasons = str(colour_folder / "red" / "00.jpg"), unreadable(tmp_path)
    paths = [path for wrong in reasons for path in (good, wrong)]
    outcome = vit("predict", trained_run, *paths, "--format", form)
    assert outcome.code == 1
    found = records(outcome.out) if form == "jsonl" else table(outcome.out)
    assert [record["path"] for record in found] == paths
    assert [record["error"] for record in found[1::2]] == list(reasons.values())
    assert all(record == found[0] and not record.get("error") for record in found[::2])
    told = [f"vit: {path}: {reason}" for path, reason in reasons.items()]
    assert outcome.err.splitlines() == [*told, "vit: no prediction for 3 of the images"]


def test_a_path_that_names_no_image_fails_alone_as_well(vit: Any, trained_run: Path, tmp_path: Path) -> None:
    for path, reason in unreadable(tmp_path).items():
        outcome = vit("predict", trained_run, path)
        assert (outcome.code, records(outcome.out)) == (1, [{"path": path, "error": reason}])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "p.parquet"], "--out p.parquet: .parquet is not supported; use .jsonl or .csv, or choose a format"),
        (["--out", "P.XLSX"], "--out P.XLSX: .xlsx is not supported; use .jsonl or .csv, or choose a format"),
        (["--out", "p.json"], "--out p.json: .json is not supported; use .jsonl or .csv, or choose a format"),
        (["--out", "p.csv.gz"], "--out p.csv.gz: .gz is not supported; use .jsonl or .csv, or choose a format"),
        (["--out", "p.csv", "--format=jsonl"], "--out p.csv and --format jsonl: two formats; change one of them"),
        (["--out", "p.ndjson", "--format=csv"], "--out p.ndjson and --format csv: two formats; change one of them"),
        (["--csv-raw"], "--csv-raw: has no effect without --format csv"),
    ],
)
def test_an_output_name_of_another_format_is_refused_before_anything_is_read(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("predict", "no-such-model", "no-such-image", *words, code=2).startswith(f"vit: {message}")
    assert list(tmp_path.iterdir()) == []


def test_formulas_in_csv_cells_become_text_and_come_back(
    vit: Any, trained_run: Path, picture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "\td.png", "\re.png", "\nf.png", "'=g.png", "'h.png", "i=j.png"]
    names += ["\uff1dk.png", "plain.png"]
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(names):
        picture("red", seed).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    words = ["predict", trained_run, "--format", "csv", "--", *names]
    escaped = [row["path"] for row in table(vit(*words).out)]
    assert [cell[0] for cell in escaped] == [*"'" * 9, *"i'p"]
    assert escaped[8] == "'h.png"  # no formula follows
    restored = [re.sub("^'(?='*[=+\\-@\t\r\n\uff1d])", "", cell) for cell in escaped]
    assert restored == names
    words.insert(2, "--csv-raw")
    raw = table(vit(*words).out)
    assert [row["path"] for row in raw] == names
    assert all(0 <= float(row["probability1"]) <= 1 for row in raw)


def test_the_ending_of_the_output_file_chooses_the_format(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "labels.csv"
    assert vit("predict", trained_run, colour_folder / "red", tmp_path / "broken.jpg", "--out", out).code == 1
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["path", "error", "class1"]
    assert {len(row) for row in rows} == {len(rows[0])}  # strict readers want every row as long as the first
