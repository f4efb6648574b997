"""Load prompt sets from a dataset folder, a dataset on the Hub, or a csv, jsonl, json or txt file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.prompts.grammar import PROMPT_COLUMNS, DSRPrompt, build_prompt, parse_prompt
from spatialalign_trl.prompts.nouns import normalize
from spatialalign_trl.prompts.relations import check_dsr_type, phrases
from spatialalign_trl.prompts.rows import RowError, try_rows
from spatialalign_trl.text_files import cell_text, same_text

if TYPE_CHECKING:
    from datasets import Dataset

MAX_LENGTH = 10_000
"""Largest number of characters of a prompt or of one of its parts."""

_ARTICLES = re.compile(r"((an?|the) )+(?=.)", re.IGNORECASE)
_NOUNS = ("animal", "object", "attribute")
_PARTS = ("scene", "animal", "object", "type", "verb", "attribute")


def load_prompts(source: str | Path | Dataset, split: str = "train") -> Dataset:
    """Load a prompt set and parse every prompt.

    Args:
        source (`str`, `Path` or [`~datasets.Dataset`]): A dataset folder in the Hub's layout, a dataset id on the Hub,
            a file (`.csv`, `.jsonl`, `.json` with a list of rows, `.txt` with one prompt per line) or a dataset. A row
            has a `prompt`, or the parts to build it from. If it has both, they must agree. Other columns are dropped.
            The columns of the SpatialAlign authors' files are accepted unchanged.
        split (`str`, *optional*, defaults to `"train"`): The split of a folder or of a Hub dataset. Files have no
            splits.

    Returns:
        [`~datasets.Dataset`]: the prompts, with exactly the columns of [`PROMPT_COLUMNS`], all strings.

    Raises:
        FileNotFoundError: If `source` looks like a file or a folder that does not exist.
        ValueError: If the source is empty or has a row that is not a prompt. The message names the source and the row.
    """
    prompts, problems = load_readable_prompts(source, split)
    if problems:
        raise ValueError(problems[0].text)
    return prompts


@dataclass(frozen=True)
class RowProblem:
    """A row of a prompt set that is not a prompt: its place, and the reason."""

    place: str
    reason: str

    @property
    def text(self) -> str:
        """Both, in one line."""
        return f"{self.place}: {self.reason}"


def load_readable_prompts(source: str | Path | Dataset, split: str = "train") -> tuple[Dataset, list[RowProblem]]:
    """Load the rows of a prompt set that are prompts, and list the others.

    Args:
        source, split: As in [`load_prompts`].

    Returns:
        The prompts as [`load_prompts`] returns them, and the rows that are not prompts.

    Raises:
        FileNotFoundError: If `source` looks like a file or a folder that does not exist.
        ValueError: If the source cannot be read at all, or contains no prompt.
    """
    from datasets import Dataset, Features, Value

    rows: list[dict[str, str]] = []
    problems: list[RowProblem] = []
    for place, prompt in try_prompts(source, split):
        if isinstance(prompt, ValueError):
            problems.append(RowProblem(place, str(prompt)))
        else:
            rows.append(prompt.to_row())
    if not rows:
        raise ValueError(problems[0].text if problems else f"{source} contains no prompts")
    features = Features({column: Value("string") for column in PROMPT_COLUMNS})
    return Dataset.from_list(rows, features=features), problems


def try_prompts(source: str | Path | Dataset, split: str) -> Iterator[tuple[str, DSRPrompt | ValueError]]:
    """Iterate over the prompts of a set, also over those after a row that is not a prompt.

    Args:
        source, split: As in [`load_prompts`].

    Yields:
        `tuple[str, DSRPrompt | ValueError]`: the row's place and its prompt, or the reason why it is not one.

    Raises:
        FileNotFoundError, ValueError: If the source cannot be read at all.
    """
    place_of_id: dict[str, str] = {}
    for place, row in try_rows(source, split):
        try:
            if isinstance(row, RowError):
                raise row
            prompt = prompt_from_row(row)
            earlier = place_of_id.setdefault(same_text(prompt.prompt_id), place)
            if earlier != place:
                raise ValueError(
                    f"prompt_id {prompt.prompt_id!r} was already used at {earlier}, but ids must be unique"
                )
        except ValueError as error:
            yield place, error
        else:
            yield place, prompt


def prompt_from_row(row: Mapping[str, Any]) -> DSRPrompt:
    """Parse a row of a prompt set.

    Args:
        row (`Mapping[str, Any]`): A row with a `prompt`, or with the parts to build it from. A cell that is empty, NaN
            or a word for it is missing. Nouns may have an article.

    Returns:
        [`DSRPrompt`]: the prompt with its parts.

    Raises:
        ValueError: If the row is not a prompt, or if its columns disagree with its prompt.
    """
    # 1. Take the cells that are not empty
    given = {column: _cell(row, column) for column in PROMPT_COLUMNS}
    given = {column: text for column, text in given.items() if text}
    if "type" in given:
        check_dsr_type(given["type"])

    # 2. Parse the prompt, or build it
    prompt_id = given.pop("prompt_id", None)
    text = given.pop("prompt", None)
    if text is not None:
        prompt = parse_prompt(text, prompt_id)
    else:
        missing = [part for part in _PARTS if part not in given and part != "attribute"]
        if missing:
            raise ValueError(f"no column 'prompt', and to build it these columns are missing: {', '.join(missing)}")
        prompt = build_prompt(**{part: normalize(given.get(part, "")) for part in _PARTS}, prompt_id=prompt_id)

    # 3. Compare the other columns with it
    for column, value in given.items():
        if not _agrees(prompt, column, value):
            raise ValueError(f"column {column!r} is {value!r} but the prompt says {getattr(prompt, column)!r}")
    return prompt


def _agrees(prompt: DSRPrompt, column: str, value: str) -> bool:
    """Return whether a column says the same as the prompt, in whichever words and characters."""
    value, parsed = normalize(value), normalize(getattr(prompt, column))
    if column in ("initial_SR", "final_SR"):
        place = column.removesuffix("_SR")
        code = prompt.type[0 if place == "initial" else -1]
        return phrases(place).get(tuple(value.casefold().split())) == code
    if column == "scene":  # its first letter is capitalised in the prompt
        value, parsed = (scene[:1].upper() + scene[1:].rstrip(", ") for scene in (value, parsed))
    return value == parsed


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Return a cell of a prompt's row as text, parts with single spaces and nouns without an article."""
    try:
        text = cell_text(row.get(column))
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from error
    if len(text) > MAX_LENGTH:
        raise ValueError(f"column {column!r} has {len(text):_} characters, but a prompt has at most {MAX_LENGTH:_}")
    if column not in ("prompt", "prompt_id"):
        text = " ".join(text.split())
    articles = _ARTICLES.match(text) if column in _NOUNS else None
    return text[articles.end() :] if articles else text
