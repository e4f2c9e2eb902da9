"""`vit evaluate MODEL DATA` for models of words."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli.arguments import split_told
from vit.data.layouts import UNSPLIT
from vit.errors import DataError, UnreadableImage, VitError, display_path
from vit.files import dump_json, read_json, write_text
from vit.models.generation_config import GenerationConfig

if TYPE_CHECKING:
    from vit.data.tokenizer import Tokenizer
    from vit.models.file import ModelFile
    from vit.writers import Captioner, FusedModel, Writer

log = logging.getLogger("vit")

Facts = dict[str, Any]


def evaluate_words(
    model: "ModelFile",
    facts: Facts,
    folder: Callable[[str], Path],
    *,
    split: str | None,
    weights: Any,
    batch_size: int,
    device: str | None,
    beams: int,
    no_repeat_ngram: int,
    java: bool,
    run: Path | None,
) -> int:
    """Measure a captioner, a fused classifier, a model from text to text, or a language model; -> the exit code.

    `facts` hold the model and the data, and come back with the results; `folder` makes the folder for a split's report.
    `run` is the run folder that the model belongs to, if any.
    """
    from vit.evaluate.java_metrics import check_java
    from vit.models.encoder_decoder import EncoderDecoder
    from vit.writers import Captioner, FusedModel, Writer, words_of

    data = facts["data"]
    reader = words_of(model, facts["model"], weights=weights, device=device)
    if java:
        check_java("METEOR")
    if isinstance(reader, Captioner):
        rules = GenerationConfig(beams=beams, no_repeat_ngram=no_repeat_ngram, max_length=reader.room(""))
        lines = _captions(reader, split, batch_size, rules, java, facts, folder)
    elif isinstance(reader, FusedModel):
        lines = _answers(reader, split, batch_size, facts, folder)
    elif isinstance(reader.network, EncoderDecoder):
        lines = _pairs(reader, split, batch_size, beams, facts, folder)
    else:
        assert isinstance(reader, Writer)
        lines = _language(reader, split, batch_size, run if _trained_on(run, data) else None, facts, folder)
    if facts["split"] == UNSPLIT and _trained_on(run, data):
        log.info("trained on         most of them: they flatter the model; give it others, or splits of its own")
    place = folder(facts["split"])
    name = "captions.jsonl" if isinstance(reader, Captioner) else "predictions.jsonl"
    if lines:
        write_text(place / name, "".join(dump_json(line) + "\n" for line in lines))
    write_text(place / "metrics.json", dump_json(facts, indent=1) + "\n")
    log.info("report             %s", display_path(place))
    return 0


def _captions(
    captioner: "Captioner",
    split: str | None,
    batch_size: int,
    rules: GenerationConfig,
    java: bool,
    facts: Facts,
    folder: Callable[[str], Path],
) -> list[Facts]:
    from vit.data.captions import list_evaluation_captions
    from vit.evaluate.captions import caption_scores
    from vit.evaluate.java_metrics import java_scores

    data = facts["data"]
    listing = list_evaluation_captions(data, split=split)
    ((name, entries),) = listing.splits.items()
    folder(name)  # now, not after an hour
    candidates: dict[str, str] = {}
    references: dict[str, list[str]] = {}
    lines: dict[str, Facts] = {}
    unreadable: list[dict[str, str]] = []
    bar = _bar(len(entries), "pictures")
    for start in range(0, len(entries), batch_size):
        pictures, read = [], []
        for entry in entries[start : start + batch_size]:
            try:
                pictures.append(captioner.prepare(entry.path))
                read.append(entry)
            except UnreadableImage as error:
                unreadable.append({"path": entry.path, "reason": error.reason})
        captions = captioner.caption(pictures, config=rules, batch_size=batch_size)
        for entry, caption in zip(read, captions, strict=True):
            candidates[entry.path], references[entry.path] = caption.text, list(entry.captions)
            lines[entry.path] = {"path": entry.path, "caption": caption.text, "score": caption.score}
            lines[entry.path]["finished"] = caption.finished
        bar.update(min(batch_size, len(entries) - start))
    bar.close()
    if not candidates:
        raise DataError(f"{display_path(data)}: none of the {len(entries)} pictures could be read")
    scores = caption_scores(candidates, references)
    facts |= {"split": name, "beams": rules.beams, "no_repeat_ngram": rules.no_repeat_ngram, **scores.as_dict()}
    facts |= {"unreadable": unreadable, "counts": listing.counts}
    facts["finished"] = sum(line["finished"] for line in lines.values()) / len(lines)
    facts["exact"] = _exact(captioner.tokenizer, candidates, references)
    for metric in ("meteor", "spice") if java else ():
        try:
            facts[metric] = java_scores(metric, candidates, references).score
        except VitError as error:
            log.info("left out           %s", error)
    for path, picture in scores.pictures.items():
        lines[path] |= {"bleu4": picture.bleu4, "rouge_l": picture.rouge_l, "cider_d": picture.cider_d}
    log.info("pictures           %d of %s, %s", scores.count, display_path(data), split_told(name))
    shown = {f"bleu{n}": scores.bleu[n - 1] for n in (1, 2, 3, 4)}
    shown |= {"rouge_l": scores.rouge_l, "cider_d": scores.cider_d}
    for key, value in shown.items():
        low, high = scores.intervals[key]
        log.info("%-18s %6.4f   (95 %%: %.4f to %.4f)", _METRICS[key], value, low, high)
    for metric in ("meteor", "spice"):
        if metric in facts:
            log.info("%-18s %6.4f", metric.upper(), facts[metric])
    log.info("word for word      %6.2f %%  one of the references", 100 * facts["exact"])
    log.info("distinct captions  %6.2f %%", 100 * scores.distinct_captions)
    log.info("ended properly     %6.2f %%", 100 * facts["finished"])
    log.info("words              %.1f a caption, %.2f of the references'", scores.mean_length, scores.length_ratio)
    for note in scores.notes:
        log.info("note               %s", note)
    _tell_left_out(unreadable, listing.counts)
    return list(lines.values())


def _exact(tokenizer: "Tokenizer", candidates: dict[str, str], references: dict[str, list[str]]) -> float:
    """The share of captions that are one of the references as the tokenizer gives those back (it may lack capitals)."""
    right = 0
    for path, text in candidates.items():
        right += text in {tokenizer.decode(tokenizer.encode(reference)) for reference in references[path]}
    return right / len(candidates)


_METRICS = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
}


def _answers(
    model: "FusedModel", split: str | None, batch_size: int, facts: Facts, folder: Callable[[str], Path]
) -> list[Facts]:
    from vit.data.questions import list_evaluation_questions

    data = facts["data"]
    listing = list_evaluation_questions(data, model.classes, split=split)
    ((name, entries),) = listing.splits.items()
    folder(name)
    alone = sum(entry.path is None for entry in entries)
    lines, unreadable = [], []
    right: dict[str, list[bool]] = {"both": [], "picture alone": [], "text alone": []}
    bar = _bar(len(entries), "texts")
    for start in range(0, len(entries), batch_size):
        pictures, asked = [], []
        for entry in entries[start : start + batch_size]:
            if entry.path is None:
                continue
            try:
                pictures.append(model.prepare(entry.path))
                asked.append(entry)
            except UnreadableImage as error:
                unreadable.append({"path": entry.path, "reason": error.reason})
        bar.update(min(batch_size, len(entries) - start))
        if not asked:
            continue
        texts = [entry.text for entry in asked]
        answers = {
            "both": model.predict(pictures, texts, top=1, batch_size=batch_size),
            "picture alone": model.predict(pictures, None, top=1, batch_size=batch_size),
            "text alone": model.predict(None, texts, top=1),
        }
        for what, predictions in answers.items():
            right[what] += [p.classes[0] == entry.label for p, entry in zip(predictions, asked, strict=True)]
        for prediction, entry in zip(answers["both"], asked, strict=True):
            line = {"path": entry.path, "text": entry.text, "label": entry.label}
            lines.append(line | {"answer": prediction.classes[0], "probability": prediction.probabilities[0]})
    bar.close()
    if not lines:
        raise DataError(f"{display_path(data)}: none of the {len(entries)} texts has a picture that can be read")
    counts = listing.counts | ({"texts without a picture": alone} if alone else {})
    facts |= {"split": name, "count": len(lines), "unreadable": unreadable, "unknown_classes": listing.unknown}
    facts["counts"] = counts
    log.info("texts              %d of %s, %s", len(lines), display_path(data), split_told(name))
    for what, outcomes in right.items():
        facts[what.replace(" ", "_")] = _share("accuracy" if what == "both" else what, outcomes)
    for label, count in listing.unknown.items():
        log.info("unknown answer     %s: %d texts, not counted", display_path(label), count)
    _tell_left_out(unreadable, counts)
    return lines


def _pairs(
    writer: "Writer", split: str | None, batch_size: int, beams: int, facts: Facts, folder: Callable[[str], Path]
) -> list[Facts]:
    from vit.data.text import list_evaluation_pairs

    data = facts["data"]
    listing = list_evaluation_pairs(data, split=split)
    ((name, pairs),) = listing.splits.items()
    folder(name)
    lines, right = [], []
    bar = _bar(len(pairs), "texts")
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        for (source, target), answer in zip(part, writer.answer([p.source for p in part], beams=beams), strict=True):
            expected = writer.tokenizer.decode(writer.tokenizer.encode(target))
            right.append(answer.text == expected)
            lines.append({"source": source, "target": target, "answer": answer.text, "right": right[-1]})
        bar.update(len(part))
    bar.close()
    facts |= {"split": name, "count": len(lines), "beams": beams, "counts": listing.counts}
    log.info("texts              %d of %s, %s", len(lines), display_path(data), split_told(name))
    facts["exact"] = _share("exactly right", right)
    _tell_left_out([], listing.counts)
    return lines


def _trained_on(run: Path | None, data: str) -> bool:
    """Whether DATA is what the run was trained on, or held a part of it out from."""
    return run is not None and read_json(run / "data.json").get("path") == str(Path(data).resolve())


def _language(
    writer: "Writer",
    split: str | None,
    batch_size: int,
    trained: Path | None,
    facts: Facts,
    folder: Callable[[str], Path],
) -> list[Facts]:
    """`trained` is the run that was trained on this very text, and held out its end."""
    import math

    from vit.cli.config import compose
    from vit.data.text import read_evaluation_corpus

    held_out = None if trained is None else compose([str(trained / "config.yaml")], []).data.val_fraction
    data = facts["data"]
    name, text = read_evaluation_corpus(data, split=split, val_fraction=held_out)
    folder(name)
    loss, tokens = writer.loss(text, batch_size=batch_size)
    letters = loss * tokens / math.log(2) / len(text)
    perplexity = math.exp(loss) if loss < 700 else None  # beyond, it does not fit in a float
    facts |= {"split": name, "tokens": tokens, "loss": loss, "perplexity": perplexity}
    facts["bits_per_character"] = letters
    log.info("tokens             %d of %d letters of %s, %s", tokens, len(text), display_path(data), split_told(name))
    log.info("loss               %.4f a token", loss)
    log.info("perplexity         %s", "too large for a float" if perplexity is None else f"{perplexity:.3f}")
    log.info("bits a letter      %.4f", letters)
    return []


def _tell_left_out(unreadable: list[dict[str, str]], counts: dict[str, int]) -> None:
    """Name what was not measured."""
    for left in unreadable[:20]:
        log.info("unreadable         %s: %s", display_path(left["path"]), left["reason"])
    for what, count in counts.items():
        if count:
            log.info("left out           %d %s", count, what)


def _share(name: str, outcomes: list[bool]) -> Facts:
    """Tell a share with its interval."""
    import numpy as np

    from vit.evaluate.bootstrap import mean_intervals

    (low,), (high,) = mean_intervals(np.asarray(outcomes)[:, None], seed=0)
    share = sum(outcomes) / len(outcomes)
    log.info("%-18s %6.2f %%   (95 %%: %.2f to %.2f)", name, 100 * share, 100 * low, 100 * high)
    return {"share": share, "interval": [float(low), float(high)]}


def _bar(count: int, unit: str) -> Any:
    import sys

    from tqdm import tqdm

    return tqdm(total=count, unit=f" {unit}", delay=2, leave=False, disable=not sys.stderr.isatty())
