"""Tasks in rooms: a seed -> a row of a dataset (numbers and words only), and a row -> a `SceneTask` with its videos.

A row holds everything to render its videos again at any size and length, so that no video has to be stored. The
context is frames of a walk once around the room, with its last one; the target goes on from that last camera, along a
path whose views the context covers (navigation), or to a named object which the context shows and its last frame does
not (grounding).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from spatialalign_trl.scenes.tasks import SceneTask, check_task, draw_context_indices
from spatialalign_trl.tiny_world.rooms.raycast import Geometry, intrinsics_for, render, render_geometry
from spatialalign_trl.tiny_world.rooms.room import Room, sample_room
from spatialalign_trl.tiny_world.rooms.trajectories import Trajectory, sample_approach, sample_trajectory

NAVIGATION_KINDS = ("walk", "orbit", "dolly", "pan")
CONTEXT_LENGTH = 81
"""Frames of the recording that context frames are taken from."""

FIELD_OF_VIEW = 75.0
MIN_COVERAGE = 0.7
"""Share of what the target shows that must have been seen in the context."""

_SAME_WAY = (40.0, 2.5)
"""Degrees and ratio of distances within which two views of a point look alike to SIFT."""
_MIN_OBJECT_SHARE = 0.004
_THUMBNAIL = (36, 64)
_ATTEMPTS = 40


def make_row(seed: int, task: str, style: str = "indoor", num_context: int = 12, variant: int = 0,
             min_familiar: float = 0.0) -> dict[str, Any]:  # fmt: skip
    """The task that a seed means.

    Args:
        seed (`int`): Of the room, which says the split.
        task (`"navigation"` or `"grounding"`): What is asked for.
        style (`str`, *optional*, defaults to `"indoor"`): Of the room.
        num_context (`int`, *optional*, defaults to `12`): Context frames, at least 2; the last of the recording is
            one of them.
        variant (`int`, *optional*, defaults to `0`): Another number is another recording and another path in the same
            room. The room itself takes as long to make as a row, and is kept for the next row.
        min_familiar (`float`, *optional*, defaults to `0.0`): What `familiar` has to be at least. Sets whose videos
            are scored by keypoints want 0.5, and the time of several rows; small frames are rendered and compared.

    Returns:
        `dict`: the columns of the dataset's card.

    Raises:
        ValueError: for an unknown task or style, a seed of no split, or a variant below 0.
        RuntimeError: when the room has no such task; take another seed or variant.
    """
    check_task(task)
    if variant < 0:
        raise ValueError(f"variant is {variant}; it must be at least 0.")
    room = _room(seed, style)
    rng = np.random.default_rng([seed, 79, variant])
    kind = NAVIGATION_KINDS[(seed + variant) % len(NAVIGATION_KINDS)]
    for _ in range(_ATTEMPTS):
        context = sample_trajectory(room, "survey", rng)
        drawn = _draw_path(room, kind, context, rng) if task == "navigation" else None
        if drawn is None and task == "navigation":
            continue
        earlier = draw_context_indices(np.arange(CONTEXT_LENGTH - 1), num_context - 1, rng)
        indices = np.append(earlier, CONTEXT_LENGTH - 1)
        context_poses = context.poses(CONTEXT_LENGTH)[indices]
        seen = render_geometry(room, context_poses, _THUMBNAIL, intrinsics=_camera(_THUMBNAIL))
        found = (drawn, "") if drawn is not None else _draw_search(room, context, seen, rng)
        if found is None:
            continue
        path, name = found
        poses = path.poses(5)
        if min_familiar and familiar(room, poses, context_poses, seen) < min_familiar:
            continue
        coverage = covered(room, poses, context_poses, seen)
        if coverage >= MIN_COVERAGE:
            return _row(room, task, variant, context, indices, path, name, coverage)
    raise RuntimeError(
        f"room {seed} has no {task} task of variant {variant} whose views a context covers; take another."
    )


def _draw_path(room: Room, kind: str, context: Trajectory, rng: np.random.Generator) -> Trajectory | None:
    """A path from where the recording ends; `None` where there is no space."""
    try:
        return sample_trajectory(room, kind, rng, context.knots[-1])
    except RuntimeError:
        return None


def _draw_search(room: Room, context: Trajectory, seen: Geometry,
                 rng: np.random.Generator) -> tuple[Trajectory, str] | None:  # fmt: skip
    """A path to an object that the context shows and its last frame does not, and the object's name."""
    shown = seen.visible_pixels.max(axis=0) > _MIN_OBJECT_SHARE * np.prod(_THUMBNAIL)
    for index in rng.permutation(np.flatnonzero(shown & (seen.visible_pixels[-1] == 0))):
        try:
            return sample_approach(room, room.objects[index], rng, context.knots[-1]), room.objects[index].name
        except RuntimeError:
            continue  # behind something, or in a corner
    return None


