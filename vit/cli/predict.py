"""`vit predict MODEL PATH...`."""

import codecs
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, islice
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from vit.cli.arguments import (
    MODEL_HELP,
    Parser,
    add_max_pixels,
    announce,
    check_out,
    integer,
    mention_unknown,
    model_files,
    output_format,
    override_max_pixels,
    result_stream,
)
from vit.errors import ConfigError, DataError, UnreadableImage, display_path
from vit.files import csv_writer, json_line

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from vit.api import Classifier, Prediction

Record = dict[str, Any]

FORMATS = ("jsonl", "csv")

_BLOCK = 1 << 16  # bytes of a list read at a time, at most


def main(argv: list[str]) -> int:
    """Parse, then predict. Returns the exit code: 1 where an image has no prediction."""
    parser = Parser(prog="vit predict", description="Labels for pictures.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="files, folders, globs; - reads a list of files from standard input"
    )
    parser.add_argument("--text", help="what is asked about every picture, of models that read both")
    parser.add_argument("--top", type=integer(1), default=5, help="classes a picture (default 5)")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --out, else jsonl")
    parser.add_argument(
        "--csv-raw", action="store_true", help="no apostrophe before CSV cells that spreadsheets take for formulas"
    )
    parser.add_argument("--out", help="file to write, .jsonl or .csv, or to replace, instead of standard output")
    parser.add_argument("--batch-size", type=integer(1), default=32)
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    add_max_pixels(parser)
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    options = parser.parse_args(argv)
    check_out(options.out)
    form = output_format(options.out, FORMATS, options.format)
    if options.csv_raw and form != "csv":
        raise ConfigError("--csv-raw: has no effect without --format csv")

    from vit.api import classifier_of
    from vit.models.sources import load_model

    model = load_model(options.model)
    override_max_pixels(model, options.max_pixels)
    try:
        if model.kind == "fused":
            from vit.writers import FusedModel, words_of

            fused = words_of(model, options.model, weights=options.weights, device=options.device)
            assert isinstance(fused, FusedModel)
            if options.text is None:
                print("note     no --text: answered from the picture alone", file=sys.stderr)
            mention_unknown(fused.tokenizer, options.text or "")
            classifier = fused.asking(options.text)
        elif options.text is not None:
            raise ConfigError(f"--text: {display_path(options.model)} reads pictures alone")
        else:
            classifier = classifier_of(model, options.model, weights=options.weights, device=options.device)
    except (RuntimeError, AssertionError) as error:  # torch's, where there is no such device or no code for it
        if options.device is None:
            raise
        raise ConfigError(f"--device {options.device}: {str(error).partition('. ')[0]}") from error
    classifier.require_classes()
    announce(model)
    parts = _parts(options.paths)
    listed = chain.from_iterable(part for part in parts if isinstance(part, list))
    check_out(options.out, inputs=chain(model_files(options.model), options.paths, listed))
    failed = 0
    with ExitStack() as stack:
        stream = stack.enter_context(result_stream(options.out))
        write = _writer(form, stream, min(options.top, len(classifier.classes)), raw=options.csv_raw)
        bar = stack.enter_context(_progress(parts, to_file=bool(options.out)))
        paths = chain.from_iterable(parts)
        for record in predict(classifier, paths, top=options.top, batch_size=options.batch_size):
            write(record)
            bar.update()
            if "error" in record:
                failed += 1
                bar.write(f"vit: {display_path(record['path'])}: {record['error']}", file=sys.stderr)
    if failed:
        print(f"vit: no prediction for {failed} of the images", file=sys.stderr)
    return 1 if failed else 0


def predict(
    classifier: "Classifier", paths: Iterable[str | UnreadableImage], *, top: int, batch_size: int
) -> Iterator[Record]:
    """A record a path, in order: `path` and `top`, a list of class and probability, or `path` and `error`."""
    import torch

    from vit.data.folders import path_of, read_image

    paths = iter(paths)
    with ThreadPoolExecutor() as pool, ExitStack() as stack, torch.inference_mode():
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # a signal need not wait for images that wait
        waiting: deque[tuple[str, Future[Tensor]]] = deque()

        def fetch(count: int) -> None:
            for path in islice(paths, count):
                waiting.append((path_of(path), pool.submit(read_image, classifier.prepare, path)))

        fetch(1)  # the first picture alone: its answer need not wait for a batch
        size = 1
        while waiting:
            part = [waiting.popleft() for _ in range(min(size, len(waiting)))]
            fetch(2 * batch_size - len(waiting))  # decoded while the network works
            yield from _answer(classifier, part, top)
            size = batch_size


