"""`vit evaluate MODEL DATA`."""

import argparse
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli.arguments import (
    MODEL_HELP,
    Parser,
    add_max_pixels,
    announce,
    integer,
    override_max_pixels,
    run_of,
    seen_in_training,
    split_told,
)
from vit.cli.reports import report_facts, report_folder
from vit.data.config import MOST_WORKERS, DataConfig, Preprocessing
from vit.errors import ConfigError, DataError, NonFiniteOutput, display_path
from vit.files import csv_writer, dump_json, open_text, whole_file, write_text
from vit.tasks.config import Config, TrainConfig

if TYPE_CHECKING:
    from vit.data.folders import Listing, Sample
    from vit.models.file import ModelFile
    from vit.tasks.rows import Gathered

log = logging.getLogger("vit")

_OF_CLASSIFIERS = ("precision", "workers", "devices", "csv_raw")
_IDLE = {
    "classifier": ("beams", "no_repeat_ngram", "java"),
    "captioner": _OF_CLASSIFIERS,
    "translator": (*_OF_CLASSIFIERS, "no_repeat_ngram", "java", "max_pixels"),
    "fused": (*_OF_CLASSIFIERS, "beams", "no_repeat_ngram", "java"),
    "language": (*_OF_CLASSIFIERS, "beams", "no_repeat_ngram", "java", "max_pixels"),
}
"""options that have no effect on a kind of model"""


