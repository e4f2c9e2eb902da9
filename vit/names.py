"""Class names: one spelling for all of them."""

import unicodedata


def class_name(text: str) -> str:
    """Return a class name in Unicode normalization form C, without white space around it.

    File systems, editors and archives disagree on whether an accented letter is one code point (NFC) or a letter and
    a combining mark (NFD). Both look the same, so both must be the same class. CSV exports and editors leave blanks
    and line ends beside a label.
    """
    return unicodedata.normalize("NFC", text).strip()
