"""Tars are data as they are: read in place, written whole, refused in words."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from vit.data.captions import list_captions, list_evaluation_captions
from vit.data.check import check
from vit.data.decode import decode, picture_size
from vit.data.folders import list_evaluation, list_training, write_split
from vit.data.tars import members, tars_in, write_tars
from vit.errors import DataError, UnreadableImage


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def classes(first: int, count: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for index in range(first, first + count):
        files[f"{index:06}.jpg"] = jpeg(index)
        files[f"{index:06}.cls"] = f"{index % 3}\n".encode()
    return files


def test_a_picture_in_a_tar_is_as_good_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "plain.jpg").write_bytes(jpeg(3))
    (found,) = members(str(pack(tmp_path / "a.tar", {"x/3.jpg": jpeg(3), "x/3.json": b'{"label": "cat"}'})))
    assert (found.key, found.label) == ("x/3", "cat")
    assert np.array_equal(decode(found.picture), decode(tmp_path / "plain.jpg"))
    assert picture_size(found.picture) == (12, 16)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:700])
    with pytest.raises(UnreadableImage, match="truncated: the tar ends early"):
        decode(found.picture)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UnreadableImage, match="no such file"):
        decode(found.picture)


@pytest.mark.parametrize("layout", ["{split}-{n:04}.tar", "{split}/{n:06}.tar"])
def test_tars_are_listed_by_class_and_split(layout: str, tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 12), ("train", 12, 12), ("val", 100, 6)):
        pack(tmp_path / layout.format(split=split, n=first), classes(first, count))
    (tmp_path / "README.md").write_text("about")
    listing = list_training(tmp_path, val_fraction=0.5, test_fraction=0.0, seed=0)
    assert listing.classes == ("0", "1", "2")
    assert {split: len(samples) for split, samples in listing.splits.items()} == {"train": 24, "val": 6}
    for sample in listing.splits["train"]:
        assert decode(sample.path).shape == (12, 16, 3)
    assert len(list_evaluation(tmp_path, ["2", "0"]).splits["val"]) == 4
    report = check(tmp_path)
    assert report.must_mend == []
    assert report.counts["train"] == {"0": 8, "1": 8, "2": 8}


def test_the_split_that_a_run_writes_down_names_pictures_in_tars(tmp_path: Path) -> None:
    listing = list_training(pack(tmp_path / "all.tar", classes(0, 30)), val_fraction=0.2, test_fraction=0.0, seed=0)
    write_split(listing, tmp_path / "split.csv")
    again = list_training(tmp_path / "split.csv", val_fraction=0.5, test_fraction=0.0, seed=1)
    assert again.splits == listing.splits
    assert list_evaluation(tmp_path / "split.csv", listing.classes).splits == {"val": listing.splits["val"]}


def test_one_tar_without_a_split_is_split_here(tmp_path: Path) -> None:
    listing = list_training(pack(tmp_path / "all.tar", classes(0, 30)), val_fraction=0.2, test_fraction=0.0, seed=0)
    assert len(listing.splits["train"]) + len(listing.splits["val"]) == 30
    assert 3 <= len(listing.splits["val"]) <= 9


def test_captions_lie_beside_their_pictures(tmp_path: Path) -> None:
    told: dict[str, dict[str, bytes]] = {
        "train-0.tar": {"a.jpg": jpeg(1), "a.txt": "ein Hund 🐕\nzwei\n".encode(), "b.jpg": jpeg(2)},
        "val-0.tar": {"c.png": jpeg(3), "c.json": json.dumps({"captions": ["one", "two"]}).encode()},
        "train-1.tar": {"d.jpg": jpeg(4), "d.json": b'{"caption": "three"}', "e.jpg": jpeg(5), "e.txt": b" \n"},
    }
    for name, files in told.items():
        pack(tmp_path / name, files)
    listing = list_captions(tmp_path, val_fraction=0.5, test_fraction=0.0, seed=0)
    assert [entry.captions for entry in listing.splits["train"]] == [("ein Hund 🐕", "zwei"), ("three",)]
    assert [entry.captions for entry in listing.splits["val"]] == [("one", "two")]
    assert sum(listing.counts.values()) == 2  # b and e have none
    assert decode(listing.splits["train"][1].path).shape == (12, 16, 3)
    assert len(list_evaluation_captions(tmp_path / "val-0.tar").splits["val"]) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
def test_what_webdataset_writes_is_read_and_it_reads_what_we_write(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for index in range(4):
            writer.write({"__key__": f"s{index}", "jpg": jpeg(index), "cls": index % 2})
    found = list(members(str(tmp_path / "theirs.tar")))
    assert [member.label for member in found] == ["0", "1", "0", "1"]
    samples = [(jpeg(index), "jpg", {"cls": str(index), "txt": f"text {index}"}) for index in range(5)]
    assert write_tars(iter(samples), tmp_path / "ours", megabytes=1) == 5
    theirs: Any = webdataset.WebDataset(str(tmp_path / "ours" / "000000.tar"), shardshuffle=False)
    for expected, sample in zip(samples, theirs, strict=True):
        assert sample["jpg"] == expected[0]
        assert sample["cls"].decode() == expected[2]["cls"]
        assert sample["txt"].decode() == expected[2]["txt"]


def test_tars_are_cut_at_the_size_asked_for(tmp_path: Path) -> None:
    samples = [(bytes(400_000), "jpg", {"cls": "a"}) for _ in range(7)]
    assert write_tars(iter(samples), tmp_path / "t", megabytes=1) == 7
    assert [path.name for path in sorted((tmp_path / "t").iterdir())] == ["000000.tar", "000001.tar", "000002.tar"]
    assert sum(1 for path in (tmp_path / "t").iterdir() for _ in members(str(path))) == 7


@pytest.mark.parametrize("content", [b"", b"x", b"\x1f\x8b compressed", bytes(300), bytes(10240)])
def test_what_is_no_tar_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar: not a tar that can be read|no picture with a class in 1 tars"):
        list_training(tmp_path / "x.tar", val_fraction=0.2, test_fraction=0.0, seed=0)


def test_a_tar_cut_short_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", classes(0, 9))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"x\.tar: not a tar that can be read"):
        list(members(str(path)))


def test_a_folder_of_pictures_with_a_tar_among_them_is_no_folder_of_tars(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(jpeg(1))
    pack(tmp_path / "dog" / "old.tar", {})
    assert tars_in(tmp_path) == []
    assert tars_in(tmp_path / "dog") == [str(tmp_path / "dog" / "old.tar")]
    assert tars_in(tmp_path / "nowhere") == tars_in(tmp_path / "nowhere.tar") == []


def test_texts_of_other_bytes_than_utf8_are_refused_and_class_names_of_them_survive(tmp_path: Path) -> None:
    pack(tmp_path / "captions.tar", {"1.jpg": jpeg(1), "1.txt": b"a caf\xe9"})
    with pytest.raises(DataError, match="caption is not valid UTF-8 at character 6"):
        list_captions(tmp_path / "captions.tar", val_fraction=0.5, test_fraction=0, seed=0)
    name = os.fsdecode(b"caf\xe9")
    assert write_tars([(jpeg(1), "jpg", {"cls": name})], tmp_path / "out", megabytes=1) == 1
    (found,) = members(str(tmp_path / "out" / "000000.tar"))
    assert found.label == name
