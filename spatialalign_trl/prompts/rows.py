"""Read the rows of prompt sets and other tables: csv, jsonl, json and txt files, dataset folders, and the Hub."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from spatialalign_trl.text_files import BYTE_ORDER_MARK, read_text
from spatialalign_trl.video import with_undecoded_videos

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]

_CONFIG_NAMES = {"name", "version", "data_dir", "data_files", "description", "features"}
"""Options of a dataset folder that do not change how its files are read."""


class RowError(ValueError):
    """A row that cannot be read. The rows after it can."""


def read_rows(source: str | Path | Dataset, split: str) -> Iterator[tuple[str, Row]]:
    """Iterate over the rows of a source without parsing them.

    Args:
        source (`str`, `Path` or [`~datasets.Dataset`]): The source, as in [`~spatialalign_trl.prompts.load_prompts`].
        split (`str`): The split of a folder or of a Hub dataset.

    Yields:
        `tuple[str, Mapping[str, Any]]`: the row's place, for error messages, and the row.

    Raises:
        FileNotFoundError: If `source` looks like a file or a folder that does not exist.
        ValueError: If a file is of an unknown kind or not in UTF-8, or a row cannot be read.
    """
    for place, row in try_rows(source, split):
        if isinstance(row, RowError):
            raise ValueError(f"{place}: {row}") from row
        yield place, row


def try_rows(source: str | Path | Dataset, split: str) -> Iterator[tuple[str, Row | RowError]]:
    """Iterate over the rows of a source, also over those after one that cannot be read.

    Args:
        source, split: As in [`read_rows`].

    Yields:
        `tuple[str, Mapping[str, Any] | RowError]`: the row's place and the row, or the reason why it cannot be read.

    Raises:
        FileNotFoundError, ValueError: As in [`read_rows`], for the source as a whole.
    """
    if not isinstance(source, (str, Path)):
        yield from ((f"row {index} of the dataset", row) for index, row in enumerate(source))
        return
    path = Path(source)
    if path.suffix.lower() in FILE_READERS and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"there is no prompt file {path}")
        yield from rows_of_file(path)
        return
    if path.is_file():
        raise ValueError(f"{path}: prompt files end in {', '.join(FILE_READERS)}")
    # A Hub id is "name" or "owner/name". Anything else that does not exist was meant to be a folder.
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise FileNotFoundError(f"there is no prompt folder {path}")
    # Read folders into a temporary cache: datasets caches them under their name and description, and would not notice
    # that a file changed. Datasets on the Hub are cached by commit.
    with TemporaryDirectory() if path.is_dir() else nullcontext() as cache:
        yield from _rows_of_dataset(str(source), split, cache)


def rows_of_file(path: Path) -> Iterator[tuple[str, Row | RowError]]:
    """Iterate over the rows of a csv, jsonl, json or txt file, as [`try_rows`] does."""
    for place, row in FILE_READERS[path.suffix.lower()](path, read_text(path)):
        yield f"{path}, {place}", row


# Kinds of files -----------------------------------------------------------------------------------------------------


def _read_csv(path: Path, text: str) -> Iterator[tuple[str, Row | RowError]]:
    """Iterate over the rows of a csv file."""
    lines = list(io.StringIO(text, newline=""))
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    if start == len(lines):
        return
    delimiter = next((mark for mark in ",;\t" if mark in lines[start]), ",")
    if re.fullmatch(r"sep=.\s*", lines[start]) and start + 1 < len(lines):  # a line that Excel writes for itself
        delimiter, start = lines[start][4], start + 1
    try:
        header, after = _csv_record(lines, start, delimiter)
        names = [name.strip() for name in header]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise RowError(f"the column {twice!r} appears twice. Rename one of them")
    except RowError as error:
        raise ValueError(f"{path}, line {start + 1}: {error}") from error
    start = after
    while start < len(lines):
        place = f"line {start + 1}"
        try:
            cells, start = _csv_record(lines, start, delimiter)
            if any(cell.strip() for cell in cells):
                yield place, _csv_row(names, cells, delimiter)
        except RowError as error:
            if place == f"line {start + 1}":  # the rest of its line is lost, but not the next one
                start += 1
            yield place, error


def _csv_record(lines: Sequence[str], start: int, delimiter: str) -> tuple[list[str], int]:
    """Return the cells of the record that begins in a line, and the first line after it."""
    reader = csv.reader((lines[k] for k in range(start, len(lines))), delimiter=delimiter, strict=True)
    try:
        return next(reader), start + reader.line_num
    except csv.Error as error:
        line = lines[start]
        if "field limit" in str(error):
            raise RowError(
                f"a cell has more than {csv.field_size_limit():_} characters. Shorten it, or close the quotation mark "
                "in front of it"
            ) from error
        if line.count('"') % 2:
            raise RowError(f"a quotation mark is not closed ({error}). Double those inside of a text") from error
        # Quotation marks inside of a text. They spoil no other row.
        return next(csv.reader([line], delimiter=delimiter)), start + 1


def _csv_row(names: Sequence[str], cells: Sequence[str], delimiter: str) -> Row:
    """Return a record as a row. Cells that are missing at its end are empty."""
    if any(cell.strip() for cell in cells[len(names) :]):
        raise RowError(
            f"it has {len(cells)} cells, but the first line names {len(names)} columns. Quote texts that contain "
            f"{delimiter!r}"
        )
    row = dict.fromkeys(name for name in names if name)
    return row | {name: cell for name, cell in zip(names, cells, strict=False) if name}


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[str, Row | RowError]]:
    """Iterate over the rows of a file with one JSON object per line."""
    for place, line in _lines(text):
        try:
            yield place, _object(_parse_json(line.strip()))
        except RowError as error:
            yield place, error


def _read_json(path: Path, text: str) -> Iterator[tuple[str, Row | RowError]]:
    """Iterate over the rows of a JSON file with a list of objects, or with one object per line."""
    try:
        rows = _parse_json(text)
    except RowError as error:
        if text.lstrip().startswith("{"):
            yield from _read_jsonl(path, text)
            return
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, found {rows!r:.80}")
    for index, row in enumerate(rows):
        try:
            yield f"row {index}", _object(row)
        except RowError as error:
            yield f"row {index}", error


def _read_txt(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Iterate over the rows of a text file with one prompt per line."""
    return ((place, {"prompt": line.rstrip("\n")}) for place, line in _lines(text))


