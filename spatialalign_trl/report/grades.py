"""Compute the curves of the relations and the boxes of a video, as numbers that can be stored as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialalign_trl.prompts.relations import END_FRAMES, RELATIONS
from spatialalign_trl.video import Video

GRADE_COLUMNS = ("type", "animal", "object", "attribute")
"""Prompt columns that a reward's method `grade` takes; the last one may be missing."""

Grade = dict[str, Any]
"""`frames` (int), `counted` (frame numbers), `curves` (`name`, and `values` in [-1, 1], one per counted frame),
`averaged` (`[first, last]` frame of each stretch that the score averages), `boxes` (name -> one `[x1, y1, x2, y2]` in
pixels per frame, `None` for a frame without a detection)."""


def relation_names(dsr_type: str) -> list[str]:
    """Name each relation of a type and when it should hold: `["on the left of (start)", ...]`."""
    times = ["start", *(f"visit {number}" for number in range(1, len(dsr_type) - 1)), "end"]
    return [f"{RELATIONS[code].initial} ({time})" for code, time in zip(dsr_type, times, strict=True)]


def find_grader(rewards: Iterable[Any]) -> Callable[..., Sequence[Any]] | None:
    """Return the method `grade` of the first reward that has one (DSR-Score), or `None`."""
    return next((reward.grade for reward in rewards if hasattr(reward, "grade")), None)


def grade_videos(
    grade: Callable[..., Sequence[Any]], videos: Sequence[Video], rows: Sequence[Mapping[str, Any]]
) -> list[Grade]:
    """Compute the curves and boxes of videos.

    Args:
        grade (callable): What `find_grader` returned.
        videos (sequence of `N` `uint8` arrays of shape `(frames, height, width, 3)`): The videos.
        rows (sequence of `N` mappings): Their prompts, with the columns `type`, `animal` and `object`.

    Returns:
        `list[Grade]`: one per video.
    """
    columns = {name: [row[name] for row in rows] for name in GRADE_COLUMNS if all(name in row for row in rows)}
    graded = grade(videos, **columns)
    return [_to_dict(video.result, video.tracks, row) for video, row in zip(graded, rows, strict=True)]


def _to_dict(result: Any, tracks: Any, row: Mapping[str, Any]) -> Grade:
    values = [result.initial_curve, *result.visit_curves, result.final_curve]
    counted = np.asarray(result.frame_indices, dtype=np.int64)
    curves = zip(relation_names(row["type"]), values, strict=True) if len(counted) else ()
    visits = [counted[counted >= begin][:END_FRAMES] for begin in result.visit_frames]
    stretches = [counted[:END_FRAMES], *visits, counted[-END_FRAMES:]] if len(counted) else []
    return {
        "frames": tracks.num_frames,
        "counted": counted.tolist(),
        "curves": [{"name": name, "values": np.round(curve, 3).tolist()} for name, curve in curves],
        "averaged": [[int(frames[0]), int(frames[-1])] for frames in stretches if len(frames)],
        "boxes": _boxes(tracks, (row["animal"], row["object"])),
    }


def _boxes(tracks: Any, names: Sequence[str]) -> dict[str, list[list[float] | None]]:
    boxes: dict[str, list[list[float] | None]] = {name: [None] * tracks.num_frames for name in names}
    for frame in tracks:
        for label, box in zip(frame.labels, np.reshape(frame.boxes, (-1, 4)), strict=True):
            over_time = boxes.setdefault(str(label), [None] * tracks.num_frames)
            if np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]:
                over_time[frame.frame_index] = np.round(box, 1).tolist()
    return boxes
