"""A run that is stopped by a signal, a fault or another run: what it says, its exit code, and that it goes on."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "tasks"))
from killed import assert_same, ended, in_a_fork, left
from tiny_runs import draw_folder

import vit.cli.report  # what a fork need not import then
import vit.data.augment
import vit.tasks.run
from vit.cli.main import main
from vit.tasks.callbacks import Pictures

EYES = ["--model.name=micro/8", "--model.image_size=16", "--model.depth=1", "--model.dim=32", "--model.heads=2"]
EYES += ["--model.hidden=32", "--data.batch_size=4", "--data.cache=none", "--train.accelerator=cpu", "--optim.lr=0.003"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, in steps of 4, and 10 to validate on."""
    return draw_folder(tmp_path_factory.mktemp("colours"))


class Run:
    """`vit` in a fork, its output in files; hooks of a callback may do something in it."""

    def __init__(self, folder: Path, words: list[object], hooks: dict[str, Callable[..., None]]) -> None:
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        self.pid = in_a_fork(lambda: self._main([str(word) for word in words], hooks))

    def _main(self, words: list[str], hooks: dict[str, Callable[..., None]]) -> None:
        os.setsid()
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        made = vit.tasks.run._callbacks

        def callbacks(*args: Any) -> list[Any]:
            extra = vit.tasks.run.L.Callback()
            for name, hook in hooks.items():
                setattr(extra, name, hook)
            return [*(c for c in made(*args) if not isinstance(c, Pictures)), extra]

        vit.tasks.run._callbacks = callbacks
        code = main(words)
        sys.stderr.flush()
        os._exit(code)

    def ended(self) -> tuple[int, str]:
        """Exit code and standard error."""
        return ended(self.pid), self.err.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs = []

    def run(*words: object, **hooks: Callable[..., None]) -> Run:
        runs.append(Run(tmp_path, [*words], hooks))
        return runs[-1]

    yield run
    for each in runs:  # those that a failed test left
        try:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def nth(n: int, act: Callable[[], None]) -> Callable[..., None]:
    """A hook that acts when it is called the n-th time, from 0."""
    calls = iter(range(1 << 30))

    def hook(*_: Any) -> None:
        if next(calls) == n:
            act()

    return hook


def to_itself(number: int, *, group: bool = False) -> Callable[[], None]:
    return lambda: (os.killpg if group else os.kill)(os.getpid(), number)


MOMENTS = {
    "training": ("on_train_batch_end", 7, "in epoch 2 after batch 2"),
    "the first batch": ("on_train_batch_start", 0, "in epoch 1 after batch 1"),
    "the last batch": ("on_train_batch_end", 5, "in epoch 1 after batch 6"),
    "validation": ("on_validation_batch_end", 1, "in epoch 1 after batch 6"),
    "saving": ("on_save_checkpoint", 2, "in epoch 2 before its first batch"),
    "the end of an epoch": ("on_train_epoch_end", 0, "in epoch 2 before its first batch"),
}


QUICK = {("validation", 0), ("training", 2)}  # which the default run tries


