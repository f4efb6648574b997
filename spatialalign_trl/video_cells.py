"""Videos in a dataset's cells: frames, paths, bytes, and the `{"bytes", "path"}` of an undecoded `datasets.Video`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

    from spatialalign_trl.video import Video


def with_undecoded_videos(dataset: Dataset) -> Dataset:
    """A dataset whose videos are files; to decode them would take a package that nothing here needs."""
    from datasets import Video

    for name, kind in dataset.features.items():
        if isinstance(kind, Video):
            dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def is_video_cell(value: Any) -> bool:
    """Whether a value is an undecoded `datasets.Video`."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def video_bytes(cell: Any, where: str) -> bytes:
    """
    The bytes of the video file in a cell: an undecoded `Video`, a path, or the bytes themselves.

    Raises:
        ValueError: nothing of the kind, or a file that cannot be read.
    """
    source = _source(cell, where)
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: the video file cannot be read: {error}") from error


def _source(cell: Any, where: str) -> bytes | Path:
    """The video file of a cell: what is in it, or where it is."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if not isinstance(cell, (str, PurePath)) or not str(cell):
        raise ValueError(f"{where}: expected a video as bytes or a path, got {brief(cell)}")
    return Path(cell)


def is_frames(cell: Any) -> bool:
    """Whether a cell holds frames, and no file of a video."""
    return isinstance(cell, (list, tuple, np.ndarray)) or hasattr(cell, "__array__")


def frames_of(cell: Any, where: str) -> Video:
    """
    The frames in a cell: an array of them, or those of a video file as of [`video_bytes`].

    Args:
        cell: A `uint8` array or tensor of shape (frames, height, width, 3), the same as nested lists, or a video.
        where (`str`): How errors name the cell.

    Raises:
        TypeError, ValueError: nothing of the kind, or a file that cannot be read; names it.
    """
    from spatialalign_trl.video import check_video, read_video

    if is_frames(cell):
        return check_video(np.asarray(cell, np.uint8 if isinstance(cell, (list, tuple)) else None), where)
    source = _source(cell, where)
    try:
        return read_video(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def videos_of(row: Mapping[str, Any]) -> list[tuple[str, Video]]:
    """The videos that a row holds, by their columns. They are for pictures: one whose file is gone is left out."""
    found = []
    for name, value in row.items():
        if is_video_cell(value) and (value["bytes"] or Path(value["path"] or "").is_file()):
            found.append((name, frames_of(value, f"column {name!r}")))
    return found


def self_contained(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row whose videos are in it: their bytes, and of their paths the files' names alone."""
    return {
        name: {"bytes": video_bytes(value, f"{where}, column {name!r}"), "path": PurePath(value["path"] or name).name}
        if is_video_cell(value)
        else value
        for name, value in row.items()
    }


def brief(value: Any) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
