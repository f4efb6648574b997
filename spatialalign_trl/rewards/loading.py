"""
Finding a reward: by entry point, by file and name, or handed over; and what can be read off it before it is called.

The convention rewards follow is described in `rewards.py`.
"""

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from spatialalign_trl.errors import near_miss
from spatialalign_trl.rewards.hub import load_hub_reward
from spatialalign_trl.rewards.settings import is_hub_spec

ENTRY_POINT_GROUP = "spatialalign_trl.rewards"
# What a reward is handed beside the prompt columns. A column of such a name could not be told from it.
RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")

RewardFunc: TypeAlias = Callable[..., Any]


def load_reward(spec: str | RewardFunc, *, trust_remote_code: bool = False, **kwargs: Any) -> RewardFunc:
    """
    Find a reward.

    Args:
        spec (`str` or callable):
            The name of an entry point in the group `spatialalign_trl.rewards` (`"dsr_score"`), a file and a name in it
            (`"path/to/file.py:MyReward"`), a server (`"http://host:port/path"`), a repository on the Hub
            (`"user/my-reward@COMMIT"`), or the reward itself.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Execute the code of a repository on the Hub, at the commit that `spec` names.
        kwargs:
            Arguments for a class's constructor; they are bound to a function.

    Returns:
        A callable in TRL's convention: a class is instantiated, a function or an instance is used as it is.

    Raises:
        `ValueError`: when no entry point or no definition in the file has that name.
        `FileNotFoundError`: when the file does not exist.
        `ImportError`: when importing the reward fails; the message names the reward.
        `PermissionError`: for code on the Hub that is not trusted or not pinned to a commit.
        `TypeError`: when what was found cannot be called as a reward.
    """
    found = spec
    if isinstance(spec, str):
        if spec.startswith(("http://", "https://")):
            from spatialalign_trl.rewards.remote import HTTPReward

            return HTTPReward(spec, **kwargs)
        if is_hub_spec(spec):
            return load_hub_reward(spec, trust_remote_code, **kwargs)
        path, _, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
        found = _from_file(Path(path), name) if path.endswith(".py") else find_installed(spec)
    return make_reward(spec, found, **kwargs)


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


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r} to take the reward {name!r} from.")
    return defined_in(_import_file(path), name, str(path))


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


def _import_file(path: Path) -> ModuleType:
    # Named after the place it lies at, so that two files called my_reward.py do not replace each other.
    path = path.resolve()
    name = f"_reward_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises while it is imported
        del sys.modules[name]
        raise ImportError(f"The reward file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
