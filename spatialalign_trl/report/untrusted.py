"""Read a folder that may come from somebody else: only its own videos, and no reward with settings that run code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spatialalign_trl.files import confined
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.video import is_video_cell

TRUST_REMEDY = "If you made this folder yourself, run 'spatialalign report' with --trust_folder"


def confine_clips(clips: Sequence[Clip], folder: Path) -> tuple[list[Clip], list[str]]:
    """Leave out the video files outside of the folder that a folder's `report.json` or `samples.parquet` names.

    Args:
        clips (sequence of [`Clip`]): What the file lists.
        folder (`Path`): The folder.

    Returns:
        The clips, with an empty path (a missing video) or without a column for each file outside of the folder; and
        a note if there are any.
    """
    outside: list[str] = []
    kept = []
    for clip in clips:
        video = clip.video
        if not _is_inside(folder / str(video), folder):
            outside.append(str(video))
            video = ""
        row = {}
        for name, value in clip.row.items():
            # Paths of recordings are relative to the working directory of the run.
            if is_video_cell(value) and not value["bytes"] and not _is_inside(value["path"], folder):
                outside.append(str(value["path"]))
            else:
                row[name] = value
        kept.append(replace(clip, video=video, row=row))
    if not outside:
        return kept, []
    note = (
        f"{len(outside)} video files lie outside of {folder} and were not read, such as {outside[0]!r}. "
        f"{TRUST_REMEDY}."
    )
    return kept, [note]


def _is_inside(path: Any, folder: Path) -> bool:
    try:
        confined(os.path.abspath(path), folder)
    except (TypeError, ValueError):
        return False
    return True


def make_graders(rewards: Mapping[str, Any], place: str) -> list[Any]:
    """Make the installed rewards that compute curves, with settings that pass the checks of settings from the Hub.

    Args:
        rewards (`dict`): Reward -> its settings, from a folder's `results.json`.
        place (`str`): The file, for error messages.

    Raises:
        ValueError: for settings that name a path of this machine or ask for code.
    """
    from spatialalign_trl.rewards.convention import find_installed, installed_rewards
    from spatialalign_trl.rewards.settings import without_local_options

    made = []
    for name, settings in rewards.items():
        if not isinstance(settings, Mapping) or name not in installed_rewards():
            continue
        found = find_installed(name)
        if not hasattr(found, "grade"):
            continue
        make = getattr(found, "from_settings", None)
        if make is None:
            raise ValueError(f"{place}: the reward {name!r} takes no settings from a file. {TRUST_REMEDY}")
        try:
            made.append(make(without_local_options(settings), place))
        except ValueError as error:
            raise ValueError(f"{error} {TRUST_REMEDY}") from error
    return made
