"""Parse a recipe's YAML and flags, and describe them for a model card. Errors name the nearest known name."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import yaml
from transformers import TrainingArguments
from trl import TrlParser

from spatialalign_trl.arguments.flags import UnderscoreParser, underscored
from spatialalign_trl.arguments.yaml_files import Setting, SettingsError, read_mapping, read_settings
from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.ranges import accepts_none, brief, check_fields, takes_mapping
from spatialalign_trl.safe_text import mask_arguments, mask_secrets

if TYPE_CHECKING:
    from spatialalign_trl.trainer.model_card import Recipe

ENV = "env"
"""Key of a settings file with variables of the environment."""


def parse_recipe(
    dataclass_types: Sequence[type],
    default_config: str | Path | None = None,
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> tuple[Any, ...]:
    """
    Parse `--config file.yaml` and command-line flags into dataclasses, as `TrlParser` does. Flags override the YAML.

    A value is converted in the same way wherever it stands: the text of a YAML value is read like a flag's.

    Args:
        dataclass_types (sequence of `type`):
            The dataclasses. Each of their fields is a flag, which may be written with underscores or with hyphens but
            not shortened.
        default_config (`str` or `Path`, *optional*):
            The YAML file to use when no `--config` is given. What it sets is nobody's wish: a flag may replace some of
            it (`REPLACES_DEFAULTS` of a dataclass).
        arguments (sequence of `str`, *optional*):
            The command line; defaults to `sys.argv[1:]`.
        prog (`str`, *optional*):
            The name of the command in error messages; defaults to the name of the running file.

    Returns:
        `tuple`: an instance of each dataclass, in the order of `dataclass_types`.

    Raises:
        SystemExit: with code 2 and one line on stderr, for an unknown flag or YAML key (it names the nearest known
            one), for a YAML file that cannot be read, and for a value of the wrong type or out of range.
    """
    words = _split_config(sys.argv[1:] if arguments is None else arguments)
    parser = _RecipeParser(list(dataclass_types), allow_abbrev=False, prog=prog)
    known = {f.name for cls in dataclass_types for f in dataclasses.fields(cls) if f.init}
    try:
        # 1. The file gives the defaults of the flags.
        file, words = _config_of(words, default_config)
        settings = _settings_of(file, file is not None and file == default_config, words, dataclass_types)
        for key in settings:
            if key not in known | {ENV}:
                raise SettingsError(f"{file}: unknown key {key!r}. {_nearest(key, known | {ENV})}")
        _set_environment(settings.pop(ENV, None))
        parser.set_defaults_with_config(**{key: parser.converted(key, value) for key, value in settings.items()})

        # 2. The flags override it, and the dataclasses check their values.
        *parsed, unknown = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            name = underscored(unknown[0]).lstrip("-").split("=")[0]
            parser.error(f"unknown argument {unknown[0]!r}. {_nearest(name, known)}")
        for group in parsed:
            if not isinstance(group, TrainingArguments):  # these have checked themselves, and changed some types
                check_fields(group)
    except SettingsError as error:
        parser.error(str(error))
    except ValueError as error:
        field = re.match(r"\w+", str(error))
        from_file = field is not None and field[0] in settings and field[0] not in _flags_in(words)
        parser.error(f"{file}: {error}" if from_file else str(error))
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
    words = [
        part
        for word in (sys.argv[1:] if arguments is None else arguments)
        for part in (word.split("=", 1) if word.startswith("--") else [word])
    ]
    file, flags = _config_of(words, default_config)
    is_default = file is not None and file == default_config
    values = {f.name: getattr(group, f.name) for group in parsed for f in dataclasses.fields(group) if f.init}
    settings = {
        name: setting.as_text() if isinstance(values.get(name), str) else setting.as_value()
        for name, setting in _settings_of(file, is_default, flags, [type(group) for group in parsed]).items()
    }
    for name, value in values.items():
        if name in _flags_in(flags):
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
    """A `TrlParser` that reads mappings in YAML's short form, converts a file's values, and prints one-line errors."""

    def __init__(self, dataclass_types: list[type], **options: Any) -> None:
        super().__init__(dataclass_types, **options)
        hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
        self._nullable = {name for name, hint in hints.items() if accepts_none(hint)}
        for action in self._actions:
            if action.dest in hints and takes_mapping(hints[action.dest]):
                action.type = functools.partial(_mapping_or_text, name=action.dest)
            if getattr(action.type, "__name__", "") == "string_to_bool":
                action.type = functools.partial(_boolean, convert=action.type)

    def converted(self, key: str, setting: Setting) -> Any:
        """Convert a value from a file as argparse would convert it on the command line."""
        action = next(action for action in self._actions if action.dest == key)
        text = setting.as_text()
        if text is None:
            if key not in self._nullable:
                default = action.default.value if hasattr(action.default, "value") else action.default
                raise SettingsError(
                    f"{setting.where} may not be null. Leave the line out for its default, {default!r}"
                )
            return None
        if isinstance(text, dict):
            if not isinstance(action.type, functools.partial) or action.type.func is not _mapping_or_text:
                raise SettingsError(f"{setting.where} is a mapping, but this setting takes none. Give a plain value")
            return text
        items = text if isinstance(text, list) else [text]
        if any(not isinstance(item, str) for item in items):
            raise SettingsError(f"{setting.where} has null, a list or a mapping inside of the list. Give plain values")
        if action.nargs != "+" and isinstance(text, list):
            return text  # a field such as report_to takes one word or several
        if getattr(action.type, "__name__", "") == "float":  # YAML's own spelling of what Python calls inf and nan
            items = [re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", item, flags=re.IGNORECASE) for item in items]
        try:
            values = [self._get_value(action, item) for item in items]
            for item in values:
                self._check_value(action, item)
        except argparse.ArgumentError as error:
            raise SettingsError(f"{setting.where}: {error}") from error
        return values if action.nargs == "+" else values[0]

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Read the single word None as null where a list may be absent."""
        if action.nargs == "+" and action.dest in self._nullable and [w.lower() for w in arg_strings] in _NULLS:
            return None
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        line = line if len(line) <= 1000 else f"{line[:600]} ... {line[-300:]}"
        self.exit(2, f"{self.prog}: error: {line}\n")


