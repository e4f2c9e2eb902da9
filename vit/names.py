"""Class names: one spelling for all of them."""

import unicodedata


def class_name(text: str) -> str:
    """Return a class name in Unicode normalization form C.

    File systems, editors and archives disagree on whether an accented letter is one code point (NFC) or a letter and
    a combining mark (NFD). Both look the same, so both must be the same class.
    """
    return unicodedata.normalize("NFC", text)
