"""Checkpoints are whole or absent, and a damaged one is refused in words."""

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny, train

from vit.errors import ModelFileError
from vit.tasks.checkpoints import WholeCheckpoints, _counts

CHECKPOINT = {"vit": {"format": 1}, "state_dict": {"w": torch.arange(30.0)}, "epoch": 2}


def test_a_checkpoint_comes_back_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.ckpt"
    WholeCheckpoints().save_checkpoint(CHECKPOINT, path)
    back = WholeCheckpoints().load_checkpoint(path)
    assert back.keys() == CHECKPOINT.keys()
    assert torch.equal(back["state_dict"]["w"], CHECKPOINT["state_dict"]["w"])
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_something_that_cannot_be_saved_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        WholeCheckpoints().save_checkpoint({"bad": lambda: None}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_resuming_where_all_checkpoints_are_cut_is_refused_in_words(colours: Path, tmp_path: Path) -> None:
    config = tiny(train={"epochs": 1})
    train(colours, tmp_path / "run", config)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for path in last.parent.glob("last*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"last\.ckpt: cut, damaged") as caught:
        train(colours, tmp_path / "run", config, resume=last)
    assert "\n" not in str(caught.value)


def test_keeping_any_number_of_checkpoints_takes_steps_of_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for epoch in range(4):
        WholeCheckpoints().save_checkpoint({"epoch": epoch}, path, {"keep": 2**31 - 1})
    ages = [path, *(path.with_stem(f"last-{age}") for age in (1, 2, 3))]
    assert [torch.load(age, weights_only=True)["epoch"] for age in ages] == [3, 2, 1, 0]
    WholeCheckpoints().save_checkpoint({"epoch": 4}, path, {"keep": 2})
    assert sorted(tmp_path.iterdir()) == sorted(ages[:2])


def test_progress_that_is_not_in_whole_numbers_is_damage() -> None:
    good = {"fit_loop": {"epoch_progress": {"total": {"ready": 1, "completed": 0}}, "state_dict": {}}}
    assert _counts(good)
    for wrong in ("1", -1, 1.5, True, None):
        assert not _counts({"fit_loop": {"epoch_progress": {"total": {"ready": wrong}}}})
