"""`spatialalign score --plot`, three files a video: curves, a strip of frames with boxes, all frames with boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.display import score_text
from spatialalign_trl.cli.results import ScoredVideo
from spatialalign_trl.cli.work import Job, shown
from spatialalign_trl.prompts import RELATIONS
from spatialalign_trl.report.annotate import annotate_video, annotated_strip
from spatialalign_trl.report.clips import frame_rate
from spatialalign_trl.report.grades import relation_names
from spatialalign_trl.report.score_plots import RelationCurve, plot_curves
from spatialalign_trl.video import Video, write_video

_LONGEST_NAME = 100


def figure_names(jobs: Sequence[Job]) -> list[str]:
    """A file name for each job, made of its video's: letters, digits, dots, dashes and underscores only, and each
    different, also where upper and lower case are one.
    """
    names, taken = [], set()
    for job in jobs:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", job.path.stem).strip("._-")[:_LONGEST_NAME] or "video"
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def draw_figures(folder: Path, name: str, one: ScoredVideo, video: Video) -> None:
    """Writes `<name>_curves.png`, `<name>_boxes.png` and `<name>_boxes.mp4` into a folder.

    Raises:
        OSError: when they cannot be written.
    """
    question = one.job.question
    asked = f"{question.animal} and {question.object}, {question.type}"
    title = f"{shown(one.job.path.name)}: {asked}, " + (
        "INVALID" if one.reward is None else f"DSR-Score {score_text(one.reward)}"
    )
    note = " ".join([question.prompt, *([f"INVALID: {one.result.reason}."] if one.reward is None else [])]).strip()
    named = [
        RelationCurve(name, values) for name, values in zip(relation_names(question.type), one.curves, strict=True)
    ]
    plot_curves(
        folder / f"{name}_curves.png",
        named,
        one.result.frame_indices,
        one.tracks.num_frames,
        title=title,
        note=note,
        visits=one.result.visit_frames,
    )
    captions = _captions(one)
    annotated_strip(folder / f"{name}_boxes.png", video, one.tracks, title=title, note=note, captions=captions)
    annotated = annotate_video(video, one.tracks, captions)
    write_video(folder / f"{name}_boxes.mp4", annotated, fps=frame_rate(one.job.path))


def _captions(one: ScoredVideo) -> list[str]:
    """What the bar below each frame says: each relation's SSR there."""
    captions = ["not counted"] * one.tracks.num_frames
    words = [RELATIONS[code].initial.removeprefix("on the ").removesuffix(" of") for code in one.job.question.type]
    for place, values in zip(one.result.frame_indices, zip(*one.curves, strict=True), strict=True):
        captions[place] = "   ".join(f"{word} {value:+.2f}" for word, value in zip(words, values, strict=True))
    return captions
