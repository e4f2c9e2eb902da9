"""`vit train DATA --task caption | fuse | language | translate`."""

import contextlib
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli.config import to_yaml
from vit.cli.train import LAST, folder_of, tell_changes
from vit.data.folders import SHARDS
from vit.errors import ConfigError, display_path, shell_quote
from vit.files import dump_json, read_json, write_text
from vit.signals import signals
from vit.tasks.config import Config

if TYPE_CHECKING:
    from vit.data.tokenizer import Tokenizer
    from vit.tasks.words import WordRun, Words

log = logging.getLogger("vit")


def train_words(
    data: str | None, config: Config, run: Path, *, resume: bool = False, changes: Sequence[str] = ()
) -> int:
    """Train a model of words; everything about the run ends up in `run`. Returns the exit code.

    With `resume`, DATA is that of the run's data.json, and must be what it was, and `changes` are the settings that are
    others now. Raises Interrupted after a signal.
    """
    before = read_json(run / "data.json", "path", "sha256") if resume else {}
    from vit.cli.quiet import quiet_lightning

    quiet_lightning()
    import lightning as L

    from vit.nn import Transformer
    from vit.tasks.base import samples_per_step
    from vit.tasks.keeper import ResumedSettings
    from vit.tasks.optim import check_optimizer
    from vit.tasks.run import add_skipped, environment, export, gather_unreadable, make_trainer, train_on
    from vit.tasks.words import read_words, set_up_words

    check_optimizer(config.optim.name)
    path = data if data is not None else before["path"]
    path = path if "://" in path else str(Path(path).absolute())
    words = read_words(path, config)
    if resume and words.fingerprint() != before["sha256"]:
        raise ConfigError(f"--resume: {display_path(path)} has changed since the run began; start a new run")
    L.seed_everything(config.train.seed, workers=True, verbose=False)
    setup = set_up_words(words, config, tokenizer=_tokenizer_of(run) if resume else None)
    for module in setup.task.network.modules():
        if isinstance(module, Transformer):
            module.checkpointing = config.train.checkpointing
    trainer = make_trainer(setup.config, run)
    first = trainer.is_global_zero
    with folder_of(run, resume) if first else contextlib.nullcontext():
        if first and not resume:
            counts = {split: len(texts) for split, texts in words.texts.items()}
            facts = {"path": path, "sha256": words.fingerprint(), "samples": counts, "left_out": words.notes}
            write_text(run / "data.json", dump_json(facts, indent=1) + "\n")
            write_text(run / "tokenizer.json", setup.tokenizer.to_json() + "\n")
            add_skipped(run, [("", item.path, item.reason) for item in words.skipped])
            write_text(run / "environment.json", dump_json(environment(), indent=1) + "\n")
            if config.task == "fuse":
                write_text(run / "classes.json", dump_json(setup.task.classes, indent=1) + "\n")
        elif first:
            files = [name for name in chain.from_iterable(words.images.values()) if not name.startswith(SHARDS)]
            tell_changes(changes, files, run / "data.json")
            trainer.callbacks.append(ResumedSettings(run / "config.yaml", to_yaml(setup.config)))
        signals.check()
        if first:
            if not resume:
                write_text(run / "config.yaml", to_yaml(setup.config))
            _before(path, words, setup, run, samples_per_step(setup.config, trainer))
        train_on(setup.task, setup.data, trainer, run, resume=run / LAST if resume else None)
        gather_unreadable(setup.task, words.images, trainer, run)
        if first:
            export(run)
            _after(setup, run)
    return 0


def _tokenizer_of(run: Path) -> "Tokenizer":
    from vit.data.tokenizer import Tokenizer

    return Tokenizer.load(run / "tokenizer.json")


def _before(path: str, words: "Words", setup: "WordRun", run: Path, step: int) -> None:
    """A table of data and model; a step learns from `step` samples."""
    from vit.cli.report import cache_told, few_steps, rate_told, schedule_of

    config = setup.config
    network: Any = setup.task.network
    parameters = sum(p.numel() for p in network.parameters())
    samples = "   ".join(f"{split} {len(entries):,}" for split, entries in words.texts.items())
    rows = [("data", display_path(path))]
    if config.task == "language":
        shown = [f"{split} {sum(len(t) for (t,) in texts):,}" for split, texts in words.texts.items()]
        rows.append(("letters", "   ".join(shown)))
    else:
        texts = sum(len(group) for group in words.texts["train"])
        rows.append(("samples", f"{samples}   ({texts:,} texts to train on)"))
    rows += [("left out", display_path(note)) for note in words.notes]
    rows.append(("tokens", f"{len(setup.tokenizer):,} in the vocabulary, texts of at most {config.text.length}"))
    if setup.cut:
        rows.append(("cut", f"{setup.cut:,} training texts are longer; text.length reads more"))
    if config.task == "fuse":
        rows.append(("classes", str(len(words.classes))))
    for part in ("encoder", "image", "text", "decoder"):
        if (module := getattr(network, part, None)) is not None:
            a = module.architecture
            rows.append((part, f"{a.depth} blocks of width {a.dim}, {a.heads} heads"))
    if config.task == "language":
        a = network.architecture
        rows.append(("model", f"{a.depth} blocks of width {a.dim}, {a.heads} heads"))
    count = len(setup.data.train)
    rows += [
        ("size", f"{parameters / 1e6:.2f} M parameters"),
        ("training", f"{schedule_of(config, step, count)}, {rate_told(config, step)}"),
        *few_steps(config, step, count),
        *([("cache", cache_told(config, setup.cache_reason))] if setup.words.images else []),
        ("run", display_path(run)),
    ]
    for name, value in rows:
        log.info("%-10s %s", name, value)
    log.info("")


def _told(name: str, value: float) -> str:
    """A number of validation, as in an epoch's line."""
    number = f"{value:.4f}" if name in ("loss", "picture_gain") else f"{100 * value:.2f} %"
    return f"val {name.replace('_', ' ')} {number}"


def _after(setup: "WordRun", run: Path) -> None:
    """The best epoch, and what to do next."""
    from vit.cli.report import best_epoch, tell_unreadable

    log.info("")
    if (best := best_epoch(run, setup.config.train.monitor)) is not None:
        values = [(name.removeprefix("val/"), value) for name, value in best.items() if name.startswith("val/")]
        numbers = ", ".join(_told(name, value) for name, value in values)
        log.info("best       epoch %d: %s   (%.0f s in all)", best["epoch"], numbers, best["total"])
    tell_unreadable(setup.task.unreadable, setup.words.images)
    log.info("model      %s/model.safetensors", display_path(run))
    word = shell_quote(run)
    lines = {
        "caption": (f"vit evaluate {word} DATA", f"vit caption {word} PICTURE..."),
        "fuse": (f"vit evaluate {word} DATA", f"vit predict {word} PICTURE --text QUESTION"),
        "language": (f"vit generate {word} --prompt TEXT", f"vit embed {word} --nearest WORD"),
        "translate": (f"vit evaluate {word} DATA", f"vit generate {word} --prompt TEXT"),
    }[setup.config.task]
    log.info("next       %s", lines[0])
    log.info("           %s", lines[1])
    log.info("           tensorboard --logdir %s", word)
