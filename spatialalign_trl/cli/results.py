"""Hold the results of `spatialalign score`, and write them to CSV and JSON files."""

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
from spatialalign_trl.cli.work import Job, Problem
from spatialalign_trl.errors import printable
from spatialalign_trl.evaluation import success_rate, summarize
from spatialalign_trl.files import write_atomic, write_json
from spatialalign_trl.perception.tracks import Tracks

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""Letters with which a formula begins in a spreadsheet."""

SECONDS_BETWEEN_WRITES = 2.0
"""Every write rewrites the whole file, so writing more often would cost more than an interruption could lose."""


@dataclass(frozen=True)
class ScoredVideo:
    """A video, its question and its score. It has the attributes of a sample that `evaluation.summarize` reads.

    Args:
        job ([`Job`]): The video and its question.
        result (`DSRResult`): What the reward returned.
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]): The boxes that the score was computed from.
    """

    job: Job
    result: Any
    tracks: Tracks

    @property
    def reward(self) -> float | None:
        """The score in [0, 1]; `None` = INVALID."""
        return self.result.score

    @property
    def rewards(self) -> dict[str, float | None]:
        """The score by the reward's name."""
        return {"dsr_score": self.reward}

    @property
    def prompt_id(self) -> str:
        """The prompt's id, which groups the seeds; the question's words if it has none."""
        question = self.job.question
        return question.prompt_id or f"{question.animal} {question.type} {question.object}"

    @property
    def row(self) -> dict[str, Any]:
        """The columns of the prompt."""
        return vars(self.job.question)

    @property
    def scores(self) -> dict[str, float | None]:
        """The components by name, in the order of the relations; `None` for an INVALID video."""
        result, visits = self.result, {}
        for k in range(len(self.job.question.type) - 2):
            for name, values in (("score", result.visit_scores), ("gap", result.visit_gaps)):
                visits[f"visit_{name}_{k + 1}"] = values[k] if k < len(values) else None
        return {
            "initial_score": result.initial_score,
            "initial_gap": result.initial_gap,
            **visits,
            "final_score": result.final_score,
            "final_gap": result.final_gap,
        }

    @property
    def curves(self) -> list[np.ndarray]:
        """The SSR of every relation over the counted frames, in the order of the relations."""
        return [self.result.initial_curve, *self.result.visit_curves, self.result.final_curve]

    @property
    def components(self) -> dict[str, Any]:
        """The components under the names that the reward logs in training."""
        return {**{f"dsr_{name}": value for name, value in self.scores.items()}, "dsr_reason": self.result.reason}

    @property
    def counted_frames(self) -> int:
        """The number of frames that the score was computed from."""
        return len(self.result.frame_indices)


def component_names(scored: Sequence[ScoredVideo]) -> list[str]:
    """Return the components of the longest type, which include those of all shorter types in the same order."""
    return list(max((video.scores for video in scored), key=len, default={}))


@dataclass(frozen=True)
class Settings:
    """The settings that all videos are scored with.

    Args:
        tracker (`str`): The tracker's name.
        tracker_options, depth_options (`dict`): The options of the tracker and of the depth estimator that differ from
            their defaults.
        thresholds (sequence of `float`): The taus of S@tau, in [0, 1]. The first one colours the table.
    """

    tracker: str
    tracker_options: Mapping[str, Any]
    depth_options: Mapping[str, Any]
    thresholds: Sequence[float]


def summary(scored: Sequence[ScoredVideo], thresholds: Sequence[float]) -> dict[str, Any]:
    """Summarise all videos for JSON, `{}` if there are none. INVALID counts as a failure in every S@tau."""
    if not scored:
        return {}
    rewards = [video.reward for video in scored]
    success_rates = {f"S@{tau:g}": success_rate(rewards, tau) for tau in thresholds}
    return {**success_rates, **summarize(scored)}


