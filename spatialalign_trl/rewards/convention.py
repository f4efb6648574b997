"""
Read what a reward declares: its name, its columns and its entry point.

The convention that rewards follow is described in `rewards/runner.py`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

from spatialalign_trl.errors import near_miss

ENTRY_POINT_GROUP = "spatialalign_trl.rewards"
# The arguments of a reward that are not prompt columns. A prompt column must not have such a name.
RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")

RewardFunc: TypeAlias = Callable[..., Any]


def make_reward(spec: str | RewardFunc, found: Any, /, **kwargs: Any) -> RewardFunc:
    """
    Make a callable of what a spec names: instantiate a class, bind arguments to a function.

    Args:
        spec (`str` or callable):
            The spec, for error messages.
        found:
            The class, function or instance that it names.
        kwargs:
            Arguments for the class or the function.

    Raises:
        `TypeError`: if the result cannot be called.
    """
    if not callable(found):
        raise TypeError(f"The reward {spec!r} is {found!r}, which cannot be called; name a function or a class.")
    if isinstance(found, type):
        found = found(**kwargs)
        if not callable(found):
            raise TypeError(f"The reward class {type(found).__name__} has no __call__ method.")
    elif kwargs:
        found = functools.partial(found, **kwargs)
    return found


def reward_name(reward: RewardFunc) -> str:
    """Return the name a reward is logged under: its `__name__` (through `functools.partial`), else its class's."""
    reward = unwrap_reward(reward)
    return getattr(reward, "__name__", type(reward).__name__)


def required_columns(reward: RewardFunc) -> list[str]:
    """
    Return the prompt columns a reward needs: those in its `required_columns`, and every parameter without a default.
    """
    declared = getattr(unwrap_reward(reward), "required_columns", ())
    declared = [declared] if isinstance(declared, str) else list(declared)
    signature = signature_of(reward)
    for name, parameter in signature.parameters.items() if signature else ():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and name not in RESERVED and name not in declared:
            declared.append(name)
    return declared


def unwrap_reward(reward: RewardFunc) -> RewardFunc:
    """Return what a `functools.partial`, or several, binds arguments to."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return reward


def signature_of(reward: RewardFunc) -> inspect.Signature | None:
    """Return the signature of a reward; `None` if Python does not know it."""
    try:
        return inspect.signature(reward)
    except ValueError:  # builtins may have none
        return None


def installed_rewards() -> set[str]:
    """Return the names of all rewards that installed packages register."""
    return set(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP).names)


def find_installed(name: str) -> Any:
    """
    Return the class or function that an installed package registers under a name.

    Raises:
        `ValueError`, `ImportError`: as in [`load_reward`].
    """
    entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    matching = {entry_point.value: entry_point for entry_point in entry_points if entry_point.name == name}
    if not matching:
        raise ValueError(
            f"There is no reward named {name!r}. {near_miss(name, entry_points.names)} "
            "Name a reward of your own as 'path/to/file.py:Name', as 'user/name' on the Hub, or by an entry point in "
            f"the group {ENTRY_POINT_GROUP!r} of your package."
        )
    if len(matching) > 1:
        raise ValueError(f"The reward name {name!r} is registered by several packages: {', '.join(sorted(matching))}.")
    value, entry_point = matching.popitem()
    try:
        return entry_point.load()
    except (ImportError, AttributeError) as error:
        raise ImportError(f"The reward {name!r} ({value}) cannot be imported: {error}") from error


def defined_in(module: ModuleType, name: str, place: str) -> Any:
    """
    Return what a module defines under a name.

    Args:
        module (module):
            The module.
        name (`str`):
            The name.
        place (`str`):
            The file that the module was imported from, for error messages.

    Raises:
        `ValueError`: if it does not define the name; suggests the nearest.
    """
    if name and hasattr(module, name):
        return getattr(module, name)
    defined = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if not name:
        raise ValueError(
            f"{place}: the name of the reward is missing; name it as in '{place}:Name'. {near_miss('', defined)}"
        )
    raise ValueError(f"{place} defines no {name!r}. {near_miss(name, defined)}")
