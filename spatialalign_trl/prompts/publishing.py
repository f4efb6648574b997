"""Publish a prompt set: check that a dataset folder loads, and push it to the Hub unchanged."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from spatialalign_trl.errors import explain_hub_errors
from spatialalign_trl.prompts.loading import load_prompts

CARD_FILE = "README.md"
PUSHED = (CARD_FILE, "*.jsonl", "*.csv", "*.json", "*.txt", "*.yaml")
"""Files of a folder that are pushed: the card, the prompts, and the words that they were made of."""


def push_prompts(
    folder: str | os.PathLike, repo_id: str, *, private: bool = True, token: str | None = None
) -> tuple[str, dict[str, int]]:
    """
    Push a prompt set. Afterwards, `load_prompts(repo_id, split)` gives the same rows as the folder.

    Args:
        folder (`str` or `os.PathLike`):
            A dataset folder: a card that names the files of the splits, and the files.
        repo_id (`str`):
            `owner/name`. The repository is created if it is missing.
        private (`bool`, *optional*, defaults to `True`):
            Whether a newly created repository is private. An existing repository keeps its visibility.
        token (`str`, *optional*):
            A Hub token. By default the token of `hf auth login`.

    Returns:
        `tuple[str, dict[str, int]]`: the URL of the commit, and the number of prompts of every split.

    Raises:
        FileNotFoundError: if the folder does not exist or has no card.
        ValueError: if a split does not load as prompts. The message names the row. Nothing was pushed.
        PermissionError, ConnectionError: as in [`explain_hub_errors`].
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
    """
    Load every split of a folder, and count its prompts.

    Args:
        folder (`Path`):
            A dataset folder.

    Returns:
        `dict[str, int]`: split -> number of prompts.

    Raises:
        FileNotFoundError, ValueError: as in [`push_prompts`].
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / CARD_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CARD_FILE}. A prompt set needs a card with `configs` that name the files of its "
            "splits, such as datasets/dsr_prompts/README.md."
        )
    # Use a temporary cache: the user's cache may have a copy of an earlier version of the files.
    with TemporaryDirectory() as cache:
        try:
            splits = load_dataset(str(folder), cache_dir=cache)
        except DatasetGenerationError as error:
            raise ValueError(f"{folder} does not load: {str(error.__cause__ or error).splitlines()[0]}") from error
        counts = {}
        for split, rows in splits.items():
            try:
                ids = load_prompts(rows)["prompt_id"][:]
            except ValueError as error:
                raise ValueError(f"{folder}, split {split}: {error}") from error
            for written, read in zip(load_prompts(folder, split)["prompt_id"][:], ids, strict=True):
                if written != read:  # a csv file has no types, so the Hub's readers guess them
                    raise ValueError(
                        f"{folder}, split {split}: the id {written!r} would be read as {read!r} from the Hub. Write "
                        "the split as .jsonl, with the ids in quotation marks"
                    )
            counts[split] = len(ids)
        return counts
