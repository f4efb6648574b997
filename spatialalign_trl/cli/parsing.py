"""Reading a command line: `argparse`, with errors of one line that say what was probably meant."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from spatialalign_trl.errors import near_miss


class UsageError(Exception):
    """The line cannot be run as it is given; the message is for the one who typed it."""


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that takes options and positional words in any order, never guesses at a shortened option,
    and answers an unknown one with the nearest there is. It exits with code 2 after an error.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options' values; positional words may stand between options."""
        values, unknown = self.parse_known_intermixed_args(list(words))
        if unknown:
            option = unknown[0].partition("=")[0]
            options = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"there is no option {option}. {near_miss(option, options)}")
        return values

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n'{self.prog} --help' lists the options.\n")


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """A type for `add_argument` that refuses other words with the nearest known one."""

    def check(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(f"there is no {kind} {word!r}. {near_miss(word, known)}")
        return word

    return check


def share(text: str) -> float:
    """A type for `add_argument`: a number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 to 1")
    return value


def positive(text: str) -> int:
    """A type for `add_argument`: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def key_value(text: str) -> tuple[str, Any]:
    """A type for `add_argument`: `"key=value"`; the value is read as JSON where it is some, else kept as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    words = {"True": True, "False": False, "None": None}
    if value in words:
        return key, words[value]
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
