"""Videos of scene tasks in numbers: nearness to the right answer, and what the rewards measured, with intervals.

    psnr                 10 log10(255^2 / mean squared error) against the ground truth, dB, over all frames
    <reward>_<factor>    what a reward logged of each video: SD and IF (object grounding: where SD < 0.2) as the paper
                         evaluates by them, `rotation_error` (degrees), `position_error` (the unit of the poses),
                         and the factors that its value is the product of
    <reward>_invalid_rate  share of the videos that it could not score, where there are any

Means are over the videos that have a value; intervals are 95 %, bootstrapped over tasks. Source of the measures:
Video4Spatial (arXiv 2512.03040); PSNR against one right answer is fair where the path is prescribed (navigation), and
for grounding, where any path that finds the object is right, it is only told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from spatialalign_trl.evaluation.statistics import mean_difference, measured
from spatialalign_trl.files import write_json
from spatialalign_trl.video import Video

METRICS_FILE = "scene_metrics.json"
PSNR = "psnr"
PSNR_OF_EQUALS = 100.0
"""Of videos that are equal, which have no finite one."""


class StoredSample(Protocol):
    """What is read of a sample; [`~spatialalign_trl.rollout.store.Sample`] has it."""

    sample_id: str
    prompt_id: str
    seed: int
    rewards: dict[str, float | None]
    components: dict[str, Any]


class Videos(Protocol):
    """Where samples' videos are; [`~spatialalign_trl.rollout.store.SampleStore`] is one."""

    def video(self, sample_id: str) -> Video: ...


def psnr(video: Video, truth: Video) -> float:
    """
    Peak signal-to-noise ratio in dB, `10 log10(255^2 / mean((video - truth)^2))`.

    Raises:
        ValueError: when the two are not of one shape.
    """
    if video.shape != truth.shape:
        raise ValueError(f"a video of shape {video.shape} cannot be compared with a ground truth of {truth.shape}")
    error = float(np.mean((video.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return PSNR_OF_EQUALS if error == 0 else min(10 * math.log10(255**2 / error), PSNR_OF_EQUALS)


class TruthGuard:
    """
    Quality guard of scene tasks: `psnr` of every video against the right answer, in dB.

    Args:
        truths (`Mapping[str, np.ndarray]`):
            Prompt id -> the right answer. A video without one, or of another size, has no value.
    """

    def __init__(self, truths: Mapping[str, Video]) -> None:
        self.truths = truths

    def __call__(self, videos: Sequence[Video], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
        answers = [self.truths.get(row["prompt_id"]) for row in rows]
        return {
            PSNR: [
                psnr(video, answer) if answer is not None and answer.shape == video.shape else None
                for video, answer in zip(videos, answers, strict=True)
            ]
        }


def scene_values(
    samples: Sequence[StoredSample], store: Videos, truths: Mapping[str, Video]
) -> dict[str, list[float | None]]:
    """
    The measures of every video.

    Args:
        samples (sequence of [`~spatialalign_trl.rollout.store.Sample`]):
            Scored samples.
        store ([`~spatialalign_trl.rollout.store.SampleStore`]):
            Where their videos are.
        truths (`Mapping[str, np.ndarray]`):
            Prompt id -> the right answer, as far as there is one.

    Returns:
        `dict[str, list]`: measure -> one value a sample, `None` where it has none.
    """
    values: dict[str, list[float | None]] = {}
    if truths:
        values[PSNR] = [
            psnr(store.video(one.sample_id), truths[one.prompt_id]) if one.prompt_id in truths else None
            for one in samples
        ]
    for reward in dict.fromkeys(name for sample in samples for name in sample.rewards):
        values[reward] = [sample.rewards.get(reward) for sample in samples]
        if None in values[reward]:  # the means leave these videos out, so that they must be told
            values[f"{reward}_invalid_rate"] = [float(value is None) for value in values[reward]]
        values |= measured(samples, reward)
    return values


def summarize_scenes(values: Mapping[str, Sequence[float | None]], prompt_ids: Sequence[str]) -> dict[str, Any]:
    """
    Means with intervals.

    Args:
        values (`Mapping[str, list]`):
            From [`scene_values`].
        prompt_ids (sequence of `str`):
            The task of each video.

    Returns:
        `dict`: measure -> `mean`, `interval` (95 %, over tasks) and `num_videos` that have a value.
    """
    summary = {}
    for name, numbers in values.items():
        told = mean_difference(numbers, [0.0] * len(numbers), prompt_ids)
        if told is not None:
            summary[name] = {
                "mean": told["difference"], "interval": told["interval"], "num_videos": told["num_pairs"]
            }  # fmt: skip
    return summary


def compare_scenes(
    base: Sequence[StoredSample], other: Sequence[StoredSample], store: Videos, truths: Mapping[str, Video]
) -> dict[str, Any]:
    """
    Before and after: both summaries, and the paired differences other - base.

    Args:
        base, other (sequences of [`~spatialalign_trl.rollout.store.Sample`]):
            Scored samples of the same tasks and seeds, in the same order.
        store, truths: As of [`scene_values`].

    Returns:
        `dict`: `base`, `other` ([`summarize_scenes`]), `difference` (measure -> `difference`, `interval`, `num_pairs`)
        and `num_tasks`.

    Raises:
        ValueError: when the samples are not of the same tasks and seeds.
    """
    ids = [sample.prompt_id for sample in base]
    if [(one.prompt_id, one.seed) for one in base] != [(one.prompt_id, one.seed) for one in other]:
        raise ValueError("the two policies' samples are not of the same tasks and seeds in the same order")
    before, after = (scene_values(samples, store, truths) for samples in (base, other))
    differences = {
        name: mean_difference(after[name], before[name], ids) for name in before if name in after
    }  # fmt: skip
    return {
        "base": summarize_scenes(before, ids),
        "other": summarize_scenes(after, ids),
        "difference": {name: told for name, told in differences.items() if told is not None},
        "num_tasks": len(set(ids)),
    }


def write_comparison(
    folder: Path, comparison: Mapping[str, Any], names: tuple[str, str], console: Console | None = None
) -> Path:
    """
    Writes `scene_metrics.json` and prints it as a table.

    Args:
        folder (`Path`): Where the file goes.
        comparison (`Mapping`): From [`compare_scenes`].
        names (tuple of 2 `str`): What the two policies are called.
        console (`Console`, *optional*): Where the table goes.
    """
    from rich.table import Table

    table = Table(title=f"{comparison['num_tasks']} held-out tasks, 95 % intervals", title_style="bold")
    for column in ("measure", *names, "difference"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    (console or Console()).print(table)
    renamed = {"base": names[0], "other": names[1]}
    return write_json(folder / METRICS_FILE, {renamed.get(name, name): value for name, value in comparison.items()})


def comparison_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Rows `[measure, base, other, difference]`, as text, of what [`compare_scenes`] returned."""
    rows = []
    for name in dict.fromkeys([*comparison["base"], *comparison["other"]]):
        sides = [comparison[side].get(name) for side in ("base", "other")]
        means = ["-" if told is None else f"{told['mean']:.3f}" for told in sides]
        rows.append([name, *means, _with_interval(comparison["difference"].get(name))])
    return rows


def _with_interval(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "-"
    low, high = told["interval"]
    return f"{told['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
