"""Compare nouns and texts whatever their case, their white space and the form of their accents."""

from __future__ import annotations

from spatialalign_trl.text_files import same_text


def normalize(text: str) -> str:
    """Return a text in the form in which texts are compared: composed characters (NFC) and single spaces."""
    return " ".join(same_text(text).split())


def is_same_noun(first: str, second: str) -> bool:
    """Return whether two nouns differ at most in case, white space and the form of their accents."""
    return normalize(first).casefold() == normalize(second).casefold()
