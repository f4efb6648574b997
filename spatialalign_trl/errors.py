"""One wording for "unknown name" errors: say what was given, the nearest known name, and all known names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one was probably meant to be; `None` when nothing is close."""
    return next(iter(difflib.get_close_matches(name, sorted(set(known)), n=1)), None)


def near_miss(name: str, known: Iterable[str]) -> str:
    """
    Build the tail of an error message about an unknown name.

    Args:
        name (`str`):
            The name that was not found.
        known (`Iterable[str]`):
            The names that exist.

    Returns:
        `str`: such as `"Did you mean 'dsr_score'? Known: dsr_score, object_grounding."`; the question is left out when
        nothing is close.
    """
    names = sorted(set(known))
    close = nearest(name, names)
    question = f"Did you mean {close!r}? " if close else ""
    return f"{question}Known: {', '.join(names) if names else 'none'}."
