"""
Finding a reward: by entry point, by file and name, or handed over; and what can be read off it before it is called.

The convention rewards follow is described in `rewards.py`.
"""

import importlib.metadata
import importlib.util
import os
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from spatialalign_trl.rewards.convention import RewardFunc, defined_in, find_installed, make_reward
from spatialalign_trl.rewards.hub import load_hub_reward
from spatialalign_trl.rewards.settings import is_hub_spec


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


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r} to take the reward {name!r} from.")
    return defined_in(_import_file(path), name, str(path))


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
