"""A reward's settings in a folder or a repository of the Hub: `reward_config.json`, and a card. Nothing is executed.

    {"reward": "dsr_score", "options": {"tracker": "grounded_sam"}}

`"reward"` is the name of an installed reward, or `file.py:Name` with the file beside it (see `rewards/hub.py`).
Settings from elsewhere can name no path of this machine, and cannot ask for code.
"""

from __future__ import annotations

import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, ClassVar, NamedTuple, Self

from spatialalign_trl.errors import explain_hub_errors
from spatialalign_trl.files import read_json, write_atomic, write_json

CONFIG_FILE = "reward_config.json"
CARD_FILE = "README.md"
CARD_TEMPLATE = Path(__file__).resolve().parent / "templates" / "reward_card.md"

LOCAL_OPTIONS = ("cache_dir", "device", "disable_progress_bar")
"""Settings of one machine: they are not saved, and the Hub may not set them."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SPEC = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_NAME}(?:/{_NAME})*))?")
CODE = re.compile(r"(?P<file>[A-Za-z_][A-Za-z0-9_]*\.py):(?P<name>[A-Za-z][A-Za-z0-9_]*)")
COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTALLED = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_HUB_ID_OR_WORD = re.compile(rf"{_NAME}(/{_NAME})?")


class HubReward(NamedTuple):
    """
    What a repository says of its reward.

    Args:
        repo (`str`):
            `owner/name`; for a folder of this machine its path.
        commit (`str`, *optional*):
            The commit that was read, 40 hexadecimal digits; `None` for a folder.
        reward (`str`):
            `file.py:Name`, or the name of an installed reward.
        options (`dict`):
            What the reward is made with.
    """

    repo: str
    commit: str | None
    reward: str
    options: dict[str, Any]

    @property
    def origin(self) -> str:
        return f"{self.repo}@{self.commit}" if self.commit else self.repo


def is_hub_spec(spec: str) -> bool:
    """Whether `spec` is `owner/name` or `owner/name@revision`."""
    match = SPEC.fullmatch(spec)
    return match is not None and ".." not in spec and not match["repo"].endswith(".py")


class RewardSettingsOnHub(ABC):
    """
    Saves a reward's settings, and loads them: a mixin for installed rewards whose settings are plain values.

    The class names its entry point in `installed_name` and returns its constructor's arguments from `settings()`.
    """

    installed_name: ClassVar[str]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: numbers, words, Hub ids, and lists and dicts of them."""

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """
        Write `reward_config.json` and a card. Settings of this machine (`cache_dir`, `device`) are left out.

        Args:
            folder (`str` or `os.PathLike`):
                Is made if it is missing.

        Returns:
            `Path`: the folder.

        Raises:
            `ValueError`: for settings that mean nothing elsewhere, such as an object or a path.
        """
        folder = Path(folder)
        options = _portable(self.settings())
        write_json(folder / CONFIG_FILE, {"reward": self.installed_name, "options": options})
        words = {"reward": self.installed_name, "options": json.dumps(options, indent=2)}
        card = Template(CARD_TEMPLATE.read_text(encoding="utf-8")).substitute(words)
        write_atomic(folder / CARD_FILE, card.encode())
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a reward",
    ) -> str:
        """
        Push what [`~RewardSettingsOnHub.save_pretrained`] writes.

        Args:
            repo_id (`str`):
                `owner/name`; is made if it is missing.
            private (`bool`, *optional*, defaults to `True`):
                Of a repository that is made.
            token (`str`, *optional*):
                By default the one of `hf auth login`.
            revision (`str`, *optional*):
                The branch.
            commit_message (`str`, *optional*):
                Of the commit.

        Returns:
            `str`: the commit's id, to pin.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder, explain_hub_errors(repo_id, revision):
            self.save_pretrained(folder)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )
        return commit.oid

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike, revision: str | None = None, token: str | None = None, **kwargs: Any
    ) -> Self:
        """
        Make the reward with saved settings. No code is loaded from the Hub.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A folder, or a repository on the Hub.
            revision (`str`, *optional*):
                Branch, tag or commit.
            token (`str`, *optional*):
                By default the one of `hf auth login`.
            kwargs:
                Win over the saved settings; those of this machine can only be given here.

        Raises:
            `ValueError`: when the settings are not this reward's, or would set what only this machine may.
        """
        held = read_config(name_or_path, revision, token)
        if held.reward != cls.installed_name:
            raise ValueError(f"{held.origin} holds the reward {held.reward!r}, not {cls.installed_name!r}.")
        reward = cls.from_settings(held.options, held.origin, **kwargs)
        if held.commit:
            note_origin(reward, held.origin)
        return reward

    @classmethod
    def from_settings(cls, options: Mapping[str, Any], origin: str, **kwargs: Any) -> Self:
        """Makes the reward with settings that came from `origin`, after they were checked."""
        _refuse_local_options(options, origin)
        return cls(**{**_portable(options, origin), **kwargs})


def read_config(name_or_path: str | os.PathLike, revision: str | None = None, token: str | None = None) -> HubReward:
    """What a folder, or a repository on the Hub, says of its reward."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return _read_config(folder / CONFIG_FILE, str(folder), None)
    if not is_hub_spec(str(name_or_path)) or "@" in str(name_or_path):
        raise FileNotFoundError(f"there is no folder {os.fspath(name_or_path)!r}, and it is no Hub id either.")
    return fetch_config(str(name_or_path), revision, token)


