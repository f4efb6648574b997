"""Read settings files: YAML whose texts stay as they are written, and errors of one line with file, key and remedy.

YAML 1.1, which PyYAML implements, reads `1e-5` as a text, `012345` as 5349, `1.10` as 1.1 and `no` as false. Here the
text of a setting is kept, and the field that it sets converts it as it converts a flag. Only inside a mapping, which
has no fields, numbers and booleans are recognised by their form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from spatialalign_trl.models.ranges import brief
from spatialalign_trl.text_files import TextFileError, decode_text

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
"""The number of values in a file with its aliases written out. An alias bomb has billions of them."""
MAX_DEPTH = 20

_STANDARD = "tag:yaml.org,2002:"
_NULL, _MERGE, _STR = f"{_STANDARD}null", f"{_STANDARD}merge", f"{_STANDARD}str"
_TAGS = {_STANDARD + name for name in ("null", "merge", "bool", "int", "float", "str", "seq", "map")}


class SettingsError(ValueError):
    """A settings file, or a value in it, that cannot be used; the message is one line."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, and the numbers of Python: `1e-5`, `1_000`, `2e-2`."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name and form)


for _tag, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", list("tTfFyYnNoO")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+|[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)|[-+]?(?:inf|Inf|nan|NaN)",
        list("-+0123456789.iInN"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_STANDARD}{_tag}", re.compile(rf"^(?:{_form})$"), _first)


def _number(loader: _Loader, node: ScalarNode) -> int | float:
    text = loader.construct_scalar(node).replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
    return int(text) if node.tag == f"{_STANDARD}int" else float(text)


_Loader.add_constructor(f"{_STANDARD}int", _number)
_Loader.add_constructor(f"{_STANDARD}float", _number)


@dataclass(frozen=True)
class Setting:
    """
    A value of a settings file.

    Args:
        node (`yaml.Node`):
            The parsed value.
        where (`str`):
            File, line and key, for messages.
    """

    node: Node
    where: str

    def as_text(self) -> str | list[Any] | dict[str, Any] | None:
        """Return the text as it is written, `None` for null, a list of these, or a mapping's value."""
        return _text(self.node, self.where)

    def as_value(self) -> Any:
        """Return the value, with numbers and booleans recognised by their form."""
        return _value(self.node, self.where)


def read_settings(path: Path) -> dict[str, Setting]:
    """
    Read a settings file.

    Args:
        path (`Path`):
            A YAML file, in UTF-8, with a mapping at its top.

    Returns:
        `dict[str, Setting]`: the settings by key, in the file's order.

    Raises:
        SettingsError: if there is no such file, it is no text in UTF-8, no YAML or no mapping, a key appears twice, or
            it is larger than settings are (an alias bomb).
    """
    node = _parsed(_decoded(path), str(path))
    if not isinstance(node, MappingNode):
        found = "nothing" if node is None else brief(_value(node, str(path)))
        raise SettingsError(f"{path}: expected `name: value` lines, found {found}")
    _Loader("").flatten_mapping(node)  # merge keys (<<)
    return {key.value: Setting(value, f"{_where(path, key)}: {key.value}") for key, value in node.value}


def read_mapping(text: str, name: str) -> dict[str, Any]:
    """
    Read a mapping that is written as text, in JSON or in YAML's short form: `{motion: 0.02}`.

    Args:
        text (`str`):
            The text.
        name (`str`):
            How errors refer to it.

    Raises:
        SettingsError: if it is no mapping, or a key appears twice.
    """
    node = _parsed(text, f"{name}={brief(text)}")
    if not isinstance(node, MappingNode):
        raise SettingsError(f"{name}={brief(text)}: expected a mapping, such as '{{name: value}}'")
    return _value(node, name)


def _decoded(path: Path) -> str:
    """Read a file that must be a text in UTF-8."""
    if path.is_dir():
        raise SettingsError(f"{path} is a folder. Name a YAML file in it")
    if not path.is_file():
        raise SettingsError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{path} is larger than {MAX_BYTES:_} bytes, so it is no file of settings. Name another")
    try:
        return decode_text(data, str(path))
    except TextFileError as error:
        key = f", key {error.text.partition(':')[0].strip()!r}" if re.match(r"\w+\s*:", error.text) else ""
        where = f"{error.place}{key}: " if error.line else f"{path} "
        raise SettingsError(f"{where}{error.problem}") from error


def _parsed(text: str, origin: str) -> Node | None:
    """Parse a text to nodes, and check them, before anything is made of them."""
    try:
        _check_depth(text, origin)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split())
        raise SettingsError(f"{origin} is not valid YAML: {problem}{line}. Correct it, or quote the text") from error
    if node is not None:
        _check_node(node, origin)
    return node


def _check_depth(text: str, origin: str) -> None:
    """Refuse deep nesting, on which PyYAML's composer fails after seconds."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            where = f"{origin}, line {event.start_mark.line + 1}"
            raise SettingsError(f"{where}: nested too deeply. Settings have at most {MAX_DEPTH} levels")


def _check_node(node: Node, origin: str) -> None:
    """Refuse aliases that multiply, deep nesting, tags of other programs, and keys that appear twice."""
    for count, (one, depth) in enumerate(_walk(node, 0)):
        if count > MAX_VALUES:
            raise SettingsError(
                f"{origin} has more than {MAX_VALUES:_} values once its aliases (*name) are written out. Remove them"
            )
        where = f"{origin}, line {one.start_mark.line + 1}"
        if depth > MAX_DEPTH:
            raise SettingsError(f"{where}: nested too deeply, or an alias (*name) inside of what it stands for")
        if one.tag not in _TAGS:
            raise SettingsError(f"{where}: the tag {one.tag.replace(_STANDARD, '!!')!r} is not allowed. Remove it")
        if isinstance(one, MappingNode):
            for key, _ in one.value:
                if not isinstance(key, ScalarNode):
                    raise SettingsError(f"{where}: a key must be a name, found a list or a mapping. Correct that line")
                if key.tag != _MERGE:
                    key.tag = _STR
            keys = [key.value for key, _ in one.value if key.tag != _MERGE]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                lines = [key.start_mark.line + 1 for key, _ in one.value if key.value == twice]
                raise SettingsError(
                    f"{origin}: the key {twice!r} appears twice, in lines {lines[0]} and {lines[1]}. Remove one"
                )


def _walk(node: Node, depth: int) -> Iterator[tuple[Node, int]]:
    """Iterate over a node and all that it contains, with aliases written out. Ends at the depth that is refused."""
    yield node, depth
    if depth > MAX_DEPTH or isinstance(node, ScalarNode):
        return
    parts = node.value if isinstance(node, SequenceNode) else [part for pair in node.value for part in pair]
    for part in parts:
        yield from _walk(part, depth + 1)


def _where(path: Path, node: Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _text(node: Node, where: str) -> Any:
    if isinstance(node, SequenceNode):
        return [_text(item, where) for item in node.value]
    if isinstance(node, MappingNode):
        return _value(node, where)
    return None if node.tag == _NULL else node.value


def _value(node: Node, where: str) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # such as an explicit !!int of a word
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise SettingsError(f"{where}: {problem}. Correct that value") from error
    finally:
        loader.dispose()
