"""
Camera poses by SIFT keypoints: a map of the context, and the frames of a video found in it.

The map is built from the pair of context frames with most parallax (essential matrix), then frame by frame (PnP on
the points so far, new points by triangulation), and evened out by turns (points from cameras, cameras from points).
A context whose camera only turned gives a map of directions instead. Frames of a video are found by PnP alone, so
that they cannot bend the map; what of the map they show again, its pictures say (`patches.py`).

Measured on rendered rooms in tests/perception/camera/test_estimator.py. Limits: frames of fewer than about 200 rows
have too few keypoints (use `render.py`), and places that the context never showed cannot be found.
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
"""Degrees between two rays of a point; with less its depth is a guess."""
MIN_POINTS = 25
"""Points that the first two frames must give."""
MIN_DISPLACEMENT = 0.002
"""Widths of the frame; with less, two pictures are one."""
ROUNDS = 4
"""Turns of evening out."""


class ContextMap:
    """
    What the context frames show: points, what they look like, and where the frames were taken.

    Args:
        frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
            The context.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        poses (`np.ndarray` of shape `(n, 4, 4)`, *optional*):
            Camera to world of the frames, where they are known. The map is then in their system and unit.

    Attributes:
        poses (`np.ndarray` of shape `(n, 4, 4)`): Of the context frames; NaN where unknown.
        points (`np.ndarray` of shape `(k, 3)`): Places; directions when `kind` is `"turning"`.
        looks (`np.ndarray` of shape `(k, 128)`): Their mean descriptors.
        patches ([`~spatialalign_trl.perception.camera_patches.Patches`]): Their pictures, unless it is unusable.
        kind, reason: As of [`~spatialalign_trl.perception.camera.CameraEstimate`].
    """

    def __init__(self, frames: Video, intrinsics: np.ndarray, poses: np.ndarray | None = None) -> None:
        self.size, self.intrinsics = frames.shape[1:3], intrinsics
        self.slack = tolerance(self.size[1])
        self.features = [find_features(frame) for frame in frames]
        self.poses = unknown_poses(len(frames))
        self.rays = [bearings(one.pixels, intrinsics) for one in self.features]
        self.point_of = [np.full(len(one.pixels), -1) for one in self.features]
        self.points, self.looks = np.zeros((0, 3)), np.zeros((0, 128), np.float32)
        self.relations = self._relate_all()
        self.kind, self.reason = self._build(poses)
        if self.kind != "unusable":
            self._describe_points()
            shown = [ids[ids >= 0] for ids in self.point_of]
            self.patches = Patches(self.points, frames, self.poses, shown, intrinsics, self.centre)

    def _relate_all(self) -> dict[tuple[int, int], Relation]:
        related = {}
        for i in range(len(self.features)):
            for j in range(i + 1, len(self.features)):
                found = relate(self.features[i], self.features[j], self.intrinsics, self.size[1])
                if found is not None and found.holds:
                    related[i, j] = found
        return related

    def _build(self, poses: np.ndarray | None) -> tuple[str, str | None]:
        if max(len(one.pixels) for one in self.features) < MIN_MATCHES:
            return "unusable", "the context frames have no texture to find a camera by"
        if not self.relations:
            return "unusable", "no two context frames show the same things"
        wide = {pair: int((one.parallax > MIN_PARALLAX).sum()) for pair, one in self.relations.items()}
        wide = {pair: count for pair, count in wide.items() if self.relations[pair].translation is not None}
        first = max(wide, key=wide.__getitem__, default=None)
        if max(one.displacement for one in self.relations.values()) < MIN_DISPLACEMENT:
            return "unusable", "the context frames are all the same picture"
        if first is None or wide[first] < MIN_POINTS:
            return self._build_turning(poses)
        if poses is not None:
            self.poses = poses.copy()
            for pair in sorted(self.relations, key=lambda pair: -wide.get(pair, 0)):
                self._add_points(*pair)
            self._even_out(cameras=False)
            return "moving", None
        relation = self.relations[first]
        self.poses[first[0]] = np.eye(4)
        self.poses[first[1]] = inverse(relation.rotation, relation.translation)
        self._add_points(*first)
        while self._register_next():
            pass
        for _ in range(ROUNDS):
            self._even_out()
        return "moving", None

    def _build_turning(self, poses: np.ndarray | None) -> tuple[str, str | None]:
        """Rotations alone, from the frame with most relations outwards; points become directions."""
        start = np.bincount(np.ravel(list(self.relations)), minlength=len(self.poses)).argmax()
        self.poses[start] = np.eye(4)
        grown = poses is None
        if poses is not None:
            self.poses = poses.copy()
        while grown:
            grown = False
            for (i, j), relation in self.relations.items():
                for one, other, turn in ((i, j, relation.rotation), (j, i, relation.rotation.T)):
                    if known(self.poses)[one] and not known(self.poses)[other]:
                        self.poses[other] = np.eye(4)
                        self.poses[other][:3, :3] = self.poses[one][:3, :3] @ turn.T
                        grown = True
        directions = []
        for frame in np.flatnonzero(known(self.poses)):
            self.point_of[frame] = len(directions) + np.arange(len(self.rays[frame]))
            directions.extend(self.rays[frame] @ self.poses[frame][:3, :3].T)
        self.points = np.array(directions)
        return "turning", "the context's camera turns and does not move, so that nothing says how far things are"

    def _add_points(self, i: int, j: int) -> None:
        """Triangulate what the two registered frames share, and pass on points that one of them has already."""
        relation = self.relations.get((min(i, j), max(i, j)))
        if relation is None:
            return
        first, second = relation.matches.T if i < j else relation.matches.T[::-1]
        ours, theirs = self.point_of[i][first], self.point_of[j][second]
        for frame, features, have in ((j, second, ours), (i, first, theirs)):
            new = (have >= 0) & (self.point_of[frame][features] < 0)
            pixels, _ = project(self.points[have[new]], self.poses[frame], self.intrinsics)
            missed = np.linalg.norm(pixels - self.features[frame].pixels[features[new]], axis=1)
            near = missed < 2 * self.slack  # NaN is not
            self.point_of[frame][features[new][near]] = have[new][near]
        fresh = (ours < 0) & (theirs < 0)
        first, second = first[fresh], second[fresh]
        if not len(first):
            return
        rays = np.stack([self._world_rays(i, first), self._world_rays(j, second)], axis=1)
        centres = np.broadcast_to(self.poses[[i, j], :3, 3], rays.shape)
        points = triangulate(centres, rays, np.ones(rays.shape[:2]))
        wide = (rays[:, 0] * rays[:, 1]).sum(axis=1) < np.cos(np.radians(MIN_PARALLAX))
        fine = wide & np.isfinite(points).all(axis=1)
        for frame, features in ((i, first), (j, second)):
            pixels, _ = project(points, self.poses[frame], self.intrinsics)
            fine &= np.linalg.norm(pixels - self.features[frame].pixels[features], axis=1) < 2 * self.slack
        ids = len(self.points) + np.arange(fine.sum())
        self.points = np.concatenate([self.points, points[fine]])
        self.point_of[i][first[fine]] = ids
        self.point_of[j][second[fine]] = ids

    def _world_rays(self, frame: int, features: np.ndarray) -> np.ndarray:
        return self.rays[frame][features] @ self.poses[frame][:3, :3].T

    def _register_next(self) -> bool:
        """Add the frame that sees most points, if one sees enough."""
        registered = np.flatnonzero(known(self.poses))
        candidates = []
        for frame in np.flatnonzero(~known(self.poses)):
            ids = np.full(len(self.features[frame].pixels), -1)
            for other in registered:
                relation = self.relations.get((min(frame, other), max(frame, other)))
                if relation is not None:
                    mine, its = relation.matches.T if frame < other else relation.matches.T[::-1]
                    ids[mine] = np.maximum(ids[mine], self.point_of[other][its])
            candidates.append((int((ids >= 0).sum()), int(frame), ids))
        for count, frame, ids in sorted(candidates, key=lambda one: -one[0]):
            if count < MIN_MATCHES:
                return False
            have = np.flatnonzero(ids >= 0)
            found = find_pose(self.points[ids[have]], self.features[frame].pixels[have], self.intrinsics, self.slack)
            if found is not None:
                pose, inliers = found
                self.poses[frame] = pose
                self.point_of[frame][have[inliers]] = ids[have[inliers]]
                for other in registered:
                    self._add_points(int(other), frame)
                return True
        return False

    def _even_out(self, cameras: bool = True) -> None:
        """Points anew from all cameras that see them, then `cameras` anew from all their points."""
        frames = np.flatnonzero(known(self.poses))
        count = len(self.points)
        rays, weights = np.zeros((count, len(frames), 3)), np.zeros((count, len(frames)))
        for place, frame in enumerate(frames):
            features = np.flatnonzero(self.point_of[frame] >= 0)
            ids = self.point_of[frame][features]
            rays[ids, place], weights[ids, place] = self._world_rays(frame, features), 1
        centres = np.broadcast_to(self.poses[frames, :3, 3], rays.shape)
        fresh = triangulate(centres, rays, weights)
        fine = np.isfinite(fresh).all(axis=1)
        self.points[fine] = fresh[fine]
        for frame in frames:
            features = np.flatnonzero(self.point_of[frame] >= 0)
            ids, pixels = self.point_of[frame][features], self.features[frame].pixels[features]
            off = np.linalg.norm(project(self.points[ids], self.poses[frame], self.intrinsics)[0] - pixels, axis=1)
            far = ~(off < 2 * self.slack)
            self.point_of[frame][features[far]] = -1
            if cameras and (~far).sum() >= MIN_MATCHES:
                self.poses[frame] = refine_pose(
                    self.points[ids[~far]], pixels[~far], self.poses[frame], self.intrinsics
                )

    def _describe_points(self) -> None:
        """Mean descriptors, and which points are left: those that two frames see (one, for directions)."""
        sums, counts = np.zeros((len(self.points), 128), np.float32), np.zeros(len(self.points), np.float32)
        for ids, features in zip(self.point_of, self.features, strict=True):
            have = ids >= 0
            sums[ids[have]] += features.descriptors[have]
            counts[ids[have]] += 1
        kept = counts >= (2 if self.kind == "moving" else 1)
        self.points = self.points[kept]
        self.looks = sums[kept] / counts[kept, None]
        left = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
        self.point_of = [left[ids] for ids in self.point_of]

    @property
    def centre(self) -> np.ndarray | None:
        """Where the context's camera turned; `None` when it moved."""
        return np.nanmedian(self.poses[:, :3, 3], axis=0) if self.kind == "turning" else None