def covered(room: Room, poses: np.ndarray, context_poses: np.ndarray, seen: Geometry) -> float:
    """Share of the points in the view of some cameras that the context's cameras have seen.

    Args:
        room (`Room`): The room.
        poses (`np.ndarray` of shape `(n, 4, 4)`): The cameras in question.
        context_poses (`np.ndarray` of shape `(k, 4, 4)`): The context's cameras.
        seen (`Geometry`): What those see.
    """
    return float(np.mean([(views > 0).mean() for views in _views(room, poses, context_poses, seen)]))


def familiar(room: Room, poses: np.ndarray, context_poses: np.ndarray, seen: Geometry) -> float:
    """Share of the points in the view of some cameras, the least of them all, that two of the context's cameras have
    seen in nearly the same way: so that keypoints look the same, and have a place.

    Args:
        room, poses, context_poses, seen: As of `covered`.
    """
    views = _views(room, poses, context_poses, seen, *_SAME_WAY)
    return float(min((number >= 2).mean() for number in views))


def _views(room: Room, poses: np.ndarray, context_poses: np.ndarray, seen: Geometry, max_angle: float = 180.0,
           max_ratio: float = np.inf) -> Iterator[np.ndarray]:  # fmt: skip
    """For each camera, how many of the context's have seen each point in its view: from a direction at most so many
    degrees away, and a distance at most so many times as large or small."""
    size, intrinsics = seen.depth.shape[1:], seen.intrinsics
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1).reshape(-1, 3) @ np.linalg.inv(intrinsics).T
    for pose, depth in zip(poses, render_geometry(room, poses, size, intrinsics=intrinsics).depth, strict=True):
        own = rays * depth.reshape(-1, 1) @ pose[:3, :3].T
        points, distance = own + pose[:3, 3], np.linalg.norm(own, axis=1)
        number = np.zeros(len(points), np.int64)
        for context_pose, context_depth in zip(context_poses, seen.depth, strict=True):
            away = points - context_pose[:3, 3]
            camera = away @ context_pose[:3, :3]
            pixels = (camera @ intrinsics.T)[:, :2] / np.maximum(camera[:, 2:], 1e-6)
            x, y = pixels.round().astype(np.int64).clip(-1, max(size)).T
            inside = (camera[:, 2] > 0.05) & (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
            if max_angle < 180:
                far = np.linalg.norm(away, axis=1)
                inside &= (away * own).sum(axis=1) > np.cos(np.radians(max_angle)) * far * distance
                inside &= (far < max_ratio * distance) & (distance < max_ratio * far)
            # What lies at the depth that was seen there was seen; a thumbnail's pixel is wide, so it is loose.
            number[inside] += np.abs(context_depth[y[inside], x[inside]] / camera[inside, 2] - 1) < 0.1
        yield number


def _camera(size: tuple[int, int]) -> np.ndarray:
    return intrinsics_for(size, FIELD_OF_VIEW)


def _row(room: Room, task: str, variant: int, context: Trajectory, indices: np.ndarray, path: Trajectory, name: str,
         coverage: float) -> dict[str, Any]:  # fmt: skip
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
            {"name": one.name, "low": one.low.round(2).tolist(), "high": one.high.round(2).tolist()}
            for one in room.objects
        ],
    }


@lru_cache(maxsize=2)
def _room(seed: int, style: str) -> Room:
    return sample_room(seed, style)


def render_row(row: Mapping[str, Any], size: tuple[int, int] = (240, 416), num_frames: int = 17,
               supersample: int = 3) -> SceneTask:  # fmt: skip
    """Renders a row of a dataset.

    Args:
        row (`Mapping`): From `make_row` or a dataset made by it.
        size (tuple of 2 `int`, *optional*, defaults to `(240, 416)`): Height and width in pixels.
        num_frames (`int`, *optional*, defaults to `17`): Frames of the target.
        supersample (`int`, *optional*, defaults to `3`): As of `render`; small frames want 5 or more.

    Raises:
        ValueError: for a row whose values are none of a task.
    """
    check_task(row["task"])
    room = _room(int(row["room_seed"]), row["style"])
    context = Trajectory("survey", tuple(map(tuple, row["context_knots"])), "")
    path = Trajectory(row["trajectory"], tuple(map(tuple, row["knots"])), row["prompt"])
    indices = np.asarray(row["context_indices"], np.int64)
    length = int(row["context_length"])
    if not len(indices) or indices.min() < 0 or indices.max() >= length or (np.diff(indices) <= 0).any():
        raise ValueError(
            f"{row['task_id']}: context_indices are {indices.tolist()}; they must increase and lie in [0, {length})."
        )
    context_poses, target_poses = context.poses(length)[indices], path.poses(num_frames)
    intrinsics = intrinsics_for(size, float(row["field_of_view"]))
    shown = render(
        room, np.concatenate([context_poses, target_poses]), size, intrinsics=intrinsics, supersample=supersample
    )
    split = len(indices)
    boxes = np.full((num_frames, 4), np.nan)
    if row["object"]:
        boxes = shown.boxes[split:, room.objects.index(room.object_named(row["object"]))]
    return SceneTask(
        row["task_id"], row["task"], row["prompt"], shown.frames[:split], indices, context_poses,
        shown.frames[split:], target_poses, intrinsics, row["object"], boxes,
        {"room_seed": room.seed, "style": room.style},
    )  # fmt: skip
