"""What `spatialalign score` found out, and the CSV and JSON files it goes to."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatialalign_trl import __version__
from spatialalign_trl.cli.work import Job, Problem, shown
from spatialalign_trl.evaluation import success_rate, summarize
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.perception.tracks import Tracks

SECONDS_BETWEEN_WRITES = 2.0
"""Files are written as a whole; more often than this would cost more than it saves."""


@dataclass(frozen=True)
class ScoredVideo:
    """A video, its question and the answer. Also what `evaluation.summarize` reads of a sample.

    Args:
        job ([`Job`]): The video and what it was asked.
        result: What the reward said, a `DSRResult`.
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]): The boxes it was read from.
    """

    job: Job
    result: Any
    tracks: Tracks

    @property
    def reward(self) -> float | None:
        return self.result.score

    @property
    def rewards(self) -> dict[str, float | None]:
        return {"dsr_score": self.reward}

    @property
    def prompt_id(self) -> str:
        """Whose seeds belong together: the prompt's id, or the question where it has none."""
        question = self.job.question
        return question.prompt_id or f"{question.animal} {question.type} {question.object}"

    @property
    def row(self) -> dict[str, Any]:
        return vars(self.job.question)

    @property
    def scores(self) -> dict[str, float | None]:
        """The components by name, from the first relation's to the last one's; `None` where the video is INVALID."""
        result, middle = self.result, {}
        for k in range(len(self.job.question.type) - 2):
            for name, values in (("score", result.visit_scores), ("gap", result.visit_gaps)):
                middle[f"visit_{name}_{k + 1}"] = values[k] if k < len(values) else None
        return {
            "initial_score": result.initial_score,
            "initial_gap": result.initial_gap,
            **middle,
            "final_score": result.final_score,
            "final_gap": result.final_gap,
        }

    @property
    def curves(self) -> list[np.ndarray]:
        """SSR of every relation of the type, in order, over the counted frames."""
        return [self.result.initial_curve, *self.result.visit_curves, self.result.final_curve]

    @property
    def components(self) -> dict[str, Any]:
        """As the reward logs them in training."""
        return {**{f"dsr_{name}": value for name, value in self.scores.items()}, "dsr_reason": self.result.reason}

    @property
    def counted_frames(self) -> int:
        return len(self.result.frame_indices)


def component_names(scored: Sequence[ScoredVideo]) -> list[str]:
    """The components of the longest type, which hold those of all shorter ones in the same order."""
    return list(max((one.scores for one in scored), key=len, default={}))


@dataclass(frozen=True)
class Settings:
    """What holds for all videos of a run.

    Args:
        tracker (`str`): The tracker's name.
        tracker_options, depth_options (`dict`): What it and the depth estimator were made with, beyond their defaults.
        thresholds (sequence of `float`): The taus of S@tau, in [0, 1]; the first one colours the table.
    """

    tracker: str
    tracker_options: Mapping[str, Any]
    depth_options: Mapping[str, Any]
    thresholds: Sequence[float]


def summary(scored: Sequence[ScoredVideo], thresholds: Sequence[float]) -> dict[str, Any]:
    """The numbers over all videos, for JSON; `{}` without any. INVALID counts as a failure in every S@tau."""
    if not scored:
        return {}
    rewards = [one.reward for one in scored]
    asked = {f"S@{tau:g}": success_rate(rewards, tau) for tau in thresholds}
    return {**asked, **summarize(scored)}


class ResultFiles:
    """Writes the results as they come, each file in one step, at most every `SECONDS_BETWEEN_WRITES`.

    Args:
        settings ([`Settings`]): Written beside the results.
        csv_path, json_path (`str`, *optional*): Where the files go; `None` = not written.
    """

    def __init__(self, settings: Settings, csv_path: str | None = None, json_path: str | None = None) -> None:
        self.settings = settings
        self.csv_path = None if csv_path is None else Path(csv_path)
        self.json_path = None if json_path is None else Path(json_path)
        self._written = -float("inf")

    def update(self, scored: Sequence[ScoredVideo], problems: Sequence[Problem], *, last: bool = False) -> None:
        """Writes what is known so far, unless it was written a moment ago; `last`: in any case.

        Raises:
            OSError: when the last writing fails; an earlier one is tried again later.
        """
        if not last and time.monotonic() - self._written < SECONDS_BETWEEN_WRITES:
            return
        try:
            if self.csv_path is not None:
                write_atomic(self.csv_path, self._csv(scored).encode("utf-8"))
            if self.json_path is not None:
                write_json(self.json_path, self._json(scored, problems))
        except OSError:
            if last:
                raise
        self._written = time.monotonic()

    def _csv(self, scored: Sequence[ScoredVideo]) -> str:
        rows = [self._csv_row(one) for one in scored]
        first, last = (list(dict.fromkeys(key for row in rows for key in row[part])) for part in (0, 2))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*first, *component_names(scored), *last], lineterminator="\n")
        writer.writeheader()
        for before, components, after in rows:
            writer.writerow({**before, **components, **after})
        return buffer.getvalue()

    def _csv_row(self, one: ScoredVideo) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What stands before, among and after the components."""
        question, score = one.job.question, one.reward
        before = {
            "file": shown(one.job.path),
            "prompt_id": question.prompt_id,
            "seed": one.job.seed,
            "type": question.type,
            "animal": question.animal,
            "object": question.object,
            "attribute": question.attribute,
            "score": score,
            "valid": score is not None,
        }
        passed = {f"S@{tau:g}": int(success_rate([score], tau)) for tau in self.settings.thresholds}
        after = {
            "reason": one.result.reason,
            "counted_frames": one.counted_frames,
            "num_frames": one.tracks.num_frames,
            **_counts(one.tracks.details),
            **passed,
            "tracker": self.settings.tracker,
            "tracker_options": " ".join(f"{key}={value}" for key, value in self.settings.tracker_options.items()),
            "prompt": question.prompt,
        }
        return before, one.scores, after

    def _json(self, scored: Sequence[ScoredVideo], problems: Sequence[Problem]) -> dict[str, Any]:
        return {
            "version": __version__,
            "tracker": self.settings.tracker,
            "tracker_options": dict(self.settings.tracker_options),
            "depth_options": dict(self.settings.depth_options),
            "thresholds": list(self.settings.thresholds),
            "summary": summary(scored, self.settings.thresholds),
            "videos": [self._json_row(one) for one in scored],
            "problems": [vars(problem) for problem in problems],
        }

    def _json_row(self, one: ScoredVideo) -> dict[str, Any]:
        curves = zip(one.job.question.type, one.curves, strict=True)
        return {
            "file": shown(one.job.path),
            "seed": one.job.seed,
            **vars(one.job.question),
            "score": one.reward,
            "components": one.scores,
            "reason": one.result.reason,
            "counted_frames": one.counted_frames,
            "num_frames": one.tracks.num_frames,
            "details": one.tracks.details,
            "frame_indices": one.result.frame_indices.tolist(),
            "curves": [{"relation": relation, "values": values.tolist()} for relation, values in curves],
        }


def _counts(details: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of frames that a tracker told, under names that say so."""
    counts = {name: value for name, value in details.items() if isinstance(value, int)}
    return {name if "frame" in name else f"{name}_frames": value for name, value in counts.items()}
