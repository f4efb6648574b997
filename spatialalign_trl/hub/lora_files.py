"""Push a LoRA and its accompanying files to a model repository, and retry when the Hub fails temporarily."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spatialalign_trl.hub.pushing import ATTEMPTS, describe_failure, is_temporary, open_repo, retry_push

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger(__name__)


def make_model_repo(name: str, *, private: bool | None = None, token: str | None = None) -> str:
    """
    Create the model repository if it is missing, so that a long run does not fail at its final push.

    Args:
        name (`str`):
            `owner/name`, or a name under the token's owner.
        private (`bool`, *optional*):
            Whether a newly created repository is private.
        token (`str`, *optional*):
            A Hub token. By default the token of `hf auth login` or of `HF_TOKEN`.

    Returns:
        `str`: the full name of the repository. If the Hub is temporarily unavailable, a warning is logged and `name`
        is returned.

    Raises:
        PermissionError: if there is no token, or the Hub does not accept it for this owner.
    """
    try:
        return open_repo(name, f"pushing to {name!r}", repo_type="model", private=private, token=token)
    except Exception as error:
        if not is_temporary(error):
            raise
        logger.warning("%s. %s will be created at the first push.", describe_failure(error), name)
        return name


def push_files(
    files: Mapping[str, bytes | Path],
    repo: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    attempts: int = ATTEMPTS,
) -> CommitInfo:
    """
    Push files as one commit to a model repository, which is created if it is missing. Repeating it is harmless.

    Args:
        files (`dict[str, bytes]` or `dict[str, Path]`):
            Path in the repository -> content, or the path of a local file.
        repo (`str`):
            The name of the repository.
        message (`str`):
            The commit message.
        private (`bool`, *optional*):
            Whether a newly created repository is private.
        token (`str`, *optional*):
            A Hub token. By default the token of `hf auth login` or of `HF_TOKEN`.
        revision (`str`, *optional*):
            The branch. By default the main branch.
        attempts (`int`, *optional*, defaults to `5`):
            Largest number of attempts when failures are temporary.

    Returns:
        `CommitInfo`: the commit, with its URL and id.

    Raises:
        PushFailed: if the failure is permanent or all attempts failed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)

    def push() -> CommitInfo:
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        operations = [
            CommitOperationAdd(name, os.fspath(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)

    return retry_push(push, repo, attempts)


def command_for_later(folder: Path, repo: str, names: list[str]) -> str:
    """
    Return the shell command with which the user can push files later.

    Args:
        folder (`Path`):
            The folder with the files.
        repo (`str`):
            The name of the repository.
        names (`list[str]`):
            Paths or patterns of the files, relative to `folder`.

    Returns:
        `str`: the command.
    """
    return shlex.join(["hf", "upload", repo, os.fspath(folder), ".", "--include", *names])
