"""`vit train`: duplicates stay in one split, skipped files are listed, unreadable classes are refused."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vit.data.module import ImageFolderData


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def clouds(picture: Any, name: str, seed: int) -> Image.Image:
    """An image unlike those of other seeds: a few random pixels, enlarged."""
    return picture(name, seed).crop((0, 0, 6, 6)).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def doubled(picture: Any, tmp_path: Path) -> Path:
    """DATA/red and DATA/green with 20 images each, and a recompressed copy of each in the same class."""
    for name in ("red", "green"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            image = clouds(picture, name, 100 * len(name) + i)
            image.save(tmp_path / "data" / name / f"{i:02}.png")
            image.save(tmp_path / "data" / name / f"copy{i:02}.jpg", quality=60)
    return tmp_path / "data"


def split_of(run: Path) -> dict[tuple[str, str, str], str]:
    """The split by class, number and kind of file."""
    found = {}
    for row in rows(run / "split.csv"):
        path = Path(row["path"])
        found[row["class"], path.stem.removeprefix("copy"), path.suffix] = row["split"]
    return found


def test_recompressed_copies_are_in_the_split_of_their_image(
    vit: Any, doubled: Path, tiny: list[str], tmp_path: Path
) -> None:
    outcome = vit("train", doubled, *tiny, "--train.epochs=1", "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "note       80 images are duplicates, in 40 groups; each group is in one split" in outcome.out.splitlines()
    splits = split_of(tmp_path / "run")
    assert [splits[name, number, ".png"] for name, number, suffix in splits if suffix == ".jpg"] == [
        split for (_, _, suffix), split in splits.items() if suffix == ".jpg"
    ]
    assert list(splits.values()).count("val") == 16
    again = vit("train", tmp_path / "run" / "split.csv", *tiny, "--train.epochs=1", "--out", tmp_path / "again")
    assert again.code == 0
    assert split_of(tmp_path / "again") == splits
    assert vit("train", "--resume", "--out", tmp_path / "run", "--train.epochs=2").code == 0
    assert split_of(tmp_path / "run") == splits

    off = vit("train", doubled, *tiny, "--train.epochs=1", "--data.group_duplicates=false", "--out", tmp_path / "off")
    assert "note       duplicates are not searched; data.group_duplicates true" in off.out
    splits = split_of(tmp_path / "off")
    assert any(splits[name, number, ".png"] != splits[name, number, ".jpg"] for name, number, _ in splits)


def test_above_a_number_of_images_the_search_is_off_and_named(
    vit: Any, colour_folder: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit.data.grouping.AUTO_MOST", 35)
    outcome = vit("train", colour_folder, *tiny, "--train.epochs=1", "--out", tmp_path / "run")
    assert (
        "note       duplicates are not searched among more than 35 images; "
        "data.group_duplicates true keeps them within one split"
    ) in outcome.out.splitlines()
    outcome = vit(
        "train", colour_folder, *tiny, "--train.epochs=1", "--data.group_duplicates=true", "--out", tmp_path / "on"
    )
    assert "duplicates are not searched" not in outcome.out


@pytest.mark.parametrize("setting", ["auto", "false"])
def test_a_class_without_a_readable_image_is_refused(
    refused: Any, picture: Any, tiny: list[str], tmp_path: Path, setting: str
) -> None:
    for name in ("red", "green"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(12):
        picture("red", i).save(tmp_path / "data" / "red" / f"{i}.jpg")
    data = (tmp_path / "data" / "red" / "0.jpg").read_bytes()
    for i in range(8):
        (tmp_path / "data" / "green" / f"{i}.jpg").write_bytes(data[:-300])
    words = ["train", tmp_path / "data", *tiny, f"--data.group_duplicates={setting}", "--out", tmp_path / "run"]
    said = refused(*words, code=1)
    assert said.startswith(f"vit: {tmp_path}/data: no readable image of green, for example {tmp_path}/data/green/")
    assert not (tmp_path / "run").exists()
    # the same with a split of its own
    for split in ("train", "val"):
        shutil.copytree(tmp_path / "data", tmp_path / "set" / split)
    words[1] = tmp_path / "set"
    assert "no readable image of green" in refused(*words, code=1)
    shutil.copytree(tmp_path / "data" / "red", tmp_path / "set" / "train" / "green", dirs_exist_ok=True)
    for path in (tmp_path / "set" / "val" / "red").iterdir():
        path.write_bytes(b"nothing")
    assert "no readable image in val, for example " in refused(*words, code=1)


def test_a_class_whose_images_become_unreadable_ends_the_run_after_its_first_epoch(
    refused: Any, colour_folder: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(colour_folder, tmp_path / "data")
    ordinary = ImageFolderData.train_dataloader

    def damaged(self: ImageFolderData) -> Any:
        for path in (data / "green").iterdir():
            path.write_bytes(b"nothing")
        return ordinary(self)

    monkeypatch.setattr(ImageFolderData, "train_dataloader", damaged)
    said = refused("train", data, *tiny, "--train.epochs=3", "--data.cache=none", "--out", tmp_path / "run", code=1)
    assert said.startswith(f"vit: no readable image of green, for example {data}/green/")


def test_every_skipped_file_is_listed_with_its_reason(vit: Any, picture: Any, tiny: list[str], tmp_path: Path) -> None:
    for name in ("red", "green"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            picture(name, i + len(name)).save(tmp_path / "data" / name / f"{i}.png")
        for i in range(5):
            (tmp_path / "data" / name / f"broken{i}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
            (tmp_path / "data" / name / f"empty{i}.png").touch()
    (tmp_path / "data" / "red" / "link.png").symlink_to(tmp_path / "data" / "red" / "3.png")
    (tmp_path / "data" / "stray.jpg").write_bytes(b"x")
    paths = sorted((tmp_path / "data").rglob("*.*g"))
    expected = {str(path) for path in paths if not re.fullmatch(r"\d\.png", path.name)}
    for setting in ("auto", "false"):
        run = tmp_path / setting
        words = [*tiny, "--train.epochs=1", f"--data.group_duplicates={setting}", "--out", run]
        outcome = vit("train", tmp_path / "data", *words)
        assert outcome.code == 0
        skipped = rows(run / "unreadable.csv")
        assert {row["path"] for row in skipped} == expected
        assert len(skipped) == len(expected)
        reasons = {Path(row["path"]).name: row["reason"] for row in skipped}
        assert reasons["empty0.png"] == "empty file"
        assert reasons["link.png"] == f"the same file as {tmp_path}/data/red/3.png"
        assert reasons["stray.jpg"] == "lies beside the class folders and so has no class"
        assert re.search(r"^skipped    .*, and \d+ more in unreadable.csv$", outcome.out, re.MULTILINE)
        at_listing = {row["path"] for row in skipped if not row["split"]}
        assert (at_listing == expected) == (setting == "auto")
    # those that training found are still there after a resume, which reads the images again
    assert vit("train", "--resume", "--out", run, "--train.epochs=2").code == 0
    assert {row["path"] for row in rows(run / "unreadable.csv")} == expected


def test_each_image_is_used_in_each_epoch_and_few_steps_are_warned_of(
    vit: Any, picture: Any, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in (("train", 36), ("val", 2)):
        for name in ("red", "green"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                picture(name, i).save(tmp_path / "data" / split / name / f"{i}.png")
    seen: list[list[int]] = []
    ordinary = ImageFolderData.train_dataloader

    def recorded(self: ImageFolderData) -> Any:
        loader = ordinary(self)
        collate = loader.collate_fn

        def record(items: Any) -> Any:
            seen.append([item.index for item in items])
            return collate(items)

        loader.collate_fn = record
        return loader

    monkeypatch.setattr(ImageFolderData, "train_dataloader", recorded)
    outcome = vit("train", tmp_path / "data", *tiny, "--train.epochs=2", "--out", tmp_path / "run")
    assert "training   2 epochs x 2 steps, batch size 64, fp32, rate 0.001" in outcome.out.splitlines()
    assert (
        "warning    only 2 steps per epoch; lower data.batch_size (now 64) for more weight updates"
        in outcome.out.splitlines()
    )
    assert [len(batch) for batch in seen] == [64, 8, 64, 8]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(72))
    outcome = vit("train", tmp_path / "data", *tiny, "--train.epochs=1", "--data.batch_size=4", "--out", tmp_path / "b")
    assert "training   1 epochs x 18 steps, batch size 4" in outcome.out
    assert "warning" not in outcome.out