def _answer(classifier: "Classifier", part: list[tuple[str, "Future[Tensor]"]], top: int) -> Iterator[Record]:
    import torch

    from vit.models.outputs import NON_FINITE, finite_rows

    images, errors = {}, {}
    for place, (_, future) in enumerate(part):
        try:
            images[place] = future.result()
        except UnreadableImage as error:
            errors[place] = error.reason
    answers: dict[int, Prediction] = {}
    if images:
        batch = classifier.normalise(torch.stack(list(images.values())).to(classifier.device))
        logits = classifier.network(batch)
        finite = finite_rows(logits)
        errors |= {place: NON_FINITE for place, usable in zip(images, finite.tolist(), strict=True) if not usable}
        answers = dict(
            zip((place for place in images if place not in errors), classifier.named(logits[finite], top), strict=True)
        )
    for place, (path, _) in enumerate(part):
        if place in errors:
            yield {"path": path, "error": errors[place]}
        else:
            answer = answers[place]
            words = answer.descriptions or ("",) * len(answer.classes)
            likeliest = zip(answer.classes, words, answer.probabilities, strict=True)
            yield {"path": path, "top": [_answered(*entry) for entry in likeliest]}


def _answered(name: str, description: str, probability: float) -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {"class": name, **described, "probability": round(probability, 6)}


def _parts(words: list[str]) -> list[Iterable[str | UnreadableImage]]:
    """The pictures each word stands for; `-` is a list on standard input, not yet read."""
    from vit.data.folders import find_images

    if "-" in words and sys.stdin is None:
        raise ConfigError("-: standard input is closed; name files, or give it a list")
    return [_listed(sys.stdin.buffer) if word == "-" else list(find_images([word])) for word in words]


def _listed(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list, one per line or separated by zero bytes, each as soon as it is complete.

    Lines may end with CRLF, and a byte order mark is ignored. Raises DataError for UTF-16 and compressed lists.
    """
    from vit.data.tables import not_text

    rest, separator, start = b"", b"\n", True
    while block := stream.read1(_BLOCK):  # type: ignore[attr-defined]  # what there is: does not wait for a full block
        rest += block
        if start and (reason := not_text(rest)) is not None:
            raise DataError(f"standard input: the list is {reason}")
        if start:
            rest, start = rest.removeprefix(codecs.BOM_UTF8), False
        if b"\0" in rest:  # no path holds one, but a path may hold a line break
            separator = b"\0"
        *whole, rest = rest.split(separator)
        yield from filter(None, (_listed_path(path, separator) for path in whole))
    if path := _listed_path(rest, separator):
        yield path


def _listed_path(line: bytes, separator: bytes) -> str:
    """Return the path on a line, without the CR of a CRLF, which only belongs to it where such a file exists."""
    if separator == b"\n" and line.endswith(b"\r") and not os.path.lexists(line):
        line = line[:-1]
    return os.fsdecode(line)


def _progress(parts: list[Iterable[str | UnreadableImage]], *, to_file: bool) -> "tqdm[Any]":
    """A bar on standard error after two seconds; none where nobody watches or the records go to the same terminal."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() and (to_file or not sys.stdout.isatty())
    total = sum(len(part) for part in parts if isinstance(part, list))
    known = all(isinstance(part, list) for part in parts)
    return tqdm(
        total=total if known else None, unit=" pictures", delay=2, leave=False, disable=not shown, file=sys.stderr
    )


def _writer(form: str, stream: IO[str], top: int, *, raw: bool) -> Callable[[Record], None]:
    """Return a function that writes one record as a JSON line or a CSV row."""
    if form == "jsonl":
        return lambda record: print(json_line(record), file=stream, flush=True)
    write_cells = csv_writer(stream, raw=raw)
    write_cells(["path", "error", *(f"{what}{i}" for i in range(1, top + 1) for what in ("class", "probability"))])

    def write_row(record: Record) -> None:
        cells = [value for entry in record.get("top", []) for value in (entry["class"], entry["probability"])]
        write_cells([record["path"], record.get("error", ""), *cells, *[""] * (2 * top - len(cells))])
        stream.flush()

    return write_row