_NULLS = (["none"], ["null"])


def _mapping_or_text(text: str, *, name: str) -> dict[str, Any] | str | None:
    """Read a flag whose value is a mapping, or the path of a file with one."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return read_mapping(text, name) if text.lstrip().startswith("{") else text
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _boolean(text: str | bool, *, convert: Callable[[str], bool]) -> bool:
    """Read a boolean; YAML 1.1's `on` and `off` too."""
    return convert({"on": "true", "off": "false"}.get(str(text).lower(), text))


def _split_config(words: Sequence[str]) -> list[str]:
    """Split `--config=FILE` into its two words, which is the form that is looked for."""
    return [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]


def _config_of(words: Sequence[str], default: str | Path | None) -> tuple[str | Path | None, list[str]]:
    """Return the settings file that a command line names, or else the default one, and the other words."""
    words = list(words)
    if "--config" not in words:
        return default, words
    if words.count("--config") > 1:
        raise SettingsError("--config is given more than once. Use one YAML file, and flags for what differs from it")
    place = words.index("--config")
    if place + 1 == len(words):
        raise SettingsError("--config needs the path of a YAML file after it")
    return words[place + 1], words[:place] + words[place + 2 :]


def _settings_of(
    file: str | Path | None, is_default: bool, words: Sequence[str], dataclass_types: Sequence[type]
) -> dict[str, Setting]:
    """Read a settings file; of a default one, without what the flags replace."""
    if file is None:
        return {}
    settings, flags = read_settings(Path(file)), _flags_in(words)
    for cls in dataclass_types if is_default else ():
        for name, replaced in getattr(cls, "REPLACES_DEFAULTS", {}).items():
            if name in flags:
                settings = {key: value for key, value in settings.items() if key not in replaced}
    return settings


def _flags_in(words: Sequence[str]) -> set[str]:
    """Return the names of the fields that the flags of a command line set."""
    names = {underscored(word)[2:].partition("=")[0] for word in words if word.startswith("--")}
    return names | {name.removeprefix("no_") for name in names}


def _set_environment(setting: Setting | None) -> None:
    """Set the environment's variables that a settings file names."""
    if setting is None:
        return
    variables = setting.as_value()
    if not isinstance(variables, Mapping):
        raise SettingsError(f"{setting.where}: expected a mapping, such as {{NAME: value}}, found {brief(variables)}")
    for name, value in variables.items():
        if not isinstance(value, (str, int, float)):
            raise SettingsError(f"{setting.where}: {name}={brief(value)} is no text. Quote it")
        if not name or "=" in name or "\0" in f"{name}{value}":
            raise SettingsError(f"{setting.where}: {name!r} cannot be a variable of the environment. Rename it")
        os.environ[name] = str(value)


def _nearest(name: str, known: set[str]) -> str:
    sentence = near_miss(name, known)
    return sentence.split(" Known:")[0] if sentence.startswith("Did you mean") else "See --help for all of them."
