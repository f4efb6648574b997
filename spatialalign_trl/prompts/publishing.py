"""Publishing a prompt set: a dataset folder goes to the Hub as it is, after it was found to load."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from spatialalign_trl.errors import explain_hub_errors
from spatialalign_trl.prompts.loading import load_prompts

if TYPE_CHECKING:
    from datasets import Dataset

CARD_FILE = "README.md"
PUSHED = (CARD_FILE, "*.jsonl", "*.csv", "*.json", "*.txt", "*.yaml")
"""What of a folder is pushed: the card, the prompts, and the words they were made of."""


def push_prompts(
    folder: str | os.PathLike, repo_id: str, *, private: bool = True, token: str | None = None
) -> tuple[str, dict[str, int]]:
    """
    Push a prompt set; afterwards `load_prompts(repo_id, split)` gives the same rows as the folder.

    Args:
        folder (`str` or `os.PathLike`):
            A dataset folder: a card that names the splits' files, and the files.
        repo_id (`str`):
            `owner/name`; is made if it is missing.
        private (`bool`, *optional*, defaults to `True`):
            Of a repository that is made; one that is there keeps what it has.
        token (`str`, *optional*):
            By default the one of `hf auth login`.

    Returns:
        The commit's address, and the number of prompts of every split.

    Raises:
        `FileNotFoundError`: when there is no such folder, or it has no card.
        `ValueError`: when a split does not load as prompts; names the row. Nothing was pushed.
        `PermissionError`, `ConnectionError`: as in [`explain_hub_errors`].
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    counts = count_prompts(folder)
    api = HfApi(token=token)
    with explain_hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=list(PUSHED),
            commit_message=f"Upload {sum(counts.values())} prompts",
        )
    return str(commit.commit_url), counts


def count_prompts(folder: Path) -> dict[str, int]:
    """The number of prompts of every split of a folder, all of which load.

    Raises:
        `FileNotFoundError`, `ValueError`: as in [`push_prompts`].
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / CARD_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CARD_FILE}: a prompt set needs a card, whose `configs` name the files of its splits "
            "(datasets/dsr_prompts/README.md is one)"
        )
    # In a cache of its own: a cached copy may be of the files as they were before.
    with TemporaryDirectory() as cache:
        try:
            splits = load_dataset(str(folder), cache_dir=cache)
        except DatasetGenerationError as error:
            raise ValueError(f"{folder} does not load: {str(error.__cause__ or error).splitlines()[0]}") from error
        return {split: len(_checked(rows, f"{folder}, split {split}")) for split, rows in splits.items()}


def _checked(rows: Dataset, place: str) -> Dataset:
    try:
        return load_prompts(rows)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
