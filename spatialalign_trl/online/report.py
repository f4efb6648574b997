"""The loop's part of the report: what only it knows is noted in `report.json`, then the page is made from disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.evaluation import headline_score, invalid_reason
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.grades import find_grader
from spatialalign_trl.report.write import try_write_report, write_run_notes

if TYPE_CHECKING:
    from spatialalign_trl.rollout.store import Sample, SampleStore


def report_run(
    folder: Path,
    store: SampleStore,
    rewards: Sequence[Any],
    evaluated: Mapping[str, Sequence[Sample]],
    round_scores: Callable[[], Sequence[Sequence[float | None]]],
    max_megabytes: float,
    command: str | None = None,
) -> None:
    """Writes `report.json` and `report.html` into a finished run's folder.

    Args:
        folder: the run's `output_dir`, with its `results.json`.
        store: where the evaluated videos lie.
        rewards: the loop's rewards; the first with a method `grade` tells curves and boxes.
        evaluated: policy -> its evaluated samples.
        round_scores: tells each round's scores of the samples that it was trained on.
        max_megabytes: size of the page.
        command: the line that started the run.
    """
    clips = {name: [_clip(name, sample, store, folder) for sample in one] for name, one in evaluated.items()}
    try:
        scores = round_scores()
    except FileNotFoundError as error:
        warnings.warn(f"the page has no histograms of the rounds: {error}", stacklevel=2)
        scores = []
    write_run_notes(folder, clips, scores, command)
    try_write_report(folder, find_grader(rewards), max_megabytes)


def _clip(policy: str, sample: Sample, store: SampleStore, folder: Path) -> Clip:
    video = store.path(sample.sample_id, ".mp4").resolve()
    is_inside = folder.resolve() in video.parents
    return Clip(
        policy=policy,
        sample_id=sample.sample_id,
        prompt_id=sample.prompt_id,
        seed=sample.seed,
        video=os.path.relpath(video, folder.resolve()) if is_inside else str(video),
        row={name: value for name, value in sample.row.items() if not isinstance(value, list)},  # the page shows words
        reward=headline_score(sample),
        reason=invalid_reason(sample) if sample.reward is None else None,
    )
