"""Scripts that are written without spaces between words, in which splitting at spaces finds no words."""

import re
from collections.abc import Iterable
from itertools import islice

# Thai, Lao, Tibetan, Myanmar, Khmer, New Tai Lue and Tai Tham, Hiragana, Katakana, Bopomofo, Han
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1980-\u19df\u1a20-\u1aaf\u3040-\u30ff\u3100-\u312f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
_LETTER = re.compile(r"[^\W\d_]")
_LOOKED_AT = 10_000  # texts

MOSTLY = 0.1
"""fraction of such letters from which on texts count as written without spaces; names alone are far below"""


def unspaced_fraction(texts: Iterable[str]) -> float:
    """Return the fraction of the letters of the first 10,000 texts that belong to scripts without spaces."""
    unspaced = letters = 0
    for text in islice(texts, _LOOKED_AT):
        unspaced += len(_UNSPACED.findall(text))
        letters += len(_LETTER.findall(text))
    return unspaced / max(letters, unspaced, 1)