class ResultFiles:
    """The CSV and JSON files of a run, rewritten atomically as results come, at most every `SECONDS_BETWEEN_WRITES`.

    Args:
        settings ([`Settings`]): The settings, which are written along with the results.
        csv_path, json_path (`str`, *optional*): The files; `None` = not written.
    """

    def __init__(self, settings: Settings, csv_path: str | None = None, json_path: str | None = None) -> None:
        self.settings = settings
        self.csv_path = None if csv_path is None else Path(csv_path)
        self.json_path = None if json_path is None else Path(json_path)
        self._written = -float("inf")

    def update(self, scored: Sequence[ScoredVideo], problems: Sequence[Problem], *, last: bool = False) -> None:
        """Write the results so far, unless the files were written a moment ago.

        Args:
            scored (sequence of [`ScoredVideo`]): All scored videos so far.
            problems (sequence of [`Problem`]): All problems so far.
            last (`bool`, *optional*, defaults to `False`): Write in any case.

        Raises:
            OSError: when the last write fails. Earlier writes that fail are repeated by later ones.
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
        rows = [self._csv_row(video) for video in scored]
        first, last = (list(dict.fromkeys(key for row in rows for key in row[part])) for part in (0, 2))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*first, *component_names(scored), *last], lineterminator="\n")
        writer.writeheader()
        for before, components, after in rows:
            row = {**before, **components, **after}
            writer.writerow({name: csv_cell(value) for name, value in row.items()})
        return buffer.getvalue()

    def _csv_row(self, video: ScoredVideo) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return the columns before the components, the components, and the columns after them."""
        question, score = video.job.question, video.reward
        before = {
            "file": printable(video.job.path),
            "prompt_id": question.prompt_id,
            "seed": video.job.seed,
            "type": question.type,
            "animal": question.animal,
            "object": question.object,
            "attribute": question.attribute,
            "score": score,
            "valid": score is not None,
        }
        passed = {f"S@{tau:g}": int(success_rate([score], tau)) for tau in self.settings.thresholds}
        after = {
            "reason": video.result.reason,
            "counted_frames": video.counted_frames,
            "num_frames": video.tracks.num_frames,
            **_counts(video.tracks.details),
            **passed,
            "tracker": self.settings.tracker,
            "tracker_options": " ".join(f"{key}={value}" for key, value in self.settings.tracker_options.items()),
            "prompt": question.prompt,
        }
        return before, video.scores, after

    def _json(self, scored: Sequence[ScoredVideo], problems: Sequence[Problem]) -> dict[str, Any]:
        return {
            "version": __version__,
            "tracker": self.settings.tracker,
            "tracker_options": dict(self.settings.tracker_options),
            "depth_options": dict(self.settings.depth_options),
            "thresholds": list(self.settings.thresholds),
            "summary": summary(scored, self.settings.thresholds),
            "videos": [self._json_row(video) for video in scored],
            "problems": [vars(problem) for problem in problems],
        }

    def _json_row(self, video: ScoredVideo) -> dict[str, Any]:
        curves = zip(video.job.question.type, video.curves, strict=True)
        return {
            "file": printable(video.job.path),
            "seed": video.job.seed,
            **vars(video.job.question),
            "score": video.reward,
            "components": video.scores,
            "reason": video.result.reason,
            "counted_frames": video.counted_frames,
            "num_frames": video.tracks.num_frames,
            "details": video.tracks.details,
            "frame_indices": video.result.frame_indices.tolist(),
            "curves": [{"relation": relation, "values": values.tolist()} for relation, values in curves],
        }


def csv_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe in front.

    Args:
        value (`Any`): The value. Numbers are left as they are, also negative ones.
    """
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"'{value}" if is_formula else value


def _counts(details: Mapping[str, Any]) -> dict[str, int]:
    """Return the frame counts that a tracker reported, under names that contain "frame"."""
    counts = {name: value for name, value in details.items() if isinstance(value, int)}
    return {name if "frame" in name else f"{name}_frames": value for name, value in counts.items()}