FILE_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json, ".txt": _read_txt}
"""Ending of a file, in lower case -> what reads its rows from its text."""


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Iterate over the lines of a text that are not empty, with their places."""
    # newline=None ends lines as files do; str.splitlines would also end them at letters that JSON may contain.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        line = line.lstrip(BYTE_ORDER_MARK)  # of files that were put together
        if line.strip():
            yield f"line {number}", line


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise RowError(f"not valid JSON ({error})") from error


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"the key {twice!r} appears twice. Remove one of them")
    return values


def _object(value: Any) -> Row:
    if not isinstance(value, dict):
        raise RowError(f"expected an object with the prompt's columns, found {value!r:.80}")
    return value


# Datasets -----------------------------------------------------------------------------------------------------------


def _rows_of_dataset(source: str, split: str, cache: str | None) -> Iterator[tuple[str, Row | RowError]]:
    """Iterate over the rows of a dataset folder or of a dataset on the Hub."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        files = None if cache is None else _text_files(source, split, cache)
        dataset = load_dataset(source, split=split, cache_dir=cache) if files is None else None
        rows = [] if dataset is None else enumerate(with_undecoded_videos(dataset))
        for index, row in rows:
            yield f"{source}, split {split}, row {index}", row
    except (DatasetsError, UnicodeDecodeError, yaml.YAMLError) as error:
        if isinstance(error.__cause__ or error, UnicodeDecodeError) and cache is not None:
            for file in sorted(Path(source).rglob("*")):  # name the file and the line
                if file.suffix.lower() in (*FILE_READERS, ".md"):
                    read_text(file)
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{source}, split {split}, does not load: {reason or repr(error)}") from error
    for file in files or ():
        yield from rows_of_file(file)


def _text_files(folder: str, split: str, cache: str) -> list[Path] | None:
    """Return the files of a split if they can be read here: with the line in errors, and ids such as 007 as they are.

    `None` if they contain videos, are of another kind, or the folder's card sets options of their reader.
    """
    from datasets import Video, load_dataset_builder

    builder = load_dataset_builder(folder, cache_dir=cache)
    config, default = builder.config, type(builder.config)()
    names = [option.name for option in dataclasses.fields(config) if option.name not in _CONFIG_NAMES]
    if any(getattr(config, name) != getattr(default, name) for name in names):
        return None
    if any(isinstance(feature, Video) for feature in (builder.info.features or {}).values()):
        return None
    files = [Path(file) for file in (config.data_files or {}).get(split, ())]
    return files if files and all(file.suffix.lower() in FILE_READERS for file in files) else None
