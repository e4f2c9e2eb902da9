"""`vit train DATA`."""

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from vit.cli.arguments import data_name
from vit.cli.config import compose, config_parser, leaf_keys, to_yaml
from vit.data.config import PREPARED, DataConfig
from vit.errors import ConfigError, DataError, Interrupted, OutOfMemory, display_path
from vit.files import read_class_names, read_json
from vit.signals import end_workers, signals
from vit.tasks.config import Config

log = logging.getLogger("vit")

_CHOSEN = "VIT_RUN_FOLDER"

USAGE = """usage: vit train DATA [--config FILE ...] [--out RUN] [--resume] [--part.key value ...]

Train a Vision Transformer on a folder of pictures, or, by --task, a model of words.

  DATA            folder with a folder a class, or with train/ val/ [test/] of such, or a .csv or .jsonl of path,label
                  --task caption: pictures with sentences (COCO, Flickr8k, metadata.jsonl, .txt beside pictures, ...)
                  --task fuse: a .csv or .jsonl of file_name,text,label; --task language: a text file or folder
                  --task translate: two columns, from text to text
  --config FILE   YAML with settings; can stand several times, later ones win
  --out RUN       folder to write to (default: runs/ and the name of DATA and the time)
  --resume        go on with the run in --out from its last checkpoint, at the very step, with its settings and pictures
  --print-config  show the settings that would be used, and end
  --part.key VALUE  one setting; wins over every file

Settings, with their defaults:
"""


def main(argv: list[str]) -> int:
    """Parse, then train. Returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(USAGE + _settings_help())
        return 0
    with signals.caught():
        try:
            return _main(argv)
        except Interrupted as error:
            if error.exit_code == 128 + _REQUEUE and os.environ.get("SLURM_PROCID", "0") == "0":
                _requeue()
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of the machine has told it
                return error.exit_code
            raise
        finally:
            end_workers(multiprocessing.active_children())  # workers end by themselves, but for one that hangs


def _main(argv: list[str]) -> int:
    words, files, data, out, resume, show = [], [], [], None, False, False
    rest = iter(argv)
    for word in rest:
        key, equals, value = word.partition("=")
        if key in ("--config", "--out"):
            value = value if equals else _next(rest, key)
            if key == "--config":
                files.append(value)
            else:
                out = value
        elif word == "--resume":
            resume = True
        elif word == "--print-config":
            show = True
        elif word == "--":
            data += list(rest)
        elif word.startswith("--"):
            words += [word] if equals else [word, *islice(rest, 1)]  # compose tells of a missing value
        else:
            data.append(word)
    resume = resume or _requeued(out)
    changes: list[str] = []
    if resume:
        config, changes = _resumed_config(out, files, words)
    else:
        config = compose(files, words)
    if show:
        print(to_yaml(config), end="")
        return 0
    if not data and not resume:
        raise ConfigError("DATA is missing; see vit train --help")
    if len(data) > 1:
        raise ConfigError(f"vit train takes one DATA, got {len(data)}: {', '.join(map(display_path, data))}")
    run = run_folder(data[0] if data else None, out, config)
    if not resume and (run / "model.safetensors").is_file():  # told at once, not after a look at all pictures
        from vit.tasks.lock import refuse_used

        refuse_used(run)
    while True:
        try:
            return _train(data[0] if data else None, config, run, resume=resume, changes=changes)
        except OutOfMemory as error:
            if config.train.on_memory == "stop" or config.data.batch_size == 1 or not error.again:
                raise
        config, resume, changes = _halved(config), (run / LAST).is_file(), []
        log.info("memory     ran out; data.batch_size is %d now", config.data.batch_size)


def _train(data: str | None, config: Config, run: Path, *, resume: bool, changes: Sequence[str]) -> int:
    if config.task == "classify":
        return train(data, config, run, resume=resume, changes=changes)
    from vit.cli.train_words import train_words

    return train_words(data, config, run, resume=resume, changes=changes)


def _halved(config: Config) -> Config:
    """Half of the batch, and twice as many for a step; what the last try held in memory is free after."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return replace(
        config,
        data=replace(config.data, batch_size=config.data.batch_size // 2),
        train=replace(config.train, accumulate=config.train.accumulate * 2),
    )


