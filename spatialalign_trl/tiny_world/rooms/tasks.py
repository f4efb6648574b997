"""Draws tasks in rooms as rows of a dataset, and renders rows into a `SceneTask` with its videos.

A row consists of numbers and words from which its videos can be rendered at any size and length, so no video has to
be stored. The context is a subset of the frames of a recording, a walk around the room, and includes the last frame.
The target continues from the last camera. In navigation it follows a path, and the context covers its views. In
grounding it goes to a named object that is visible in the context, but not in its last frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from spatialalign_trl.scenes.tasks import SceneTask, check_task, draw_context_indices
from spatialalign_trl.tiny_world.rooms.base import BaseRoom, is_flat
from spatialalign_trl.tiny_world.rooms.room import sample_room
from spatialalign_trl.tiny_world.rooms.trajectories import Trajectory, sample_approach, sample_trajectory
from spatialalign_trl.tiny_world.rooms.views import Geometry, intrinsics_for, render, render_geometry

NAVIGATION_KINDS = ("walk", "orbit", "dolly", "pan")
CONTEXT_LENGTH = 81
"""Number of frames in the recording from which context frames are taken."""

FIELD_OF_VIEW = 75.0
"""Horizontal field of view of all cameras, in degrees."""

MIN_COVERAGE = 0.7
"""Smallest share of the points in the target's views that the context must show."""

_SIMILAR_VIEW = (40.0, 2.5)
"""Largest angle in degrees and largest ratio of distances at which SIFT matches two views of a point."""

_MIN_OBJECT_SHARE = 0.004
"""Smallest share of a frame's pixels at which an object counts as shown."""

_THUMBNAIL, _FLAT_THUMBNAIL = (36, 64), (18, 32)
"""Height and width of the views in which coverage is measured. Flat rooms have nothing small."""

_ATTEMPTS = 40


def make_row(seed: int, task: str, style: str = "indoor", num_context: int = 12, variant: int = 0,
             min_familiar: float = 0.0) -> dict[str, Any]:  # fmt: skip
    """Draw a task from a seed.

    Args:
        seed (`int`):
            Seed of the room. Its range determines the split.
        task (`"navigation"` or `"grounding"`):
            Follow a camera trajectory, or find an object.
        style (`str`, *optional*, defaults to `"indoor"`):
            Style of the room.
        num_context (`int`, *optional*, defaults to `12`):
            Number of context frames, at least 2. The last frame of the recording is one of them.
        variant (`int`, *optional*, defaults to `0`):
            Every variant is another recording and another path in the same room. Building the room takes as long as
            drawing a row, and the room is cached for the next row.
        min_familiar (`float`, *optional*, defaults to `0.0`):
            Smallest allowed value of `familiar`, in [0, 1]. Use 0.5 if poses are estimated from keypoints; drawing a
            row then takes several times as long. Small frames do not need it: their poses are estimated by rendering.

    Returns:
        `dict`: the row, with the columns listed in the dataset's card.

    Raises:
        ValueError: If the task or style is unknown, the seed belongs to no split, or the variant is negative.
        RuntimeError: If the room has no such task. Use another seed or variant.
    """
    check_task(task)
    if variant < 0:
        raise ValueError(f"variant={variant}: it must be at least 0.")
    room = _room(seed, style)
    thumbnail = _FLAT_THUMBNAIL if is_flat(style) else _THUMBNAIL
    rng = np.random.default_rng([seed, 79, variant])
    kind = NAVIGATION_KINDS[(seed + variant) % len(NAVIGATION_KINDS)]
    for _ in range(_ATTEMPTS):
        # 1. A recording of the room and, for navigation, a path that continues it.
        context = sample_trajectory(room, "survey", rng)
        path, name = None, ""
        if task == "navigation":
            path = _draw_path(room, kind, context, rng)
            if path is None:
                continue

        # 2. The context frames.
        earlier = draw_context_indices(np.arange(CONTEXT_LENGTH - 1), num_context - 1, rng)
        indices = np.append(earlier, CONTEXT_LENGTH - 1)
        context_poses = context.poses(CONTEXT_LENGTH)[indices]
        intrinsics = intrinsics_for(thumbnail, FIELD_OF_VIEW)
        seen = render_geometry(room, context_poses, thumbnail, intrinsics=intrinsics)

        # 3. For grounding, an object in them and a path to it.
        if task == "grounding":
            search = _draw_search(room, context, seen, rng)
            if search is None:
                continue
            path, name = search

        # 4. Keep the task if the context shows enough of what the target shows.
        poses = path.poses(5)
        if min_familiar and familiar(room, poses, context_poses, seen) < min_familiar:
            continue
        coverage = covered(room, poses, context_poses, seen)
        if coverage >= MIN_COVERAGE:
            return _row(room, task, variant, context, indices, path, name, coverage)
    raise RuntimeError(
        f"room {seed} has no {task} task of variant {variant} with views that the context covers. "
        "Use another seed or variant."
    )


