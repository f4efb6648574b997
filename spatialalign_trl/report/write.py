"""Write `report.html` into the folder of a run or of an evaluation, from the files in that folder.

results.json        the numbers of a run (`online/trainer.py`) or of an evaluation (`report/evaluation_files.py`)
report.json         what the page shows in addition: a run's evaluated videos, the scores of each round and the
                    command; and the curves and boxes, so that the page can be rebuilt without models
samples.parquet     the videos of an evaluation
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.models.usage import LoraUsage
from spatialalign_trl.report.contents import (
    NOTES_FILE,
    RESULTS_FILE,
    known_grades,
    read_content,
    read_notes,
    read_results,
    without_malformed_parts,
)
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.grades import GRADE_COLUMNS, Grade, find_grader, grade_videos
from spatialalign_trl.report.page import render_page
from spatialalign_trl.report.untrusted import confine_clips, make_graders
from spatialalign_trl.rewards.containment import contained
from spatialalign_trl.safe_text import mask_text
from spatialalign_trl.video import Video

REPORT_FILE = "report.html"
MEGABYTES = 10.0
"""Default size limit of a page: small enough for an e-mail attachment."""


def write_report(
    folder: Path,
    grade: Callable[..., Sequence[Any]] | None = None,
    max_megabytes: float = MEGABYTES,
    *,
    trusted: bool = False,
    problems: list[str] | None = None,
) -> Path:
    """Write `report.html`, and the curves and boxes that it shows into `report.json`.

    Parts that cannot be read (a damaged `report.json` or `samples.parquet`, one video, values of another shape) are
    left out. The page says so.

    Args:
        folder (`Path`): The folder of a finished run or of an evaluation.
        grade (callable, *optional*): What `grades.find_grader` found among the rewards. By default, the rewards named
            in `results.json` are made again, if they can be and if some shown videos have no stored curves.
        max_megabytes (`float`, *optional*, defaults to 10.0): The largest size of the page, in units of 10^6 bytes.
            Videos that do not fit are left out, with a note.
        trusted (`bool`, *optional*, defaults to `False`): Whether you made the folder. If not, only videos inside of
            it are read, and rewards are made only with settings that a stranger may choose: no local checkpoints, no
            `trust_remote_code`.
        problems (`list[str]`, *optional*): Where the parts that are left out are added. By default they are warnings.

    Returns:
        `Path`: the page.

    Raises:
        FileNotFoundError: when the folder has no `results.json`.
        ValueError: when it is not the `results.json` of a run or an evaluation, or `max_megabytes` is not above 0.
    """
    if not max_megabytes > 0:
        raise ValueError(f"max_megabytes={max_megabytes}: must be above 0. Give a size such as {MEGABYTES:g}")
    folder = Path(folder)
    left_out: list[str] = []

    # 1. Read what the run or the evaluation wrote.
    results = read_results(folder)
    notes = read_notes(folder, left_out)
    content = read_content(folder, results, notes or {}, left_out)
    outside: list[str] = []
    if not trusted:
        content.clips, outside = confine_clips(content.clips, folder)
    for note in outside:
        warnings.warn(note, stacklevel=2)

    # 2. Render. Stored curves and boxes are valid only for the same rewards: another tracker finds other boxes.
    grades = known_grades(notes or {}, content.rewards)
    grader = _Grader(content.rewards, grade, None if trusted else str(folder / RESULTS_FILE))
    try:
        page, gallery = render_page(content, folder, grader, grades, max_megabytes, [*outside, *left_out])
    except Exception:  # whatever values of another shape make of the code
        shaped = without_malformed_parts(content, left_out)
        if shaped == content:
            raise
        content = shaped
        page, gallery = render_page(content, folder, grader, grades, max_megabytes, [*outside, *left_out])
    if grader.problems or gallery.unreadable:  # known only now, and they belong on the page
        left_out += [
            f"The page is without {video}, which cannot be read: {why}" for video, why in gallery.unreadable.items()
        ]
        page_notes = [*outside, *left_out, *grader.problems]
        page, gallery = render_page(content, folder, grader, grades | gallery.grades, max_megabytes, page_notes)

    # 3. Write the page, and all curves and boxes, so that the page can be rebuilt without models.
    if notes is not None:
        kept = {**notes, "graded_by": content.rewards, "grades": grades | gallery.grades}
        write_json(folder / NOTES_FILE, kept)
    if problems is not None:
        problems += left_out
    else:
        for problem in left_out:
            warnings.warn(problem, stacklevel=2)
    return write_atomic(folder / REPORT_FILE, page)


def try_write_report(
    folder: Path, grade: Callable[..., Sequence[Any]] | None = None, max_megabytes: float = MEGABYTES
) -> None:
    """Write the report of a folder that this process has written, and only warn if that fails: the results of a long
    run are already on disk.

    Args:
        folder, grade, max_megabytes: As in [`write_report`].
    """
    try:
        write_report(folder, grade, max_megabytes, trusted=True)
    except Exception as error:  # whatever goes wrong with a page, the run itself has succeeded
        warnings.warn(
            f"no {REPORT_FILE} was written ({type(error).__name__}: {error}). Run 'spatialalign report {folder}' to "
            "try again",
            stacklevel=2,
        )


def write_run_notes(
    folder: Path,
    evaluated: Mapping[str, Sequence[Clip]],
    round_scores: Sequence[Sequence[float | None]],
    command: str | None,
    usage: LoraUsage | None = None,
) -> Path:
    """Write into `report.json` what `write_report` cannot find in a run's other files.

    Args:
        folder (`Path`): The run's folder. Curves and boxes in its `report.json` are kept.
        evaluated (`dict`): Policy -> its evaluated videos.
        round_scores (sequence): For each round, the scores of the samples that it was trained on; `None` = INVALID.
        command (`str`, *optional*): The command line that started the run.
        usage ([`LoraUsage`], *optional*): How the run's LoRA is used.

    Returns:
        `Path`: the file.
    """
    notes = read_notes(folder, []) or {}  # what a run knows of itself replaces a damaged file
    run_notes = {
        "clips": [clip.to_dict() for clips in evaluated.values() for clip in clips],
        "round_scores": [list(scores) for scores in round_scores],
        "command": None if command is None else mask_text(command),
        "usage": None if usage is None else usage.to_dict(),
    }
    return write_json(folder / NOTES_FILE, notes | run_notes)


class _Grader:
    """Computes curves and boxes with the reward that made the scores; stops at the first failure, and warns once.

    `origin` is the file that the rewards' settings were read from, or `None` if that file is trusted."""

    def __init__(
        self, rewards: Mapping[str, Any], grade: Callable[..., Sequence[Any]] | None, origin: str | None
    ) -> None:
        self.rewards = rewards
        self.grade = grade
        self.origin = origin
        self.problems: list[str] = []

    def __call__(self, clips: Sequence[Clip], videos: Sequence[Video]) -> list[Grade | None]:
        grades: list[Grade | None] = [None] * len(clips)
        # Only prompts with a type, an animal and an object have curves.
        gradable = [place for place, clip in enumerate(clips) if set(GRADE_COLUMNS[:3]) <= set(clip.row)]
        if not gradable or self.problems:
            return grades
        try:
            with contained("curves and boxes"):
                self.grade = self.grade or self._make()
                if self.grade is None:
                    return grades
                rows = [clips[place].row for place in gradable]
                computed = grade_videos(self.grade, [videos[place] for place in gradable], rows)
        except Exception as error:  # a reward is user code, and its models may not be on this machine
            self.problems.append(f"Curves and boxes of some videos are missing: {type(error).__name__}: {error}")
            warnings.warn(self.problems[-1], stacklevel=2)
            return grades
        for place, grade in zip(gradable, computed, strict=True):
            grades[place] = grade
        return grades

    def _make(self) -> Callable[..., Sequence[Any]] | None:
        if self.origin is not None:
            return find_grader(make_graders(self.rewards, self.origin))
        from spatialalign_trl.rewards.convention import installed_rewards
        from spatialalign_trl.rewards.loading import load_reward

        names = [name for name, settings in self.rewards.items() if settings and name in installed_rewards()]
        return find_grader(load_reward(name, **self.rewards[name]) for name in names)
