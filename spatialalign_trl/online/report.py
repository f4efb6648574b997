"""Write a finished run's page: record in `report.json` what only the loop knows, then render the page from disk."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from spatialalign_trl.evaluation import headline_score, invalid_reason
from spatialalign_trl.online.publishing import Outcome, run_usage
from spatialalign_trl.online.rounds import RunParts, samples_of_round
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.grades import find_grader
from spatialalign_trl.report.write import try_write_report, write_run_notes

if TYPE_CHECKING:
    from spatialalign_trl.rollout.store import Sample


def write_run_report(parts: RunParts, outcome: Outcome) -> None:
    """
    Write `report.json` and `report.html` into a finished run's folder, which has its `results.json` already.

    The first reward with a method `grade` provides curves and boxes. A failure only warns.
    """
    clips = {
        policy: [_clip(parts, policy, sample) for sample in samples] for policy, samples in outcome.evaluated.items()
    }
    try:
        scores = _round_scores(parts)
    except FileNotFoundError as error:
        warnings.warn(f"the page has no histograms of the rounds: {error}", stacklevel=2)
        scores = []
    command = outcome.recipe.command if outcome.recipe else None
    write_run_notes(parts.output_dir, clips, scores, command, run_usage(parts, outcome))
    try_write_report(parts.output_dir, find_grader(parts.runner.reward_funcs), parts.args.report_megabytes)
    parts.runner.release()


def _round_scores(parts: RunParts) -> list[list[float | None]]:
    """Return, for each round, the scores of its training samples."""
    rounds = range(1, parts.args.num_rounds + 1)
    return [[headline_score(sample) for sample in samples_of_round(parts, number)] for number in rounds]


def _clip(parts: RunParts, policy: str, sample: Sample) -> Clip:
    folder = parts.output_dir.resolve()
    video = parts.store.path(sample.sample_id, ".mp4").resolve()
    return Clip(
        policy=policy,
        sample_id=sample.sample_id,
        prompt_id=sample.prompt_id,
        seed=sample.seed,
        video=os.path.relpath(video, folder) if folder in video.parents else str(video),
        row={name: value for name, value in sample.row.items() if not isinstance(value, list)},  # the page shows words
        reward=headline_score(sample),
        reason=invalid_reason(sample) if sample.reward is None else None,
    )
