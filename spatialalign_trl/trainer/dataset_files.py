"""Confine the video files that the rows of a dataset name: the dataset may come from somebody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants

from spatialalign_trl.files import confined

# Python code gave the rows, or the library itself found the files: their paths are the user's own.
_OWN_BUILDERS = ("generator", "videofolder", "imagefolder")
_BATCH_SIZE = 256


def check_video_files(dataset: datasets.Dataset, columns: Sequence[str], name: str) -> None:
    """
    Check that the rows of a dataset that was read from files name no video outside of the folders that it may use.

    These are the working directory, the caches of the Hub, and the dataset's own folder. The paths of a dataset that
    was made in Python (`Dataset.from_list`), or of a `videofolder`, are the user's own, and are not checked.

    Args:
        dataset (`datasets.Dataset`):
            The dataset.
        columns (sequence of `str`):
            The columns that may hold videos; others than paths and `Video` cells are left alone.
        name (`str`):
            How errors refer to the dataset.

    Raises:
        ValueError: names the row, the column and the path.
    """
    if not _is_read_from_files(dataset):
        return
    roots = _roots(dataset)
    for column in columns:
        for row, path in _named_files(dataset, column):
            if not any(_lies_in(path, root) for root in roots):
                raise ValueError(
                    f"{name} row {row}, column {column!r}: {path!r} lies outside of the working directory "
                    f"({Path.cwd()}) and of the dataset. Rows that were read from files may come from somebody else, "
                    "so they may not name any file of this machine. Start from a folder that contains the videos, or "
                    "put their content under 'bytes'. If the paths are your own, make the dataset in Python: "
                    "Dataset.from_list(dataset.to_list())."
                )


def _is_read_from_files(dataset: datasets.Dataset) -> bool:
    builder = dataset.info.builder_name
    return bool(dataset.cache_files) if builder is None else builder not in _OWN_BUILDERS


def _roots(dataset: datasets.Dataset) -> list[Path]:
    caches = (
        constants.HF_HUB_CACHE,
        datasets.config.DOWNLOADED_DATASETS_PATH,
        datasets.config.EXTRACTED_DATASETS_PATH,
    )
    own = {Path(file["filename"]).parent for file in dataset.cache_files}
    return [Path.cwd(), *map(Path, caches), *sorted(own)]


def _named_files(dataset: datasets.Dataset, column: str) -> Iterator[tuple[int, str]]:
    """Iterate over the rows without a video's content, and the paths that they name."""
    start = 0
    for batch in dataset.select_columns([column]).with_format("arrow").iter(_BATCH_SIZE):
        cells = batch[column].combine_chunks()
        paths = cells
        if pa.types.is_struct(cells.type) and {"bytes", "path"} <= {field.name for field in cells.type}:
            content, paths = pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path")
            if pa.types.is_binary(content.type) or pa.types.is_large_binary(content.type):
                is_missing = pc.or_kleene(pc.is_null(content), pc.equal(pc.binary_length(content), 0))
                paths = pc.if_else(is_missing, paths, None)
        if pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type):
            yield from ((start + row, path) for row, path in enumerate(paths.to_pylist()) if path)
        start += len(cells)


def _lies_in(path: str, root: Path) -> bool:
    """Return whether a path, relative to the working directory, lies in a folder."""
    try:
        confined(Path.cwd() / path, root)
    except ValueError:
        return False
    return True
