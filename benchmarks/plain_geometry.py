"""The reference for `perception.py`: DSR-Score with plain loops over frames, and random boxes for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from spatialalign_rewards.dsr_score import required_frames
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks

ANIMAL, OBJECT = "cat", "bench"
DIRECTIONS = {"L": (-1, 0), "R": (1, 0), "T": (0, -1)}


def random_boxes(videos: int, frames: int) -> np.ndarray:
    """Draw boxes of both objects at random positions.

    Returns:
        `np.ndarray` of shape `(videos, frames, 2, 4)`: NaN on frames without the pair. Some boxes are empty, and in
        one of five videos most frames lack the pair.
    """
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 400, (videos, frames, 2, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(10, 80, (videos, frames, 2, 2))], axis=-1)
    boxes[generator.random((videos, frames, 2)) < 0.02] = 0
    is_dense = generator.random((videos, 1)) < 0.8
    boxes[generator.random((videos, frames)) > np.where(is_dense, 0.9, 0.2)] = np.nan
    return boxes


def as_tracks(boxes: np.ndarray) -> list[Tracks]:
    """Turn boxes into tracks as trackers return them: frames and labels in random order, one label without a pair."""
    generator, tracks = np.random.default_rng(1), []
    for video in boxes:
        frames = []
        for index in generator.permutation(len(video)).tolist():
            if np.isnan(video[index]).any():
                frames.append(FrameBoxes(index, (ANIMAL,), np.ones((1, 4))))
            elif generator.random() < 0.5:
                frames.append(FrameBoxes(index, (ANIMAL, OBJECT), video[index]))
            else:
                frames.append(FrameBoxes(index, (OBJECT, ANIMAL), video[index, ::-1]))
        tracks.append(Tracks(frames, len(video)))
    return tracks


def offset_numpy(animal: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """Compute `(cos_x*d_x, cos_y*d_y)` of one frame with small arrays."""
    offset = (animal[:2] + animal[2:]) / 2 - (thing[:2] + thing[2:]) / 2
    reach = ((animal[2:] - animal[:2]) + (thing[2:] - thing[:2])) / 2
    distance = np.linalg.norm(offset)
    cosine = offset / distance if distance > 0 else np.zeros(2)
    return cosine * np.clip(np.abs(offset) / reach, 0, 1)


def offset_floats(animal: np.ndarray, thing: np.ndarray) -> tuple[float, float]:
    """Compute the same as `offset_numpy` with Python numbers."""
    (ax1, ay1, ax2, ay2), (ox1, oy1, ox2, oy2) = animal.tolist(), thing.tolist()
    x, y = (ax1 + ax2) / 2 - (ox1 + ox2) / 2, (ay1 + ay2) / 2 - (oy1 + oy2) / 2
    distance = math.hypot(x, y)
    if not distance > 0:
        return 0.0, 0.0
    near_x = min(abs(x) / (((ax2 - ax1) + (ox2 - ox1)) / 2), 1.0)
    near_y = min(abs(y) / (((ay2 - ay1) + (oy2 - oy1)) / 2), 1.0)
    return x / distance * near_x, y / distance * near_y


def pairs_in_order(frames: Tracks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the boxes of animal and object in order of time, from the frames that have both labels."""
    for frame in sorted(frames, key=lambda frame: frame.frame_index):
        if len(frame.labels) == 2 and set(frame.labels) == {ANIMAL, OBJECT}:
            yield tuple(frame.boxes) if frame.labels[0] == ANIMAL else tuple(frame.boxes[::-1])


def plain_score(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_frames: int, dsr_type: str, offset: Callable
) -> tuple[float | None, list[float], list[list]]:
    """Score one video frame by frame.

    Args:
        pairs (iterable of 2 `np.ndarray` of shape `(4,)`):
            Boxes of animal and object on every frame.
        num_frames (`int`):
            Number of frames in the video.
        dsr_type (`str`):
            DSR type, such as `"LR"`.
        offset (callable):
            `offset_numpy` or `offset_floats`.

    Returns:
        `tuple`: `(score, components, curves)`. The score is `None` if too few frames are valid.
    """
    directions, curves = [DIRECTIONS[code] for code in dsr_type], [[], []]
    for animal, thing in pairs:
        has_width = animal[2] > animal[0] and thing[2] > thing[0]  # false for NaN, too
        if not (has_width and (animal[3] > animal[1] or thing[3] > thing[1])):
            continue
        x, y = offset(animal, thing)
        for curve, (along_x, along_y) in zip(curves, directions, strict=True):
            curve.append(along_x * x + along_y * y)
    first, last = curves
    if len(first) < required_frames(num_frames):
        return None, [], curves
    components = [
        sum(first[:3]) / len(first[:3]), (first[0] - first[-1]) / 2,
        sum(last[-3:]) / len(last[-3:]), (last[-1] - last[0]) / 2,
    ]  # fmt: skip
    return sum(components) / 8 + 0.5, components, curves
