"""Read the prompt id and the seed from the name of a video file."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
"""Suffixes of the files in a folder that are read as videos."""

# The paper's authors name their videos {prompt_id}_F81_seed{ss}.mp4. `_F81` and `_seed{ss}` are optional here.
_AUTHORS_NAME = re.compile(r"(?P<prompt_id>.+?)(_F[0-9]+)?(_seed(?P<seed>[0-9]+))?")


def videos_in(folder: Path) -> list[Path]:
    """
    Return the video files of a folder, sorted by name. Hidden files and subfolders are skipped.

    Args:
        folder (`Path`):
            The folder.

    Returns:
        `list[Path]`: the files with one of the suffixes `VIDEO_SUFFIXES`.
    """
    visible = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in visible if path.suffix.lower() in VIDEO_SUFFIXES)


def read_video_name(stem: str, known: Container[str]) -> tuple[str, int | None]:
    """
    Parse the prompt id and the seed from a file name.

    Args:
        stem (`str`):
            The file name without its suffix.
        known (container of `str`):
            The prompt ids that exist. A name that equals one of them is not parsed further.

    Returns:
        `tuple[str, int | None]`: the prompt id, which may be unknown, and the seed, or `None` if the name has none.
    """
    if stem in known:
        return stem, None
    name = _AUTHORS_NAME.fullmatch(stem)
    return name["prompt_id"], None if name["seed"] is None else int(name["seed"])
