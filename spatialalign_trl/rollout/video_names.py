"""What the name of a video's file says: of which prompt it is, and which seed."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
"""What counts as a video in a folder."""

# The authors' names are {prompt_id}_F81_seed{ss}.mp4; either ending may be missing.
_AUTHORS_NAME = re.compile(r"(?P<prompt_id>.+?)(_F[0-9]+)?(_seed(?P<seed>[0-9]+))?")


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder, by name."""
    return sorted(path for path in folder.iterdir() if _is_video(path))


def _is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def read_video_name(stem: str, known: Container[str]) -> tuple[str, int | None]:
    """
    The prompt id and the seed that a file's name holds.

    Args:
        stem (`str`):
            The name without its suffix.
        known (container of `str`):
            Prompt ids that exist: a name that is one is not taken apart.

    Returns:
        `tuple[str, int | None]`: the prompt id, which may not be known, and the seed if there is one.
    """
    if stem in known:
        return stem, None
    name = _AUTHORS_NAME.fullmatch(stem)
    return name["prompt_id"], None if name["seed"] is None else int(name["seed"])
