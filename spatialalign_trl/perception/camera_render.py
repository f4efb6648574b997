"""
Camera poses by render and compare, for frames too small for keypoints, of scenes that can be rendered.

A picture of 48 columns has a handful of keypoints, and all of it says where the camera stood. Of a scene that can be
rendered, the pose is searched whose picture is most like the frame: many places at a coarse look, then the best ones
uphill. What is compared is contrast, not brightness: both pictures are blurred a little and set to mean 0 and length
1, and their likeness is the inner product.

The estimator knows the scene, as an oracle does. It must not know where the camera was *asked* to go: it starts
from the context's cameras and from places that it is given, never from the target, which would be found too often.
Known limits: places that look alike are told apart by what little differs, and a pose between the starts is missed
when all of them are off by more than about 15 degrees or half a metre.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from .camera import CameraEstimate, Sightings, unusable
from .camera_geometry import known, unknown_poses
from .detections import Detections

if TYPE_CHECKING:
    from ..video import Video

Render = Callable[[np.ndarray, tuple[int, int], np.ndarray], np.ndarray]
"""`render(poses (n, 4, 4), (height, width), intrinsics (3, 3)) -> uint8 (n, height, width, 3)`."""

BLURS = (6.0, 2.0)
"""Deviations of the blur, in hundredths of the width: first to come near, then to be exact."""
STEPS = 10
ALIKE = 0.75
"""Likeness below which a frame is nowhere in the scene."""
PERFECT = 0.95


class RenderAndCompare:
    """
    Poses by rendering. Follows [`~spatialalign_trl.perception.camera.PoseEstimator`].

    Args:
        render (callable):
            `render(poses, (height, width), intrinsics)` returns the pictures that cameras see, `uint8`
            `(n, height, width, 3)`.
        starts (`np.ndarray` of shape `(n, 4, 4)`, *optional*):
            Poses from which the search may start, beside the context's and the one of the frame before.
        climbs (`int`, *optional*, defaults to `3`):
            How many of the most promising starts are followed.
        alike (`float`, *optional*, defaults to `0.75`):
            Likeness, in [-1, 1], that a frame must reach to count as found.
    """

    name = "render_and_compare"

    def __init__(
        self, render: Render, starts: np.ndarray | None = None, climbs: int = 3, alike: float = ALIKE
    ) -> None:
        if climbs < 1:
            raise ValueError(f"climbs is {climbs}; it must be at least 1.")
        self.render, self.climbs, self.alike = render, climbs, alike
        self.starts = np.zeros((0, 4, 4)) if starts is None else np.asarray(starts, float)
        self._looks: tuple[bytes, np.ndarray] | None = None

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "climbs": self.climbs, "alike": self.alike, "starts": len(self.starts)}

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """See [`~spatialalign_trl.perception.camera.PoseEstimator`]; the poses are in the renderer's system."""
        if context_poses is None:
            return unusable(len(context), len(video), "render and compare needs the context's poses to start from")
        starts = np.concatenate([context_poses, self.starts])
        looks = self._looks_from(starts, video.shape[1:3], intrinsics)
        poses, support = unknown_poses(len(video)), np.zeros(len(video))
        before: np.ndarray | None = None
        for number, frame in enumerate(video):
            found, likeness = self._find(frame, starts, looks, before, intrinsics)
            if likeness >= self.alike:
                poses[number], before = found, found
                support[number] = np.clip((likeness - self.alike) / (PERFECT - self.alike), 0, 1)
        sightings = self._sightings(video, poses, intrinsics)
        return CameraEstimate(np.array(context_poses, float), poses, support, sightings=sightings)

    def _looks_from(self, starts: np.ndarray, size: tuple[int, int], intrinsics: np.ndarray) -> np.ndarray:
        """What the starts see; the samples of one prompt share it."""
        key = repr(size).encode() + intrinsics.tobytes() + starts.tobytes()
        if self._looks is None or self._looks[0] != key:
            self._looks = key, self._views(starts, size, intrinsics, BLURS[0])
        return self._looks[1]

    def _find(
        self, frame: np.ndarray, starts: np.ndarray, looks: np.ndarray, before: np.ndarray | None, k: np.ndarray
    ) -> tuple[np.ndarray, float]:
        likeness = looks @ _look(frame[None], BLURS[0])[0]
        candidates = [starts[i] for i in np.argsort(-likeness)[: self.climbs]]
        if before is not None:
            candidates.append(before)
        # Blurred pictures change slowly with the pose, so that the way uphill is seen from farther away.
        rough = [self._climb(frame, pose, k, BLURS[0])[0] for pose in candidates]
        climbed = [self._climb(frame, pose, k, BLURS[1]) for pose in rough]
        return max(climbed, key=lambda one: one[1])

    def _climb(self, frame: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray, blur: float) -> tuple:
        """Gauss-Newton with damping on the difference of looks; derivatives by rendering, six at a time."""
        size, wanted = frame.shape[:2], _look(frame[None], blur)[0]
        sizes = np.array([0.02, 0.02, 0.02, 0.008, 0.008, 0.008])
        current = self._views(pose[None], size, intrinsics, blur)[0]
        best, damping = float(current @ wanted), 1e-2
        for _ in range(STEPS):
            moved = np.stack([_nudged(pose, step) for step in np.diag(sizes)])
            slopes = (self._views(moved, size, intrinsics, blur) - current).T / sizes
            normal, right = slopes.T @ slopes, slopes.T @ (wanted - current)
            tries = [
                _nudged(pose, _capped(np.linalg.solve(normal + d * np.diag(np.diag(normal) + 1e-9), right)))
                for d in (damping, 30 * damping)
            ]
            views = self._views(np.stack(tries), size, intrinsics, blur)
            scores = views @ wanted
            winner = int(scores.argmax())
            if scores[winner] <= best + 1e-5:
                if damping > 1:
                    break
                damping *= 30
                continue
            gained = scores[winner] - best
            pose, current, best = tries[winner], views[winner], float(scores[winner])
            damping = max(damping / 3, 1e-4)
            if gained < 1e-4:
                break
        return pose, best

    def _views(self, poses: np.ndarray, size: tuple[int, int], k: np.ndarray, blur: float) -> np.ndarray:
        return _look(self.render(poses, size, k), blur)

    def _sightings(self, video: Video, poses: np.ndarray, intrinsics: np.ndarray) -> list[Sightings]:
        """For a grid of patches: whether the frame shows there what the renderer does."""
        found, nothing = known(poses), Sightings(np.zeros((0, 2)), np.zeros(0, bool))
        if not found.any():
            return [nothing] * len(video)
        views = self.render(poses[found], video.shape[1:3], intrinsics)
        pairs = iter(zip(video[found], views, strict=True))
        return [_compare(*next(pairs)) if there else nothing for there in found]


