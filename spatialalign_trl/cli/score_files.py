"""Read scores of videos: the files of `spatialalign score`, of an evaluation and of a run, and any other table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialalign_trl.cli.parsing import UsageError
from spatialalign_trl.cli.results import FORMULA_STARTS
from spatialalign_trl.cli.score_matching import match_rows, names_no_folder, namesake
from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.prompts.rows import read_rows
from spatialalign_trl.text_files import MISSING_WORDS

FILE_COLUMNS = ("file", "video", "path", "sample_id")
"""Columns that may name the video of a row; the first one with a value is used."""
DSR_COLUMNS = ("dsr_score", "score", "reward")
"""Names of the column with DSR-Score, or with the reward of a run; the first one that exists is used."""
REWARD_PREFIX = "reward/"
INVALID_VALUE = -100.0
"""The number that the authors' files contain for INVALID."""
INVALID_WORDS = MISSING_WORDS | {"", "invalid"}
"""What tables contain in words for INVALID, in any case."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores.

    Args:
        path (`Path`): The file or folder that it was read from.
        rows (sequence of `dict`): One row per video, with its name in one of `FILE_COLUMNS`, and its numbers.
    """

    path: Path
    rows: Sequence[Row]

    def numbers(self) -> list[str]:
        """List the columns of numbers: more cells are numbers than texts. A reward may be INVALID for all videos."""
        names = dict.fromkeys(name for row in self.rows for name in row if name not in FILE_COLUMNS)
        columns = []
        for name in names:
            values = [row.get(name) for row in self.rows]
            count, texts = (sum(map(test, values)) for test in (_is_number, is_text))
            is_reward = name in DSR_COLUMNS or name.startswith(REWARD_PREFIX)
            if count > texts or (is_reward and count == texts == 0):
                columns.append(name)
        return columns

    def rewards(self) -> list[str]:
        """List the columns that are rewards by their name: all `reward/NAME`, otherwise the first of `DSR_COLUMNS`."""
        known = self.numbers()
        named = [name for name in known if name.startswith(REWARD_PREFIX)]
        return named or [name for name in DSR_COLUMNS if name in known][:1]

    def column(self, name: str) -> str:
        """Find the column of a reward.

        Args:
            name (`str`): The reward's name, with or without `reward/`.

        Raises:
            UsageError: when there is no such column of numbers. The message names the nearest one.
        """
        known = self.numbers()
        for candidate in (name, f"{REWARD_PREFIX}{name}"):
            if candidate in known:
                return candidate
        plain = [column.removeprefix(REWARD_PREFIX) for column in known]
        raise UsageError(f"{self.path} has no column {name!r} of numbers. {near_miss(name, plain)}")

    def of_files(self, files: Sequence[str]) -> list[Row | None]:
        """Find the row of each video by the end of its path. A row of another parent folder is another video's.

        Args:
            files (sequence of `str`): The videos' paths, which need not be those of the table.

        Returns:
            `list`: the row of each video, or `None` if the table has none.

        Raises:
            UsageError: when several rows match a video equally well, or several videos a row.
        """
        matched = match_rows(files, [_file_of(row) for row in self.rows], self.path)
        return [None if index is None else self.rows[index] for index in matched]

    def matched_by_name(self, rows: Sequence[Row]) -> int:
        """Count the rows whose video is a name without a folder, so that another model's video may have it, too."""
        return sum(names_no_folder(_file_of(row)) for row in rows)

    def namesake(self, file: str) -> str | None:
        """Return the path of a video of the table that has the name of this one, `None` if there is none."""
        return namesake(file, [_file_of(row) for row in self.rows])


def number(value: Any) -> float | None:
    """Convert a cell to a number, or to `None` (INVALID) if it is empty, NaN, the authors' -100, or says so in words.

    Raises:
        ValueError: when it is another text.
    """
    if _is_missing(value):
        return None
    value = float(value)
    return None if math.isnan(value) or value == INVALID_VALUE else value