def _draw_path(room: BaseRoom, kind: str, context: Trajectory, rng: np.random.Generator) -> Trajectory | None:
    """Draw a path that continues the recording, or return `None` if there is no space."""
    try:
        return sample_trajectory(room, kind, rng, context.knots[-1])
    except RuntimeError:
        return None


def _draw_search(room: BaseRoom, context: Trajectory, seen: Geometry,
                 rng: np.random.Generator) -> tuple[Trajectory, str] | None:  # fmt: skip
    """Draw a path to an object that is visible in the context but not in its last frame; return it and the name."""
    shown = seen.visible_pixels.max(axis=0) > _MIN_OBJECT_SHARE * np.prod(seen.depth.shape[1:])
    for index in rng.permutation(np.flatnonzero(shown & (seen.visible_pixels[-1] == 0))):
        try:
            return sample_approach(room, room.objects[index], rng, context.knots[-1]), room.objects[index].name
        except RuntimeError:
            continue  # the object is hidden or out of reach
    return None


def covered(room: BaseRoom, poses: np.ndarray, context_poses: np.ndarray, seen: Geometry) -> float:
    """Measure how much of some views the context shows.

    Args:
        room (`BaseRoom`):
            The room.
        poses (`np.ndarray` of shape `(n, 4, 4)`):
            Cameras of the views.
        context_poses (`np.ndarray` of shape `(k, 4, 4)`):
            Cameras of the context.
        seen (`Geometry`):
            Depth in the views of the context.

    Returns:
        `float`: mean share, in [0, 1], of the points in a view that at least one context camera sees.
    """
    counts = _count_context_views(room, poses, context_poses, seen)
    return float(np.mean([(count > 0).mean() for count in counts]))


def familiar(room: BaseRoom, poses: np.ndarray, context_poses: np.ndarray, seen: Geometry) -> float:
    """Measure how much of the worst view the context shows from similar directions and distances.

    Two similar views of a point are needed: keypoints then look the same, and their position can be triangulated.

    Args:
        room, poses, context_poses, seen:
            See `covered`.

    Returns:
        `float`: share, in [0, 1], of the points in a view that at least two context cameras see from within 40 degrees
        and 2.5 times the distance; the minimum over all views.
    """
    counts = _count_context_views(room, poses, context_poses, seen, *_SIMILAR_VIEW)
    return float(min((count >= 2).mean() for count in counts))


