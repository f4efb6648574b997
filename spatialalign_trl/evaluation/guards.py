"""
Quality guards: measures of how the scored videos look.

A policy whose score rises while they fall has learned to please the reward and nothing else. A guard is a name in
`GUARDS` or any reward: `identity`, `clip_iqa`, `path/to/file.py:Mine`. Options follow the name:
`identity,tracker=grounded_sam,tracker_options.cache_dir=detections`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from statistics import fmean
from typing import Any

import numpy as np

from spatialalign_trl.errors import near_miss
from spatialalign_trl.perception.sharpness import video_sharpness
from spatialalign_trl.rewards.calling import error_text, read_number
from spatialalign_trl.rewards.containment import RewardExit, contained
from spatialalign_trl.rewards.convention import installed_rewards
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.video import Video

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Measures = dict[str, "list[float | None] | float | None"]
Guard = Callable[..., Measures]
"""
A callable that takes videos and their prompt rows and returns named measures: one value per video, or one for all of
them (`None` if there is nothing to measure).

If it has a parameter `base_videos`, it also gets the baseline's videos of the same prompts and seeds. It may have
three more methods: `prepare()` raises if a package or a checkpoint is missing, `check_prompts(rows)` raises for
prompts that it cannot measure, and `release()` frees its models. The first two are called before any work.
"""

GUARDS: dict[str, str] = {
    "frames": "spatialalign_trl.evaluation.guards:frame_statistics",
    "flicker": "spatialalign_trl.evaluation.guards:flicker_statistics",
    "pixel_drift": "spatialalign_trl.evaluation.guards:pixel_drift",
    "flow": "spatialalign_trl.evaluation.model_guards:FlowGuard",
    "drift": "spatialalign_trl.evaluation.model_guards:DriftGuard",
    "tiny_world": "spatialalign_trl.tiny_world.fidelity:tiny_world_guard",
}

KIND = "quality guard"

WHOLE_SET = {"tiny_world"}
"""Guards with a measure of the whole set of videos, which cannot be computed from values of single videos."""

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
"""Measure -> 1 if higher is better, -1 if lower is better. See [`better_side`] for measures that are not listed."""


def better_side(measure: str) -> int:
    """
    Return whether a measure should be high or low.

    Args:
        measure (`str`):
            Name of the measure.

    Returns:
        `int`: 1 if higher is better (as for every `<reward>_score`), -1 if lower is better, 0 if neither: the measure
        is shown, but the verdict does not judge it.
    """
    return BETTER.get(measure, 1 if measure.endswith("_score") else 0)


def get_guard(spec: str) -> Guard:
    """
    Create a quality guard. No weights are loaded.

    Args:
        spec (`str`):
            `name` or `name,option=value,...`. The name is in [`GUARDS`] or names a reward.

    Raises:
        ValueError: For an unknown name, or options that the guard does not take.
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
        with contained(name, KIND):
            guard = getattr(importlib.import_module(module), attribute)
            if isinstance(guard, type):
                return guard(**options)
    except (TypeError, RewardExit) as error:
        raise ValueError(f"quality guard {spec!r}: {error}") from error
    if options:
        raise ValueError(f"quality guard {spec!r}: {name!r} takes no options. Leave them out.")
    return guard


def _options(spec: str, words: Sequence[str]) -> dict[str, Any]:
    """Parse `option=value` words: values are JSON or plain text, and dots in an option create nested dicts."""
    options: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not all(part.isidentifier() for part in path.split(".")):
            raise ValueError(f"quality guard {spec!r}: {word!r} is not of the form option=value.")
        *parents, last = path.split(".")
        nested = options
        for parent in parents:
            nested = nested.setdefault(parent, {})
        try:
            nested[last] = json.loads(text)
        except json.JSONDecodeError:
            nested[last] = text
    return options


def needs_baseline(guard: Guard) -> bool:
    """
    Return whether a guard compares with the baseline's videos of the same prompts and seeds.

    Args:
        guard (`Guard`):
            The guard.
    """
    return "base_videos" in inspect.signature(guard).parameters


