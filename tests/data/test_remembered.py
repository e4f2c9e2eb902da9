"""What a large folder holds is remembered until a folder in it changes, and never wrongly."""

import os
from pathlib import Path

import pytest

from vit.data import remembered
from vit.data.folders import list_evaluation, list_training
from vit.data.tars import write_tars

OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "LARGE", 3)


def settle(root: Path) -> None:
    """As if nothing had happened here for years."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (OLD, OLD))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("train/cat/1.jpg", "train/cat/deep/2.jpg", "train/dog/3.jpg", "val/cat/4.jpg", "val/dog/ü\n.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "train" / "dog" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (root / "train" / "dog" / "empty.jpg").touch()
    settle(root)
    return root


def listed(root: Path) -> object:
    listing = list_training(root, val_fraction=0.2, test_fraction=0.0, seed=0)
    return listing.classes, listing.splits, listing.left_out


def test_a_remembered_listing_is_the_listing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = listed(folder)
    monkeypatch.setattr("vit.data.folders.find_pictures", lambda data: pytest.fail("listed again"))
    assert listed(folder) == first
    assert len(list_evaluation(folder, ["cat"]).splits["val"]) == 1
    monkeypatch.chdir(folder.parent)
    assert listed(Path("data")) == first


@pytest.mark.parametrize("change", ["add", "add deep", "remove", "rename", "new class", "link"])
def test_a_change_is_seen(change: str, folder: Path) -> None:
    before = listed(folder)
    train = folder / "train"
    if change == "add":
        (train / "cat" / "5.jpg").write_bytes(b"x")
    elif change == "add deep":
        (train / "cat" / "deep" / "5.jpg").write_bytes(b"x")
    elif change == "remove":
        (train / "cat" / "1.jpg").unlink()
    elif change == "rename":
        (train / "cat" / "1.jpg").rename(train / "cat" / "6.jpg")
    elif change == "new class":
        (train / "bird").mkdir()
        (train / "bird" / "1.jpg").write_bytes(b"x")
    else:
        (folder.parent / "7.jpg").write_bytes(b"x")
        (train / "dog" / "7.jpg").symlink_to(folder.parent / "7.jpg")
    assert listed(folder) != before


def test_a_folder_that_changed_just_now_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "cat" / "5.jpg").write_bytes(b"x")
    listed(folder)
    assert not (tmp_path / "cache").exists()


def test_a_small_folder_is_not_remembered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "LARGE", 7)
    listed(folder)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", b"\x80\x04."])
def test_a_damaged_memory_is_made_anew(damage: bytes, folder: Path, tmp_path: Path) -> None:
    first = listed(folder)
    (place,) = (tmp_path / "cache" / "listings").iterdir()
    whole = place.read_bytes()
    place.write_bytes(damage or whole[: len(whole) // 2])
    assert listed(folder) == first
    assert place.read_bytes()[:2] == whole[:2]
    assert remembered.recall(str(folder)) is not None


def test_a_cache_that_cannot_be_written_does_no_harm(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert listed(folder) == listed(folder)


def test_an_empty_file_that_was_filled_is_seen(folder: Path) -> None:
    before = listed(folder)
    (folder / "train" / "dog" / "empty.jpg").write_bytes(b"x")
    settle(folder)
    assert listed(folder) != before


def test_tars_are_not_remembered_since_they_can_be_written_anew_in_place(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "tars"
    root.mkdir()

    def write(labels: str) -> None:
        samples = ((b"x", "jpg", {"cls": label}) for label in labels)
        (root / "train.tar").write_bytes(b"")
        write_tars(samples, tmp_path / "new", megabytes=1)
        (root / "train.tar").write_bytes((tmp_path / "new" / "000000.tar").read_bytes())
        settle(root)

    write("aabb")
    first = list_training(root, val_fraction=0.0, test_fraction=0.0, seed=0)
    write("abab")
    second = list_training(root, val_fraction=0.0, test_fraction=0.0, seed=0)
    assert first.splits != second.splits


def test_links_to_a_parent_are_followed_once(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / "train" / name / "up").symlink_to(folder / "train")
    settle(folder)
    before = listed(folder)
    assert listed(folder) == before
    assert len(remembered._folders(str(folder))) == 8  # root, train, val, cat and dog in both, deep
