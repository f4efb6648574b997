"""Frames of a video found in a map of points that is there already, and is not changed by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialalign_trl.perception.camera.features import (
    MIN_MATCHES,
    RATIO,
    Features,
    descriptor_distances,
    find_features,
    find_turn,
    match,
    tolerance,
)
from spatialalign_trl.perception.camera.geometry import bearings, project
from spatialalign_trl.perception.camera.pnp import find_pose

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

MIN_INLIER_SHARE = 0.25
SAME_LOOK = 280.0
"""SIFT descriptors of one place, seen twice, differ by less (lengths are 512)."""
REACHES = (0.35, 0.1)
"""Widths of the frame by which what is seen moves at most from one frame that is looked at to the next, when the
camera is fast, and when it is slow."""
NEAR = 0.03
"""The same, once a first pose is known."""


class Located(NamedTuple):
    """
    A frame that was found.

    Args:
        pose (`np.ndarray` of shape `(4, 4)`): Camera to world.
        support (`float`): Share of what looked like the map that fits the pose.
        features ([`~spatialalign_trl.perception.camera_features.Features`]): Its keypoints.
        seen (`np.ndarray` of shape `(keypoints,)`): The point that each keypoint is, or -1.
    """

    pose: np.ndarray
    support: float
    features: Features
    seen: np.ndarray


class Locator:
    """
    Finds frames in a map.

    Args:
        points (`np.ndarray` of shape `(k, 3)`): Places; directions when there is a `centre`.
        looks (`np.ndarray` of shape `(k, 128)`): Their SIFT descriptors.
        intrinsics (`np.ndarray` of shape `(3, 3)`): Of the frames, in pixels.
        size (tuple of 2 `int`): Height and width of the frames.
        centre (`np.ndarray` of shape `(3,)`, *optional*): Where all cameras stand, when they only turn.
    """

    def __init__(
        self,
        points: np.ndarray,
        looks: np.ndarray,
        intrinsics: np.ndarray,
        size: tuple[int, int],
        centre: np.ndarray | None = None,
    ) -> None:
        self.points, self.looks, self.intrinsics, self.size, self.centre = points, looks, intrinsics, size, centre
        self.slack = tolerance(size[1])

    def locate(self, video: Video) -> list[Located | None]:
        """
        Find where the frames of a video were taken.

        Every frame is looked for in the whole map; one that is not found, because it shows little and the room has
        much that looks alike, is looked for again near where a neighbour was found. What the video shows adds nothing
        to the map.
        """
        views = [find_features(frame) for frame in video]
        found = [self._locate(view) for view in views]
        for order, step in ((range(1, len(views)), -1), (range(len(views) - 2, -1, -1), 1)):
            for frame in order:
                if found[frame] is None and found[frame + step] is not None:
                    found[frame] = self._locate(views[frame], found[frame + step])
        return found

    def _locate(self, features: Features, near: Located | None = None) -> Located | None:
        """Where a frame was taken, anywhere or not far from a neighbour."""
        if len(features.pixels) < MIN_MATCHES or len(self.points) < MIN_MATCHES:
            return None
        distances = descriptor_distances(features.descriptors, self.looks)
        if near is None:
            fitted = self._fit(features, self._look_alikes(distances))
        else:
            fitted = self._fit_near(features, distances, near)
        if fitted is None:
            return None
        pose, support, seen = fitted
        if self.centre is None:  # from there, more points are told apart
            again = self._fit(
                features, np.maximum(seen, self._look_alikes(self._within(NEAR, distances, features, pose)))
            )
            if again is not None and (again[2] >= 0).sum() > (seen >= 0).sum():
                pose, _, seen = again
        return Located(pose, support, features, seen)

    def _fit_near(
        self, features: Features, distances: np.ndarray, near: Located
    ) -> tuple[np.ndarray, float, np.ndarray] | None:
        """As `_fit`, by the points that a neighbour saw too, and by look-alikes ever nearer to where it stood."""
        pairs = match(features, near.features)
        shared = np.full(len(features.pixels), -1)
        shared[pairs[:, 0]] = near.seen[pairs[:, 1]]
        for reach in REACHES:
            alike = self._look_alikes(self._within(reach, distances, features, near.pose))
            fitted = self._fit(features, np.where(shared >= 0, shared, alike))
            if fitted is not None:
                return fitted
        return None

    def _fit(self, features: Features, seen: np.ndarray) -> tuple[np.ndarray, float, np.ndarray] | None:
        """The pose from which keypoints see points, the share of them that fits, and those alone."""
        keypoints = np.flatnonzero(seen >= 0)
        if len(keypoints) < MIN_MATCHES:
            return None
        points, pixels = self.points[seen[keypoints]], features.pixels[keypoints]
        if self.centre is not None:
            slack = self.slack / self.intrinsics[0, 0]
            turn, inliers = find_turn(points, bearings(pixels, self.intrinsics), slack)
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = turn.T, self.centre
        else:
            found = find_pose(points, pixels, self.intrinsics, self.slack)
            if found is None:
                return None
            pose, inliers = found
        if inliers.sum() < MIN_MATCHES or inliers.mean() < MIN_INLIER_SHARE:
            return None
        fitting = seen.copy()
        fitting[keypoints[~inliers]] = -1
        return pose, float(inliers.mean()), fitting

    def _within(self, reach: float, distances: np.ndarray, features: Features, pose: np.ndarray) -> np.ndarray:
        """Distances of looks, infinite where a point is more than `reach` widths from a keypoint seen from a pose."""
        points = self.points if self.centre is None else self.points + pose[:3, 3]
        pixels, _ = project(points, pose, self.intrinsics)
        away = np.linalg.norm(features.pixels[:, None] - pixels[None], axis=2)
        return np.where(away < reach * self.size[1], distances, np.inf)  # NaN, behind the camera, is not

    def _look_alikes(self, distances: np.ndarray) -> np.ndarray:
        """The point that each keypoint looks like, -1 for none: the nearest, unless another place looks nearly the
        same."""
        rows, first = np.arange(len(distances)), distances.argmin(1)
        best = distances[rows, first]
        others = distances.copy()
        others[rows, first] = np.inf
        second = others.argmin(1)
        spread = np.ptp(self.points, axis=0).max()
        # One place may be in the map twice: then the second nearest is no rival.
        twin = np.linalg.norm(self.points[first] - self.points[second], axis=1) < 0.02 * spread
        return np.where(((best < RATIO * others[rows, second]) | twin) & (best < SAME_LOOK), first, -1)