def train(data: str | None, config: Config, run: Path, *, resume: bool = False, changes: Sequence[str] = ()) -> int:
    """Train on a folder of pictures; everything about the run ends up in `run`. Returns the exit code.

    With `resume`, the pictures are those of the run's split.csv, and `changes` are the settings that are others now.
    Raises Interrupted after a signal.
    """
    from vit.data.folders import list_for_training, read_split

    source = _resumed_data(run) if resume else data or ""
    if resume and isinstance(source, Path):
        listing = read_split(source, read_class_names(run / "classes.json"))
        if data is not None:
            _check_same_data(Path(data), listing.splits["train"][0].path)
    else:
        listing = list_for_training(source, config.data, config.train.seed)
    if not listing.splits.get("val"):
        reason = "; ".join(listing.notes) or "each class has one"
        raise DataError(f"{display_path(source)}: too few images to hold any out: {display_path(reason)}")
    # Lightning takes eight seconds to import: only once the settings and the folder are known to be good.
    from vit.cli.quiet import quiet_lightning

    quiet_lightning()
    import lightning as L

    from vit.cli.report import after_training, before_training, what_next
    from vit.tasks.base import samples_per_step
    from vit.tasks.keeper import ResumedSettings
    from vit.tasks.optim import check_optimizer
    from vit.tasks.run import (
        describe_folder,
        fit,
        make_network,
        make_task,
        make_trainer,
        set_up,
    )
    from vit.tasks.tune import fit_head, run_knn, run_probe

    check_optimizer(config.optim.name)
    setup = set_up(listing, config)
    trainer = make_trainer(setup.config, run)
    L.seed_everything(config.train.seed, workers=True, verbose=False)
    first = trainer.is_global_zero
    with folder_of(run, resume) if first else contextlib.nullcontext():
        if first and not resume:
            describe_folder(setup, run, to_yaml(setup.config))
        elif first:
            trainer.callbacks.append(ResumedSettings(run / "config.yaml", to_yaml(setup.config)))
            shards = not isinstance(source, Path)
            pictures = [sample.path for samples in listing.splits.values() for sample in samples]
            tell_changes(changes, [] if shards else pictures, run / "split.csv")
        signals.check()
        network = make_network(setup)
        if first:
            before_training(setup, network, run, samples_per_step(setup.config, trainer))
        if setup.config.tune.method in ("probe", "knn"):
            if first:  # one device does
                (run_probe if setup.config.tune.method == "probe" else run_knn)(network, setup, run)
                what_next(run)
            return 0
        if setup.new_head and setup.config.tune.probe_first and not resume:
            log.info("head       fitted on the pictures' features first")
            fit_head(network, setup, to_go_on=True)
        task = make_task(setup, network)
        fit(setup, run, trainer, task, resume=run / LAST if resume else None)
        if first:
            after_training(setup, task, run)
    return 0


_FREE = {f"train.{name}" for name in ("epochs", "accelerator", "devices", "nodes", "strategy", "compile", "patience")}
_FREE |= {f"train.{name}" for name in ("checkpointing", "save_minutes", "save_steps", "keep", "on_nan", "nan_limit")}
_FREE |= {"train.on_memory"}
_FREE |= {"data.workers", "data.max_pixels", "data.timeout"}

LAST = Path("checkpoints", "last.ckpt")

_RATES = ("lr", "layer_decay")


def _resumed_config(out: str | None, files: list[str], words: list[str]) -> tuple[Config, list[str]]:
    """The run's own settings, with those changed that leave its numbers what they are, and which those are.

    Refuses all others.
    """
    if out is None:
        raise ConfigError("--resume needs --out RUN, the folder of the run to continue")
    run = Path(out)
    if not _has_checkpoint(run):
        raise ConfigError(f"--resume: {display_path(run)} holds no {LAST} to continue from; begin without --resume")
    before = compose([str(run / "config.yaml")], [])
    after = compose([str(run / "config.yaml"), *files], words)
    # what the run settled for itself may be left open still in the files it came from
    model = replace(after.model, name=_settled("auto", after.model.name, before.model.name))
    if isinstance(model.image_size, int):
        model = replace(model, image_size=(model.image_size, model.image_size))
    model = replace(model, image_size=_settled(None, model.image_size, before.model.image_size))
    precision = _settled("auto", after.train.precision, before.train.precision)
    rates = {name: _settled(None, getattr(after.optim, name), getattr(before.optim, name)) for name in _RATES}
    kept = replace(after.data, cache=_settled("auto", after.data.cache, before.data.cache))
    if before.model.init is not None:  # the first weights have settled how pictures are prepared
        for name in PREPARED:
            settled = _settled(getattr(DataConfig(), name), getattr(kept, name), getattr(before.data, name))
            kept = replace(kept, **{name: settled})
    after = replace(
        after,
        data=kept,
        model=model,
        train=replace(after.train, precision=precision),
        optim=replace(after.optim, **rates),
    )
    if after.train.on_memory == "halve" and _a_step(compose(files, words)) == _a_step(before):
        data, train = before.data.batch_size, before.train.accumulate
        after = replace(after, data=replace(after.data, batch_size=data), train=replace(after.train, accumulate=train))
    pairs = {key: (attrgetter(key)(before), attrgetter(key)(after)) for key in leaf_keys()}
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    refused = [f"{key} is {old} in the run and {new} now" for key, (old, new) in changed.items() if key not in _FREE]
    if refused:
        them = "it" if len(refused) == 1 else "them"
        raise ConfigError(f"--resume: {', '.join(refused)}; leave {them} out, or start a new run")
    if after.train.epochs < before.train.epochs:
        _require_epochs(run, after.train.epochs)
    return after, [f"{key} is {new}, it was {old}" for key, (old, new) in changed.items()]