def prepare_guard(name: str, guard: Guard, rows: Sequence[Row]) -> None:
    """
    Let a guard check its packages and checkpoints, and the prompts, before any work.

    Args:
        name (`str`):
            The guard, for messages.
        guard (`Guard`):
            The guard.
        rows (sequence of `dict`):
            The prompts.

    Raises:
        Exception: Whatever the guard raises; a `ValueError` if it tries to end the process.
    """
    try:
        with contained(name, KIND):
            if hasattr(guard, "prepare"):
                guard.prepare()
            if hasattr(guard, "check_prompts"):
                guard.check_prompts(rows)
    except RewardExit as error:
        raise ValueError(f"the quality guard {name!r} {error}") from error


def run_guard(
    name: str, guard: Guard, videos: Sequence[Video], rows: Sequence[Row], base_videos: Sequence[Video] | None = None
) -> Measures:
    """
    Run a guard, which can neither end nor change the process ([`~spatialalign_trl.rewards.containment.contained`]).

    Args:
        name (`str`):
            The guard, for messages.
        guard (`Guard`):
            The guard.
        videos (sequence of `np.ndarray` of shape (frames, height, width, 3)):
            The videos, `uint8`.
        rows (sequence of `dict`):
            Their prompt rows.
        base_videos (sequence of `np.ndarray`, *optional*):
            The baseline's videos, for a guard that compares with them.

    Returns:
        `Measures`: The measures as finite Python numbers; a number that no file or mean can hold counts as not
        measured, with a warning.

    Raises:
        RuntimeError: If the guard tries to end the process.
        ValueError: If it returns something else than measures.
    """
    base = {} if base_videos is None else {"base_videos": base_videos}
    try:
        with contained(name, KIND):
            measures = guard(videos, rows, **base)
            if not isinstance(measures, Mapping):
                raise ValueError(f"the quality guard {name!r} returned {type(measures).__name__}: return a dict.")
            return {str(measure): _numbers(name, measure, value, len(videos)) for measure, value in measures.items()}
    except RewardExit as error:
        raise RuntimeError(f"the quality guard {name!r} {error}") from error


def release_guard(name: str, guard: Guard) -> None:
    """Free the models of a guard. One that fails only loses memory, so it is a warning."""
    try:
        with contained(name, KIND):
            if hasattr(guard, "release"):
                guard.release()
    except Exception as error:
        logger.warning("The quality guard %r did not release its models: %s", name, error_text(error))


def _numbers(name: str, measure: str, value: Any, count: int) -> list[float | None] | float | None:
    """Return a measure's values, one per video or one for all, as finite Python numbers."""
    if hasattr(value, "tolist"):  # an array or a tensor
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        numbers = [read_number(value)]
    elif len(value) == count:
        numbers = [read_number(number) for number in value]
    else:
        raise ValueError(f"the quality guard {name!r} returned {len(value)} values of {measure} for {count} videos.")
    problems = [problem for _, problem in numbers if problem]
    if problems:
        logger.warning("The quality guard %r %s: %s was not measured.", name, problems[0], measure)
    values = [number for number, _ in numbers]
    return values if isinstance(value, (list, tuple)) else values[0]


def frame_statistics(videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float]]:
    """
    Measure how much a video changes, and how sharp its frames are.

    Args:
        videos (sequence of `np.ndarray` of shape (frames, height, width, 3)):
            The videos, `uint8`.
        rows (sequence of `dict`):
            Their prompt rows, which are not used.

    Returns:
        `dict[str, list[float]]`:
            - `frame_change`: Mean absolute difference of consecutive frames, in [0, 1] (0 for a still).
            - `sharpness`: Root mean square difference of neighbouring pixels of a frame, in [0, 1]. It falls when the
              picture blurs, and rises when it dissolves into noise.
    """
    changes, sharpness = [], []
    for video in videos:
        pixels = video.astype(np.int16)  # exact, and half of float32: a Wan clip has 97 million values
        changes.append(float(np.abs(np.diff(pixels, axis=0)).mean()) / 255.0 if len(pixels) > 1 else 0.0)
        sharpness.append(video_sharpness(pixels))
    return {"frame_change": changes, "sharpness": sharpness}


