"""Locate the frames of a video in an existing map of points, without changing the map."""

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
MAX_DESCRIPTOR_DISTANCE = 280.0
"""Largest distance between SIFT descriptors of the same point (their length is 512)."""
REACHES = (0.35, 0.1)
"""Largest motion of a point between neighbouring frames, in widths of the frame: for a fast and for a slow camera."""
NEAR = 0.03
"""Largest distance between a keypoint and its projected point once a first pose is known, in widths of the frame."""


class Located(NamedTuple):
    """
    A frame with a known pose.

    Args:
        pose (`np.ndarray` of shape `(4, 4)`):
            Camera-to-world matrix.
        support (`float`):
            Share of the keypoints matched with the map that fit the pose, in [0, 1].
        features ([`~spatialalign_trl.perception.camera.features.Features`]):
            Its keypoints.
        seen (`np.ndarray` of shape `(keypoints,)`):
            Index of the point that each keypoint shows, or -1.
    """

    pose: np.ndarray
    support: float
    features: Features
    seen: np.ndarray


class Locator:
    """
    Locates frames in a map.

    Args:
        points (`np.ndarray` of shape `(k, 3)`):
            Positions of the points, or their directions if there is a `centre`.
        descriptors (`np.ndarray` of shape `(k, 128)`):
            Their SIFT descriptors.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            Intrinsics of the frames, in pixels.
        size (tuple of 2 `int`):
            Height and width of the frames.
        centre (`np.ndarray` of shape `(3,)`, *optional*):
            Common position of all cameras, if they only turn.
    """

    def __init__(
        self,
        points: np.ndarray,
        descriptors: np.ndarray,
        intrinsics: np.ndarray,
        size: tuple[int, int],
        centre: np.ndarray | None = None,
    ) -> None:
        self.points, self.descriptors = points, descriptors
        self.intrinsics, self.size, self.centre = intrinsics, size, centre
        self.slack = tolerance(size[1])

    def locate(self, video: Video) -> list[Located | None]:
        """
        Find the poses of a video's frames.

        First, every frame is searched for in the whole map. A frame may not be found because it shows few points of a
        scene in which many look alike; it is searched for again near the pose of a neighbouring frame. The points of
        the video are not added to the map.

        Args:
            video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
                The video.

        Returns:
            `list[Located | None]`: one per frame, `None` if it was not found.
        """
        features = [find_features(frame) for frame in video]
        located = [self._locate(frame_features) for frame_features in features]
        # Spread found poses to later frames, then to earlier ones.
        for order, step in ((range(1, len(features)), -1), (range(len(features) - 2, -1, -1), 1)):
            for frame in order:
                if located[frame] is None and located[frame + step] is not None:
                    located[frame] = self._locate(features[frame], located[frame + step])
        return located

    def _locate(self, features: Features, near: Located | None = None) -> Located | None:
        """Find the pose of a frame, anywhere or near that of a neighbour."""
        if len(features.pixels) < MIN_MATCHES or len(self.points) < MIN_MATCHES:
            return None
        distances = descriptor_distances(features.descriptors, self.descriptors)
        if near is None:
            fitted = self._fit(features, self._match_points(distances))
        else:
            fitted = self._fit_near(features, distances, near)
        if fitted is None:
            return None
        pose, support, seen = fitted
        # Knowing the pose makes more matches unambiguous: match again near the projected points
        if self.centre is None:
            matches = self._match_points(self._within(NEAR, distances, features, pose))
            refined = self._fit(features, np.maximum(seen, matches))
            if refined is not None and (refined[2] >= 0).sum() > (seen >= 0).sum():
                pose, _, seen = refined
        return Located(pose, support, features, seen)

    def _fit_near(
        self, features: Features, distances: np.ndarray, near: Located
    ) -> tuple[np.ndarray, float, np.ndarray] | None:
        """Fit a pose to the points that a neighbour saw too, and to matches near where the neighbour saw them."""
        pairs = match(features, near.features)
        shared = np.full(len(features.pixels), -1)
        shared[pairs[:, 0]] = near.seen[pairs[:, 1]]
        for reach in REACHES:
            matches = self._match_points(self._within(reach, distances, features, near.pose))
            fitted = self._fit(features, np.where(shared >= 0, shared, matches))
            if fitted is not None:
                return fitted
        return None

    def _fit(self, features: Features, seen: np.ndarray) -> tuple[np.ndarray, float, np.ndarray] | None:
        """Return the pose that fits most matches, the share that fits, and the matches without the outliers."""
        keypoints = np.flatnonzero(seen >= 0)
        if len(keypoints) < MIN_MATCHES:
            return None
        points, pixels = self.points[seen[keypoints]], features.pixels[keypoints]
        if self.centre is not None:  # the camera only turns: points are directions
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
        inlier_matches = seen.copy()
        inlier_matches[keypoints[~inliers]] = -1
        return pose, float(inliers.mean()), inlier_matches

    def _within(self, reach: float, distances: np.ndarray, features: Features, pose: np.ndarray) -> np.ndarray:
        """Set the descriptor distances of points to infinity that project more than `reach` widths from a keypoint."""
        points = self.points if self.centre is None else self.points + pose[:3, 3]
        pixels, _ = project(points, pose, self.intrinsics)
        away = np.linalg.norm(features.pixels[:, None] - pixels[None], axis=2)
        # The comparison is false for points behind the camera, whose pixels are NaN.
        return np.where(away < reach * self.size[1], distances, np.inf)

    def _match_points(self, distances: np.ndarray) -> np.ndarray:
        """Return the point with the nearest descriptor for each keypoint, or -1 if it is far or ambiguous."""
        rows, first = np.arange(len(distances)), distances.argmin(1)
        best = distances[rows, first]
        others = distances.copy()
        others[rows, first] = np.inf
        second = others.argmin(1)
        spread = np.ptp(self.points, axis=0).max()
        # The map may contain a point twice. Then the second nearest descriptor does not make the match ambiguous.
        duplicate = np.linalg.norm(self.points[first] - self.points[second], axis=1) < 0.02 * spread
        unambiguous = (best < RATIO * others[rows, second]) | duplicate
        return np.where(unambiguous & (best < MAX_DESCRIPTOR_DISTANCE), first, -1)