def fetch_config(repo: str, revision: str | None, token: str | None = None) -> HubReward:
    """What a repository on the Hub says of its reward."""
    file = download(repo, CONFIG_FILE, revision, token)
    if file is None:
        raise ValueError(
            f"{repo} on the Hub is no reward: it has no {CONFIG_FILE}, which names one "
            '({"reward": "file.py:Name", "options": {}}).'
        )
    return _read_config(file, repo, file.parent.name)


def download(repo: str, name: str, revision: str | None, token: str | None = None) -> Path | None:
    """
    One file of a repository, in the local cache at `snapshots/<commit>/<name>`.

    Returns:
        `Path`: `None` when the repository has no such file.

    Raises:
        `ValueError`: when a commit was asked for and the Hub gave another one's file.
        `FileNotFoundError`, `PermissionError`, `ConnectionError`: as in [`explain_hub_errors`].
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with explain_hub_errors(repo, revision):
        try:
            file = Path(hf_hub_download(repo, name, revision=revision, token=token))
        except RemoteEntryNotFoundError:
            return None
    commit = file.parent.name
    if revision is not None and COMMIT.fullmatch(revision) and commit != revision:
        raise ValueError(f"{repo}: commit {revision} was asked for, and the Hub gave {name} of commit {commit}.")
    return file


def _read_config(file: Path, repo: str, commit: str | None) -> HubReward:
    place = f"{CONFIG_FILE} of {repo}"
    config = read_json(file)
    if not isinstance(config, dict) or not {"reward"} <= set(config) <= {"reward", "options"}:
        raise ValueError(f'{place}: expected {{"reward": ..., "options": {{...}}}}, found {str(config)[:80]}')
    reward, options = config["reward"], config.get("options", {})
    if not isinstance(reward, str) or not (CODE.fullmatch(reward) or _INSTALLED.fullmatch(reward)):
        raise ValueError(
            f"{place}: reward is {reward!r}; expected file.py:Name, with the file beside it, or an installed reward"
        )
    if not isinstance(options, dict):
        raise ValueError(f"{place}: options is {options!r}; expected {{name: value}}")
    return HubReward(repo, commit, reward, options)


def _refuse_local_options(options: Mapping[str, Any], origin: str) -> None:
    for name, value in options.items():
        if name in LOCAL_OPTIONS:
            raise ValueError(
                f"{CONFIG_FILE} of {origin} sets {name!r}, which only this machine may: pass it yourself."
            )
        if isinstance(value, dict):
            _refuse_local_options(value, origin)


def _portable(options: Mapping[str, Any], place: str = "settings") -> dict[str, Any]:
    """The options that mean the same everywhere.

    Raises:
        ValueError: for one that asks for code, or is a path or an object.
    """
    kept = {}
    for name, value in options.items():
        if name == "trust_remote_code":
            if value:
                raise ValueError(f"{place}: trust_remote_code cannot be saved or loaded; whoever runs it says so.")
        elif isinstance(value, dict):
            kept[name] = _portable(value, f"{place}, {name}")
        elif name not in LOCAL_OPTIONS:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                _check_value(one, f"{place}, {name}")
            kept[name] = value
    return kept


def _check_value(value: Any, place: str) -> None:
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return
    if not isinstance(value, str):
        raise ValueError(f"{place}: {value!r} is no number, word or Hub id, so it cannot be saved or loaded.")
    if not _HUB_ID_OR_WORD.fullmatch(value) or ".." in value or ("/" in value and os.path.exists(value)):
        raise ValueError(
            f"{place}: {value!r} is a path of one machine; only words and Hub ids mean the same elsewhere."
        )


def note_origin(reward: Any, origin: str) -> None:
    """`describe()` names the commit, so that it stands in run.json and beside the scores."""
    described = getattr(reward, "describe", dict)
    object.__setattr__(reward, "describe", lambda: {"hub": origin, **described()})