def is_text(value: Any) -> bool:
    """Return whether a cell is neither a number nor one of the ways to write INVALID."""
    return not _is_missing(value) and not _is_number(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().casefold() in INVALID_WORDS)


def read_scores(name: str) -> ScoreTable:
    """Read a table of scores.

    Args:
        name (`str`): The CSV or JSON file of `spatialalign score`; the `results.json` or `samples.parquet` of an
            evaluation; a run's folder; or any csv, jsonl, json or parquet table with a column `file` (or `video`,
            `path`, `sample_id`) and columns of numbers.

    Raises:
        UsageError: when it is none of these, or contains no scored video.
    """
    path = Path(name)
    try:
        rows = _read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scores: {error}") from error
    rows = [row for row in rows if _file_of(row)]
    if not rows:
        raise UsageError(
            f"--scores: {name} contains no scored video. A row needs one of the columns {', '.join(FILE_COLUMNS)}"
        )
    return ScoreTable(path, rows)


def _read(path: Path) -> list[Row]:
    if path.is_dir():
        return _rows_of_samples(path / "samples" if (path / "samples").is_dir() else path)
    if path.suffix.lower() == ".parquet":
        return _rows_of_parquet(path)
    if path.suffix.lower() == ".json":
        data = read_json(path)
        if isinstance(data, dict):
            return _rows_of_results(path, data)
    return [row for _, row in read_rows(path, split="")]


def _rows_of_results(path: Path, data: Mapping[str, Any]) -> list[Row]:
    if "videos" in data:  # spatialalign score --json
        videos = data["videos"]
        if not isinstance(videos, list) or not all(isinstance(row, dict) for row in videos):
            raise ValueError(f"{path}: 'videos' is not a list of objects, as `spatialalign score --json` writes it")
        return [_with_components(row, row.get("components"), f"{path}, videos[{k}]") for k, row in enumerate(videos)]
    samples = path.with_name("samples.parquet")
    if data.get("kind") == "evaluation" and samples.is_file():
        return _rows_of_parquet(samples)
    raise ValueError(f"{path} contains no scores of single videos. Give the run's folder, or samples.parquet")


def _rows_of_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error})") from error
    return [_with_components(row, row.get("components"), f"{path}, row {k}") for k, row in enumerate(rows)]


def _with_components(row: Row, components: Any, where: str) -> Row:
    """Return a row with its components, which are a dictionary or its JSON, as further columns."""
    try:
        found = json.loads(components) if isinstance(components, str) and components else components or {}
        return {**row, **found}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: components={components!r} are not an object of numbers") from error


def _rows_of_samples(folder: Path) -> list[Row]:
    from spatialalign_trl.rollout.store import SampleStore

    return [
        {
            "sample_id": sample.sample_id,
            **{f"{REWARD_PREFIX}{name}": value for name, value in sample.rewards.items()},
            "reward": sample.reward,
            **sample.components,
        }
        for sample in SampleStore(folder).samples()
        if sample.scored
    ]


def _file_of(row: Row) -> str:
    names = (row.get(name) for name in FILE_COLUMNS)
    file = next((str(name) for name in names if name and name == name), "")  # NaN, an empty cell, is not itself
    # The CSV of `spatialalign score` has an apostrophe in front of what a spreadsheet would take for a formula.
    return file[1:] if file.startswith("'") and file[1:].startswith(FORMULA_STARTS) else file


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def unique_names(names: Iterable[tuple[str, str]]) -> list[str]:
    """Make the names of rewards from several files unique.

    Args:
        names (iterable of `(file, name)`): The file's name and the reward's name.

    Returns:
        `list[str]`: `name`, or `file:name` if several files have a reward of that name.
    """
    pairs = list(names)
    plain = [name for _, name in pairs]
    return [name if plain.count(name) == 1 else f"{file}:{name}" for file, name in pairs]
