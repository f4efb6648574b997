"""Read the prompt id and the seed from the name of a video file."""

from __future__ import annotations

import re
from collections.abc import Container

from spatialalign_trl.text_files import same_text

VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif", ".webp", ".ts", ".mpg", ".mpeg", ".m2ts", ".mts", ".flv",
    ".ogv", ".ogg", ".wmv", ".asf", ".3gp", ".3g2", ".y4m", ".ivf", ".nut", ".mxf", ".dv", ".apng", ".h264", ".hevc",
)  # fmt: skip
"""Suffixes of videos, in lower case. A folder's files with other unknown suffixes are looked at, too."""

# The paper's authors name their videos {prompt_id}_F81_seed{ss}.mp4. `_F81` and `_seed{ss}` are optional here.
_AUTHORS_NAME = re.compile(r"(?P<prompt_id>.+?)(_F[0-9]+)?(_seed(?P<seed>[0-9]+))?", re.DOTALL)


def read_video_name(stem: str, known: Container[str]) -> tuple[str, int | None]:
    """
    Parse the prompt id and the seed from a file name.

    Args:
        stem (`str`):
            The file name without its suffix.
        known (container of `str`):
            The prompt ids that exist, as [`~spatialalign_trl.text_files.same_text`] writes them. A name that equals
            one of them is not parsed further.

    Returns:
        `tuple[str, int | None]`: the prompt id in the same form, which may be unknown, and the seed, or `None` if the
        name has none.
    """
    stem = same_text(stem)
    if stem in known:
        return stem, None
    name = _AUTHORS_NAME.fullmatch(stem)
    return name["prompt_id"], None if name["seed"] is None else int(name["seed"])
