"""Pushing a LoRA and what belongs to it to a model repository, again when the Hub stumbles."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spatialalign_trl.hub.pushing import ATTEMPTS, describe_failure, may_pass, open_repo, retry_push

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger(__name__)


def make_model_repo(name: str, *, private: bool | None = None, token: str | None = None) -> str:
    """
    Makes the repository if it is missing, before work begins whose result is to go there.

    Args:
        name (`str`):
            `owner/name`, or a name under the token's owner.
        private (`bool`, *optional*):
            Of a repository that is made now.
        token (`str`, *optional*):
            By default the one of `hf auth login` or of `HF_TOKEN`.

    Returns:
        `str`: its full name. Where the Hub is down for now that is said, and `name` is returned.

    Raises:
        PermissionError: when there is no token, or the Hub takes it not, or not for this owner.
    """
    try:
        return open_repo(name, f"pushing to {name!r}", repo_type="model", private=private, token=token)
    except Exception as error:
        if not may_pass(error):
            raise
        logger.warning("%s; %s is made when there is something to push", describe_failure(error), name)
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
    Pushes files as one commit to a model repository, which is made if it is missing. Repeating it is harmless.

    Args:
        files (`dict[str, bytes]` or `dict[str, Path]`):
            Path in the repository -> content.
        repo (`str`):
            Its name.
        message (`str`):
            Of the commit.
        private (`bool`, *optional*):
            Of a repository that is made now.
        token (`str`, *optional*):
            By default the one of `hf auth login` or of `HF_TOKEN`.
        revision (`str`, *optional*):
            The branch.
        attempts (`int`, *optional*, defaults to `5`):
            How often it is tried when the failure may pass.

    Returns:
        `CommitInfo`: with the commit's address and id.

    Raises:
        PushFailed: when it failed for good.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)

    def push() -> CommitInfo:
        where = api.create_repo(repo, private=private, exist_ok=True).repo_id
        added = [CommitOperationAdd(name, os.fspath(f) if isinstance(f, Path) else f) for name, f in files.items()]
        return api.create_commit(where, added, commit_message=message, revision=revision)

    return retry_push(push, repo, attempts)


def command_for_later(folder: Path, repo: str, names: list[str]) -> str:
    """The line that pushes files of a folder by hand."""
    return shlex.join(["hf", "upload", repo, os.fspath(folder), ".", "--include", *names])
