"""Accept every command-line flag with underscores and with hyphens; the help shows underscores, as TRL's does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def underscored(flag: str) -> str:
    """
    Return a long flag with underscores: `"--batch-size=2-3"` becomes `"--batch_size=2-3"`.

    Args:
        flag (`str`):
            A word of a command line. Words that do not begin with `--`, and values after `=`, are left as they are.
    """
    name, equals, value = flag.partition("=")
    if not name.startswith("--"):
        return flag
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


class UnderscoreParser(argparse.ArgumentParser):
    """An `argparse` parser whose flags may be written `--batch_size` or `--batch-size`.

    Flags are registered with underscores only, so that the help shows each of them once. Before a command line is
    parsed, known flags that are written with hyphens are respelt. Unknown flags, and all words after a lone `--`, are
    left as they are.
    """

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        return super().add_argument(*dict.fromkeys(map(underscored, names)), **options)

    def add_argument_group(self, *args: Any, **options: Any) -> argparse._ArgumentGroup:
        group = super().add_argument_group(*args, **options)
        add = group.add_argument
        group.add_argument = lambda *names, **kwargs: add(*dict.fromkeys(map(underscored, names)), **kwargs)
        return group

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        return super().parse_known_args(self._respelt(args), namespace)

    def parse_known_intermixed_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        return super().parse_known_intermixed_args(self._respelt(args), namespace)

    def _respelt(self, args: Sequence[str] | None) -> list[str]:
        """Return the words with every known flag under the name that it is registered with."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        for place, word in enumerate(words[:end]):
            flag = underscored(word)
            if flag.partition("=")[0] in self._option_string_actions:
                words[place] = flag
        return words
