"""
Load rewards from repositories on the Hub: their settings as JSON, a card, and at most one file of code.

    reward_config.json    {"reward": "my_reward.py:MyReward", "options": {"full": 10.0}}
    my_reward.py          the code, one file
    README.md             the card

`"reward"` may also be the name of an installed reward, such as `dsr_score`; such a repository contains only settings.

Code from the Hub is executed only with `trust_remote_code=True`, and only at a full commit id
(`user/name@<40 digits>`), because a branch or a tag can be moved to other code after it was reviewed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from spatialalign_trl.rewards.convention import defined_in, find_installed, make_reward
from spatialalign_trl.rewards.settings import (
    CODE,
    COMMIT,
    CONFIG_FILE,
    SPEC,
    HubReward,
    check_trust,
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
            `owner/name@revision`; the revision is optional if the repository contains only settings.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Allow executing the repository's code.
        token (`str`, *optional*):
            The Hub's token, by default the one of `hf auth login`.
        kwargs:
            Arguments of the reward, which override the repository's options.

    Returns:
        A callable in TRL's convention. Its `describe()` names the commit.

    Raises:
        `PermissionError`: for code that is not trusted, or not pinned to a commit. Nothing was executed.
        `ValueError`: for a repository that does not contain a reward.
        `FileNotFoundError`, `ConnectionError`: as in [`explain_hub_errors`].
    """
    trust_remote_code = check_trust(trust_remote_code, f"the reward {spec!r}")
    match = SPEC.fullmatch(spec)
    if match is None or not is_hub_spec(spec):
        raise ValueError(f"{spec!r} is no reward on the Hub: expected owner/name or owner/name@revision.")
    config = fetch_config(match["repo"], match["revision"], token)
    if CODE.fullmatch(config.reward) is None:
        reward = _installed(config, kwargs)
    else:
        _refuse_untrusted(config, match["revision"], trust_remote_code)
        reward = make_reward(spec, _from_code(config, token), **{**config.options, **kwargs})
    note_origin(reward, config.origin)
    return reward


def _refuse_untrusted(config: HubReward, revision: str | None, trust_remote_code: bool) -> None:
    """Raise a `PermissionError` unless the code is trusted and pinned to a commit."""
    from huggingface_hub import constants

    file = config.reward.partition(":")[0]
    is_pinned = revision is not None and COMMIT.fullmatch(revision) is not None
    if trust_remote_code and is_pinned:
        return
    problem = (
        f"is named without a commit (a {'branch or tag' if revision else 'repository'} can change after you read it)"
        if trust_remote_code
        else "is code from the Hub, which is executed only when you say so"
    )
    raise PermissionError(
        f"The reward {config.repo!r} {problem}. Read {constants.ENDPOINT}/{config.repo}/blob/{config.commit}/{file}, "
        f"then use --reward_funcs {config.origin} --trust_remote_code (in Python load_reward({config.origin!r}, "
        "trust_remote_code=True))."
    )


def _from_code(config: HubReward, token: str | None) -> Any:
    """Execute the commit's file and return what it defines under the name."""
    file, _, name = config.reward.partition(":")
    path = download(config.repo, file, config.commit, token)
    if path is None:
        raise ValueError(f"{CONFIG_FILE} of {config.origin} names {file!r}, which is not in the repository.")
    return defined_in(_execute(path, config.origin), name, f"{config.origin}/{file}")


def _execute(path: Path, origin: str) -> ModuleType:
    """Import the source itself, not a compiled file next to it, which a user could not have reviewed."""
    name = f"_reward_{path.stem}_{sha256(origin.encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look up a class's module there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:  # whatever the code raises while it is imported
        del sys.modules[name]
        raise ImportError(
            f"The reward {origin} cannot be imported ({path.name}): {type(error).__name__}: {error}"
        ) from error
    return module


def _installed(config: HubReward, kwargs: Mapping[str, Any]) -> Any:
    """Make an installed reward with the repository's settings."""
    found = find_installed(config.reward)
    make = getattr(found, "from_settings", None)
    if make is None:
        raise ValueError(
            f"{config.origin} contains settings for the installed reward {config.reward!r}, which takes none from the "
            "Hub. Use the reward by its name, with --reward_options."
        )
    return make(config.options, config.origin, **kwargs)