@pytest.mark.parametrize(
    ("moment", "workers"),
    [
        pytest.param(moment, workers, marks=[] if (moment, workers) in QUICK else pytest.mark.slow)
        for moment in MOMENTS
        for workers in (0, 2)
    ],
)
def test_a_signal_ends_the_step_and_the_run_goes_on_there(
    moment: str, workers: int, start: Any, colours: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    hook, n, place = MOMENTS[moment]
    number = signal.SIGINT if moment in ("validation", "training") else signal.SIGTERM
    run = tmp_path / "run"
    # with workers, the whole group gets it, as from `timeout` or a terminal
    strike = nth(n, to_itself(number, group=workers > 0))
    words = ["train", colours, *EYES, "--train.epochs=3", f"--data.workers={workers}", "--out", run]
    began = start(*words, **{hook: strike})
    assert began.ended() == (
        128 + number,
        f"vit: stopped {place}; go on from there by: vit train --out {run} --resume\n",
    )
    assert (run / "model.safetensors").is_file()
    assert start("train", "--out", run, "--resume").ended() == (0, "")
    assert_same(whole, left(run))


@pytest.fixture(scope="module")
def whole(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", folder / "run"]
    assert Run(folder, words, {}).ended() == (0, "")
    return left(folder / "run")


def test_a_signal_before_training_ends_at_once(start: Any, colours: Path, tmp_path: Path) -> None:
    def scan(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    from vit.data import folders

    before, folders.list_training = folders.list_training, scan  # type: ignore[assignment]
    try:
        run = start("train", colours, *EYES, "--out", tmp_path / "run")
    finally:
        folders.list_training = before
    assert run.ended() == (143, "vit: terminated\n")
    assert not (tmp_path / "run").exists()


def test_a_second_signal_ends_a_step_that_hangs_and_costs_that_alone(
    start: Any, colours: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    def hang() -> None:
        (tmp_path / "hangs").touch()
        time.sleep(120)

    out = tmp_path / "run"
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", out]
    began = start(*words, on_before_optimizer_step=nth(8, hang))
    while not (tmp_path / "hangs").exists():
        time.sleep(0.05)
    os.kill(began.pid, signal.SIGTERM)
    time.sleep(1.5)
    os.kill(began.pid, signal.SIGTERM)
    since = time.monotonic()
    assert began.ended() == (143, "")
    assert time.monotonic() - since < 60  # it did not wait for the step
    assert start("train", "--out", out, "--resume").ended() == (0, "")
    assert_same(whole, left(out))


def test_slurm_is_asked_to_start_the_job_again_which_then_goes_on(
    start: Any, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", tmp_path / "run"]
    began = start(*words, on_train_batch_end=nth(3, to_itself(signal.SIGUSR1)))
    code, err = began.ended()
    assert (code, err.startswith("vit: stopped in epoch 1 after batch 4; go on")) == (128 + signal.SIGUSR1, True), err
    assert (tmp_path / "asked").read_text() == "requeue 71\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert start(*words).ended() == (0, "")  # the same words: the job's script knows nothing of a resume
    assert_same(whole, left(tmp_path / "run"))


def test_a_second_run_in_a_folder_is_refused_and_a_lock_that_was_left_is_not_heeded(
    start: Any, refused: Any, colours: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", out]

    def hold() -> None:
        (tmp_path / "in").touch()
        time.sleep(60)

    first = start(*words, on_train_batch_end=nth(8, hold))
    while not (tmp_path / "in").exists():
        time.sleep(0.05)
    for again in (words, ["train", "--out", out, "--resume"]):
        message = refused(*again, code=2)
        assert message.startswith(f"vit: --out {out}: process {first.pid} on "), message
    os.kill(first.pid, signal.SIGKILL)
    assert first.ended()[0] == -signal.SIGKILL
    assert (out / ".lock").is_file()
    assert refused(*words, code=2) == f"vit: --out {out}: not empty; name another, or go on with its run by --resume\n"
    assert start("train", "--out", out, "--resume").ended() == (0, "")
    assert not (out / ".lock").exists()


def test_a_run_that_was_killed_before_it_saved_anything_begins_again_by_the_same_command(
    start: Any, refused: Any, colours: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", out]
    assert start(*words, on_train_start=nth(0, to_itself(signal.SIGKILL))).ended()[0] == -signal.SIGKILL
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == []
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert refused(*words, code=2) == f"vit: --out {out}: not empty; name another, or empty it\n"
    assert (out / "split.csv").is_file()
    (out / "notes.txt").unlink()
    before = (out / "log.txt").read_text(encoding="utf-8")
    assert start(*words).ended() == (0, "")
    assert_same(whole, left(out))
    assert (out / "log.txt").read_text(encoding="utf-8").startswith(before)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda b: b[: len(b) // 2], "cut, damaged, or no checkpoint at all"),
    "empty": (lambda b: b"", "empty file"),
    "flipped": (lambda b: b[: len(b) // 3] + bytes([b[len(b) // 3] ^ 4]) + b[len(b) // 3 + 1 :], "damaged, "),
    "foreign": (lambda b: b"\x89PNG\r\n\x1a\n" + bytes(1000), "cut, damaged, or no checkpoint at all"),
}


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_run_ends_the_same(
    start: Any, refused: Any, colours: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    import torch

    out, marker = tmp_path / "run", tmp_path / "marker"
    last = out / "checkpoints" / "last.ckpt"
    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", out]
    assert start(*words, on_train_batch_end=nth(8, to_itself(signal.SIGTERM))).ended()[0] == 143
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    torch.save({"vit": {}, "state_dict": {}, "x": Payload()}, tmp_path / "evil")
    nan = torch.load(last, weights_only=True)
    nan["state_dict"]["network.norm.bias"][0] = float("nan")
    torch.save(nan, tmp_path / "nan")
    evil, spoilt = (tmp_path / "evil").read_bytes(), (tmp_path / "nan").read_bytes()
    damages = DAMAGES | {
        "evil": (lambda _: evil, "holds objects that could run code; such files are refused"),
        "nan": (lambda _: spoilt, "the weights hold NaN or infinity (network.norm.bias)"),
    }
    for damage, reason in damages.values():
        for path in [p for p in out.rglob("*") if p.is_file()]:
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
        last.write_bytes(damage(last.read_bytes()))
        again = start("train", "--out", out, "--resume")
        assert again.ended() == (0, "")
        assert f"damaged    {last}: {reason}" in again.out.read_text(), again.out.read_text()
        assert "going on from last-1.ckpt" in again.out.read_text()
        assert_same(whole, left(out))
    assert not marker.exists()
    for path in last.parent.glob("last*"):
        path.write_bytes(b"nothing")
    assert refused("train", "--out", out, "--resume", code=1).startswith(f"vit: {last}: cut, damaged")
    for path in last.parent.glob("last*"):
        path.unlink()
    assert "holds no checkpoints/last.ckpt to continue from" in refused("train", "--out", out, "--resume", code=2)


def poison(trainer: Any, task: Any, batch: Any, index: int) -> None:
    """Makes the loss of the ninth step no number."""
    if trainer.global_step == 8:
        normalise = task.normalise.forward
        task.normalise.forward = lambda images: normalise(images) * float("nan")
    elif "forward" in vars(task.normalise):
        del task.normalise.forward


def test_a_loss_that_is_no_number_changes_no_weight(start: Any, colours: Path, tmp_path: Path) -> None:
    import torch

    words = ["train", colours, *EYES, "--train.epochs=2", "--data.workers=0", "--train.save_steps=1"]
    code, err = start(*words, "--out", tmp_path / "a", on_train_batch_start=poison).ended()
    assert code == 1
    told = "vit: the loss became nan in epoch 2; lower optim.lr (now 0.003), or warm up longer (schedule.warmup)"
    assert err.startswith(f"{told}; step 9, rate "), err
    assert f", {colours}/train/" in err
    assert err.endswith(".png and 1 more\n")
    last = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert all(torch.isfinite(w).all() for w in last["state_dict"].values())
    skipped = start(*words, "--train.on_nan=skip", "--out", tmp_path / "b", on_train_batch_start=poison)
    assert skipped.ended() == (0, "")
    assert skipped.out.read_text().count("skipped    the loss became nan in epoch 2; step 9") == 1
    found = left(tmp_path / "b")
    assert [row["step"] for row in found["rows"]] == ["6", "12"]
    assert all(0 < float(row["train/loss"]) < 10 for row in found["rows"])


def test_many_such_steps_in_a_row_end_the_run_all_the_same(start: Any, colours: Path, tmp_path: Path) -> None:
    def spoil(trainer: Any, task: Any, *_: Any) -> None:
        task.normalise.forward = lambda images: images.float() * float("nan")

    words = ["train", colours, *EYES, "--data.workers=0", "--train.on_nan=skip", "--train.nan_limit=3"]
    run = start(*words, "--out", tmp_path / "run", on_train_batch_start=spoil)
    code, err = run.ended()
    assert (code, "; step 3, rate " in err) == (1, True), err
    assert run.out.read_text().count("skipped    ") == 3  # two steps, and the files that listing skipped: none


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_named_and_leaves_no_process(
    number: int, start: Any, colours: Path, tmp_path: Path
) -> None:
    def strike(*_: Any) -> None:
        import multiprocessing

        workers = multiprocessing.active_children()
        (tmp_path / "workers").write_text(json.dumps([worker.pid for worker in workers]))
        for worker in workers if number == signal.SIGSTOP else workers[:1]:
            os.kill(worker.pid or 0, number)

    words = ["train", colours, *EYES, "--train.epochs=9", "--data.workers=2", "--data.timeout=3", "--data.batch_size=1"]
    run = start(*words, "--out", tmp_path / "run", on_train_batch_end=nth(2, strike))
    code, err = run.ended()
    workers = json.loads((tmp_path / "workers").read_text())
    assert code == 1
    assert any(str(worker) in err for worker in workers), err
    assert "a process that reads pictures" in err or ("stopped" in err and "gave nothing for 3 seconds" in err), err
    assert "--resume goes on" in err
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_memory_that_runs_out_names_what_to_lower(start: Any, colours: Path, tmp_path: Path) -> None:
    def demand(*_: Any) -> None:
        import torch

        torch.empty(1 << 46)

    words = ["train", colours, *EYES, "--data.workers=0", "--out", tmp_path / "run"]
    code, err = start(*words, on_train_batch_end=demand).ended()
    assert (code, err) == (
        1,
        "vit: out of memory with data.batch_size 4; 2 with train.accumulate 2 keeps the batch of a step "
        "(train.on_memory halve does so by itself), or set train.checkpointing true\n",
    )


def test_batches_that_do_not_fit_are_halved_where_asked_and_a_step_keeps_its_pictures(
    start: Any, refused: Any, colours: Path, tmp_path: Path
) -> None:
    def demand(trainer: Any, task: Any, batch: Any, index: int) -> None:
        import torch

        if len(batch) > (2 if trainer.current_epoch else 4):  # the second epoch takes more
            torch.empty(1 << 46)

    few = [word for word in EYES if "batch_size" not in word] + ["--train.epochs=2", "--data.workers=0"]
    words = ["train", colours, *few, "--data.batch_size=8", "--train.on_memory=halve", "--out", tmp_path / "run"]
    run = start(*words, on_train_batch_start=demand)
    assert run.ended() == (0, "")
    told = run.out.read_text()
    assert [f"data.batch_size is {n} now" in told for n in (4, 2, 1)] == [True, True, False]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]  # 24 pictures, 8 a step
    saved = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "batch_size: 2\n" in saved
    assert "accumulate: 4\n" in saved
    # the job's own words go on with what the run settled
    assert start(*words, "--train.epochs=3", "--resume").ended() == (0, "")
    message = refused("train", "--out", tmp_path / "run", "--resume", "--data.batch_size=16", code=2)
    assert message.startswith("vit: --resume: data.batch_size is 2 in the run and 16 now"), message


def test_a_full_disk_costs_nothing_that_was_kept(
    start: Any, colours: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    import resource

    out = tmp_path / "run"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    words = ["train", colours, *EYES, "--train.epochs=3", "--data.workers=0", "--out", out]
    code, err = start(*words, on_train_batch_start=nth(8, fill)).ended()
    assert code == 1
    assert err.startswith(f"vit: cannot write {out}/checkpoints/"), err
    assert err.count("\n") == 1
    assert not list(out.rglob("*.part"))
    assert start("train", "--out", out, "--resume").ended() == (0, "")
    assert_same(whole, left(out))


def test_all_that_differs_on_resume_is_told(start: Any, refused: Any, colours: Path, tmp_path: Path) -> None:
    import shutil

    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(colours, data)
    words = ["train", data, *EYES, "--train.epochs=1", "--data.workers=0", "--out", out]
    assert start(*words).ended() == (0, "")
    message = refused("train", "--out", out, "--resume", "--optim.lr=1", "--model.depth=2", "--train.epochs=2", code=2)
    assert message == (
        "vit: --resume: model.depth is 1 in the run and 2 now, optim.lr is 0.003 in the run and 1.0 now; "
        "leave them out, or start a new run\n"
    )
    (data / "train" / "red" / "3.png").unlink()
    os.utime(data / "train" / "red" / "4.png", (time.time() + 9, time.time() + 9))
    again = start("train", "--out", out, "--resume", "--train.epochs=2", "--data.timeout=7")
    assert again.ended() == (0, "")
    said = again.out.read_text()
    assert "changed    train.epochs is 2, it was 1" in said
    assert "changed    data.timeout is 7, it was 600" in said
    assert "changed    of 34 pictures, 1 are gone and 1 newer than the run" in said


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_a_whole_checkpoint_survives_every_kill(kills: int, start: Any, colours: Path, tmp_path: Path) -> None:
    import random

    from vit.models.file import load_checkpoint

    out = tmp_path / "run"
    words: list[Any] = ["train", colours, *EYES, "--train.epochs=100000", "--data.workers=0", "--train.save_steps=1"]
    rng, place, words = random.Random(kills), (0, -1), [*words, "--out", out]
    for _ in range(kills):
        run = start(*words)
        last = out / "checkpoints" / "last.ckpt"
        age = last.stat().st_mtime_ns if last.exists() else 0
        while not last.exists() or last.stat().st_mtime_ns == age:
            time.sleep(0.01)
        time.sleep(rng.random() / 3)
        os.kill(run.pid, signal.SIGKILL)
        assert run.ended()[0] == -signal.SIGKILL
        for path in last.parent.glob("*.ckpt"):
            load_checkpoint(path)
        checkpoint = load_checkpoint(last)
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        now = (checkpoint["global_step"], epochs)  # a validation takes no step, and ends an epoch
        assert now > place  # it went on from the one before
        place, words = now, ["train", "--out", out, "--resume"]


@pytest.mark.slow
def test_a_run_on_a_file_system_of_a_few_megabytes_says_what_it_lacks_and_goes_on_where_there_is_room(
    colours: Path, tmp_path: Path
) -> None:
    """The folder for temporary files is elsewhere, with all the room there is."""
    script = """
        mount -t tmpfs -o size=4m tmpfs $1/disk || exit 99
        vit() { "$2" -m vit.cli train "${@:3}"; }
        vit "$@" --out $1/disk/run; echo "ended $?"
        ls $1/disk/run/checkpoints
        mount -o remount,size=64m $1/disk
        vit "$1" "$2" --out $1/disk/run --resume; echo "ended $?"
    """
    large = ["--model.name=micro/8", "--model.image_size=32", "--train.epochs=3", "--data.workers=0"]
    (tmp_path / "disk").mkdir()
    words = ["unshare", "-m", "bash", "-c", script, "bash", tmp_path, sys.executable, colours, *large]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no right to mount a small disk")
    assert re.fullmatch(r"vit: cannot write \S+: no space left on the disk.*\n", done.stderr), done.stderr
    assert "ended 1\nlast.ckpt\n" in done.stdout, done.stdout
    assert done.stdout.endswith("ended 0\n"), done.stdout


@pytest.mark.parametrize("size", ["4k", "32k"])
def test_shared_memory_without_room_for_a_queue_is_said_in_one_line(size: str, colours: Path, tmp_path: Path) -> None:
    """Torch's queues need a semaphore each, which lies in /dev/shm, as the batches do."""
    script = """
        mount -t tmpfs -o size=$1 tmpfs /dev/shm || exit 99
        "$2" -m vit.cli train "${@:3}"
    """
    options = ["--model.name=micro/8", "--model.image_size=32", "--data.workers=2", "--out", tmp_path / "run"]
    words = ["unshare", "-m", "bash", "-c", script, "bash", size, sys.executable, colours, *options]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no right to mount a small /dev/shm")
    assert re.fullmatch(r"vit: /dev/shm is too small for the batches of the processes .*\n", done.stderr), done.stderr
    assert done.returncode == 1
