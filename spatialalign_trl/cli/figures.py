"""Draw what `spatialalign score --plot` writes per video: curves, a strip of frames with boxes, a video with boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.display import score_text
from spatialalign_trl.cli.results import ScoredVideo
from spatialalign_trl.cli.work import Job
from spatialalign_trl.errors import printable
from spatialalign_trl.files import file_name
from spatialalign_trl.prompts import RELATIONS
from spatialalign_trl.report.annotate import annotate_video, annotated_strip
from spatialalign_trl.report.grades import relation_names
from spatialalign_trl.report.score_plots import RelationCurve, plot_curves
from spatialalign_trl.video import Video, playable_fps, read_fps, write_video

_LONGEST_NAME = 100


def figure_names(jobs: Sequence[Job]) -> list[str]:
    """Make a unique file name for each job from the name of its video.

    The names consist of letters, digits, dots, dashes and underscores, and differ even on file systems that ignore
    case.
    """
    names, taken = [], set()
    for job in jobs:
        ascii_only = re.sub(r"[^A-Za-z0-9._-]+", "_", job.path.stem).strip("._-")[:_LONGEST_NAME]
        plain = file_name(ascii_only or "video")
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def draw_figures(folder: Path, name: str, scored: ScoredVideo, video: Video) -> None:
    """Write `<name>_curves.png`, `<name>_boxes.png` and `<name>_boxes.mp4`.

    Args:
        folder (`Path`): The folder that they are written to.
        name (`str`): One of [`figure_names`].
        scored ([`ScoredVideo`]): The score, curves and boxes.
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`): The video.

    Raises:
        OSError: when they cannot be written.
    """
    question = scored.job.question
    score = "INVALID" if scored.reward is None else f"DSR-Score {score_text(scored.reward)}"
    file = printable(scored.job.path.name)
    title = f"{file}: {question.animal} and {question.object}, {question.type}, {score}"
    reason = [f"INVALID: {scored.result.reason}."] if scored.reward is None else []
    note = " ".join([question.prompt, *reason]).strip()
    curves = [
        RelationCurve(relation, values)
        for relation, values in zip(relation_names(question.type), scored.curves, strict=True)
    ]
    plot_curves(
        folder / f"{name}_curves.png",
        curves,
        scored.result.frame_indices,
        scored.tracks.num_frames,
        title=title,
        note=note,
        visits=scored.result.visit_frames,
    )

    # The bar below each frame shows the SSR of every relation in that frame.
    captions = ["not counted"] * scored.tracks.num_frames
    words = [RELATIONS[code].initial.removeprefix("on the ").removesuffix(" of") for code in question.type]
    for frame, values in zip(scored.result.frame_indices, zip(*scored.curves, strict=True), strict=True):
        captions[frame] = "   ".join(f"{word} {value:+.2f}" for word, value in zip(words, values, strict=True))
    annotated_strip(folder / f"{name}_boxes.png", video, scored.tracks, title=title, note=note, captions=captions)
    annotated = annotate_video(video, scored.tracks, captions)
    write_video(folder / f"{name}_boxes.mp4", annotated, fps=playable_fps(read_fps(scored.job.path)))
