"""Read videos from the cells of datasets: undecoded `Video` columns, paths, bytes, or frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.video.arrays import Video, check_video
from spatialalign_trl.video.reading import check_video_file, read_video

if TYPE_CHECKING:
    from datasets import Dataset


def with_undecoded_videos(dataset: Dataset) -> Dataset:
    """Return a dataset with every `Video` column cast to `Video(decode=False)`: decoding needs another package."""
    from datasets import Video

    for name, feature in dataset.features.items():
        if isinstance(feature, Video):
            dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def is_video_cell(value: Any) -> bool:
    """Return whether a value is a cell of a `datasets.Video(decode=False)` column."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def is_frames(cell: Any) -> bool:
    """Return whether a cell contains decoded frames (an array or nested lists), not a video file."""
    return isinstance(cell, (list, tuple, np.ndarray)) or hasattr(cell, "__array__")


def video_bytes(cell: Any, where: str) -> bytes:
    """
    Read the video file in a cell.

    Args:
        cell (`dict`, `str`, `PurePath` or `bytes`):
            An undecoded `Video`, a path, or the content of the file.
        where (`str`):
            How errors name the cell.

    Returns:
        `bytes`: the content of the video file.

    Raises:
        ValueError: if the cell holds none of these, or its file cannot be read. The message names the cell.
    """
    source = _video_source(cell, where)
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: the video file cannot be read: {error}") from error


def frames_of(cell: Any, where: str) -> Video:
    """
    Read the frames in a cell.

    Args:
        cell (`np.ndarray` or `torch.Tensor` of shape (frames, height, width, 3), `list`, `dict`, `str` or `bytes`):
            `uint8` frames, the same as nested lists, or a video file in one of the forms that [`video_bytes`] reads.
        where (`str`):
            How errors name the cell.

    Returns:
        `np.ndarray` of shape (frames, height, width, 3), `uint8`: the video.

    Raises:
        TypeError, ValueError: if the cell holds none of these, or its file cannot be read. The message names the cell.
    """
    if is_frames(cell):
        return check_video(np.asarray(cell, np.uint8 if isinstance(cell, (list, tuple)) else None), where)
    source = _video_source(cell, where)
    try:
        return read_video(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _video_source(cell: Any, where: str) -> bytes | Path:
    """Return the content of a cell's video file if the cell contains it, otherwise the file's path."""
    if isinstance(cell, Mapping):
        content, path = cell.get("bytes"), cell.get("path")
        if content and not isinstance(content, bytes):  # a text here would be taken for a path below
            raise ValueError(f"{where}: expected the content of a video under 'bytes', got {brief(content)}")
        cell = content or path
    if isinstance(cell, bytes) and cell:
        return cell
    if not isinstance(cell, (str, PurePath)) or not str(cell):
        raise ValueError(f"{where}: expected a video as bytes or a path, got {brief(cell)}")
    return Path(cell)


def videos_of(row: Mapping[str, Any]) -> list[tuple[str, Video]]:
    """
    Read the videos of a row, for pictures. A video with a missing file is skipped.

    Args:
        row (`Mapping[str, Any]`):
            A dataset row with undecoded videos.

    Returns:
        `list[tuple[str, np.ndarray]]`: pairs of a column's name and its video. A `ValueError` names a broken column.
    """
    videos = []
    for name, value in row.items():
        if is_video_cell(value) and (value["bytes"] or Path(value["path"] or "").is_file()):
            videos.append((name, frames_of(value, f"column {name!r}")))
    return videos


def self_contained(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    Return a copy of a row that contains its videos: the bytes of each file, and its bare name instead of its path.

    Args:
        row (`Mapping[str, Any]`):
            A dataset row with undecoded videos.
        where (`str`):
            How errors name the row.

    Returns:
        `dict[str, Any]`: the row, with the same columns.

    Raises:
        ValueError: if a video file cannot be read, or is no video: a cell may name any file of this machine, and these
            rows are published. The message names the row and the column.
    """
    contained = dict(row)
    for name, value in row.items():
        if is_video_cell(value):
            content = check_video_file(video_bytes(value, place := f"{where}, column {name!r}"), place)
            contained[name] = {"bytes": content, "path": PurePath(value["path"] or name).name}
    return contained


def brief(value: Any) -> str:
    """Return the `repr` of a value, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