def _count_context_views(room: BaseRoom, poses: np.ndarray, context_poses: np.ndarray, seen: Geometry,
                         max_angle: float = 180.0, max_ratio: float = np.inf) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield, per camera, how many context cameras see each point in its view from a similar angle and distance."""
    size, intrinsics = seen.depth.shape[1:], seen.intrinsics
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(-1, 3) @ np.linalg.inv(intrinsics).T
    for pose, depth in zip(poses, render_geometry(room, poses, size, intrinsics=intrinsics).depth, strict=True):
        towards = rays * depth.reshape(-1, 1) @ pose[:3, :3].T
        points, distance = towards + pose[:3, 3], np.linalg.norm(towards, axis=1)
        count = np.zeros(len(points), np.int64)
        for context_pose, context_depth in zip(context_poses, seen.depth, strict=True):
            away = points - context_pose[:3, 3]
            camera = away @ context_pose[:3, :3]
            pixels = (camera @ intrinsics.T)[:, :2] / np.maximum(camera[:, 2:], 1e-6)
            x, y = pixels.round().astype(np.int64).clip(-1, max(size)).T
            inside = (camera[:, 2] > 0.05) & (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
            if max_angle < 180:
                far = np.linalg.norm(away, axis=1)
                inside &= (away * towards).sum(axis=1) > np.cos(np.radians(max_angle)) * far * distance
                inside &= (far < max_ratio * distance) & (distance < max_ratio * far)
            # A point at the depth of its pixel is visible. A pixel of the thumbnail is wide, so allow 10 %.
            count[inside] += np.abs(context_depth[y[inside], x[inside]] / camera[inside, 2] - 1) < 0.1
        yield count


def _row(room: BaseRoom, task: str, variant: int, context: Trajectory, indices: np.ndarray, path: Trajectory,
         name: str, coverage: float) -> dict[str, Any]:  # fmt: skip
    return {
        "task_id": f"{task}-{room.style}-{room.seed}" + (f"-{variant}" if variant else ""),
        "task": task,
        "prompt": path.text,
        "room_seed": room.seed,
        "style": room.style,
        "trajectory": path.kind,
        "knots": [list(knot) for knot in path.knots],
        "context_knots": [list(knot) for knot in context.knots],
        "context_length": CONTEXT_LENGTH,
        "context_indices": indices.tolist(),
        "field_of_view": FIELD_OF_VIEW,
        "object": name,
        "coverage": round(coverage, 3),
        "objects": [
            {"name": thing.name, "low": thing.low.round(2).tolist(), "high": thing.high.round(2).tolist()}
            for thing in room.objects
        ],
    }


@lru_cache(maxsize=2)
def _room(seed: int, style: str) -> BaseRoom:
    return sample_room(seed, style)


def render_row(row: Mapping[str, Any], size: tuple[int, int] = (240, 416), num_frames: int = 17,
               supersample: int = 3) -> SceneTask:  # fmt: skip
    """Render a row of a dataset.

    Args:
        row (`Mapping`):
            Row from `make_row` or from a dataset of such rows.
        size (tuple of 2 `int`, *optional*, defaults to `(240, 416)`):
            Height and width in pixels.
        num_frames (`int`, *optional*, defaults to `17`):
            Number of target frames.
        supersample (`int`, *optional*, defaults to `3`):
            Rays along each side of a pixel, odd. Use 5 or more for small frames.

    Returns:
        `SceneTask`: the task with its videos, cameras and boxes.

    Raises:
        ValueError: If the task, the style or the context indices are invalid.
        KeyError: If the room has no object of that name.
    """
    # 1. Read the row.
    check_task(row["task"])
    room = _room(int(row["room_seed"]), row["style"])
    context = Trajectory("survey", tuple(map(tuple, row["context_knots"])), "")
    path = Trajectory(row["trajectory"], tuple(map(tuple, row["knots"])), row["prompt"])
    indices = np.asarray(row["context_indices"], np.int64)
    length = int(row["context_length"])
    if not len(indices) or indices.min() < 0 or indices.max() >= length or (np.diff(indices) <= 0).any():
        raise ValueError(
            f"{row['task_id']}: context_indices={indices.tolist()}: they must increase and lie in [0, {length})."
        )

    # 2. Render context and target.
    context_poses, target_poses = context.poses(length)[indices], path.poses(num_frames)
    intrinsics = intrinsics_for(size, float(row["field_of_view"]))
    rendering = render(
        room, np.concatenate([context_poses, target_poses]), size, intrinsics=intrinsics, supersample=supersample
    )
    split = len(indices)
    boxes = np.full((num_frames, 4), np.nan)
    if row["object"]:
        boxes = rendering.boxes[split:, room.objects.index(room.object_named(row["object"]))]
    return SceneTask(
        row["task_id"], row["task"], row["prompt"], rendering.frames[:split], indices, context_poses,
        rendering.frames[split:], target_poses, intrinsics, row["object"], boxes,
        {"room_seed": room.seed, "style": room.style},
    )  # fmt: skip
