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
from vit.data.decode import decode, picture_size, read_picture
from vit.data.folders import list_evaluation, list_training, write_split
from vit.data.tars import Member, members, tars_in, write_tars
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


def found_and_skipped(path: Path) -> tuple[list[Member], dict[str, str]]:
    skipped: dict[str, str] = {}
    found = members(str(path), lambda name, reason: skipped.update({name.removeprefix(f"{path}: "): reason}))
    return found, skipped


NAMES = [
    ["0.jpg", "0.seg.png", "0.cls"],
    ["0.seg.png", "0.depth.png", "0.cls", "0.JPG"],
    ["a.b/0.jpg", "a.b/0.v2.json", "a.b/0.cls", "a.b/1.png"],
    ["./x/0.jpeg", "./x/0.cls", "./y/0.jpeg", "./y/0.cls"],
    ["0.jpg", "README", "0.cls", "1.jpg", "1.cls", "1.txt"],
]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
@pytest.mark.parametrize("names", NAMES)
def test_samples_are_those_of_webdataset(names: list[str], tmp_path: Path) -> None:
    content = {name: jpeg(n) if name.endswith(("g", "G")) else f"{n}".encode() for n, name in enumerate(names)}
    path = pack(tmp_path / "a.tar", content)
    theirs = list[tuple[str, bytes, str | None]]()
    dataset: Any = webdataset.WebDataset(str(path), shardshuffle=False)
    for sample in dataset:
        image = next(sample[suffix] for suffix in ("jpg", "jpeg", "png") if suffix in sample)
        theirs.append((sample["__key__"].lstrip("./"), image, sample["cls"].decode() if "cls" in sample else None))
    found, skipped = found_and_skipped(path)
    assert [(member.key, read_picture(member.picture)[1], member.label) for member in found] == theirs
    assert skipped == {}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["0.jpg", "0.png", "0.cls"],
            r"a\.tar: several images of one sample: 0\.jpg, 0\.png; name the one to use 0\.jpg",
        ),
        (["0.rgb.jpg", "0.seg.png", "0.cls"], r"several images of one sample: 0\.rgb\.jpg, 0\.seg\.png"),
        (["IMG.001.jpg", "IMG.002.jpg"], r"several images of one sample: IMG\.001\.jpg, IMG\.002\.jpg"),
        (["0.rgb.jpg", "0.cls", "1.seg.png", "1.cls"], "images of several kinds: rgb, seg; name the one to use"),
    ],
)
def test_a_sample_whose_image_is_not_clear_is_refused(names: list[str], words: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {name: jpeg(1) for name in names})
    with pytest.raises(DataError, match=words):
        members(str(path))


def test_images_of_one_other_name_are_taken_and_masks_alone_are_not(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"0.rgb.jpg": jpeg(0), "0.cls": b"a", "1.rgb.png": jpeg(1), "1.cls": b"b"})
    assert [member.label for member in found_and_skipped(path)[0]] == ["a", "b"]
    path = pack(tmp_path / "b.tar", {"0.jpg": jpeg(0), "0.cls": b"a", "1.seg.png": jpeg(1), "1.cls": b"b"})
    found, skipped = found_and_skipped(path)
    assert [member.label for member in found] == ["a"]
    assert list(skipped) == ["1.seg.png"]


