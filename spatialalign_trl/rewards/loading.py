"""
Find a reward by entry point, file and name, server, or repository on the Hub.

The convention that rewards follow is described in `rewards/runner.py`.
"""

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from spatialalign_trl.rewards.containment import RewardExit, contained
from spatialalign_trl.rewards.convention import RewardFunc, defined_in, find_installed, make_reward, reward_name
from spatialalign_trl.rewards.hub import load_hub_reward
from spatialalign_trl.rewards.settings import check_trust, check_trust_in, is_hub_spec, note_options


def load_reward(spec: str | RewardFunc, *, trust_remote_code: bool = False, **kwargs: Any) -> RewardFunc:
    """
    Find a reward and make it ready to be called.

    Args:
        spec (`str` or callable):
            The name of an entry point in the group `spatialalign_trl.rewards` (`"dsr_score"`), a file and a name in it
            (`"path/to/file.py:MyReward"`), a server (`"http://host:port/path"`), a repository on the Hub
            (`"user/my-reward@COMMIT"`), or the reward itself.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Allow executing the code of a repository on the Hub, at the commit that `spec` names.
        kwargs:
            Arguments for a class's constructor. For a function, they are bound to it.

    Returns:
        A callable in TRL's convention: a class is instantiated, a function or an instance is used as it is.

    Raises:
        `ValueError`: if no entry point, or no definition in the file, has that name; or for a `trust_remote_code`,
            also one in the options, that is no boolean.
        `FileNotFoundError`: if the file does not exist.
        `ImportError`: if importing the reward fails; the message names the reward.
        `PermissionError`: for code on the Hub that is not trusted or not pinned to a commit.
        `TypeError`: if the name does not belong to something callable.
    """
    is_server = isinstance(spec, str) and spec.startswith(("http://", "https://"))
    # A URL may contain a secret.
    name = "on a server" if is_server else spec if isinstance(spec, str) else reward_name(spec)
    place = "a reward on a server" if is_server else f"the reward {name!r}"
    trust_remote_code = check_trust(trust_remote_code, place)
    check_trust_in(kwargs, place)
    try:
        with contained(name):
            reward = _load(spec, trust_remote_code, **kwargs)
            note_options(reward, kwargs)
            return reward
    except RewardExit as error:
        raise ImportError(f"{place} cannot be made: it {error}") from error


def _load(spec: str | RewardFunc, trust_remote_code: bool, **kwargs: Any) -> RewardFunc:
    """Find and make a reward; see [`load_reward`]."""
    found = spec
    if isinstance(spec, str):
        if spec.startswith(("http://", "https://")):
            from spatialalign_trl.rewards.remote import HTTPReward

            return HTTPReward(spec, **kwargs)
        if is_hub_spec(spec):
            return load_hub_reward(spec, trust_remote_code, **kwargs)
        path, _, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
        if not path.endswith(".py"):
            found = find_installed(spec)
        elif not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path!r} with a reward {name!r}. Check the path.")
        else:
            found = defined_in(_import_file(Path(path)), name, path)
    return make_reward(spec, found, **kwargs)


def _import_file(path: Path) -> ModuleType:
    # The path is part of the module's name, so that two files called my_reward.py do not replace each other.
    path = path.resolve()
    name = f"_reward_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look up a class's module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises while it is imported
        del sys.modules[name]
        raise ImportError(f"The reward file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