def flicker_statistics(videos: Sequence[Video], rows: Sequence[Row]) -> dict[str, list[float]]:
    """
    Measure how much pixels change from one frame to the next and back again.

    Args:
        videos (sequence of `np.ndarray` of shape (frames, height, width, 3)):
            The videos, `uint8`.
        rows (sequence of `dict`):
            Their prompt rows, which are not used.

    Returns:
        `dict[str, list[float]]`: `flicker`, the mean over inner frames and pixels of |x_t - (x_(t-1) + x_(t+1)) / 2|
        where x_t lies outside the range of its two neighbours (0 elsewhere), in [0, 1]. A pixel that something passes
        over, or that brightens steadily, lies between its neighbours or changes once. A flickering pixel leaves that
        range at every frame.
    """
    values = []
    for video in videos:
        pixels = video.astype(np.int16)
        if len(pixels) < 3:
            values.append(0.0)
            continue
        total = 0.0
        for before, frame, after in zip(pixels[:-2], pixels[1:-1], pixels[2:], strict=True):
            peak = (frame - before) * (frame - after).astype(np.int32) > 0
            total += float(np.abs(frame - (before + after) / 2)[peak].sum())
        values.append(total / (pixels[1:-1].size * 255.0))
    return {"flicker": values}


def pixel_drift(
    videos: Sequence[Video], rows: Sequence[Row], base_videos: Sequence[Video]
) -> dict[str, list[float | None]]:
    """
    Measure how far videos have moved away from the baseline's videos of the same prompts and seeds.

    Args:
        videos (sequence of `np.ndarray` of shape (frames, height, width, 3)):
            The videos, `uint8`.
        rows (sequence of `dict`):
            Their prompt rows, which are not used.
        base_videos (sequence of `np.ndarray`):
            The baseline's videos, in the same order.

    Returns:
        `dict[str, list[float | None]]`: `pixel_drift`, the mean absolute difference to the baseline's video, in
        [0, 1]; `None` if the two differ in size. A policy that follows its prompts better has to drift, so the measure
        is shown but not judged.
    """
    values: list[float | None] = []
    for video, base in zip(videos, base_videos, strict=True):
        same_size = video.shape == base.shape
        values.append(float(np.abs(video.astype(np.int16) - base).mean()) / 255.0 if same_size else None)
    return {"pixel_drift": values}


def measure_quality(
    guards: Sequence[str | Guard],
    videos: Sequence[Video],
    rows: Sequence[Row],
    base_videos: Sequence[Video] | None = None,
) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """
    Run quality guards on videos.

    Args:
        guards (sequence of `str` or `Guard`):
            Guards, or specs as [`get_guard`] takes them.
        videos (sequence of `np.ndarray` of shape (frames, height, width, 3)):
            The videos, `uint8`.
        rows (sequence of `dict`):
            Their prompt rows.
        base_videos (sequence of `np.ndarray`, *optional*):
            The baseline's videos of the same prompts and seeds, in the same order. Without them, guards that compare
            with the baseline are left out.

    Returns:
        `tuple[dict[str, float | None], dict[str, list[float | None]]]`: The mean of every measure, and the measures
        that have one value per video.

    Raises:
        ValueError: For an unknown guard, or if there are no videos.
    """
    if guards and not len(videos):
        raise ValueError(f"the quality guards {', '.join(map(str, guards))} have no videos to measure.")
    measures: Measures = {}
    for guard in guards:
        name = guard if isinstance(guard, str) else getattr(guard, "__name__", type(guard).__name__)
        guard = get_guard(guard) if isinstance(guard, str) else guard
        if not needs_baseline(guard):
            measures |= run_guard(name, guard, list(map(copy, videos)), rows)
        elif base_videos is not None:
            measures |= run_guard(name, guard, list(map(copy, videos)), rows, list(map(copy, base_videos)))
        release_guard(name, guard)
    per_video = {name: value for name, value in measures.items() if isinstance(value, list)}
    return {name: mean_of(value) for name, value in measures.items()}, per_video


def mean_of(value: list[float | None] | float | None) -> float | None:
    """
    Return a measure's mean over the videos that have a value.

    Args:
        value (`list[float | None]`, `float` or `None`):
            One value per video, or one for all of them, which is returned as it is.
    """
    if not isinstance(value, list):
        return value
    known = [number for number in value if number is not None]
    return fmean(known) if known else None