def pack_pairs(path: Path, files: list[tuple[str, bytes]]) -> Path:
    """As `pack`, with names that may come twice."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_a_key_that_comes_twice_in_a_tar_is_skipped_and_reported(tmp_path: Path) -> None:
    a, b = jpeg(1), jpeg(2)
    for files in (
        [("0.jpg", a), ("0.cls", b"a"), ("0.jpg", b), ("0.cls", b"b"), ("1.jpg", b), ("1.cls", b"b")],
        [("0.jpg", a), ("0.cls", b"a"), ("1.jpg", b), ("1.cls", b"b"), ("0.jpg", b), ("0.cls", b"b")],
    ):
        path = pack_pairs(tmp_path / "a.tar", files)
        found, skipped = found_and_skipped(path)
        assert [(member.key, member.label, read_picture(member.picture)[1]) for member in found] == [
            ("0", "a", a),
            ("1", "b", b),
        ]
        assert skipped == {"0": "a sample of the same key comes before it in the tar"}
        listing = list_training(path, val_fraction=0.5, test_fraction=0, seed=0)
        assert [(item.path, item.reason) for item in listing.left_out] == [(f"{path}: 0", skipped["0"])]
    for name in ("train-0.tar", "train-1.tar"):  # one key in two tars is two samples
        pack(tmp_path / "set" / name, {"0.jpg": jpeg(1), "0.txt": b"a", "1.jpg": jpeg(2), "1.txt": b"b"})
    captions = list_captions(tmp_path / "set", val_fraction=0.25, test_fraction=0, seed=0)
    assert len({entry.id for part in captions.splits.values() for entry in part}) == 4
    assert captions.counts == {}


def test_labels_without_an_image_and_of_absurd_size_are_reported(tmp_path: Path) -> None:
    image, text = jpeg(1), b"x" * ((1 << 20) + 1)
    files = [("0.jpg", image), ("1.jpg", image), ("0.cls", b"a"), ("2.jpg", image), ("2.cls", b" b\n"), ("3.cls", text)]
    files += [("4.jpg", image), ("4.cls", b" "), ("5.jpg", image), ("5.cls", b"y" * 2000), ("6.jpg", image)]
    path = pack_pairs(tmp_path / "a.tar", [*files, ("6.json", b"[" * 500_000), ("7.jpg", image), ("7.cls", b"a")])
    listing = list_training(path, val_fraction=0.5, test_fraction=0, seed=0)
    assert listing.classes == ("a", "b")
    reasons = {item.path.removeprefix(f"{path}: "): item.reason for item in listing.left_out}
    assert "no image 0.jpg, .png, ... in the sample, whose files must be adjacent" in reasons["0.cls"]
    assert reasons["3.cls"] == "1,048,577 bytes, more than the 1,048,576 of a label or captions"
    nameless = "no .cls beside it, and no class in its .json"
    assert sorted(reason for name, reason in reasons.items() if "#" in name) == [
        "its label has 2,000 characters, at most 1,000 are allowed",
        *[nameless] * 4,
    ]


def header(name: str, size: int, content: bytes = b"", kind: bytes = tarfile.REGTYPE, pax: str = "") -> bytes:
    """A file of a tar whose header claims a size; `pax` claims another one in an extended header."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    entry.pax_headers = {"size": pax} if pax else {}
    block = entry.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)
    return block + content + bytes(-len(content) % 512)


GOOD = header("0.jpg", 8, b"x" * 8) + header("0.cls", 1, b"a")


@pytest.mark.parametrize(
    "hostile",
    [
        header("1.jpg", 2**50, b"x"),
        header("1.jpg", 8, b"x", pax="1" + "0" * 30),
        header("1.jpg", 8, b"x", pax="-512"),
        header("1.jpg", -512, b"x"),
        header("long", 2**45, b"x", tarfile.GNUTYPE_LONGNAME),
        header("pax", 2**45, b"30 size=1\n", tarfile.XHDTYPE),
    ],
)
def test_sizes_that_a_header_claims_are_not_believed(hostile: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(GOOD + hostile + bytes(10240))
    with pytest.raises(DataError, match=r"x\.tar: not a tar that can be read: "):
        members(str(tmp_path / "x.tar"))


def test_a_sparse_file_of_a_tar_is_skipped_and_the_rest_is_read(tmp_path: Path) -> None:
    sparse = bytearray(header("1.jpg", 0, kind=tarfile.GNUTYPE_SPARSE))
    sparse[386:398], sparse[398:410] = b"%011o\0" % 0, b"%011o\0" % 0  # no data at all
    sparse[483:495] = (0x80 << 88 | 2**50).to_bytes(12, "big")  # of so many bytes
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 8 * 32 + sum(sparse[156:512]))
    after = header("2.jpg", 8, b"x" * 8) + header("2.cls", 1, b"b")
    (tmp_path / "x.tar").write_bytes(GOOD + bytes(sparse) + header("1.cls", 1, b"a") + after + bytes(10240))
    listing = list_training(tmp_path / "x.tar", val_fraction=0.5, test_fraction=0, seed=0)
    assert listing.classes == ("a", "b")
    reasons = {item.path.rpartition(" ")[2]: item.reason for item in listing.left_out}
    assert reasons["1.jpg"] == "a sparse file: its 1,125,899,906,842,624 bytes are not stored in the tar"


@pytest.mark.parametrize("place", ["0+9999999999999", "9" * 30 + "+1", "0+" + "9" * 5000, "-1+5", "0+0", "99999+1"])
def test_a_place_outside_of_a_tar_is_one_unreadable_image(place: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"0.jpg": jpeg(0)})
    for read in (decode, picture_size):
        with pytest.raises(UnreadableImage, match=r"truncated: the tar ends early|no such file|too long|empty"):
            read(f"{path}#{place}")


def test_a_tar_of_a_terabyte_that_holds_nothing_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableImage, match=r"1024\.0 GiB, too large for a picture"):
        decode(f"{tmp_path}/a.tar#0+{1 << 40}")


@pytest.mark.parametrize("space", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_captions_of_a_tar_are_cut_at_line_feeds_alone(space: str, tmp_path: Path) -> None:
    text = f"a{space}b\r\nc{space}d\n".encode()
    path = pack(tmp_path / "a.tar", {"0.jpg": jpeg(0), "0.txt": text, "1.jpg": jpeg(1), "1.txt": text})
    assert [member.captions for member in members(str(path))] == [[f"a{space}b", f"c{space}d"]] * 2
