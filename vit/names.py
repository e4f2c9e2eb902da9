"""Names: one spelling for each class, none twice, and what is near a misspelt one."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Sequence

SPECIAL_IDS = "special_ids"
"""key beside those of a tokenizer.json that holds the ids by which a model's configuration starts and ends texts"""

_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff\u200b\u2060"
"""white space, and what is as invisible: byte order mark, zero-width space, word joiner"""


def class_name(text: str) -> str:
    """Return a class name in Unicode normalization form C, without white space and other blanks around it.

    File systems, editors and archives disagree on whether an accented letter is one code point (NFC) or a letter and
    a combining mark (NFD). Both look the same, so both must be the same class. CSV exports and editors leave blanks,
    line ends and byte order marks beside a label.
    """
    return unicodedata.normalize("NFC", text).strip(_BLANKS)


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names with their number behind each that occurs twice, as `crane (134)`: images are sorted by name."""
    names = [class_name(name) for name in names]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def near(name: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """Return `; near it: ...` with the most similar known names, or nothing."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    return f"; near it: {', '.join(found)}" if found else ""
