"""Rewards in repositories of the Hub: their settings as JSON, a card, and at most one file of code.

    reward_config.json    {"reward": "my_reward.py:MyReward", "options": {"full": 10.0}}
    my_reward.py          the code, one file
    README.md             the card

`"reward"` may also be the name of an installed reward, such as `dsr_score`: such a repository holds settings only.

Code of others is executed only with `trust_remote_code=True`, and only at a full commit id (`user/name@<40 digits>`):
a branch or a tag can be moved to other code after it was read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from spatialalign_trl.rewards.settings import (
    CODE,
    COMMIT,
    CONFIG_FILE,
    SPEC,
    HubReward,
    download,
    fetch_config,
    is_hub_spec,
    note_origin,
)


def load_hub_reward(spec: str, trust_remote_code: bool = False, token: str | None = None, **kwargs: Any) -> Any:
    """
    Load a reward from the Hub.

    Args:
        spec (`str`):
            `owner/name@revision`; the revision may be left out when the repository holds settings only.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Execute the repository's code.
        token (`str`, *optional*):
            By default the one of `hf auth login`.
        kwargs:
            Win over the repository's options.

    Returns:
        A callable in TRL's convention. Its `describe()` names the commit.

    Raises:
        `PermissionError`: for code that is not trusted, or not pinned to a commit; nothing was executed.
        `ValueError`: for a repository that is no reward's.
        `FileNotFoundError`, `ConnectionError`: as in [`explain_hub_errors`].
    """
    from spatialalign_trl.rewards.convention import make_reward

    match = SPEC.fullmatch(spec)
    if match is None or not is_hub_spec(spec):
        raise ValueError(f"{spec!r} is no reward on the Hub: expected owner/name or owner/name@revision.")
    held = fetch_config(match["repo"], match["revision"], token)
    if CODE.fullmatch(held.reward) is None:
        reward = _installed(held, kwargs)
    else:
        _refuse_untrusted(held, match["revision"], trust_remote_code)
        reward = make_reward(spec, _from_code(held, token), **{**held.options, **kwargs})
    note_origin(reward, held.origin)
    return reward


def _refuse_untrusted(held: HubReward, revision: str | None, trust_remote_code: bool) -> None:
    from huggingface_hub import constants

    file = held.reward.partition(":")[0]
    is_pinned = revision is not None and COMMIT.fullmatch(revision) is not None
    if trust_remote_code and is_pinned:
        return
    what = (
        f"is named without a commit (a {'branch or tag' if revision else 'repository'} can change after you read it)"
        if trust_remote_code
        else "is code from the Hub, which is executed only when you say so"
    )
    raise PermissionError(
        f"The reward {held.repo!r} {what}. Read {constants.ENDPOINT}/{held.repo}/blob/{held.commit}/{file}, then use "
        f"--reward_funcs {held.origin} --trust_remote_code (in Python load_reward({held.origin!r}, "
        "trust_remote_code=True))."
    )


def _from_code(held: HubReward, token: str | None) -> Any:
    """Executes the commit's file and returns what it defines under the name."""
    from spatialalign_trl.rewards.convention import defined_in

    file, _, name = held.reward.partition(":")
    path = download(held.repo, file, held.commit, token)
    if path is None:
        raise ValueError(f"{CONFIG_FILE} of {held.origin} names {file!r}, which is not there.")
    return defined_in(_execute(path, held.origin), name, f"{held.origin}/{file}")


def _execute(path: Path, origin: str) -> ModuleType:
    """Imports the source itself: a compiled file beside it, which nobody can read, would win over it."""
    name = f"_reward_{path.stem}_{sha256(origin.encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look a class's module up there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:  # whatever the code raises while it is imported
        del sys.modules[name]
        raise ImportError(
            f"The reward {origin} cannot be imported ({path.name}): {type(error).__name__}: {error}"
        ) from error
    return module


def _installed(held: HubReward, kwargs: Mapping[str, Any]) -> Any:
    from spatialalign_trl.rewards.convention import find_installed

    found = find_installed(held.reward)
    make = getattr(found, "from_settings", None)
    if make is None:
        raise ValueError(
            f"{held.origin} holds settings for the installed reward {held.reward!r}, which takes none from the Hub. "
            f"Use it by its name, with --reward_options."
        )
    return make(held.options, held.origin, **kwargs)
