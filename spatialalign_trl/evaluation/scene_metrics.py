"""
Measure videos of scene tasks: PSNR against the ground truth, and what the rewards logged, with intervals.

    psnr                   10 log10(255^2 / mean squared error) against the ground truth, dB, over all frames
    <reward>_<factor>      what a reward logged for each video: SD and IF, the paper's measures (IF is of object
                           grounding, and 0 unless SD < 0.2); `rotation_error` (degrees); `position_error` (the unit of
                           the poses); and the factors whose product is the reward
    <reward>_invalid_rate  share of the videos that the reward could not score, if there are any

Means are over the videos that have a value. Intervals are 95 %, bootstrapped over tasks. PSNR against one ground truth
is fair if the path is prescribed (navigation). In object grounding any path that finds the object is right, so there
it is only shown.

Source of the measures: Video4Spatial (arXiv 2512.03040).
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
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.video import Video

METRICS_FILE = "scene_metrics.json"
PSNR = "psnr"
PSNR_OF_EQUALS = 100.0
"""Value for equal videos, whose PSNR is infinite, and the largest value of [`psnr`]."""


class StoredSample(Protocol):
    """The part of a [`~spatialalign_trl.rollout.store.Sample`] that is read here."""

    sample_id: str
    prompt_id: str
    seed: int
    rewards: dict[str, float | None]
    components: dict[str, Any]


class Videos(Protocol):
    """A store that reads videos by sample id, such as [`~spatialalign_trl.rollout.store.SampleStore`]."""

    def video(self, sample_id: str) -> Video: ...


def psnr(video: Video, truth: Video) -> float:
    """
    Compute the peak signal-to-noise ratio, `10 log10(255^2 / mean((video - truth)^2))`.

    Args:
        video, truth (`np.ndarray` of shape (frames, height, width, 3)):
            The video and its ground truth, `uint8`.

    Returns:
        `float`: In dB, at most `PSNR_OF_EQUALS`.

    Raises:
        ValueError: If the two differ in shape.
    """
    if video.shape != truth.shape:
        raise ValueError(f"a video of shape {video.shape} cannot be compared with a ground truth of {truth.shape}.")
    error = float(np.mean((video.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return PSNR_OF_EQUALS if error == 0 else min(10 * math.log10(255**2 / error), PSNR_OF_EQUALS)


class TruthGuard:
    """
    Quality guard of scene tasks: the `psnr` of every video against its ground truth, in dB.

    Args:
        truths (`Mapping[str, np.ndarray]`):
            Prompt id -> ground-truth video. A video without one, or of another size, has no value.
    """

    def __init__(self, truths: Mapping[str, Video]) -> None:
        self.truths = truths

    def __call__(self, videos: Sequence[Video], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
        truths = [self.truths.get(row["prompt_id"]) for row in rows]
        return {
            PSNR: [
                psnr(video, truth) if truth is not None and truth.shape == video.shape else None
                for video, truth in zip(videos, truths, strict=True)
            ]
        }


def scene_values(
    samples: Sequence[StoredSample], store: Videos, truths: Mapping[str, Video]
) -> dict[str, list[float | None]]:
    """
    Collect the measures of every video.

    Args:
        samples (sequence of [`~spatialalign_trl.rollout.store.Sample`]):
            Scored samples.
        store ([`~spatialalign_trl.rollout.store.SampleStore`]):
            The store of their videos.
        truths (`Mapping[str, np.ndarray]`):
            Prompt id -> ground-truth video. Prompts may be missing.

    Returns:
        `dict[str, list]`: Measure -> one value per sample, `None` if it has none.
    """
    values: dict[str, list[float | None]] = {}
    if truths:
        values[PSNR] = [
            psnr(store.video(sample.sample_id), truths[sample.prompt_id]) if sample.prompt_id in truths else None
            for sample in samples
        ]
    for reward in dict.fromkeys(name for sample in samples for name in sample.rewards):
        values[reward] = [sample.rewards.get(reward) for sample in samples]
        # The means leave out INVALID videos, so their share is reported too.
        if None in values[reward]:
            values[f"{reward}_invalid_rate"] = [float(value is None) for value in values[reward]]
        values |= measured(samples, reward)
    return values


def summarize_scenes(values: Mapping[str, Sequence[float | None]], prompt_ids: Sequence[str]) -> dict[str, Any]:
    """
    Compute means with intervals.

    Args:
        values (`Mapping[str, list]`):
            Measures from [`scene_values`].
        prompt_ids (sequence of `str`):
            The task of each video.

    Returns:
        `dict`: Measure -> `mean`, `interval` (95 %, over tasks) and `num_videos` that have a value.
    """
    summary = {}
    for name, numbers in values.items():
        # The mean is the difference to zeros, which gives it the same bootstrap interval over tasks.
        mean = mean_difference(numbers, [0.0] * len(numbers), prompt_ids)
        if mean is not None:
            summary[name] = {
                "mean": mean["difference"], "interval": mean["interval"], "num_videos": mean["num_pairs"]
            }  # fmt: skip
    return summary


def compare_scenes(
    base: Sequence[StoredSample], other: Sequence[StoredSample], store: Videos, truths: Mapping[str, Video]
) -> dict[str, Any]:
    """
    Summarise two policies, such as before and after training, and compute the paired differences other - base.

    Args:
        base, other (sequences of [`~spatialalign_trl.rollout.store.Sample`]):
            Scored samples of the same tasks and seeds, in the same order.
        store ([`~spatialalign_trl.rollout.store.SampleStore`]):
            The store of their videos.
        truths (`Mapping[str, np.ndarray]`):
            Prompt id -> ground-truth video. Prompts may be missing.

    Returns:
        `dict`: `base`, `other` (from [`summarize_scenes`]), `difference` (measure -> `difference`, `interval`,
        `num_pairs`) and `num_tasks`.

    Raises:
        ValueError: If the samples are not of the same tasks and seeds.
    """
    ids = [sample.prompt_id for sample in base]
    if [(sample.prompt_id, sample.seed) for sample in base] != [(sample.prompt_id, sample.seed) for sample in other]:
        raise ValueError("the two policies' samples are not of the same tasks and seeds in the same order.")
    before, after = (scene_values(samples, store, truths) for samples in (base, other))
    differences = {
        name: mean_difference(after[name], before[name], ids) for name in before if name in after
    }  # fmt: skip
    return {
        "base": summarize_scenes(before, ids),
        "other": summarize_scenes(after, ids),
        "difference": {name: difference for name, difference in differences.items() if difference is not None},
        "num_tasks": len(set(ids)),
    }


def write_comparison(
    folder: Path, comparison: Mapping[str, Any], names: tuple[str, str], console: Console | None = None
) -> Path:
    """
    Write a comparison to `scene_metrics.json`, and print it as a table.

    Args:
        folder (`Path`):
            Folder of the file.
        comparison (`Mapping`):
            The comparison, from [`compare_scenes`].
        names (tuple of 2 `str`):
            Names of the two policies.
        console (`Console`, *optional*):
            Where the table is printed. Defaults to standard output.

    Returns:
        `Path`: The file.
    """
    from rich.table import Table

    title = f"{comparison['num_tasks']} held-out tasks, 95 % intervals"
    table = Table(title=terminal_text(title), title_style="bold")
    for column in ("measure", *names, "difference"):
        table.add_column(terminal_text(column), justify="left" if column == "measure" else "right")
    for row in comparison_rows(comparison):
        table.add_row(*map(terminal_text, row))
    (console or Console()).print(table)
    renamed = {"base": names[0], "other": names[1]}
    return write_json(folder / METRICS_FILE, {renamed.get(name, name): value for name, value in comparison.items()})


def comparison_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """
    Format a comparison as table rows.

    Args:
        comparison (`Mapping`):
            The comparison, from [`compare_scenes`].

    Returns:
        `list[list[str]]`: Rows `[measure, base, other, difference]`.
    """
    rows = []
    for name in dict.fromkeys([*comparison["base"], *comparison["other"]]):
        sides = [comparison[side].get(name) for side in ("base", "other")]
        means = ["-" if summary is None else f"{summary['mean']:.3f}" for summary in sides]
        text, difference = "-", comparison["difference"].get(name)
        if difference is not None:
            low, high = difference["interval"]
            text = f"{difference['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append([name, *means, text])
    return rows