class RoomRenderAndCompare:
    """
    [`RenderAndCompare`] for rows about the tiny world's rooms. The row's columns say which: `room_seed` and
    `style`.

    Args:
        climbs, alike: As of [`RenderAndCompare`].
        places (`int`, *optional*, defaults to `6`):
            Starts stand on a grid of this many places along each side of the room, looking in twelve directions.
    """

    name = "room_render_and_compare"
    required_columns = ("room_seed",)

    def __init__(self, climbs: int = 3, alike: float = ALIKE, places: int = 6) -> None:
        self.climbs, self.alike, self.places = climbs, alike, places
        self._kept: tuple[tuple[int, str], RenderAndCompare] | None = None

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "climbs": self.climbs, "alike": self.alike, "places": self.places}

    def release(self) -> None:
        """Forget the room."""
        self._kept = None

    def for_row(self, columns: Mapping[str, Any]) -> RenderAndCompare:
        """
        The estimator for the row's room.

        Raises:
            `ValueError`: when the row names no room.
        """
        if columns.get("room_seed") is None:
            raise ValueError("room_render_and_compare needs the column 'room_seed', the room a row is about.")
        key = int(columns["room_seed"]), str(columns.get("style") or "indoor")
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._estimator(*key)
        return self._kept[1]

    def estimate(self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: Any = None) -> Any:
        raise TypeError("room_render_and_compare depends on the row: ask for_row(columns) for an estimator.")

    def _estimator(self, seed: int, style: str) -> RenderAndCompare:
        from ..tiny_world.rooms import look, render, sample_room

        room = sample_room(seed, style)
        x, z = (np.linspace(-half + 0.5, half - 0.5, self.places) for half in room.layout.half)
        spots = np.array([(one, -1.4, other) for one in x for other in z])
        free = spots[room.clearance(spots) > 0.2]
        starts = np.stack([look(spot, yaw, -8.0) for spot in free for yaw in range(0, 360, 30)])

        def shown(poses: np.ndarray, size: tuple[int, int], intrinsics: np.ndarray) -> Video:
            return render(room, poses, size, intrinsics=intrinsics, supersample=3).frames

        return RenderAndCompare(shown, starts, self.climbs, self.alike)