def _require_epochs(run: Path, epochs: int) -> None:
    """Raise ConfigError where the run has already started more than `epochs` epochs."""
    from vit.tasks.checkpoints import newest_whole  # imports Lightning, which takes seconds

    _, checkpoint, _ = newest_whole(run / LAST)
    started = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    if epochs < started:
        raise ConfigError(f"train.epochs: {epochs}, but the run has started epoch {started}; set {started} or more")


def _a_step(config: Config) -> int:
    return config.data.batch_size * config.train.accumulate


def _has_checkpoint(run: Path) -> bool:
    return any(run.joinpath(LAST).parent.glob(f"{LAST.stem}*{LAST.suffix}"))


def tell_changes(changes: Sequence[str], files: Sequence[str], since: Path) -> None:
    """What is not as it was when the run began: settings, and of `files` how many are gone or newer than `since`."""
    for change in changes:
        log.info("changed    %s", change)
    gone = newer = 0
    began = since.stat().st_mtime if files else 0.0
    for file in files:
        try:
            newer += os.stat(file).st_mtime > began
        except OSError:
            gone += 1
    if gone or newer:
        log.info("changed    of %d pictures, %d are gone and %d newer than the run", len(files), gone, newer)


_REQUEUE = getattr(signal, "SIGUSR1", 0)


def _requeued(out: str | None) -> bool:
    """Whether SLURM has started this job again, which then goes on with its run."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and out is not None and _has_checkpoint(Path(out))


def _requeue() -> None:
    """Ask SLURM to start this job again; it has warned of the end of its time."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    log.info("requeued   job %s%s", job, f": scontrol says: {display_path(reason)}" if reason else "")


def _resumed_data(run: Path) -> str | Path:
    """The pictures of a run: its split.csv, or the shards that its data.json names."""
    told = run / "data.json"
    return str(read_json(told, "shards")["shards"]) if told.is_file() else run / "split.csv"


def _check_same_data(data: Path, picture: str) -> None:
    """A resumed run keeps the pictures of its split.csv; another folder beside it would be ignored in silence."""
    if data.is_dir() and not Path(picture).is_relative_to(os.path.abspath(data)):
        raise ConfigError(f"--resume: the run's pictures are not in {display_path(data)}; leave DATA out")


def _settled(left_open: Any, asked: Any, before: Any) -> Any:
    return before if asked == left_open else asked


def run_folder(data: str | None, out: str | None, config: Config) -> Path:
    """The folder of a run: `out`, or a new name after the data and the time."""
    if out is not None:
        return Path(out)
    if config.train.nodes > 1 or "SLURM_NTASKS" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("several processes need --out RUN, a folder that all of them know")
    if (chosen := os.environ.get(_CHOSEN)) and "LOCAL_RANK" in os.environ:
        return Path(chosen)
    from datetime import datetime

    name = data_name(data or "run")
    run = Path("runs") / f"{name}-{datetime.now():%Y-%m-%d-%H%M%S}"
    os.environ[_CHOSEN] = str(run)  # for the processes that Lightning starts for further devices
    return run


@contextlib.contextmanager
def folder_of(run: Path, resume: bool) -> Iterator[None]:
    """The run's folder, new or to go on in, held against other processes, with its log.

    Raises ConfigError where another run is in it, or, of a new run, anything at all.
    """
    from vit.tasks.lock import LOCK, locked, prepare_folder

    new = not resume and not (run / LOCK).exists()
    if new:
        prepare_folder(run)
    with locked(run):
        if not resume and not new:  # a run that was killed has left its lock
            prepare_folder(run)
        for half in run.glob("**/.*.part"):  # of a file that was being written when a process was killed
            half.unlink()
        with log_file(run):
            yield


@contextlib.contextmanager
def log_file(run: Path) -> Iterator[None]:
    """What is told inside the block is also written to RUN/log.txt, with the time."""
    handler = logging.FileHandler(run / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _next(words: object, key: str) -> str:
    try:
        return next(words)  # type: ignore[call-overload]
    except StopIteration:
        raise ConfigError(f"{key}: a value is missing") from None


def _settings_help() -> str:
    """jsonargparse's help for the settings, from the dataclasses' own docstrings, without its usage line."""
    os.environ.setdefault("COLUMNS", "110")
    text = config_parser().format_help()
    settings = text[text.index("Everything that") :].splitlines()
    # jsonargparse would take a file for each part; we take files as a whole, by --config
    return "\n".join(line for line in settings if not line.endswith("Path to a configuration file.")) + "\n"
