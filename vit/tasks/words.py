"""A training run of words: its data read, its tokenizer and network made, its task."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from vit.data.augment import TrainingTransform
from vit.data.captions import list_captions
from vit.data.config import Preprocessing
from vit.data.dataset import ImageDataset
from vit.data.folders import Sample
from vit.data.questions import Asked, list_questions
from vit.data.text import list_pairs, read_corpus
from vit.data.tokenizer import Tokenizer
from vit.data.transforms import EvaluationTransform
from vit.data.walk import LeftOut
from vit.data.word_module import WordsData
from vit.data.words import Texts, WindowDataset, WordDataset
from vit.errors import ConfigError, DataError
from vit.models.architecture import VisionArchitecture
from vit.models.build import require_kind, start_from, text_architecture_from
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, State
from vit.models.fusion import FusedClassifier
from vit.models.sources import load_model
from vit.models.text import LanguageModel, TextTransformer
from vit.models.text_architecture import EncoderDecoderArchitecture, FusionArchitecture, TextArchitecture
from vit.models.vision import VisionTransformer
from vit.tasks.config import Config
from vit.tasks.devices import settled_precision
from vit.tasks.fuse import Fuse
from vit.tasks.run import new_network, settle_cache, settle_encoder, typical_side
from vit.tasks.text_tokenizer import choose_tokenizer
from vit.tasks.write import Write

_MOST = 256
"""tokens of a text that is written, where text.length is left open"""


@dataclass
class Words:
    """What was read: texts by split with what they belong to. Lists of one split have one entry a sample."""

    texts: dict[str, list[tuple[str, ...]]]
    """to be written, or to be read in fuse"""
    images: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    """of each text"""
    notes: list[str] = field(default_factory=list)
    """what was skipped, in numbers"""
    skipped: list[LeftOut] = field(default_factory=list)

    def fingerprint(self) -> str:
        """SHA-256 of all that training depends on but the pictures' contents: a resumed run must find the same."""
        digest = hashlib.sha256()
        parts: tuple[dict[str, Any], ...] = (self.texts, self.images, self.sources, self.labels)
        for part in parts:
            for split, entries in sorted(part.items()):
                digest.update(f"{split} {len(entries)}".encode())
                for entry in entries:
                    digest.update(repr(entry).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    @property
    def classes(self) -> list[str]:
        """The answers of the training questions."""
        return sorted(set(chain.from_iterable(self.labels.get("train", ()))))


@dataclass
class WordRun:
    """All that a run of words needs, decided before the first step."""

    config: Config
    words: Words
    tokenizer: Tokenizer
    task: Write | Fuse
    data: WordsData
    cut: int
    """training texts that were cut to the model's length"""
    cache_reason: str = ""
    """why `data.cache` was chosen, where it was left open"""


def read_words(data: str, config: Config) -> Words:
    """Read DATA as the task wants it. Raises DataError where there is nothing to train or to validate on."""
    shares: dict[str, Any] = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
    grouping: dict[str, Any] = {
        "group_duplicates": config.data.group_duplicates,
        "max_pixels": config.data.max_pixels,
    }
    seed = config.train.seed
    if config.task == "caption":
        captions = list_captions(data, **shares, **grouping, seed=seed)
        found = Words(
            {split: [entry.captions for entry in entries] for split, entries in captions.splits.items()},
            images={split: [entry.path for entry in entries] for split, entries in captions.splits.items()},
            notes=[f"{count} {what}" for what, count in captions.counts.items() if count],
            skipped=captions.left_out,
        )
    elif config.task == "fuse":
        questions = list_questions(data, **shares, **grouping, seed=seed)
        questions.require_readable(config.data.max_pixels)
        asked = {split: _by_picture(entries) for split, entries in questions.splits.items()}
        alone = sum(entry.path is None for entries in questions.splits.values() for entry in entries)
        unknown = sum(questions.unknown.values())
        found = Words(
            {split: [tuple(entry.text for entry in group) for group in asked[split].values()] for split in asked},
            images={split: list(groups) for split, groups in asked.items()},
            labels={
                split: [tuple(entry.label for entry in group) for group in asked[split].values()] for split in asked
            },
            notes=[f"{count} {what}" for what, count in questions.counts.items() if count]
            + ([f"{alone} texts without a picture"] if alone else [])
            + ([f"{unknown} texts whose answer training lacks"] if unknown else []),
            skipped=questions.left_out,
        )
    elif config.task == "translate":
        pairs = list_pairs(data, **shares, seed=seed)
        found = Words(
            {split: [(target,) for _, target in entries] for split, entries in pairs.splits.items()},
            sources={split: [source for source, _ in entries] for split, entries in pairs.splits.items()},
            notes=[f"{count} {what}" for what, count in pairs.counts.items() if count],
            skipped=pairs.left_out,
        )
    else:
        corpus = read_corpus(data, val_fraction=config.data.val_fraction)
        found = Words({"train": [(corpus.train,)], "val": [(corpus.val,)]})
    for split in ("train", "val"):
        if not found.texts.get(split):
            raise DataError(f"{data}: nothing to {'train' if split == 'train' else 'validate'} on")
    return found


def _by_picture(entries: Iterable[Asked]) -> dict[str, list[Asked]]:
    groups: dict[str, list[Asked]] = {}
    for entry in entries:
        if entry.path is not None:
            groups.setdefault(entry.path, []).append(entry)
    return groups


def set_up_words(words: Words, config: Config, *, tokenizer: Tokenizer | None = None) -> WordRun:
    """Settle what the configuration left open, make the network, its task and its batches.

    `tokenizer` is that of a run to resume. Raises ConfigError where settings, data and weights do not go together.
    """
    config = replace(config, train=replace(config.train, precision=settled_precision(config.train)))
    lr, layer_decay = config.optim.rates()
    if layer_decay != 1:
        raise ConfigError(f"optim.layer_decay: must be 1 for task {config.task}, got {layer_decay}")
    config = replace(
        config,
        optim=replace(config.optim, lr=lr, layer_decay=layer_decay),
        augment=config.augment.settled(words=True),
    )
    start = None if config.text.init is None else load_model(config.text.init)
    tokenizer = tokenizer or choose_tokenizer(words, config, start)
    made = {"language": _language, "caption": _caption, "translate": _translate, "fuse": _fuse}[config.task]
    return made(words, config, tokenizer, start)


def _language(words: Words, config: Config, tokenizer: Tokenizer, start: ModelFile | None) -> WordRun:
    tokens = {split: np.asarray(tokenizer.encode(text), np.int32) for split, ((text,),) in words.texts.items()}
    length = config.text.length or (256 if start is None else start.architecture["length"])
    if start is not None and length > (most := start.architecture["length"]):
        raise ConfigError(f"text.length: {config.text.init} reads at most {most} tokens, got {length}")
    for split, fewest in (("train", length + 1), ("val", 2)):
        if (count := len(tokens[split])) < fewest:
            remedy = "lower text.length" if count > 1 else "give it more text"
            raise DataError(f"{split}: {count} tokens are too few for windows of {length}; {remedy}")
    config = replace(config, text=replace(config.text, length=length))
    architecture = _text_architecture(config, tokenizer, length, dim=config.text.dim or 384, depth=6, start=start)
    network = new_network(lambda: LanguageModel(architecture))
    _start_text(network, start, config)
    steps = config.text.epoch_steps or -(-(len(tokens["train"]) - 1) // (length * config.data.batch_size))
    windows = -(-(len(tokens["val"]) - 1) // length)  # the last one may be shorter
    train = WindowDataset(
        tokens["train"], length, steps * config.data.batch_size, training=True, seed=config.train.seed
    )
    val = WindowDataset(tokens["val"], length, windows, training=False)
    task = Write(network, tokenizer, config, kind="language")
    task.count_per_sample = length
    return WordRun(config, words, tokenizer, task, WordsData(train, val, config.data, config.train.seed), 0)


def _caption(words: Words, config: Config, tokenizer: Tokenizer, start: ModelFile | None) -> WordRun:
    config, encoder, preprocessing, first = settle_encoder(config, typical_side(words.images["train"]), 0)
    config, reason = settle_cache(config, words.images["train"], preprocessing)
    texts, config = _encoded(words, config, tokenizer, start)
    assert config.text.length is not None
    dim = config.text.dim or encoder.dim
    decoder = _text_architecture(config, tokenizer, config.text.length, dim=dim, depth=4, context=encoder, start=start)
    network = new_network(lambda: EncoderDecoder(EncoderDecoderArchitecture(encoder, decoder)))
    if first is not None:
        assert isinstance(network.encoder, VisionTransformer)
        start_from(first, network.encoder, [])
    _start_text(network.decoder, start, config)
    train, val = (_dataset(words, split, texts, config, preprocessing) for split in ("train", "val"))
    task = Write(
        network,
        tokenizer,
        config,
        kind="captioner",
        preprocessing=preprocessing,
        expected=_as_written(words.texts["val"], tokenizer),
        references=words.texts["train"],
    )
    task.count_per_sample = config.text.per_picture * texts["train"].mean_tokens
    if first is not None:
        task.licence, task.origin = first.licence, f"encoder from {config.model.init}"
    data = WordsData(train, val, config.data, config.train.seed)
    return WordRun(config, words, tokenizer, task, data, texts["train"].cut, reason)


def _translate(words: Words, config: Config, tokenizer: Tokenizer, start: ModelFile | None) -> WordRun:
    if start is not None:
        raise ConfigError("text.init: is not for task translate, whose encoder and decoder start afresh")
    texts, config = _encoded(words, config, tokenizer, start)
    assert config.text.length is not None
    dim = config.text.dim or 256
    sources = {split: Texts([tokenizer.encode(text) for text in words.sources[split]]) for split in ("train", "val")}
    longest = max(int(part.lengths.max()) for part in sources.values())
    encoder = _text_architecture(config, tokenizer, max(longest + 8, config.text.length), dim=dim, depth=4)
    decoder = _text_architecture(config, tokenizer, config.text.length, dim=dim, depth=4, context=encoder)
    network = new_network(lambda: EncoderDecoder(EncoderDecoderArchitecture(encoder, decoder)))
    train, val = (_dataset(words, split, texts, config, None, sources=sources[split]) for split in ("train", "val"))
    expected = _as_written(words.texts["val"], tokenizer)
    task = Write(network, tokenizer, config, kind="translator", expected=expected)
    task.count_per_sample = texts["train"].mean_tokens
    return WordRun(
        config, words, tokenizer, task, WordsData(train, val, config.data, config.train.seed), texts["train"].cut
    )


def _fuse(words: Words, config: Config, tokenizer: Tokenizer, start: ModelFile | None) -> WordRun:
    classes = words.classes
    unknown = sorted(set(chain.from_iterable(words.labels["val"])) - set(classes))
    if len(classes) < 2 or unknown:
        reason = f"answers that training lacks: {', '.join(unknown[:3])}" if unknown else "needs two answers or more"
        raise DataError(f"the questions for validation have {reason}" if unknown else f"fuse {reason}")
    config, encoder, preprocessing, first = settle_encoder(config, typical_side(words.images["train"]), 0)
    config, reason = settle_cache(config, words.images["train"], preprocessing)
    texts, config = _encoded(words, config, tokenizer, start)
    assert config.text.length is not None
    dim = config.text.dim or encoder.dim
    text = _text_architecture(config, tokenizer, config.text.length, dim=dim, depth=4, start=start)
    fusion = FusionArchitecture(
        encoder, text, len(classes), depth=config.text.fusion_depth, attends=config.text.attends
    )
    network = new_network(lambda: FusedClassifier(fusion))
    if first is not None:
        start_from(first, network.image, [])
    _start_text(network.text, start, config)
    numbers = {name: number for number, name in enumerate(classes)}
    train, val = (
        _dataset(
            words,
            split,
            texts,
            config,
            preprocessing,
            labels=[numbers[name] for name in chain.from_iterable(words.labels[split])],
        )
        for split in ("train", "val")
    )
    task = Fuse(network, classes, tokenizer, preprocessing, config)
    data = WordsData(train, val, config.data, config.train.seed)
    return WordRun(config, words, tokenizer, task, data, texts["train"].cut, reason)


@dataclass
class _Encoded:
    texts: Texts
    groups: list[list[int]]
    cut: int

    @property
    def mean_tokens(self) -> float:
        """Predicted tokens per text: all but the first."""
        return float(self.texts.lengths.mean()) - 1


def _encoded(
    words: Words, config: Config, tokenizer: Tokenizer, start: ModelFile | None
) -> tuple[dict[str, _Encoded], Config]:
    """All texts as tokens, from the start token to the end token where they are to be written, cut to the length."""
    written = config.task != "fuse"
    encoded: dict[str, list[list[list[int]]]] = {}
    for split in ("train", "val"):
        encoded[split] = [[_framed(tokenizer, text, written) for text in group] for group in words.texts[split]]
    longest = max(len(text) for text in chain.from_iterable(encoded["train"]))
    length = config.text.length or min(longest + 8, _MOST)
    if start is not None:
        length = min(config.text.length or longest + 8, start.architecture["length"])
    parts = {}
    for split, groups in encoded.items():
        places, texts, cut = list[list[int]](), list[list[int]](), 0
        for group in groups:
            places.append(list(range(len(texts), len(texts) + len(group))))
            texts += [text[:length] for text in group]
            cut += sum(len(text) > length for text in group)
        parts[split] = _Encoded(Texts(texts), places, cut)
    return parts, replace(config, text=replace(config.text, length=length))


def _framed(tokenizer: Tokenizer, text: str, written: bool) -> list[int]:
    ids = tokenizer.encode(text)
    if not written:
        return ids or [tokenizer.end]  # a text of nothing is still a text
    return [tokenizer.start, *ids, tokenizer.end]


def _as_written(groups: Iterable[Sequence[str]], tokenizer: Tokenizer) -> list[list[str]]:
    """Texts as the tokenizer gives them back, which is how they can be written."""
    return [[tokenizer.decode(tokenizer.encode(text)) for text in group] for group in groups]


def _dataset(
    words: Words,
    split: str,
    texts: dict[str, _Encoded],
    config: Config,
    preprocessing: Preprocessing | None,
    *,
    sources: Texts | None = None,
    labels: Sequence[int] | None = None,
) -> WordDataset:
    images = None
    if preprocessing is not None:
        training = split == "train"
        side = config.data.cache_side
        transform: TrainingTransform | EvaluationTransform = EvaluationTransform(preprocessing)
        if training:
            transform = TrainingTransform(config.augment, preprocessing, kept_side=side)
        samples = [Sample(path, 0) for path in words.images[split]]
        images = ImageDataset(samples, transform, seed=config.train.seed)
    part = texts[split]
    return WordDataset(
        part.groups,
        part.texts,
        images=images,
        sources=sources,
        labels=labels,
        training=split == "train",
        drawn=config.text.per_picture,
        seed=config.train.seed,
    )


def _text_architecture(
    config: Config,
    tokenizer: Tokenizer,
    length: int,
    *,
    dim: int,
    depth: int,
    context: VisionArchitecture | TextArchitecture | None = None,
    start: ModelFile | None = None,
) -> TextArchitecture:
    context_dim = None if context is None else context.dim
    if start is not None:
        fields = start.architecture | {"context_dim": context_dim, "dropout": config.text.dropout}
        architecture = text_architecture_from(fields)
        if architecture.vocabulary != len(tokenizer):
            there, here = architecture.vocabulary, len(tokenizer)
            raise ConfigError(f"text.tokenizer: has {here} tokens, the weights of text.init know {there}")
        for name in ("dim", "depth", "heads", "hidden"):
            if (value := getattr(config.text, name)) is not None:
                raise ConfigError(f"text.{name}: the weights of text.init settle it, got {value}")
        return architecture
    t = config.text
    return TextArchitecture(
        vocabulary=len(tokenizer),
        length=length,
        dim=dim,
        depth=t.depth or depth,
        heads=t.heads or max(1, dim // 64),
        hidden=t.hidden or 4 * dim,
        context_dim=context_dim,
        positions=t.positions,
        rope=t.rope,
        dropout=t.dropout,
        attention_dropout=t.dropout,
    )


def _start_text(network: TextTransformer, start: ModelFile | None, config: Config) -> None:
    """Put the weights of text.init into a network of their shape; cross-attention, which they lack, stays fresh."""
    if start is None:
        return
    kinds = ("text-encoder", "language") if config.task == "fuse" else ("language",)
    require_kind(start, kinds, config.text.init)
    state: State = dict(start.weights())
    own = network.state_dict()
    fresh = {name: tensor for name, tensor in own.items() if "cross_" in name or name.startswith("context_proj")}
    for name in sorted(own.keys() | state.keys()):
        there, here = (tuple(s[name].shape) if name in s else None for s in (state, own))
        if there != here and name not in fresh:
            raise ConfigError(
                f"text.init: {name} is {there or 'absent'} in the file and {here or 'absent'} in the model"
            )
    network.load_state_dict(fresh | state)
