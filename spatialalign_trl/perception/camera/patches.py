"""Decide which points of a map a frame shows again, by comparing small patches of the context frames with the frame.

Descriptors are not enough for a smooth object, or for one that is seen from closer than in the context. In a video
that approaches a red box, descriptors matched 0 of 30 points, but patches matched 37 % (79 % in the rest of the frame,
and 0 of a box that was pasted in).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialalign_trl.perception.camera.estimator import Sightings
from spatialalign_trl.perception.camera.features import opencv
from spatialalign_trl.perception.camera.geometry import known, project

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

STEP = 0.005
"""Distance between two samples of a patch, and largest error of its position, in widths of the frame."""
RADIUS = 3
"""Number of samples from the centre of a patch to its edge."""
SAME_PATCH = 0.7
"""Correlation above which two patches match. Between different places, 2 to 8 % of patches match (in two rooms)."""
SAME_COLOUR = 40.0
"""Largest difference between the mean colours of matching patches, in levels (of 256) per channel."""


class Patches:
    """
    The patches of a map's points in the context frames.

    Args:
        points (`np.ndarray` of shape `(k, 3)`):
            Positions of the points, or their directions if there is a `centre`.
        frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
            The context.
        poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera-to-world matrices of its frames; NaN where unknown.
        shown (sequence of `n` arrays):
            Indices of the points that each frame shows.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        centre (`np.ndarray` of shape `(3,)`, *optional*):
            Common position of all cameras, if they only turn.
    """

    def __init__(
        self,
        points: np.ndarray,
        frames: Video,
        poses: np.ndarray,
        shown: Sequence[np.ndarray],
        intrinsics: np.ndarray,
        centre: np.ndarray | None = None,
    ) -> None:
        self.points, self.poses, self.intrinsics, self.centre = points, poses.copy(), intrinsics, centre
        if centre is not None:
            self.poses[:, :3, 3] = centre
        self.height, self.width = frames.shape[1:3]
        self.frames = [self._smooth(frame) for frame in frames]
        self.shown = np.zeros((len(frames), len(points)), bool)
        for row, ids in zip(self.shown, shown, strict=True):
            row[ids] = True
        self.shown[~known(poses)] = False

    def sightings(self, pose: np.ndarray, frame: np.ndarray) -> Sightings:
        """
        Find the points of the map that a frame shows.

        Args:
            pose (`np.ndarray` of shape `(4, 4)`):
                Camera-to-world matrix of the frame.
            frame (`np.ndarray` of shape `(height, width, 3)`, `uint8`):
                The frame.

        Returns:
            [`~spatialalign_trl.perception.camera.Sightings`]: of the points inside the frame.
        """
        # 1. Select the points inside the frame; pixels of points behind the camera are NaN
        points = self.points if self.centre is None else self.points + pose[:3, 3]
        pixels, depth = project(points, pose, self.intrinsics)
        inside = ((pixels >= 0) & (pixels < (self.width, self.height))).all(axis=1)
        points, pixels, depth, shown = points[inside], pixels[inside], depth[inside], self.shown[:, inside]
        seen = np.zeros(len(points), bool)
        if not len(points):
            return Sightings(pixels, seen)

        # 2. Sample a patch of the frame around each point, and copies of it moved by one sample
        grid = np.arange(-RADIUS, RADIUS + 1) * STEP * self.width
        grid = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
        shifts = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]) * STEP * self.width
        positions = pixels[:, None] + grid + shifts[:, None, None]
        frame_patches, frame_colours = _standardised(_sample(self._smooth(frame), positions))

        # 3. Compare them with the patches of the context frames. A patch becomes a small plane at the point, facing
        # the frame's camera, so that a context camera sees the same part of the scene in its own scale.
        plane = grid @ pose[:3, :2].T * (depth / self.intrinsics[0, 0])[:, None, None] + points[:, None]
        for camera, context, ids in zip(self.poses, self.frames, map(np.flatnonzero, shown), strict=True):
            ids = ids[~seen[ids]]
            if not len(ids):
                continue
            projected, _ = project(plane[ids].reshape(-1, 3), camera, self.intrinsics)
            # A corner of the plane can be behind the camera: sample it outside the frame.
            projected = np.nan_to_num(projected.reshape(len(ids), -1, 2), nan=-1.0)
            context_patches, context_colours = _standardised(_sample(context, projected))
            matching = np.einsum("mpd,pd->mp", frame_patches[:, ids], context_patches) > SAME_PATCH
            matching &= (np.abs(frame_colours[:, ids] - context_colours) < SAME_COLOUR).all(axis=-1)
            seen[ids] = matching.any(axis=0)
        return Sightings(pixels, seen)

    def _smooth(self, frame: np.ndarray) -> np.ndarray:
        return opencv().GaussianBlur(frame, (0, 0), STEP * self.width / 2)


def _sample(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the colours at pixels `(..., samples, 2)`: `(..., samples, 3)`; outside the frame, those of its edge."""
    cv2 = opencv()
    x, y = pixels.reshape(-1, pixels.shape[-2], 2).astype(np.float32).transpose(2, 0, 1)
    rows = [  # in parts, because OpenCV's maps must have fewer than 32768 rows
        cv2.remap(frame, x[k : k + 8192], y[k : k + 8192], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for k in range(0, len(x), 8192)
    ]
    return np.concatenate(rows).reshape(*pixels.shape[:-1], 3).astype(np.float32)


def _standardised(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return patches `(..., samples, 3)` without their means, as vectors of length 1, and the means `(..., 3)`."""
    means = patches.mean(axis=-2)
    flat = (patches - means[..., None, :]).reshape(*patches.shape[:-2], -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-3), means
