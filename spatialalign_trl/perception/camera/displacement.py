"""
SD of frames that are too small for keypoints, against renderings of the scene.

A patch of a frame should show what the scene has there. If it shows something of the scene's neighbourhood instead, it
is as far off as the two places lie apart in the scene; what is nowhere around is as far off as can be. The mean over
patches is our reading of the paper's spatial distance (Video4Spatial, arXiv 2512.03040; see `camera_distance`) where
nothing can be reconstructed from the video itself.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

PATCHES = 6
"""Patches are a sixth of the height wide, and are looked for as far around."""
ALIKE = 0.5
"""Two patches are the same whose difference is at most so much of what the patch differs from one colour."""
SAME_COLOR = 10.0
"""So are two that differ by at most so many of the 255 levels."""
NEARER = 0.15
"""Levels by which a place must fit better to be one pixel of 32 rows farther away; walls fit everywhere."""


def displacement(frame: np.ndarray, picture: np.ndarray, points: np.ndarray, size: float) -> float:
    """
    How far from its place in the scene the patches of a frame show things.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`):
            A frame, blurred as `picture` is.
        picture (`np.ndarray` of the same shape):
            What the scene looks like from the frame's camera.
        points (`np.ndarray` of the same shape):
            Where in the scene each pixel of `picture` lies.
        size (`float`):
            Of the scene, in the unit of `points`.

    Returns:
        `float`: the mean over patches of `min(distance / size, 1)`, and 1 for a patch that is nowhere around.
    """
    height, width = frame.shape[:2]
    side = max(3, height // PATCHES // 2 * 2 + 1)
    reach, step = height // PATCHES, max(1, height // 32)
    frame = frame - frame.mean(axis=(0, 1)) + picture.mean(axis=(0, 1))
    half = side // 2
    rows, columns = (np.arange(half, length - half, half) for length in (height, width))
    shifts = np.arange(-(reach // step), reach // step + 1) * step
    down, right = (one.ravel() for one in np.meshgrid(shifts, shifts, indexing="ij"))
    outside = ((reach, reach), (reach, reach), (0, 0))
    around = np.pad(picture.astype(np.float32), outside, constant_values=1e6)
    costs = []
    for dy, dx in zip(down, right, strict=True):
        other = around[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        costs.append(uniform_filter(np.abs(frame - other).mean(axis=2), side)[np.ix_(rows, columns)])
    costs = np.stack(costs)
    farther = NEARER * 32 / height * np.hypot(down, right)
    best = (costs + farther[:, None, None]).argmin(axis=0)
    row, column = np.meshgrid(rows, columns, indexing="ij")
    there = row + down[best], column + right[best]
    contrast = uniform_filter(np.abs(picture - picture.mean(axis=(0, 1))).mean(axis=2), side)[there]
    known = np.take_along_axis(costs, best[None], axis=0)[0] <= np.maximum(ALIKE * contrast, SAME_COLOR)
    distance = np.linalg.norm(points[row, column] - points[there], axis=-1) / size
    return float(np.where(known, np.minimum(distance, 1.0), 1.0).mean())