class SIFTEstimator:
    """
    Poses by keypoints; see the module. Follows [`~spatialalign_trl.perception.camera.PoseEstimator`].

    The map of the last context is kept: the samples of one prompt share it.
    """

    name = "sift"

    def __init__(self) -> None:
        self._kept: tuple[bytes, ContextMap] | None = None

    def prepare(self) -> None:
        """Raises an `ImportError` when OpenCV is missing."""
        opencv()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def release(self) -> None:
        """Forget the map."""
        self._kept = None

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """See [`~spatialalign_trl.perception.camera.PoseEstimator`]."""
        with repeatable():
            found = self._map(context, intrinsics, context_poses)
            if found.kind == "unusable":
                return unusable(len(context), len(video), found.reason)
            located = Locator(found.points, found.looks, found.intrinsics, found.size, found.centre).locate(video)
        poses, support = unknown_poses(len(video)), np.zeros(len(video))
        sightings = [Sightings(np.zeros((0, 2)), np.zeros(0, bool))] * len(video)
        for frame, one in enumerate(located):
            if one is not None:
                poses[frame], support[frame] = one.pose, one.support
                sightings[frame] = found.patches.sightings(one.pose, video[frame])
        return CameraEstimate(
            found.poses.copy(),
            poses,
            support,
            found.kind,
            found.reason,
            sightings,
            found.points if found.kind == "moving" else None,
        )

    def _map(self, context: Video, intrinsics: np.ndarray, poses: np.ndarray | None) -> ContextMap:
        parts = (context, intrinsics, np.zeros(0) if poses is None else poses)
        digest = sha256(b"".join(repr(part.shape).encode() + part.tobytes() for part in parts)).digest()
        if self._kept is None or self._kept[0] != digest:
            self._kept = digest, ContextMap(context, intrinsics, poses)
        return self._kept[1]
