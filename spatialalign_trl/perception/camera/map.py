"""
Estimate camera poses with SIFT keypoints: build a map of the context, and locate the frames of a video in it.

The map starts with the pair of context frames with the most parallax (essential matrix) and grows frame by frame (PnP
on the existing points, then triangulation of new points). It is refined by alternating between points and cameras. If
the context's camera only turns, the map contains directions instead of points. The frames of a video are located by
PnP alone, so that they cannot distort the map; `patches.py` decides which points of the map they show again.

The accuracy is measured on rendered rooms in tests/perception/camera/test_estimator.py. Limits: frames of fewer than
about 200 rows have too few keypoints (use `render.py`), and places that the context does not show cannot be located.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.perception.camera.estimator import CameraEstimate, Sightings, unusable
from spatialalign_trl.perception.camera.features import (
    MIN_MATCHES,
    Relation,
    find_features,
    opencv,
    relate,
    repeatable,
    tolerance,
)
from spatialalign_trl.perception.camera.geometry import bearings, known, project, triangulate, unknown_poses
from spatialalign_trl.perception.camera.locate import Locator
from spatialalign_trl.perception.camera.patches import Patches
from spatialalign_trl.perception.camera.pnp import find_pose, inverse, refine_pose

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

MIN_PARALLAX = 1.0
"""Smallest angle between two rays of a point, in degrees; below it the depth is unreliable."""
MIN_POINTS = 25
"""Smallest number of points with enough parallax in the first two frames."""
MIN_DISPLACEMENT = 0.002
"""Smallest displacement between different frames, in widths of the frame; below it they show the same image."""
ROUNDS = 4
"""Number of refinements of points and cameras."""


class ContextMap:
    """
    A map of the context: its points with their descriptors, and the poses of its frames.

    Args:
        frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
            The context.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        poses (`np.ndarray` of shape `(n, 4, 4)`, *optional*):
            Camera-to-world matrices of the frames, if they are known. The map then has their coordinate system and
            unit.

    Attributes:
        poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera-to-world matrices of the context frames; NaN where unknown.
        points (`np.ndarray` of shape `(k, 3)`):
            Positions of the points, or their directions if `kind` is `"turning"`.
        descriptors (`np.ndarray` of shape `(k, 128)`):
            Their mean descriptors.
        patches ([`~spatialalign_trl.perception.camera.patches.Patches`]):
            Their patches, unless the context is unusable.
        kind, reason:
            See `context_kind` and `reason` of [`~spatialalign_trl.perception.camera.CameraEstimate`].
    """

    def __init__(self, frames: Video, intrinsics: np.ndarray, poses: np.ndarray | None = None) -> None:
        self.size, self.intrinsics = frames.shape[1:3], intrinsics
        self.slack = tolerance(self.size[1])
        self.features = [find_features(frame) for frame in frames]
        self.poses = unknown_poses(len(frames))
        self.rays = [bearings(features.pixels, intrinsics) for features in self.features]
        # For each frame, the index of the point that each keypoint shows, or -1
        self.point_ids = [np.full(len(features.pixels), -1) for features in self.features]
        self.points, self.descriptors = np.zeros((0, 3)), np.zeros((0, 128), np.float32)
        self.relations = self._relate_all()
        self.kind, self.reason = self._build(poses)
        if self.kind != "unusable":
            self._describe_points()
            shown = [ids[ids >= 0] for ids in self.point_ids]
            self.patches = Patches(self.points, frames, self.poses, shown, intrinsics, self.centre)

    def _relate_all(self) -> dict[tuple[int, int], Relation]:
        """Relate all pairs of frames, and return the relations that hold."""
        relations = {}
        for i in range(len(self.features)):
            for j in range(i + 1, len(self.features)):
                relation = relate(self.features[i], self.features[j], self.intrinsics, self.size[1])
                if relation is not None and relation.holds:
                    relations[i, j] = relation
        return relations

    def _build(self, poses: np.ndarray | None) -> tuple[str, str | None]:
        """Build the map, and return the kind of the context with its reason."""
        # 1. Reject contexts without information
        if max(len(features.pixels) for features in self.features) < MIN_MATCHES:
            return "unusable", "the context frames have no texture to find a camera by"
        if not self.relations:
            return "unusable", "no two context frames show the same things"
        if max(relation.displacement for relation in self.relations.values()) < MIN_DISPLACEMENT:
            return "unusable", "the context frames are all the same picture"

        # 2. Find the pair of frames with most points of sufficient parallax; without one, the camera only turns
        num_points = {
            pair: int((relation.parallax > MIN_PARALLAX).sum())
            for pair, relation in self.relations.items()
            if relation.translation is not None
        }
        best = max(num_points, key=num_points.__getitem__, default=None)
        if best is None or num_points[best] < MIN_POINTS:
            return self._build_turning(poses)

        # 3. With known poses, only triangulate points
        if poses is not None:
            self.poses = poses.copy()
            for pair in sorted(self.relations, key=lambda pair: -num_points.get(pair, 0)):
                self._add_points(*pair)
            self._refine(cameras=False)
            return "moving", None

        # 4. Otherwise start with the best pair, and add frames and points in turn
        relation = self.relations[best]
        self.poses[best[0]] = np.eye(4)
        self.poses[best[1]] = inverse(relation.rotation, relation.translation)
        self._add_points(*best)
        while self._register_next():
            pass
        for _ in range(ROUNDS):
            self._refine()
        return "moving", None

    def _build_turning(self, poses: np.ndarray | None) -> tuple[str, str | None]:
        """Build a map of directions, from the rotations alone."""
        # Spread rotations from the frame with most relations, unless the poses are known
        start = np.bincount(np.ravel(list(self.relations)), minlength=len(self.poses)).argmax()
        self.poses[start] = np.eye(4)
        changed = poses is None
        if poses is not None:
            self.poses = poses.copy()
        while changed:
            changed = False
            for (i, j), relation in self.relations.items():
                for source, target, rotation in ((i, j, relation.rotation), (j, i, relation.rotation.T)):
                    if known(self.poses)[source] and not known(self.poses)[target]:
                        self.poses[target] = np.eye(4)
                        self.poses[target][:3, :3] = self.poses[source][:3, :3] @ rotation.T
                        changed = True

        # Every keypoint becomes a direction
        directions = []
        for frame in np.flatnonzero(known(self.poses)):
            self.point_ids[frame] = len(directions) + np.arange(len(self.rays[frame]))
            directions.extend(self.rays[frame] @ self.poses[frame][:3, :3].T)
        self.points = np.array(directions)
        return "turning", "the context's camera turns and does not move, so that nothing says how far things are"

    def _add_points(self, i: int, j: int) -> None:
        """Add the points that two registered frames share to the map."""
        relation = self.relations.get((min(i, j), max(i, j)))
        if relation is None:
            return
        first, second = relation.matches.T if i < j else relation.matches.T[::-1]
        first_ids, second_ids = self.point_ids[i][first], self.point_ids[j][second]

        # 1. Pass on the points that one frame has and the other lacks, if they project near the keypoint
        for frame, keypoints, ids in ((j, second, first_ids), (i, first, second_ids)):
            new = (ids >= 0) & (self.point_ids[frame][keypoints] < 0)
            pixels, _ = project(self.points[ids[new]], self.poses[frame], self.intrinsics)
            errors = np.linalg.norm(pixels - self.features[frame].pixels[keypoints[new]], axis=1)
            near = errors < 2 * self.slack  # false for NaN
            self.point_ids[frame][keypoints[new][near]] = ids[new][near]

        # 2. Triangulate the matches that neither frame has as a point
        new = (first_ids < 0) & (second_ids < 0)
        first, second = first[new], second[new]
        if not len(first):
            return
        rays = np.stack([self._world_rays(i, first), self._world_rays(j, second)], axis=1)
        centres = np.broadcast_to(self.poses[[i, j], :3, 3], rays.shape)
        points = triangulate(centres, rays, np.ones(rays.shape[:2]))

        # 3. Keep the points with enough parallax and a small reprojection error in both frames
        has_parallax = (rays[:, 0] * rays[:, 1]).sum(axis=1) < np.cos(np.radians(MIN_PARALLAX))
        valid = has_parallax & np.isfinite(points).all(axis=1)
        for frame, keypoints in ((i, first), (j, second)):
            pixels, _ = project(points, self.poses[frame], self.intrinsics)
            valid &= np.linalg.norm(pixels - self.features[frame].pixels[keypoints], axis=1) < 2 * self.slack
        ids = len(self.points) + np.arange(valid.sum())
        self.points = np.concatenate([self.points, points[valid]])
        self.point_ids[i][first[valid]] = ids
        self.point_ids[j][second[valid]] = ids

    def _world_rays(self, frame: int, keypoints: np.ndarray) -> np.ndarray:
        return self.rays[frame][keypoints] @ self.poses[frame][:3, :3].T

    def _register_next(self) -> bool:
        """Register the frame that sees most points, and return whether one could be registered."""
        # Count the points of each unregistered frame, by its matches with the registered ones
        registered = np.flatnonzero(known(self.poses))
        candidates = []
        for frame in np.flatnonzero(~known(self.poses)):
            ids = np.full(len(self.features[frame].pixels), -1)
            for other in registered:
                relation = self.relations.get((min(frame, other), max(frame, other)))
                if relation is not None:
                    ours, theirs = relation.matches.T if frame < other else relation.matches.T[::-1]
                    ids[ours] = np.maximum(ids[ours], self.point_ids[other][theirs])
            candidates.append((int((ids >= 0).sum()), int(frame), ids))

        # Take the first frame whose pose can be found, and add the points that it shares with registered frames
        for count, frame, ids in sorted(candidates, key=lambda candidate: -candidate[0]):
            if count < MIN_MATCHES:
                return False
            keypoints = np.flatnonzero(ids >= 0)
            pixels = self.features[frame].pixels[keypoints]
            found = find_pose(self.points[ids[keypoints]], pixels, self.intrinsics, self.slack)
            if found is not None:
                pose, inliers = found
                self.poses[frame] = pose
                self.point_ids[frame][keypoints[inliers]] = ids[keypoints[inliers]]
                for other in registered:
                    self._add_points(int(other), frame)
                return True
        return False

    def _refine(self, cameras: bool = True) -> None:
        """Triangulate all points from all frames that see them, then refine the cameras if `cameras` is true."""
        # 1. Points
        frames = np.flatnonzero(known(self.poses))
        count = len(self.points)
        rays, weights = np.zeros((count, len(frames), 3)), np.zeros((count, len(frames)))
        for column, frame in enumerate(frames):
            keypoints = np.flatnonzero(self.point_ids[frame] >= 0)
            ids = self.point_ids[frame][keypoints]
            rays[ids, column], weights[ids, column] = self._world_rays(frame, keypoints), 1
        centres = np.broadcast_to(self.poses[frames, :3, 3], rays.shape)
        points = triangulate(centres, rays, weights)
        is_finite = np.isfinite(points).all(axis=1)
        self.points[is_finite] = points[is_finite]

        # 2. Matches and cameras: drop the matches that no longer fit, then refine the pose
        for frame in frames:
            keypoints = np.flatnonzero(self.point_ids[frame] >= 0)
            ids, pixels = self.point_ids[frame][keypoints], self.features[frame].pixels[keypoints]
            projected, _ = project(self.points[ids], self.poses[frame], self.intrinsics)
            fits = np.linalg.norm(projected - pixels, axis=1) < 2 * self.slack  # false for NaN
            self.point_ids[frame][keypoints[~fits]] = -1
            if cameras and fits.sum() >= MIN_MATCHES:
                self.poses[frame] = refine_pose(
                    self.points[ids[fits]], pixels[fits], self.poses[frame], self.intrinsics
                )

    def _describe_points(self) -> None:
        """Compute mean descriptors, and drop points that fewer than two frames see (one, for directions)."""
        sums, counts = np.zeros((len(self.points), 128), np.float32), np.zeros(len(self.points), np.float32)
        for ids, features in zip(self.point_ids, self.features, strict=True):
            has_point = ids >= 0
            sums[ids[has_point]] += features.descriptors[has_point]
            counts[ids[has_point]] += 1
        kept = counts >= (2 if self.kind == "moving" else 1)
        self.points = self.points[kept]
        self.descriptors = sums[kept] / counts[kept, None]
        # New index of each point. The last entry maps -1, a keypoint without a point, to itself.
        new_ids = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
        self.point_ids = [new_ids[ids] for ids in self.point_ids]

    @property
    def centre(self) -> np.ndarray | None:
        """The position of a camera that only turns; `None` if it moves."""
        return np.nanmedian(self.poses[:, :3, 3], axis=0) if self.kind == "turning" else None


class SIFTEstimator:
    """
    Estimates poses by keypoints, see the module. Implements the protocol
    [`~spatialalign_trl.perception.camera.PoseEstimator`].

    The map of the latest context is cached, because the samples of one prompt share it.
    """

    name = "sift"

    def __init__(self) -> None:
        self._cached_map: tuple[bytes, ContextMap] | None = None

    def prepare(self) -> None:
        """Raise an `ImportError` if OpenCV is missing."""
        opencv()

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-serialisable."""
        return {"name": self.name}

    def release(self) -> None:
        """Free the memory of the cached map."""
        self._cached_map = None

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """Estimate poses, see [`~spatialalign_trl.perception.camera.PoseEstimator`]."""
        # 1. Map the context, and locate the video in the map
        with repeatable():
            context_map = self._map_of(context, intrinsics, context_poses)
            if context_map.kind == "unusable":
                return unusable(len(context), len(video), context_map.reason)
            locator = Locator(
                context_map.points,
                context_map.descriptors,
                context_map.intrinsics,
                context_map.size,
                context_map.centre,
            )
            located_frames = locator.locate(video)

        # 2. Collect the poses, and find which points of the map each frame shows
        poses, support = unknown_poses(len(video)), np.zeros(len(video))
        sightings = [Sightings(np.zeros((0, 2)), np.zeros(0, bool))] * len(video)
        for frame, located in enumerate(located_frames):
            if located is not None:
                poses[frame], support[frame] = located.pose, located.support
                sightings[frame] = context_map.patches.sightings(located.pose, video[frame])
        return CameraEstimate(
            context_map.poses.copy(),
            poses,
            support,
            context_map.kind,
            context_map.reason,
            sightings,
            context_map.points if context_map.kind == "moving" else None,
        )

    def _map_of(self, context: Video, intrinsics: np.ndarray, poses: np.ndarray | None) -> ContextMap:
        """Return the cached map if its inputs are the same, else build one."""
        parts = (context, intrinsics, np.zeros(0) if poses is None else poses)
        digest = sha256(b"".join(repr(part.shape).encode() + part.tobytes() for part in parts)).digest()
        if self._cached_map is None or self._cached_map[0] != digest:
            self._cached_map = digest, ContextMap(context, intrinsics, poses)
        return self._cached_map[1]
