"""
Measure SD, the spatial distance, on frames that are too small for keypoints, by comparing them with renderings.

Each patch of a frame is searched for in the neighbourhood of its place in the rendering. Its error is the distance in
the scene between the two places, or the maximum if it is not found. The mean over patches is our interpretation of the
paper's spatial distance (Video4Spatial, arXiv 2512.03040; see `distance.py`) for videos from which no scene can be
reconstructed.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

PATCHES = 6
"""Patches per height of the frame. A patch is searched for within one patch width of its place."""
ALIKE = 0.5
"""Two patches match if they differ by at most this share of the contrast, the difference from the mean colour."""
SAME_COLOR = 10.0
"""Two patches also match if they differ by at most this many of 255 levels."""
NEARER = 0.15
"""Penalty, in levels per pixel of a frame of 32 rows, on distant matches: a patch of a plain wall fits everywhere."""


def displacement(frame: np.ndarray, picture: np.ndarray, points: np.ndarray, size: float) -> float:
    """
    Measure how far the contents of a frame are from their places in the scene.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`):
            A frame, blurred as much as `picture`.
        picture (`np.ndarray` of the same shape):
            Rendering of the scene from the frame's camera.
        points (`np.ndarray` of the same shape):
            Position in the scene of each pixel of `picture`.
        size (`float`):
            Size of the scene, in the unit of `points`.

    Returns:
        `float`: the mean over patches of `min(distance / size, 1)`, with 1 for a patch that is not found.
    """
    # Patches overlap by half, and have an odd side so that they have a central pixel.
    height, width = frame.shape[:2]
    side = max(3, height // PATCHES // 2 * 2 + 1)
    reach, step = height // PATCHES, max(1, height // 32)
    frame = frame - frame.mean(axis=(0, 1)) + picture.mean(axis=(0, 1))
    half = side // 2
    rows, columns = (np.arange(half, length - half, half) for length in (height, width))
    shifts = np.arange(-(reach // step), reach // step + 1) * step
    down, right = (shift.ravel() for shift in np.meshgrid(shifts, shifts, indexing="ij"))

    # Compare every patch with all shifted places of the rendering; outside of it nothing matches
    margins = ((reach, reach), (reach, reach), (0, 0))
    padded = np.pad(picture.astype(np.float32), margins, constant_values=1e6)
    costs = []
    for dy, dx in zip(down, right, strict=True):
        shifted = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        costs.append(uniform_filter(np.abs(frame - shifted).mean(axis=2), side)[np.ix_(rows, columns)])
    costs = np.stack(costs)
    penalty = NEARER * 32 / height * np.hypot(down, right)
    best = (costs + penalty[:, None, None]).argmin(axis=0)

    # Measure the distance in the scene between the patch's place and its best match
    row, column = np.meshgrid(rows, columns, indexing="ij")
    match = row + down[best], column + right[best]
    contrast = uniform_filter(np.abs(picture - picture.mean(axis=(0, 1))).mean(axis=2), side)[match]
    found = np.take_along_axis(costs, best[None], axis=0)[0] <= np.maximum(ALIKE * contrast, SAME_COLOR)
    distance = np.linalg.norm(points[row, column] - points[match], axis=-1) / size
    return float(np.where(found, np.minimum(distance, 1.0), 1.0).mean())
