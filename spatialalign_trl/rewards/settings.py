"""
Save and load a reward's settings in a folder or a repository on the Hub: `reward_config.json`, and a card.

    {"reward": "dsr_score", "options": {"tracker": "grounded_sam"}}

`"reward"` is the name of an installed reward, or `file.py:Name` with the file next to it (see `rewards/hub.py`). This
module executes no code. Settings from elsewhere cannot name paths of this machine, and cannot request code.
"""

from __future__ import annotations

import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any, ClassVar, NamedTuple, Self

from spatialalign_trl.errors import explain_hub_errors
from spatialalign_trl.files import read_json, write_atomic, write_json
from spatialalign_trl.safe_text import mask_secrets

CONFIG_FILE = "reward_config.json"
CARD_FILE = "README.md"
CARD_TEMPLATE = Path(__file__).resolve().parent / "templates" / "reward_card.md"

LOCAL_OPTIONS = ("cache_dir", "device", "disable_progress_bar")
"""Options that belong to one machine. They are not saved, and settings from the Hub must not contain them."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SPEC = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_NAME}(?:/{_NAME})*))?")
CODE = re.compile(r"(?P<file>[A-Za-z_][A-Za-z0-9_]*\.py):(?P<name>[A-Za-z][A-Za-z0-9_]*)")
COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTALLED = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_HUB_ID_OR_WORD = re.compile(rf"{_NAME}(/{_NAME})?")


class HubReward(NamedTuple):
    """
    The content of a `reward_config.json`, and where it comes from.

    Args:
        repo (`str`):
            `owner/name`, or the path of a local folder.
        commit (`str`, *optional*):
            The commit that was read, 40 hexadecimal digits; `None` for a folder.
        reward (`str`):
            `file.py:Name`, or the name of an installed reward.
        options (`dict`):
            The reward's arguments.
    """

    repo: str
    commit: str | None
    reward: str
    options: dict[str, Any]

    @property
    def origin(self) -> str:
        """`owner/name@commit`, or the folder's path."""
        return f"{self.repo}@{self.commit}" if self.commit else self.repo


def is_hub_spec(spec: str) -> bool:
    """Return whether `spec` has the form `owner/name` or `owner/name@revision`."""
    match = SPEC.fullmatch(spec)
    return match is not None and ".." not in spec and not match["repo"].endswith(".py")


class RewardSettingsOnHub(ABC):
    """
    Mixin that saves and loads a reward's settings, for installed rewards with settings that are plain values.

    The class sets `installed_name` to its entry point and returns its constructor's arguments from `settings()`.
    """

    installed_name: ClassVar[str]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments: numbers, words, Hub ids, and lists and dicts of them."""

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """
        Write `reward_config.json` and a card. Options of this machine (`cache_dir`, `device`) are left out.

        Args:
            folder (`str` or `os.PathLike`):
                The folder; created if it does not exist.

        Returns:
            `Path`: the folder.

        Raises:
            `ValueError`: for settings that have no meaning on another machine, such as an object or a path.
        """
        folder = Path(folder)
        options = _portable(self.settings())
        write_json(folder / CONFIG_FILE, {"reward": self.installed_name, "options": options})
        values = {"reward": self.installed_name, "options": json.dumps(options, indent=2)}
        card = Template(CARD_TEMPLATE.read_text(encoding="utf-8")).substitute(values)
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
        Push the files of [`~RewardSettingsOnHub.save_pretrained`] to a repository on the Hub.

        Args:
            repo_id (`str`):
                `owner/name`; created if it does not exist.
            private (`bool`, *optional*, defaults to `True`):
                Whether a newly created repository is private.
            token (`str`, *optional*):
                The Hub's token, by default the one of `hf auth login`.
            revision (`str`, *optional*):
                The branch to push to.
            commit_message (`str`, *optional*, defaults to `"Upload a reward"`):
                The commit's message.

        Returns:
            `str`: the commit's id, for pinning.

        Raises:
            `ValueError`: as in [`~RewardSettingsOnHub.save_pretrained`].
            `FileNotFoundError`, `PermissionError`, `ConnectionError`: as in [`explain_hub_errors`].
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
                The Hub's token, by default the one of `hf auth login`.
            kwargs:
                Arguments that override the saved settings. Options of this machine can only be given here.

        Raises:
            `ValueError`: if the settings belong to another reward, or contain options of one machine.
            `FileNotFoundError`, `PermissionError`, `ConnectionError`: as in [`explain_hub_errors`].
        """
        config = read_config(name_or_path, revision, token)
        if config.reward != cls.installed_name:
            raise ValueError(
                f"{config.origin} contains the reward {config.reward!r}, not {cls.installed_name!r}. Load it with the "
                "class of that reward, or with load_reward."
            )
        reward = cls.from_settings(config.options, config.origin, **kwargs)
        if config.commit:
            note_origin(reward, config.origin)
        return reward

    @classmethod
    def from_settings(cls, options: Mapping[str, Any], origin: str, **kwargs: Any) -> Self:
        """
        Check settings from elsewhere and make the reward with them.

        Args:
            options (mapping):
                The saved settings.
            origin (`str`):
                Where they come from, for error messages.
            kwargs:
                Arguments that override them.

        Raises:
            `ValueError`: for options of one machine, paths, and objects.
        """
        _refuse_local_options(options, origin)
        return cls(**{**_portable(options, origin), **kwargs})


