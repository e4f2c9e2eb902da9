"""`vit train DATA`."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vit.cli.config import compose, config_parser, to_yaml
from vit.errors import ConfigError, display_path
from vit.tasks.config import Config

log = logging.getLogger("vit")

USAGE = """usage: vit train DATA [--config FILE ...] [--out RUN] [--resume] [--part.key value ...]

Train a Vision Transformer on a folder of pictures.

  DATA            folder with a folder a class, or with train/ val/ [test/] of such, or a .csv or .jsonl of path,label
  --config FILE   YAML with settings; can stand several times, later ones win
  --out RUN       folder to write to (default: runs/ and the name of DATA and the time)
  --resume        continue the run in --out from its last checkpoint
  --print-config  show the settings that would be used, and end
  --part.key VALUE  one setting; wins over every file

Settings, with their defaults:
"""


def main(argv: list[str]) -> int:
    """Parse, then train. Returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(USAGE + _settings_help())
        return 0
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
    config = compose(files, words)
    if show:
        print(to_yaml(config), end="")
        return 0
    if len(data) != 1:
        raise ConfigError(f"vit train takes one DATA, got {len(data)}: {', '.join(map(display_path, data)) or 'none'}")
    return train(data[0], config, out=out, resume=resume)


def train(data: str, config: Config, *, out: str | None = None, resume: bool = False) -> int:
    """Train on a folder of pictures; everything about the run ends up in `out`. Returns the exit code."""
    from vit.data.folders import list_training

    run = _run_folder(data, out, resume)
    listing = list_training(
        data, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction, seed=config.train.seed
    )
    # Lightning takes eight seconds to import: only once the settings and the folder are known to be good.
    from vit.cli.quiet import quiet_lightning

    quiet_lightning()
    import lightning as L

    from vit.cli.report import after_training, before_training
    from vit.tasks.callbacks import StopOnSignal
    from vit.tasks.optim import check_optimizer
    from vit.tasks.run import describe_folder, fit, make_task, make_trainer, prepare_folder, set_up

    check_optimizer(config.optim.name)
    setup = set_up(listing, config)
    stop = StopOnSignal()
    trainer = make_trainer(setup.config, run, stop)
    L.seed_everything(config.train.seed, workers=True, verbose=False)
    first = _is_first_process()
    if first and not resume:
        prepare_folder(run)
        describe_folder(setup, run, to_yaml(setup.config))
    with _log_file(run) if first else contextlib.nullcontext():
        task = make_task(setup)
        if first:
            before_training(setup, task, run)
        try:
            fit(setup, run, trainer, task, resume=run / "checkpoints" / "last.ckpt" if resume else None)
        except SystemExit:  # Lightning's way out at a signal
            if stop.received is None:
                raise
            return 128 + stop.received
        if trainer.is_global_zero:
            after_training(setup, task, run)
    return 0 if stop.received is None else 128 + stop.received


def _run_folder(data: str, out: str | None, resume: bool) -> Path:
    if out is not None:
        run = Path(out)
    elif resume:
        raise ConfigError("--resume needs --out RUN, the folder of the run to continue")
    else:
        from datetime import datetime

        name = Path(data).resolve().stem or "run"
        run = Path("runs") / f"{name}-{datetime.now():%Y-%m-%d-%H%M%S}"
        sys.argv += ["--out", str(run)]  # processes that Lightning starts for further devices repeat the command
    if resume and not (run / "checkpoints" / "last.ckpt").is_file():
        raise ConfigError(f"--resume: {display_path(run)} holds no checkpoints/last.ckpt to continue from")
    return run


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


@contextlib.contextmanager
def _log_file(run: Path) -> Iterator[None]:
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
    import os as _os

    _os.environ.setdefault("COLUMNS", "110")
    text = config_parser().format_help()
    settings = text[text.index("Everything that") :].splitlines()
    # jsonargparse would take a file for each part; we take files as a whole, by --config
    return "\n".join(line for line in settings if not line.endswith("Path to a configuration file.")) + "\n"
