"""Parse a recipe's YAML and flags, and describe them for a model card. Errors name the nearest known name."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from trl import TrlParser

from spatialalign_trl.arguments.flags import UnderscoreParser, underscored
from spatialalign_trl.errors import near_miss
from spatialalign_trl.safe_text import mask_arguments, mask_secrets

if TYPE_CHECKING:
    from spatialalign_trl.trainer.model_card import Recipe


def parse_recipe(
    dataclass_types: Sequence[type],
    default_config: str | Path | None = None,
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> tuple[Any, ...]:
    """
    Parse `--config file.yaml` and command-line flags into dataclasses, as `TrlParser` does. Flags override the YAML.

    Args:
        dataclass_types (sequence of `type`):
            The dataclasses. Each of their fields is a flag, which may be written with underscores or with hyphens but
            not shortened.
        default_config (`str` or `Path`, *optional*):
            The YAML file to use when no `--config` is given.
        arguments (sequence of `str`, *optional*):
            The command line; defaults to `sys.argv[1:]`.
        prog (`str`, *optional*):
            The name of the command in error messages; defaults to the name of the running file.

    Returns:
        `tuple`: an instance of each dataclass, in the order of `dataclass_types`.

    Raises:
        SystemExit: with code 2 and a message on stderr, for an unknown flag or YAML key (the message names the nearest
            known one), for a value of the wrong type, and for a YAML file that is missing or not a mapping.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # TrlParser does not recognise `--config=FILE`, only the two words.
    arguments = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    if "--config" not in arguments and default_config is not None:
        arguments = ["--config", str(default_config), *arguments]
    parser = _RecipeParser(list(dataclass_types), allow_abbrev=False, prog=prog)
    known = {f.name for cls in dataclass_types for f in dataclasses.fields(cls) if f.init}
    if "--config" in arguments:
        _check_config(arguments, known | {"env"}, parser)
    *parsed, unknown = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    if unknown:
        name = underscored(unknown[0]).lstrip("-").split("=")[0]
        parser.error(f"unknown argument {unknown[0]!r}. {_nearest(name, known)}")
    return tuple(parsed)


def describe_recipe(
    parsed: Sequence[Any], default_config: str | Path | None = None, arguments: Sequence[str] | None = None
) -> Recipe:
    """
    Describe a run for its model card: the command line, and every setting made by the YAML file and the flags.

    Tokens are left out of both, and secrets are masked.

    Args:
        parsed (sequence):
            What [`parse_recipe`] returned.
        default_config (`str` or `Path`, *optional*):
            The `default_config` that was passed to [`parse_recipe`].
        arguments (sequence of `str`, *optional*):
            The command line; defaults to `sys.argv[1:]`.
    """
    from spatialalign_trl.trainer.model_card import Recipe

    script = sys.argv[0] if arguments is None else "recipe.py"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    config = words[words.index("--config") + 1] if "--config" in words else default_config
    settings = yaml.safe_load(Path(config).read_text(encoding="utf-8")) if config else {}
    flags = {underscored(word)[2:] for word in words if word.startswith("--")}
    values = {f.name: getattr(group, f.name) for group in parsed for f in dataclasses.fields(group) if f.init}
    for name, value in values.items():
        if name in flags or f"no_{name}" in flags:
            settings[name] = getattr(value, "value", value)
    hidden = [name for name in values if name.endswith("token")]
    settings = {name: value for name, value in settings.items() if name not in (*hidden, "env")}
    shown = [*words]
    for k, word in enumerate(words[:-1]):
        if underscored(word)[2:] in hidden:
            shown[k + 1] = "..."
    shown = mask_arguments(shown)
    command = shlex.join(["accelerate", "launch", os.path.relpath(script) if Path(script).is_absolute() else script])
    settings = mask_secrets(json.loads(json.dumps(settings, default=str)))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return Recipe(" ".join([command, shlex.join(shown)]).strip(), text)


class _RecipeParser(UnderscoreParser, TrlParser):
    """A `TrlParser` that checks values from a YAML file as argparse checks flags, and prints errors without usage."""

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        for action in self._actions:
            if config.get(action.dest) is not None:
                config[action.dest] = self._converted(action, config[action.dest])
        return super().set_defaults_with_config(**config)

    def _converted(self, action: argparse.Action, value: Any) -> Any:
        """Convert a YAML value as argparse would convert it on the command line."""
        if isinstance(value, dict):
            return value
        values = value if isinstance(value, list) else [value]
        if action.nargs != "+" and isinstance(value, list):
            return value  # a field such as report_to takes one word or several
        try:
            values = [self._get_value(action, item if isinstance(item, str) else str(item)) for item in values]
            for item in values:
                self._check_value(action, item)
        except argparse.ArgumentError as error:
            self.error(f"in the YAML file: {error}")
        return values if action.nargs == "+" else values[0]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _check_config(arguments: Sequence[str], known: set[str], parser: TrlParser) -> None:
    """Check the YAML file before TrlParser does, whose message on an unknown key lists all keys."""
    if arguments.count("--config") > 1:
        parser.error("--config is given more than once. Use one YAML file, and flags for what differs from it")
    place = arguments.index("--config") + 1
    if place == len(arguments):
        parser.error("--config needs the path of a YAML file after it")
    path = Path(arguments[place])
    if not path.is_file():
        parser.error(f"--config {path}: there is no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        parser.error(f"{path} is not a YAML file: {error}")
    if not isinstance(content, dict):
        parser.error(f"{path}: expected `name: value` lines, found {'nothing' if content is None else repr(content)}")
    for key in content:
        if key not in known:
            parser.error(f"{path}: unknown key {key!r}. {_nearest(str(key), known)}")


def _nearest(name: str, known: set[str]) -> str:
    sentence = near_miss(name, known)
    return sentence.split(" Known:")[0] if sentence.startswith("Did you mean") else "See --help for all of them."
