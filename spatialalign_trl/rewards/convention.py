"""Read what a reward declares: its name, its columns and its entry point.

[`RewardRunner`] describes the convention that rewards follow.
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
# What a reward is handed beside the prompt columns. A column of such a name could not be told from it.
RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")

RewardFunc: TypeAlias = Callable[..., Any]


def make_reward(spec: str | RewardFunc, found: Any, /, **kwargs: Any) -> RewardFunc:
    """What was found under `spec`, as a callable: a class is instantiated, arguments are bound to a function."""
    if not callable(found):
        raise TypeError(f"The reward {spec!r} is {found!r}, which cannot be called; give a function or a class.")
    if isinstance(found, type):
        found = found(**kwargs)
        if not callable(found):
            raise TypeError(f"The reward class {type(found).__name__} has no __call__ method.")
    elif kwargs:
        found = functools.partial(found, **kwargs)
    return found


def reward_name(reward: RewardFunc) -> str:
    """The name a reward is logged under: its `__name__` (through `functools.partial`), else its class's."""
    reward = _unwrap(reward)
    return getattr(reward, "__name__", type(reward).__name__)


def required_columns(reward: RewardFunc) -> list[str]:
    """
    The prompt columns a reward needs: those it declares in `required_columns`, and every parameter without a default.
    """
    declared = getattr(_unwrap(reward), "required_columns", ())
    declared = [declared] if isinstance(declared, str) else list(declared)
    signature = signature_of(reward)
    for name, parameter in signature.parameters.items() if signature else ():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and name not in RESERVED and name not in declared:
            declared.append(name)
    return declared


def _unwrap(reward: RewardFunc) -> RewardFunc:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return reward


def signature_of(reward: RewardFunc) -> inspect.Signature | None:
    """The parameters a reward is called with; `None` when Python cannot tell."""
    try:
        return inspect.signature(reward)
    except ValueError:  # builtins may have none
        return None


def installed_rewards() -> set[str]:
    """The names that installed packages gave their rewards."""
    return set(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP).names)


def find_installed(name: str) -> Any:
    """The class or function that an installed package registers under the name.

    Raises:
        `ValueError`, `ImportError`: as in [`load_reward`].
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    matching = {point.value: point for point in points if point.name == name}
    if not matching:
        raise ValueError(
            f"There is no reward named {name!r}. {near_miss(name, points.names)} "
            "Your own reward: 'path/to/file.py:Name', 'user/name' on the Hub, or an entry point in the group "
            f"{ENTRY_POINT_GROUP!r} of your package."
        )
    if len(matching) > 1:
        raise ValueError(f"The reward name {name!r} is claimed by several packages: {', '.join(sorted(matching))}.")
    value, point = matching.popitem()
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ImportError(f"The reward {name!r} ({value}) cannot be imported: {error}") from error


def defined_in(module: ModuleType, name: str, place: str) -> Any:
    """What the module from the file `place` holds under the name.

    Raises:
        `ValueError`: it has no such name; names the nearest.
    """
    if name and hasattr(module, name):
        return getattr(module, name)
    defined = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if not name:
        raise ValueError(f"{place}: say which reward, such as '{place}:Name'. {near_miss('', defined)}")
    raise ValueError(f"{place} defines no {name!r}. {near_miss(name, defined)}")