def without_local_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those of one machine (`cache_dir`, `device`), also in nested mappings."""
    return {
        name: without_local_options(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if name not in LOCAL_OPTIONS
    }


def check_trust(value: Any, place: str) -> bool:
    """
    Return a permission to execute code, which only `True` gives: the text `"false"` would count as true in Python.

    Args:
        value:
            The value of `trust_remote_code`.
        place (`str`):
            Where it was set, for error messages.

    Raises:
        `ValueError`: if it is neither `True`, `False` nor `None`.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ValueError(f"{place}: trust_remote_code={value!r} is neither true nor false. Write true or false, unquoted.")


def check_trust_in(options: Mapping[str, Any], place: str) -> None:
    """Check with [`check_trust`] every `trust_remote_code` in a reward's options, also in nested ones."""
    for name, value in options.items():
        if name == "trust_remote_code":
            check_trust(value, place)
        elif isinstance(value, Mapping):
            check_trust_in(value, f"{place}, {name}")


def read_config(name_or_path: str | os.PathLike, revision: str | None = None, token: str | None = None) -> HubReward:
    """
    Read the `reward_config.json` of a folder, or of a repository on the Hub.

    Args:
        name_or_path, revision, token:
            As in [`~RewardSettingsOnHub.from_pretrained`].

    Raises:
        `FileNotFoundError`: if it is neither a folder nor a repository.
        `ValueError`: for a malformed file.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return _read_config(folder / CONFIG_FILE, str(folder), None)
    if not is_hub_spec(str(name_or_path)) or "@" in str(name_or_path):
        raise FileNotFoundError(
            f"There is no folder {os.fspath(name_or_path)!r}, and it is no Hub id (owner/name) either."
        )
    return fetch_config(str(name_or_path), revision, token)


def fetch_config(repo: str, revision: str | None, token: str | None = None) -> HubReward:
    """Read the `reward_config.json` of a repository on the Hub. Arguments and errors as in [`download`]."""
    file = download(repo, CONFIG_FILE, revision, token)
    if file is None:
        raise ValueError(
            f"{repo} on the Hub is no reward: it has no {CONFIG_FILE} that names one "
            '({"reward": "file.py:Name", "options": {}}).'
        )
    return _read_config(file, repo, file.parent.name)


def download(repo: str, name: str, revision: str | None, token: str | None = None) -> Path | None:
    """
    Download one file of a repository into the local cache, at `snapshots/<commit>/<name>`.

    Args:
        repo (`str`):
            `owner/name`.
        name (`str`):
            The file.
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            The Hub's token, by default the one of `hf auth login`.

    Returns:
        `Path` or `None`: `None` if the repository has no such file.

    Raises:
        `ValueError`: if the Hub returned the file of another commit than the requested one.
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
    """Read a `reward_config.json` and check its form."""
    place = f"{CONFIG_FILE} of {repo}"
    config = read_json(file)
    if not isinstance(config, dict) or not {"reward"} <= set(config) <= {"reward", "options"}:
        raise ValueError(f'{place}: expected {{"reward": ..., "options": {{...}}}}, found {str(config)[:80]}')
    reward, options = config["reward"], config.get("options", {})
    if not isinstance(reward, str) or not (CODE.fullmatch(reward) or _INSTALLED.fullmatch(reward)):
        raise ValueError(
            f"{place}: reward is {reward!r}; expected file.py:Name, with the file next to it, or an installed reward"
        )
    if not isinstance(options, dict):
        raise ValueError(f"{place}: options is {options!r}; expected {{name: value}}")
    return HubReward(repo, commit, reward, options)


