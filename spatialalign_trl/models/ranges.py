"""Check dataclasses of settings: every field has a type, and every numeric one a range, written beside its type.

    lora_r: Annotated[int, Range(at_least=1)] = field(default=16, ...)

TRL's parser, dataclasses and type checkers ignore what `Annotated` adds: the command line is the same without it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import types
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

from spatialalign_trl.errors import near_miss

MAY_BE_EMPTY = frozenset({"negative_prompt", "null_prompt", "debug", "fsdp", "optim_args"})
"""Texts that may be empty, because that is a value of its own: no negative prompt, nothing to debug."""


@dataclasses.dataclass(frozen=True)
class Range:
    """
    The finite numbers that a setting may have.

    Args:
        at_least, above, at_most, below (`float`, *optional*):
            The bounds. `at_least` and `at_most` belong to the range, `above` and `below` do not.
        also (`float`, *optional*):
            One more value with a meaning of its own, such as -1.
        note (`str`, *optional*):
            A sentence that an error adds, such as what a usual value is.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    also: float | None = None
    note: str = ""

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return value == self.also or (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = self.at_least if self.at_least is not None else self.above
        high = self.at_most if self.at_most is not None else self.below
        if low is not None and high is not None:
            opening, closing = "[" if self.at_least is not None else "(", "]" if self.at_most is not None else ")"
            text = f"in {opening}{low:_}, {high:_}{closing}"
        elif low is not None:
            text = f"at least {low:_}" if self.at_least is not None else f"above {low:_}"
        elif high is not None:
            text = f"at most {high:_}" if self.at_most is not None else f"below {high:_}"
        else:
            text = "a finite number"
        return text if self.also is None else f"{text}, or {self.also}"


FINITE = Range()
SHARE = Range(at_least=0, at_most=1)
COUNT = Range(at_least=1, at_most=1_000_000)
SEED = Range(at_least=0, at_most=2**32 - 1)
"""What numpy accepts as a seed."""


class _Field(NamedTuple):
    """What [`check_fields`] knows about a field."""

    name: str
    hint: Any
    range: Range | None
    choices: tuple[Any, ...] | None


@functools.cache
def _fields_of(settings_type: type) -> tuple[_Field, ...]:
    hints = get_type_hints(settings_type, include_extras=True)
    found = []
    for one in dataclasses.fields(settings_type):
        if not one.init:
            continue
        hint, limits = hints[one.name], None
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            limits = next((extra for extra in extras if isinstance(extra, Range)), None)
        choices = one.metadata.get("choices")
        found.append(_Field(one.name, hint, limits, tuple(choices) if choices else None))
    return tuple(found)


def check_fields(settings: Any, ranges: Mapping[str, Range] | None = None) -> None:
    """
    Check the types of all fields of a dataclass, the ranges of the numeric ones, and the texts.

    Whole numbers that are written as `8.0`, and numpy's, become Python's `int` and `float`.

    Args:
        settings (dataclass instance):
            The settings. Ranges are read from its annotations.
        ranges (`dict[str, Range]`, *optional*):
            Ranges of fields that another library annotates.

    Raises:
        ValueError: for the first wrong value; the message names field, value, and what is allowed.
    """
    for name, hint, limits, choices in _fields_of(type(settings)):
        value = getattr(settings, name)
        limits = limits or (ranges or {}).get(name)
        if value is None and accepts_none(hint):
            continue
        checked = _checked(value, hint, limits, _Place(name, value, accepts_none(hint)))
        if choices is not None and checked not in choices:
            raise ValueError(f"{name}={brief(value)}: {near_miss(str(value), map(str, choices))}")
        if checked is not value:
            object.__setattr__(settings, name, checked)  # also of a frozen dataclass


def numeric_fields(settings_type: type) -> dict[str, Range | None]:
    """Return the numeric fields of a dataclass, and lists of numbers, with their ranges (`None`: has none)."""
    return {
        one.name: one.range
        for one in _fields_of(settings_type)
        if {int, float} & {kind for hint in _alternatives(one.hint) for kind in (hint, *_item_types(hint))}
    }


def _item_types(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is list else ()


def accepts_none(hint: Any) -> bool:
    """Return whether a field of this type may be `None`."""
    return type(None) in _alternatives(hint)


def takes_mapping(hint: Any) -> bool:
    """Return whether a field of this type may be a mapping."""
    return any((get_origin(kind) or kind) is dict for kind in _alternatives(hint))


def brief(value: Any) -> str:
    """Return the `repr` of a value on one line of at most 80 characters."""
    try:
        text = repr(value)
    except Exception:  # a recursive or broken object
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


class _Place(NamedTuple):
    """Where a value stands, for messages."""

    name: str
    value: Any
    none_allowed: bool

    def refuse(self, needed: str, note: str = "") -> ValueError:
        shown = "..." if self.name.endswith("token") else brief(self.value)  # secrets are never shown
        none = ", or None" if self.none_allowed else ""
        null = " Leave it out for its default." if self.value is None else ""
        return ValueError(f"{self.name}={shown}: must be {needed}{none}.{f' {note}' if note else ''}{null}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _checked(value: Any, hint: Any, limits: Range | None, place: _Place) -> Any:
    """Return the value as one of the types of the hint, or raise the error."""
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    for kind in kinds:
        if _is_a(value, kind) and not (enums and kind is str):  # not any text, but the words of the enumeration
            return _within(value, kind, limits, place)
    if enums and isinstance(value, str):
        raise ValueError(f"{place.name}={brief(value)}: {near_miss(value, (member.value for member in enums[0]))}")
    literals = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if literals and isinstance(value, str):
        raise ValueError(f"{place.name}={brief(value)}: {near_miss(value, map(str, literals))}")
    raise place.refuse(" or ".join(dict.fromkeys(_words(kind, limits) for kind in kinds)))


def _is_a(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type that is no union."""
    origin = get_origin(kind) or kind
    if origin is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if kind is int:
        whole = isinstance(value, (float, np.floating)) and math.isfinite(value) and value == int(value)
        return whole or (isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_)))
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if kind is str:
        return isinstance(value, (str, os.PathLike)) and not isinstance(value, Enum)
    if origin is list:
        return isinstance(value, (list, tuple))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return isinstance(value, origin) or value in [member.value for member in origin]
    return isinstance(value, origin) if isinstance(origin, type) else True


def _within(value: Any, kind: Any, limits: Range | None, place: _Place) -> Any:
    """Return a value of the right type in its plain form, or raise the error if it is out of range."""
    if kind in (int, float):
        try:
            inside = value in (limits or FINITE)
        except OverflowError:  # a whole number beyond all floats
            inside = False
        if not inside:
            raise place.refuse(str(limits or FINITE), limits.note if limits else "")
        if kind is int:
            return value if type(value) is int else int(value)
        return float(value) if isinstance(value, np.floating) else value
    if kind is bool:
        return bool(value)
    if kind is str and isinstance(value, str):
        return _checked_text(value, place)
    if (get_origin(kind) or kind) is list:
        (item_hint,) = get_args(kind) or (Any,)
        return [_checked(item, item_hint, limits, place) for item in value]
    return value


def _checked_text(value: str, place: _Place) -> str:
    if not value.strip() and place.name not in MAY_BE_EMPTY:
        raise place.refuse("a text that is not empty", "Leave it out for its default.")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise place.refuse("a text without NUL characters and lone surrogates, which no file can be named by")
    return value


def _words(kind: Any, limits: Range | None) -> str:
    """Describe a type in words, with the range of a number."""
    origin = get_origin(kind) or kind
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        return number if limits is None or limits == FINITE else f"{number} {limits}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "a text"
    if origin is list:
        return f"a list of {' or '.join(_words(item, limits) for item in get_args(kind)) or 'values'}"
    if origin is dict:
        return "a mapping, such as {name: value}"
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return f"a {getattr(origin, '__name__', origin)}"