class RoomObjects:
    """
    A detector for the tiny world's rooms that knows where things stand: boxes of a named object as the estimated
    camera must see it. Whether the frame does show it there is for the reward's same-object factor to say.

    Its rows name the room, as those of [`RoomRenderAndCompare`]; poses have to be in the room's system.
    """

    name = "room_objects"
    required_columns = ("room_seed",)

    def __init__(self) -> None:
        self._row: Mapping[str, Any] = {}

    def for_row(self, columns: Mapping[str, Any]) -> RoomObjects:
        """A detector for the row's room."""
        found = RoomObjects()
        found._row = columns
        return found

    def detect_at(self, video: Video, names: list[str], poses: np.ndarray, intrinsics: np.ndarray) -> list[Detections]:
        """
        Boxes of what the cameras see, with score 1; nothing where the pose is unknown.

        Args:
            video (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`): Only its size is read.
            names (list of `str`): Of objects of the room.
            poses (`np.ndarray` of shape `(n, 4, 4)`): Camera to world.
            intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.

        Raises:
            `ValueError`: when the room has no such object.
        """
        from ..tiny_world.rooms import render, sample_room

        room = sample_room(int(self._row["room_seed"]), str(self._row.get("style") or "indoor"))
        every = [one.name for one in room.objects]
        missing = [name for name in names if name not in every]
        if missing:
            raise ValueError(f"room {room.seed} has no {missing[0]!r}; it has: {', '.join(every)}")
        places = [every.index(name) for name in names]
        answers = [Detections(np.zeros((0, 4)), np.zeros(0), ()) for _ in poses]
        there = np.flatnonzero(known(poses))
        if len(there):
            seen = render(room, poses[there], video.shape[1:3], intrinsics=intrinsics, supersample=1)
            for frame, boxes in zip(there, seen.boxes[:, places], strict=True):
                shown = np.isfinite(boxes).all(axis=1)
                labels = tuple(name for name, one in zip(names, shown, strict=True) if one)
                answers[frame] = Detections(boxes[shown], np.ones(len(labels)), labels)
        return answers


def _look(frames: Video, blur: float) -> np.ndarray:
    """Frames as vectors `(n, pixels)` of mean 0 and length 1, blurred by `blur` hundredths of the width; of what is
    blurred much only some pixels are kept."""
    sigma = blur * frames.shape[2] / 100
    frames = gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0))
    step = max(1, int(sigma))
    frames = frames[:, ::step, ::step]
    flat = frames.reshape(len(frames), -1)
    # Per colour channel, so that a wall's paint counts: only the brightness of the whole is left out.
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _nudged(pose: np.ndarray, step: np.ndarray) -> np.ndarray:
    """A pose moved by `step[:3]` in its own axes and turned by the rotation vector `step[3:]`."""
    from scipy.spatial.transform import Rotation

    nudge = np.eye(4)
    nudge[:3, :3], nudge[:3, 3] = Rotation.from_rotvec(step[3:]).as_matrix(), step[:3]
    return pose @ nudge


def _capped(step: np.ndarray) -> np.ndarray:
    """At most 0.4 units and 0.25 radians at a time: farther than that the derivatives mean nothing."""
    sizes = np.array([np.linalg.norm(step[:3]) / 0.4, np.linalg.norm(step[3:]) / 0.25, 1.0])
    return step / sizes.max()


def _compare(frame: np.ndarray, view: np.ndarray) -> Sightings:
    """Patches of a twelfth of the height: seen where the pictures differ by less than half of what the rendered patch
    differs from a picture of one colour."""
    side = max(3, frame.shape[0] // 12)
    pixels, seen = [], []
    for top in range(0, frame.shape[0] - side + 1, side):
        for left in range(0, frame.shape[1] - side + 1, side):
            ours, theirs = (
                one[top : top + side, left : left + side].astype(np.float32).reshape(-1, 3) for one in (frame, view)
            )
            pixels.append((left + side / 2, top + side / 2))
            seen.append(np.abs(ours - theirs).mean() < 0.5 * np.abs(theirs - view.reshape(-1, 3).mean(axis=0)).mean())
    return Sightings(np.array(pixels), np.array(seen))
