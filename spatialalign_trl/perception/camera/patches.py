"""Which points of a map a frame shows again: small pictures of them, as context frames have them, laid onto the frame.

Keypoints say little of a smooth object, or of one that is seen from nearer than ever before: a video that walks up to
a red box has shown 0 of 30 points by their descriptors, and 37 % by their pictures (79 % in the rest of the frame, and
0 of a box that is pasted in).
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
"""Widths of the frame from one sample of a patch to the next, and by which a patch may miss its place."""
RADIUS = 3
"""Samples from the middle of a patch to its edge."""
SAME_PATCH = 0.7
"""Correlation from which two patches show the same; of patches of different places 2 to 8 % reach it (two rooms)."""
SAME_COLOUR = 40.0
"""Levels of a channel (of 256) by which the means of two patches may differ."""


class Patches:
    """
    Pictures of a map's points.

    Args:
        points (`np.ndarray` of shape `(k, 3)`): Places; directions when there is a `centre`.
        frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`): The context.
        poses (`np.ndarray` of shape `(n, 4, 4)`): Camera to world of its frames; NaN where unknown.
        shown (sequence of `n` arrays): The points that each of the frames shows.
        intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.
        centre (`np.ndarray` of shape `(3,)`, *optional*): Where all cameras stand, when they only turn.
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
        What of the map a frame shows.

        Args:
            pose (`np.ndarray` of shape `(4, 4)`): Camera to world of the frame.
            frame (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The frame.
        """
        points = self.points if self.centre is None else self.points + pose[:3, 3]
        pixels, depth = project(points, pose, self.intrinsics)
        inside = ((pixels >= 0) & (pixels < (self.width, self.height))).all(axis=1)  # NaN, behind the camera, is not
        points, pixels, depth, shown = points[inside], pixels[inside], depth[inside], self.shown[:, inside]
        seen = np.zeros(len(points), bool)
        if not len(points):
            return Sightings(pixels, seen)
        grid = np.arange(-RADIUS, RADIUS + 1) * STEP * self.width
        grid = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
        moves = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]) * STEP * self.width
        places = pixels[:, None] + grid + moves[:, None, None]
        own, colours = _standardised(_sample(self._smooth(frame), places))
        # The patch of the frame as a small plane at the point, so that a context camera sees it in its own size.
        plane = grid @ pose[:3, :2].T * (depth / self.intrinsics[0, 0])[:, None, None] + points[:, None]
        for camera, context, ids in zip(self.poses, self.frames, map(np.flatnonzero, shown), strict=True):
            ids = ids[~seen[ids]]
            if not len(ids):
                continue
            there, _ = project(plane[ids].reshape(-1, 3), camera, self.intrinsics)
            # A corner of the plane can be behind the camera: it is no picture.
            there = np.nan_to_num(there.reshape(len(ids), -1, 2), nan=-1.0)
            wanted, colour = _standardised(_sample(context, there))
            alike = np.einsum("mpd,pd->mp", own[:, ids], wanted) > SAME_PATCH
            alike &= (np.abs(colours[:, ids] - colour) < SAME_COLOUR).all(axis=-1)
            seen[ids] = alike.any(axis=0)
        return Sightings(pixels, seen)

    def _smooth(self, frame: np.ndarray) -> np.ndarray:
        return opencv().GaussianBlur(frame, (0, 0), STEP * self.width / 2)


def _sample(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Colours at places `(..., samples, 2)`: `(..., samples, 3)`; beyond the frame, those of its edge."""
    cv2 = opencv()
    x, y = pixels.reshape(-1, pixels.shape[-2], 2).astype(np.float32).transpose(2, 0, 1)
    rows = [  # OpenCV's maps have fewer than 32768 rows
        cv2.remap(frame, x[k : k + 8192], y[k : k + 8192], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for k in range(0, len(x), 8192)
    ]
    return np.concatenate(rows).reshape(*pixels.shape[:-1], 3).astype(np.float32)


def _standardised(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches `(..., samples, 3)` without their means, as vectors of length 1, and the means `(..., 3)`."""
    means = patches.mean(axis=-2)
    flat = (patches - means[..., None, :]).reshape(*patches.shape[:-2], -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-3), means
