"""Quality guards: what videos look like, measured on the videos that were scored.

A policy whose score rises while they fall has learned to please the reward and nothing else. A guard is named in
`GUARDS`, or is any reward by its name: `identity`, `clip_iqa`, `path/to/file.py:Mine`. Options follow the name:
`identity,tracker=grounded_sam,tracker_options.cache_dir=detections`.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from spatialalign_trl.errors import near_miss
from spatialalign_trl.perception.sharpness import video_sharpness
from spatialalign_trl.rewards.convention import installed_rewards
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.video import Video

Row = Mapping[str, Any]
Measures = dict[str, "list[float | None] | float | None"]
Guard = Callable[..., Measures]
"""Called with videos and their prompt rows, and with `base_videos` if it has a parameter of that name: the baseline's
videos of the same prompts and seeds. Returns named measures, one value a video or one for all of them (`None` when
there is nothing to measure). It may have `prepare()`, which raises before any work when a package or a checkpoint is
missing, `check_prompts(rows)`, which refuses prompts, and `release()`, which frees its models."""

GUARDS: dict[str, str] = {
    "frames": "spatialalign_trl.evaluation.guards:frame_statistics",
    "flicker": "spatialalign_trl.evaluation.guards:flicker_statistics",
    "pixel_drift": "spatialalign_trl.evaluation.guards:pixel_drift",
    "flow": "spatialalign_trl.evaluation.model_guards:FlowGuard",
    "drift": "spatialalign_trl.evaluation.model_guards:DriftGuard",
    "tiny_world": "spatialalign_trl.tiny_world.fidelity:tiny_world_guard",
}

WHOLE_SET = {"tiny_world"}
"""Guards with a measure of all videos together, which cannot be put together from parts."""

BETTER: dict[str, int] = {
    "frame_change": 1,
    "sharpness": 1,
    "flicker": -1,
    "flow_speed": 1,
    "flow_smoothness": 1,
    "sprite_shape": 1,
    "sprite_kind": 1,
    "sprite_color": 1,
    "motion": 1,
    "distance_to_real": -1,
    "psnr": 1,
}
"""Measure -> 1 where a fall is a loss, -1 where a rise is; see `better_side` for those that are not named here."""


def better_side(measure: str) -> int:
    """1 where a fall of the measure is a loss, -1 where a rise is, 0 where neither: it is shown and not judged."""
    return BETTER.get(measure, 1 if measure.endswith("_score") else 0)  # of a reward, more is better


def get_guard(spec: str) -> Guard:
    """Makes a quality guard of `name` or `name,option=value,...`. No weights are loaded.

    Raises:
        ValueError: for an unknown name, with the near miss, or options that it does not take.
    """
    name, *words = spec.split(",")
    options = _options(spec, words)
    is_reward = ".py:" in name or (name not in GUARDS and name in installed_rewards())
    if not is_reward and name not in GUARDS:
        raise ValueError(f"unknown quality guard {name!r}. {near_miss(name, {*GUARDS, *installed_rewards()})}")
    try:
        if is_reward:
            from spatialalign_trl.evaluation.model_guards import RewardGuard

            return RewardGuard(load_reward(name, **options))
        module, attribute = GUARDS[name].split(":")
        guard = getattr(importlib.import_module(module), attribute)
        if isinstance(guard, type):
            return guard(**options)
    except TypeError as error:
        raise ValueError(f"quality guard {spec!r}: {error}") from error
    if options:
        raise ValueError(f"quality guard {spec!r}: {name!r} takes no options")
    return guard


def _options(spec: str, words: Sequence[str]) -> dict[str, Any]:
    """`option=value` words as a dict; values are read as JSON where they are some, dots make dicts in dicts."""
    options: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not all(part.isidentifier() for part in path.split(".")):
            raise ValueError(f"quality guard {spec!r}: {word!r} is not of the form option=value")
        *parents, last = path.split(".")
        place = options
        for parent in parents:
            place = place.setdefault(parent, {})
        try:
            place[last] = json.loads(text)
        except json.JSONDecodeError:
            place[last] = text
    return options


def needs_baseline(guard: Guard) -> bool:
    """Whether the guard compares with the baseline's videos of the same prompts and seeds."""
    return "base_videos" in inspect.signature(guard).parameters


def frame_statistics(videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float]]:
    """Guard for any video: how much moves, and how sharp the frames are.

    Returns:
        - `frame_change`: mean absolute difference of consecutive frames, in [0, 1] (0 = a still);
        - `sharpness`: root mean square difference of neighbouring pixels of a frame, in [0, 1] (falls when the picture
          blurs, rises when it dissolves into noise).
    """
    changes, sharpness = [], []
    for video in videos:
        pixels = video.astype(np.int16)  # exact, and half of float32: a Wan clip has 97 million values
        changes.append(float(np.abs(np.diff(pixels, axis=0)).mean()) / 255.0 if len(pixels) > 1 else 0.0)
        sharpness.append(video_sharpness(pixels))
    return {"frame_change": changes, "sharpness": sharpness}


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


def pixel_drift(
    videos: Sequence[Video], rows: Sequence[Row], base_videos: Sequence[Video]
) -> dict[str, list[float | None]]:
    """Guard that compares with the baseline: how far the pixels have moved on the same prompt and seed.

    Returns:
        `pixel_drift`: mean absolute difference to the baseline's video, in [0, 1]; `None` where the two have other
        sizes. Obedience needs some drift, so it is shown and not judged.
    """
    values: list[float | None] = []
    for video, base in zip(videos, base_videos, strict=True):
        same = video.shape == base.shape
        values.append(float(np.abs(video.astype(np.int16) - base).mean()) / 255.0 if same else None)
    return {"pixel_drift": values}


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
