"""Every task, and every way of loading, goes on from the middle of an epoch with the same bits."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killed import At, assert_same, done, ended, in_a_fork, left
from tiny_runs import draw_folder

import vit.cli.report  # what a fork need not import then
import vit.cli.train_words
import vit.data.augment
import vit.tasks.run
import vit.tasks.words
from vit.cli.main import main
from vit.data.scenes import make_scenes
from vit.tasks.callbacks import Pictures

WORDS = ["--text.depth=1", "--text.dim=32", "--text.heads=2", "--text.hidden=32", "--text.dropout=0.1"]
EYES = ["--model.name=micro/8", "--model.image_size=48", "--model.depth=1", "--model.dim=32", "--model.heads=2"]
EYES += ["--model.hidden=32", "--data.batch_size=4"]
SHARED = ["--train.accelerator=cpu", "--optim.lr=0.003", "--train.epochs=2", "--train.save_steps=1", "--train.ema=0.9"]
SHARED += ["--train.devices=1"]


def cli(words: list[str], at: At | None = None) -> None:
    """`vit` with `words`, without pictures for TensorBoard, and with a callback more. Raises where it fails."""
    made = vit.tasks.run._callbacks

    def callbacks(*args: Any) -> list[Any]:
        return [c for c in made(*args) if not isinstance(c, Pictures)] + ([] if at is None else [at])

    vit.tasks.run._callbacks = callbacks
    code = main(words)
    assert code == 0, code


def check(words: list[str], run: Path, moments: list[tuple[str, int]]) -> None:
    """A run with `words`, killed at each of the moments, ends as one that was not."""
    words = [*words, *SHARED]
    done(lambda: cli([*words, f"--out={run}-whole"]))
    whole = left(Path(f"{run}-whole"))
    for hook, nth in moments:
        out = f"--out={run}-{hook}-{nth}"
        assert ended(in_a_fork(partial(cli, [*words, out], At(hook, nth)))) == -signal.SIGKILL
        done(partial(cli, ["train", out, "--resume"]))
        assert_same(whole, left(Path(out.removeprefix("--out="))))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    make_scenes(folder, count=24, seed=0, side=48)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["caption", "fuse", "reward"])
def test_pictures_with_words(task: str, workers: int, scenes: Path, tmp_path: Path) -> None:
    data = scenes / "questions.csv" if task == "fuse" else scenes
    words = ["train", str(data), f"--task={'fuse' if task == 'fuse' else 'caption'}", *EYES, *WORDS]
    words += [f"--data.workers={workers}", "--text.per_picture=2"]
    words += [] if task == "fuse" else ["--text.word_dropout=0.1"]
    if task == "reward":
        words += ["--text.reward_epochs=1", "--text.freeze_encoder=1"]
    check(
        words, tmp_path / "run", [("on_train_batch_end", 2), ("on_validation_batch_end", 0), ("on_train_batch_end", 9)]
    )


@pytest.mark.slow
def test_language(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 120)
    words = ["train", str(tmp_path / "text.txt"), "--task=language", "--text.tokenizer=characters", "--text.length=16"]
    words += [*WORDS, "--data.batch_size=8", "--text.epoch_steps=7"]
    check(
        words, tmp_path / "run", [("on_train_batch_end", 2), ("on_validation_batch_end", 3), ("on_train_batch_end", 9)]
    )


@pytest.mark.slow
def test_translate(tmp_path: Path) -> None:
    pairs = [f"{a * n}{b}\t{b}{a * n}" for a in "abcdefgh" for b in "abcdefgh" for n in (1, 3)]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    words = ["train", str(tmp_path / "pairs.tsv"), "--task=translate", "--data.batch_size=8", *WORDS]
    moments = [("on_train_batch_end", 3), ("on_validation_batch_end", 0)]
    check(words, tmp_path / "run", moments)


LOADERS = {
    "device": ["--data.cache=device"],
    "ram": ["--data.cache=ram", "--data.workers=2"],
    "drawn": ["--data.balanced=true", "--data.repeats=2"],
    "accumulated": ["--train.accumulate=2", "--train.save_steps=2"],
    "small": ["--data.batch_size=100"],
    "clipless": ["--optim.name=lamb", "--optim.clip=0", "--schedule.unit=steps"],
    "bf16": ["--train.precision=bf16", "--train.validate_every=2", "--train.patience=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_ways_of_loading_and_stepping(name: str, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", side=48)
    words = ["train", str(data), *EYES, "--data.cache=none", "--data.workers=0", "--augment.mixup=0.3", *LOADERS[name]]
    late = ("on_train_batch_end", 1 if name == "small" else 7 if name != "drawn" else 4)
    check(
        words,
        tmp_path / "run",
        [("on_train_batch_end", 0 if name == "small" else 1), ("on_validation_batch_end", 0), late],
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_shards(workers: int, tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", side=48)
    done(lambda: cli(["data", "shard", str(data), "--out", str(tmp_path / "shards")]))
    words = ["train", str(tmp_path / "shards"), *EYES, f"--data.workers={workers}"]
    check(
        words, tmp_path / "run", [("on_train_batch_end", 1), ("on_validation_batch_end", 0), ("on_train_batch_end", 8)]
    )