def _refuse_local_options(options: Mapping[str, Any], origin: str) -> None:
    """Raise a `ValueError` for settings from elsewhere that set an option of this machine."""
    for name, value in options.items():
        if name in LOCAL_OPTIONS:
            raise ValueError(
                f"{CONFIG_FILE} of {origin} sets {name!r}, which only this machine may set. Pass it yourself."
            )
        if isinstance(value, dict):
            _refuse_local_options(value, origin)


def _portable(options: Mapping[str, Any], place: str = "settings") -> dict[str, Any]:
    """Return the options that mean the same on every machine; raise a `ValueError` for paths, objects and code."""
    portable = {}
    for name, value in options.items():
        if mask_secrets(value, name) != value and not isinstance(value, dict):
            raise ValueError(
                f"{place}, {name}: a secret cannot be saved or loaded. Whoever runs the reward passes their own."
            )
        if name == "trust_remote_code":
            if value:
                raise ValueError(
                    f"{place}: trust_remote_code cannot be saved or loaded. Whoever runs the code must set it."
                )
        elif isinstance(value, dict):
            portable[name] = _portable(value, f"{place}, {name}")
        elif name not in LOCAL_OPTIONS:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                _check_value(item, f"{place}, {name}")
            portable[name] = value
    return portable


def _check_value(value: Any, place: str) -> None:
    """Raise a `ValueError` unless the value is a finite number, a word or a Hub id."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return
    if not isinstance(value, str):
        raise ValueError(f"{place}: {value!r} is no number, word or Hub id, so it cannot be saved or loaded.")
    if not _HUB_ID_OR_WORD.fullmatch(value) or ".." in value or ("/" in value and os.path.exists(value)):
        raise ValueError(
            f"{place}: {value!r} is a path of one machine. Only words and Hub ids mean the same elsewhere."
        )


def note_origin(reward: Any, origin: str) -> None:
    """Make `describe()` name the origin, so that it appears in run.json and next to the scores."""
    described = getattr(reward, "describe", dict)
    object.__setattr__(reward, "describe", lambda: {"hub": origin, **described()})


def note_options(reward: Any, options: Mapping[str, Any]) -> None:
    """Give a reward without `describe()` one that returns its options, so that a rerun with others is noticed."""
    noted = {name: value for name, value in options.items() if name not in LOCAL_OPTIONS and _is_plain(value)}
    if noted and not hasattr(reward, "describe"):
        with suppress(AttributeError):  # an object with fixed attributes
            object.__setattr__(reward, "describe", lambda: {"options": noted})


def _is_plain(value: Any) -> bool:
    """Return whether a value is written to JSON as it is, and the same in every process."""
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False
