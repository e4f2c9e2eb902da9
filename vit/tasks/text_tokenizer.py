"""Which tokenizer a run of words trains with."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from vit.data.tokenizer import Tokenizer
from vit.errors import ConfigError
from vit.models.file import ModelFile
from vit.scripts import MOSTLY, unspaced_fraction
from vit.tasks.config import Config

if TYPE_CHECKING:
    from vit.tasks.words import Words

log = logging.getLogger("vit")

KINDS = {"characters", "words", "wordpiece", "bpe"}
_AUTO = {"language": "bpe", "translate": "characters", "caption": "words", "fuse": "words"}
_LOOKED_AT = 10_000  # texts for validation whose words are looked up


def choose_tokenizer(words: "Words", config: Config, start: ModelFile | None) -> Tokenizer:
    """Return the tokenizer that `text.tokenizer` names, trained on the training texts where it is not a file.

    Where it is open and words do not suit the texts, it is one of characters, with a warning.
    """
    name = config.text.tokenizer
    if name == "auto" and start is not None:
        if start.tokenizer is None:
            raise ConfigError(f"text.init: {config.text.init} brings no tokenizer; name one by text.tokenizer")
        return Tokenizer.from_json(start.tokenizer)
    kind = _AUTO[config.task] if name == "auto" else name
    if kind not in KINDS:
        return Tokenizer.load(Path(kind))
    texts = [text for group in words.texts["train"] for text in group] + words.sources.get("train", [])
    tokenizer = Tokenizer.train(texts, kind, config.text.vocabulary)
    reason = _against_words(tokenizer, texts, chain.from_iterable(words.texts["val"])) if kind == "words" else None
    if reason is None:
        return tokenizer
    if name != "auto":
        log.warning("tokenizer  words: %s; characters or bpe suit the texts better", reason)
        return tokenizer
    log.warning("tokenizer  characters instead of words: %s", reason)
    return Tokenizer.train(texts, "characters", config.text.vocabulary)


def _against_words(tokenizer: Tokenizer, train: Sequence[str], val: Iterable[str]) -> str | None:
    """Return why a tokenizer of words does not suit the texts, or None where it does."""
    if (fraction := unspaced_fraction(train)) > MOSTLY:
        return f"{fraction:.0%} of the letters belong to scripts without spaces between words"
    ids = [number for text in islice(val, _LOOKED_AT) for number in tokenizer.encode(text)]
    unknown = ids.count(tokenizer.unknown or 0) / max(1, len(ids))
    return f"{unknown:.0%} of the words for validation are unknown in training" if unknown > 0.5 else None
