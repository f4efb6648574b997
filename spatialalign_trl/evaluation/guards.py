"""Quality guards: what videos look like, measured on the videos that were scored.

A policy whose score rises while they fall has learned to please the reward and nothing else. A guard is named in
`GUARDS`; `NAME=CHECKPOINT` makes one that needs a model with that model.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ..near_miss import near_miss
from ..video import Video

Row = Mapping[str, Any]
Measures = dict[str, "list[float | None] | float | None"]
Guard = Callable[..., Measures]
"""Called with videos and their prompt rows, and with `base_videos` if it has a parameter of that name: the baseline's
videos of the same prompts and seeds. Returns named measures, one value a video or one for all of them (`None` when
there is nothing to measure). It may have `prepare()`, which raises before any work when a package or a checkpoint is
missing, and `release()`, which frees its models."""

GUARDS: dict[str, str] = {
    "frames": "spatialalign_trl.evaluation.guards:frame_statistics",
    "flicker": "spatialalign_trl.evaluation.guards:flicker_statistics",
    "tiny_world": "spatialalign_trl.tiny_world.fidelity:tiny_world_guard",
}

WHOLE_SET = {"tiny_world"}
"""Guards with a measure of all videos together, which cannot be put together from parts."""

BETTER: dict[str, int] = {
    "frame_change": 1,
    "sharpness": 1,
    "flicker": -1,
    "sprite_shape": 1,
    "sprite_kind": 1,
    "sprite_color": 1,
    "motion": 1,
    "distance_to_real": -1,
}
"""Measure -> 1 where a fall is a loss, -1 where a rise is; one that is not named here is shown and not judged."""


def get_guard(spec: str) -> Guard:
    """Finds a quality guard by name, or by `name=checkpoint` where it has a model. No weights are loaded.

    Raises:
        ValueError: for an unknown name, with the near miss, or a checkpoint where none is needed.
    """
    name, equals, checkpoint = spec.partition("=")
    if name not in GUARDS:
        raise ValueError(f"unknown quality guard {name!r}. {near_miss(name, GUARDS)}")
    module, attribute = GUARDS[name].split(":")
    guard = getattr(importlib.import_module(module), attribute)
    if isinstance(guard, type):
        return guard(checkpoint) if equals else guard()
    if equals:
        raise ValueError(f"quality guard {spec!r}: {name!r} has no model, so no checkpoint can be given")
    return guard


def needs_baseline(guard: Guard) -> bool:
    """Whether the guard compares with the baseline's videos of the same prompts and seeds."""
    return "base_videos" in inspect.signature(guard).parameters


def frame_statistics(videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float]]:
    """Guard for any video: how much moves, and how sharp the frames are.

    Returns:
        - `frame_change`: mean absolute difference of consecutive frames, in [0, 1] (0 = a still);
        - `sharpness`: root mean square difference of neighbouring pixels of a frame, in [0, 1] (falls when the picture
          blurs, rises when it dissolves into noise). Squared, because the sum of absolute differences across an edge
          is its height however wide the blur.
    """
    changes, sharpness = [], []
    for video in videos:
        pixels = video.astype(np.int16)  # exact, and half of float32: a Wan clip has 97 million values
        changes.append(float(np.abs(np.diff(pixels, axis=0)).mean()) / 255.0 if len(pixels) > 1 else 0.0)
        squares = [np.square(step, dtype=np.float32).mean() for step in _inner_steps(pixels)]
        sharpness.append(float(np.sqrt(np.mean(squares))) / 255.0 if squares else 0.0)
    return {"frame_change": changes, "sharpness": sharpness}


def _inner_steps(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Differences of neighbours along a frame's height and width, where it has neighbours."""
    return (np.diff(pixels, axis=axis) for axis in (1, 2) if pixels.shape[axis] > 1)


def flicker_statistics(videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float]]:
    """Guard for any video: what changes from one frame to the next and back again.

    Returns:
        `flicker`: mean over inner frames and pixels of |x_t - (x_(t-1) + x_(t+1)) / 2|, where x_t lies outside its
        two neighbours, in [0, 1]. A pixel that something passes over, or that brightens steadily, lies between its
        neighbours or changes once; one that flickers leaves and returns at every frame.
    """
    values = []
    for video in videos:
        pixels = video.astype(np.int16)
        if len(pixels) < 3:
            values.append(0.0)
            continue
        total = 0.0
        for before, here, after in zip(pixels[:-2], pixels[1:-1], pixels[2:], strict=True):
            peak = (here - before) * (here - after).astype(np.int32) > 0
            total += float(np.abs(here - (before + after) / 2)[peak].sum())
        values.append(total / (pixels[1:-1].size * 255.0))
    return {"flicker": values}


def measure_quality(
    guards: Sequence[str | Guard],
    videos: Sequence[Video],
    rows: Sequence[Row],
    base_videos: Sequence[Video] | None = None,
) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """Runs guards over videos: `(mean of every measure, the measures that have one value a video)`.

    Args:
        guards: names, or guards.
        videos, rows: the videos and the rows of their prompts.
        base_videos: the baseline's videos of the same prompts and seeds, in the same order; without them, guards that
            compare with the baseline are left out.

    Raises:
        ValueError: for an unknown guard, or when there are no videos.
    """
    if guards and not len(videos):
        raise ValueError(f"the quality guards {', '.join(map(str, guards))} have no videos to look at")
    measures: Measures = {}
    for guard in guards:
        guard = get_guard(guard) if isinstance(guard, str) else guard
        if not needs_baseline(guard):
            measures |= guard(videos, rows)
        elif base_videos is not None:
            measures |= guard(videos, rows, base_videos=base_videos)
        if hasattr(guard, "release"):
            guard.release()
    per_video = {name: value for name, value in measures.items() if isinstance(value, list)}
    return {name: mean_of(value) for name, value in measures.items()}, per_video


def mean_of(value: list[float | None] | float | None) -> float | None:
    """A measure's mean over the videos that have one."""
    if not isinstance(value, list):
        return value
    known = [one for one in value if one is not None]
    return fmean(known) if known else None
