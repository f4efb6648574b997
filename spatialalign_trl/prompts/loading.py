"""Load prompt sets from a dataset folder, a dataset on the Hub, or a csv, jsonl, json or txt file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from spatialalign_trl.prompts.grammar import PROMPT_COLUMNS, DSRPrompt, build_prompt, parse_prompt
from spatialalign_trl.prompts.nouns import normalize
from spatialalign_trl.prompts.relations import check_dsr_type, phrases
from spatialalign_trl.video import with_undecoded_videos

if TYPE_CHECKING:
    from datasets import Dataset


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
    from datasets import Dataset, Features, Value

    rows: list[dict[str, str]] = []
    place_of_id: dict[str, str] = {}
    for place, row in read_rows(source, split):
        try:
            prompt = prompt_from_row(row)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        earlier = place_of_id.setdefault(prompt.prompt_id, place)
        if earlier != place:
            raise ValueError(
                f"{place}: prompt_id {prompt.prompt_id!r} was already used at {earlier}, but ids must be unique"
            )
        rows.append(prompt.to_row())
    if not rows:
        raise ValueError(f"{source} contains no prompts")
    return Dataset.from_list(rows, features=Features({column: Value("string") for column in PROMPT_COLUMNS}))


def prompt_from_row(row: Mapping[str, Any]) -> DSRPrompt:
    """Parse a row of a prompt set.

    Args:
        row (`Mapping[str, Any]`): A row with a `prompt`, or with the parts to build it from.

    Returns:
        [`DSRPrompt`]: the prompt with its parts.

    Raises:
        ValueError: If the row is not a prompt, or if its columns disagree with its prompt.
    """
    given = {column: str(row[column]).strip() for column in PROMPT_COLUMNS if row.get(column) not in (None, "")}
    if "type" in given:
        check_dsr_type(given["type"])
    prompt_id = given.pop("prompt_id", None)
    text = given.pop("prompt", None)
    if text is not None:
        prompt = parse_prompt(text, prompt_id)
    else:
        missing = [part for part in ("scene", "animal", "object", "type", "verb") if part not in given]
        if missing:
            raise ValueError(f"no column 'prompt', and to build it these columns are missing: {', '.join(missing)}")
        columns = ("scene", "animal", "object", "type", "verb", "attribute")
        parts = {part: normalize(given.get(part, "")) for part in columns}
        prompt = build_prompt(**parts, prompt_id=prompt_id)
    for column, value in given.items():
        if not _agrees(prompt, column, value):
            raise ValueError(f"column {column!r} is {value!r} but the prompt says {getattr(prompt, column)!r}")
    return prompt


def _agrees(prompt: DSRPrompt, column: str, value: str) -> bool:
    """Return whether a column says the same as the prompt, in whichever words and characters."""
    value = normalize(value)
    if column in ("initial_SR", "final_SR"):
        place = column.removesuffix("_SR")
        code = prompt.type[0 if place == "initial" else -1]
        return phrases(place).get(tuple(value.casefold().split())) == code
    return value.rstrip(", ") == prompt.scene if column == "scene" else value == getattr(prompt, column)


def read_rows(source: str | Path | Dataset, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the rows of a source without parsing them.

    Args:
        source (`str`, `Path` or [`~datasets.Dataset`]): The source, as in [`load_prompts`].
        split (`str`): The split of a folder or of a Hub dataset.

    Yields:
        `tuple[str, Mapping[str, Any]]`: the row's place, for error messages, and the row.

    Raises:
        FileNotFoundError: If `source` looks like a file or a folder that does not exist.
        ValueError: If a file is of an unknown kind, or a row cannot be read.
    """
    if not isinstance(source, (str, Path)):
        yield from ((f"row {index} of the dataset", row) for index, row in enumerate(source))
        return
    path = Path(source)
    if path.suffix in _FILE_READERS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no prompt file {path}")
        yield from ((f"{path}, {place}", row) for place, row in _FILE_READERS[path.suffix](path))
        return
    if path.is_file():
        raise ValueError(f"{path}: prompt files end in {', '.join(_FILE_READERS)}")
    # A Hub id is "name" or "owner/name". Anything else that does not exist was meant to be a folder.
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise FileNotFoundError(f"there is no prompt folder {path}")
    from datasets import load_dataset

    # Read folders into a temporary cache: datasets caches them under their name and description, and would not notice
    # that a file changed. Datasets on the Hub are cached by commit.
    with TemporaryDirectory() if path.is_dir() else nullcontext() as cache:
        for index, row in enumerate(with_undecoded_videos(load_dataset(str(source), split=split, cache_dir=cache))):
            yield f"{source}, split {split}, row {index}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the rows of a csv file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield f"line {reader.line_num}", row


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the rows of a file with one JSON object per line."""
    for place, line in _read_lines(path):
        yield place, _parse_json(line, f"{path}, {place}")


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the rows of a JSON file with a list of objects."""
    rows = _parse_json(path.read_text(encoding="utf-8"), str(path), kind=list)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {index}: expected an object with the prompt's columns, found {row!r}")
        yield f"row {index}", row


def _parse_json(text: str, place: str, kind: type = dict) -> Any:
    """Parse a JSON value of type `kind`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not valid JSON ({error})") from error
    if not isinstance(value, kind):
        expected = "an object with the prompt's columns" if kind is dict else "a list of rows"
        raise ValueError(f"{place}: expected {expected}, found {text[:80]!r}")
    return value


def _read_txt(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the rows of a text file with one prompt per line."""
    return ((place, {"prompt": line}) for place, line in _read_lines(path))


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the non-empty lines of a file, with their places."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", line


_FILE_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json, ".txt": _read_txt}
