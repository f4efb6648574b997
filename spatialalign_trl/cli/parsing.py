"""Parse the command lines of `spatialalign`: `argparse`, with one-line errors that name the nearest known option."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from spatialalign_trl.arguments.flags import UnderscoreParser, underscored
from spatialalign_trl.errors import near_miss
from spatialalign_trl.safe_text import printable_lines


class UsageError(Exception):
    """A command line that cannot be run. The message is shown to the user."""


class Parser(UnderscoreParser):
    """An `argparse` parser for one command.

    Options and positional words may come in any order, and options may be written with underscores or hyphens.
    Shortened options are not completed: an unknown option is an error that names the nearest known one. After an error
    the process exits with code 2.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line whose positional words may come between options.

        Args:
            words (sequence of `str`):
                The words after the command's name.

        Raises:
            SystemExit: with code 2 for a command line that does not fit the options, with 0 after `--help`.
        """
        values, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            option = unknown[0].partition("=")[0]
            options = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"there is no option {option}. {near_miss(underscored(option), options)}")
        return values

    def error(self, message: str) -> NoReturn:
        """Print the message and where to find help, and exit with code 2."""
        message = printable_lines(message)  # it may quote data, with codes for the terminal
        self.exit(2, f"{self.prog}: error: {message}\nRun '{self.prog} --help' to list the options.\n")


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """Return a type for `add_argument` that accepts only known words and names the nearest one in its error."""

    def check(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(f"there is no {kind} {word!r}. {near_miss(word, known)}")
        return word

    return check


def share(text: str) -> float:
    """Parse a number in [0, 1]; a type for `add_argument`."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 to 1")
    return value


def positive(text: str) -> int:
    """Parse a whole number of at least 1; a type for `add_argument`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def key_value(text: str) -> tuple[str, Any]:
    """Parse `"key=value"`; a type for `add_argument`. The value is parsed as JSON if it is valid JSON, else kept as
    text.
    """
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