def main(argv: list[str]) -> int:
    """Parse, then evaluate. Returns the exit code."""
    parser = Parser(prog="vit evaluate", description="Honest numbers of a trained model.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("data", metavar="DATA", help="folder of classes, or with test/ or val/ of such, or a list")
    parser.add_argument(
        "--out", help="folder for the report (default: evaluation/DATA/SPLIT, in the run folder or here)"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="default: test if there is one, else val")
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    parser.add_argument("--batch-size", type=integer(1), default=64)
    parser.add_argument(
        "--workers", type=integer(-1, MOST_WORKERS), default=-1, help="processes that decode pictures (-1: by cores)"
    )
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto")
    parser.add_argument("--devices", default="auto", help="how many share classification out (auto: all GPUs)")
    parser.add_argument("--beams", type=integer(1), default=4, help="of models that write (default: 4)")
    parser.add_argument(
        "--no-repeat-ngram", type=integer(0), default=0, metavar="N", help="in captions no N words in a row occur twice"
    )
    parser.add_argument("--java", action="store_true", help="METEOR and SPICE of captions, by pycocoevalcap's Java")
    parser.add_argument(
        "--csv-raw", action="store_true", help="no apostrophe before CSV cells that spreadsheets take for formulas"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32")
    add_max_pixels(parser)
    options = parser.parse_args(argv)
    config = Config(
        data=DataConfig(batch_size=options.batch_size, workers=options.workers),
        train=TrainConfig(accelerator=options.accelerator, precision=options.precision),
    )
    if options.devices != "auto" and not re.fullmatch(r"[1-9]\d{0,3}", options.devices):
        parser.error("--devices must be auto or a number")
    if "torch" not in sys.modules:  # which heeds it when it is loaded
        # threads that wait for each other leave their cores to the processes that read pictures
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vit.models.sources import load_model

    file = load_model(options.model)
    pictures = file.kind in ("classifier", "text-encoder")
    parser.refuse_idle(_IDLE[file.kind if file.kind in _IDLE else "classifier"], f"on a {file.kind}")
    override_max_pixels(file, options.max_pixels)
    run = run_of(Path(options.model))
    facts = report_facts(options.model, options.data, options.weights or ("raw" if file.ema is None else "ema"))

    def folder(split: str) -> Path:
        return report_folder(options.out, (run or Path()) / "evaluation", facts, split)

    if pictures:
        return _evaluate_pictures(file, run, facts, folder, options, config, ["evaluate", *argv])
    from vit.cli.evaluate_words import evaluate_words
    from vit.tasks.devices import device_for

    announce(file)
    return evaluate_words(
        file,
        facts,
        folder,
        split=options.split,
        weights=options.weights,
        batch_size=options.batch_size,
        device=device_for(options.accelerator),
        beams=options.beams,
        no_repeat_ngram=options.no_repeat_ngram,
        java=options.java,
        run=run,
    )


def _evaluate_pictures(
    file: "ModelFile",
    run: Path | None,
    facts: dict[str, Any],
    folder: Callable[[str], Path],
    options: argparse.Namespace,
    config: Config,
    words: list[str],
) -> int:
    """A classifier on the pictures of DATA; `words` is the command, for the other processes of several devices."""
    from vit.data.folders import list_evaluation
    from vit.models.build import build_network
    from vit.models.outputs import NON_FINITE
    from vit.tasks.devices import devices_for, distributed, launch
    from vit.tasks.evaluation import evaluate

    if not file.classes:
        remedy = "`vit train DATA --model.init MODEL` gives it yours"
        raise ConfigError(f"{display_path(options.model)}: no classes to evaluate; {remedy}")
    network = build_network(file, options.weights, source=options.model)
    listing = list_evaluation(options.data, file.classes, split=options.split)
    (name, samples), *_ = listing.splits.items()
    place = folder(name)  # now, not after an hour
    devices = devices_for(options.accelerator, options.devices)
    if devices > 1:
        return launch(devices, words)
    preprocessing = Preprocessing.from_json(file.preprocessing)
    with distributed() as rank:
        if rank == 0:
            announce(file)
        started = time.perf_counter()
        gathered = evaluate(network, samples, preprocessing, config, len(file.classes))
        seconds = time.perf_counter() - started
    if rank > 0:
        return 0  # any other code would end rank 0, which writes the report
    facts |= {
        "split": name,
        "images_per_second": round(len(gathered.indices) / seconds, 1),
        "seen_in_training": seen_in_training(run, [samples[i] for i in gathered.indices]),
    }
    _report(place, facts, gathered, samples, file.classes, listing, preprocessing, raw=options.csv_raw)
    return 1 if any(reason == NON_FINITE for _, reason in gathered.failures) else 0


def _report(
    folder: Path,
    facts: dict[str, Any],
    gathered: "Gathered",
    samples: "list[Sample]",
    classes: list[str],
    listing: "Listing",
    preprocessing: Preprocessing,
    *,
    raw: bool,
) -> None:
    """Write metrics.json, predictions.csv, confusion.csv (`raw`: as in `csv_writer`) and the plots; print the summary.

    Images whose scores are NaN or inf are named among the unreadable ones. Raises NonFiniteOutput or DataError where no
    image is left.
    """
    from vit.evaluate.calibration import reliability
    from vit.evaluate.classification import classification_metrics, confusion_matrix
    from vit.evaluate.plots import confusion_plot, reliability_plot
    from vit.models.outputs import NON_FINITE

    p = gathered.predictions
    if not len(p.labels):
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing to report
        if broken := [samples[i].path for i, reason in gathered.failures if reason == NON_FINITE]:
            model, first = display_path(facts["model"]), display_path(broken[0])
            raise NonFiniteOutput(
                f"{model}: {NON_FINITE} for {len(broken)} images, the first is {first}; check its weights"
            )
        raise DataError(f"{display_path(facts['data'])}: none of the {len(samples)} pictures could be read")
    metrics = classification_metrics(p, classes)
    left_out = [{"path": o.path, "reason": o.reason} for o in listing.left_out]
    unreadable = [{"path": samples[i].path, "reason": reason} for i, reason in gathered.failures]
    counts = {"unreadable": unreadable, "left_out": left_out, "unknown_classes": listing.unknown}
    write_text(folder / "metrics.json", dump_json({**facts, **metrics, **counts}, indent=1) + "\n")
    _write_predictions(folder / "predictions.csv", gathered, samples, classes, raw=raw)
    matrix = confusion_matrix(p, len(classes))
    _write_matrix(folder / "confusion.csv", matrix, classes, raw=raw)
    with whole_file(folder / "confusion.png") as temporary:
        confusion_plot(matrix, classes, temporary)
    table = reliability(p.probabilities[:, 0], p.top[:, 0] == p.labels)
    with whole_file(folder / "reliability.png") as temporary:
        reliability_plot(table, temporary)
    mistakes = _draw_mistakes(folder / "mistakes.png", gathered, samples, classes, preprocessing)
    _print_summary(folder, facts, metrics, unreadable, listing, mistakes)


def _write_predictions(
    path: Path, gathered: "Gathered", samples: "list[Sample]", classes: list[str], *, raw: bool
) -> None:
    """A row a picture, the unreadable ones with their reason."""
    p = gathered.predictions
    kept = p.top.shape[1]
    names = [f"{what}{i}" for i in range(1, kept + 1) for what in ("class", "probability")]
    with open_text(path) as file:
        write_row = csv_writer(file, raw=raw)
        write_row(["path", "label", "correct", "loss", "error", *names])
        for row, index in enumerate(gathered.indices):
            likeliest = zip(p.top[row], p.probabilities[row], strict=True)
            cells = [value for answer, chance in likeliest for value in (classes[answer], f"{chance:.6f}")]
            sample, right = samples[index], int(p.top[row, 0] == p.labels[row])
            write_row([sample.path, classes[sample.label], right, f"{max(0.0, p.losses[row]):.6f}", "", *cells])
        for index, reason in gathered.failures:
            sample = samples[index]
            write_row([sample.path, classes[sample.label], "", "", reason, *[""] * len(names)])


def _write_matrix(path: Path, matrix: Any, classes: list[str], *, raw: bool) -> None:
    """Rows: true class; columns: answered class."""
    with open_text(path) as file:
        write_row = csv_writer(file, raw=raw)
        write_row(["true class", *classes])
        for name, row in zip(classes, matrix.tolist(), strict=True):
            write_row([name, *row])


def _draw_mistakes(
    path: Path, gathered: "Gathered", samples: "list[Sample]", classes: list[str], preprocessing: Preprocessing
) -> int:
    """The wrong answers of highest loss, as the model saw them. Returns how many wrong answers there are in all."""
    import numpy as np

    from vit.data.dataset import picture_source
    from vit.data.transforms import EvaluationTransform
    from vit.evaluate.plots import gallery

    p = gathered.predictions
    wrong = np.flatnonzero(p.top[:, 0] != p.labels)
    worst = wrong[np.argsort(-p.losses[wrong], kind="stable")][:36]
    transform = EvaluationTransform(preprocessing)
    pictures = []
    for row in worst:
        sample = samples[gathered.indices[row]]
        caption = f"answer {classes[p.top[row, 0]]} ({p.probabilities[row, 0]:.0%})\ntrue {classes[sample.label]}"
        pictures.append((transform.read(picture_source(sample.path)), caption))
    if pictures:
        with whole_file(path) as temporary:
            gallery(pictures, temporary)
    else:
        path.unlink(missing_ok=True)  # of an earlier report
    return len(wrong)


def _print_summary(
    folder: Path,
    facts: dict[str, Any],
    metrics: dict[str, Any],
    unreadable: list[dict[str, str]],
    listing: "Listing",
    mistakes: int,
) -> None:
    def share(name: str) -> str:
        low, high = metrics["intervals"][name]
        return f"{100 * metrics[name]:6.2f} %   (95 %: {100 * low:.2f} to {100 * high:.2f})"

    log.info(
        "pictures           %d of %s, %s", metrics["count"], display_path(facts["data"]), split_told(facts["split"])
    )
    trained, chose = (facts["seen_in_training"].get(split, 0) for split in ("train", "val"))
    if trained:
        log.info("trained on         %d of them: they flatter the model; its split.csv lists the others", trained)
    if chose:
        log.info("note               %d of them chose the best epoch, which flatters the model a little", chose)
    log.info("accuracy           %s", share("top1"))
    if len(metrics["per_class"]) > 5:
        log.info("top-5 accuracy     %s", share("top5"))
    log.info("balanced accuracy  %s", share("balanced_accuracy"))
    log.info("macro F1           %s", share("macro_f1"))
    log.info("loss               %6.4f", metrics["loss"])
    log.info("calibration error  %6.2f %%", 100 * metrics["ece"])
    log.info("mistakes           %d", mistakes)
    log.info("speed              %.0f images/s", facts["images_per_second"])
    for entry in unreadable[:20]:
        log.info("unreadable         %s: %s", display_path(entry["path"]), entry["reason"])
    if len(unreadable) > 20:
        log.info("unreadable         ... %d in all", len(unreadable))
    for left in listing.left_out[:20]:
        log.info("left out           %s: %s", display_path(left.path), left.reason)
    absent = [name for name, numbers in metrics["per_class"].items() if not numbers["count"]]
    if absent:
        log.info("no pictures        of %d classes: %s", len(absent), display_path(", ".join(absent[:10])))
    for name, count in listing.unknown.items():
        log.info("unknown class      %s: %d pictures, not counted", display_path(name), count)
    log.info("report             %s", display_path(folder))
