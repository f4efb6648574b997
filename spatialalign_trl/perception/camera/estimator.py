"""
Where the camera stood: the protocol every pose estimator follows, and how to get one.

An estimator looks at the context frames and at the frames of a generated video, in one go, and says where all of them
were taken, in a coordinate system and a unit of its own. [`CameraEstimate.aligned`] moves that system onto the known
poses of the *context* cameras. The generated cameras have no say in it: a similarity that is fitted to them would
forgive half the motion, or the wrong direction.

| name | for | needs |
|---|---|---|
| `sift` | frames of 240 rows and more | OpenCV: the extra `camera` |
| `colmap` | the same, slower and more exact | pycolmap: the extra `colmap` |
| `room_render_and_compare` | small frames of the tiny world's rooms | the column `room_seed` |

Small frames of another scene that can be rendered: `render.py`. A network (VGGT, Depth Anything
3) comes as a function, see [`CallableEstimator`].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from spatialalign_trl.perception.camera.geometry import Similarity, align, known, unknown_poses
from spatialalign_trl.perception.tracks import make_named

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

# Name -> "module:class", as TRACKERS.
POSE_ESTIMATORS: dict[str, str] = {
    "sift": "spatialalign_trl.perception.camera.map:SIFTEstimator",
    "colmap": "spatialalign_trl.perception.camera.colmap:ColmapEstimator",
    "room_render_and_compare": "spatialalign_trl.tiny_world.rooms.cameras:RoomRenderAndCompare",
}

ContextKind = Literal["moving", "turning", "unusable"]


class Sightings(NamedTuple):
    """
    Which points of the context a frame should show, and which of them it does show.

    Args:
        pixels (`np.ndarray` of shape `(k, 2)`):
            Where the points that lie in the frame's view belong.
        seen (`np.ndarray` of shape `(k,)`, `bool`):
            Whether the frame looks there as the context did.
    """

    pixels: np.ndarray
    seen: np.ndarray

    def share(self, box: np.ndarray | None = None) -> float | None:
        """Share of the points, or of those in the box `x1, y1, x2, y2`, that are seen; `None` where none belong."""
        inside = np.ones(len(self.seen), bool)
        if box is not None:
            inside = ((self.pixels >= box[:2]) & (self.pixels <= box[2:])).all(axis=1)
        return float(self.seen[inside].mean()) if inside.any() else None


@dataclass
class CameraEstimate:
    """
    Where context and video were taken, in one coordinate system.

    Args:
        context_poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera to world of the context frames, in OpenCV's axes; NaN where unknown.
        poses (`np.ndarray` of shape `(frames, 4, 4)`):
            The same of the video's frames.
        support (`np.ndarray` of shape `(frames,)`):
            How much of what a frame shares with the context fits its pose, in [0, 1]; 0 where the pose is unknown.
        context_kind (`str`, *optional*, defaults to `"moving"`):
            `"moving"`: positions and depths are known. `"turning"`: the context's camera only turned, so that
            rotations are known and positions are not. `"unusable"`: neither, for a `reason`.
        reason (`str`, *optional*):
            Why the context is not `"moving"`.
        sightings (`list[Sightings]`, *optional*):
            For every frame, which points of the context it shows; empty for a frame whose pose is unknown. `None` from
            an estimator that has no points.
        points (`np.ndarray` of shape `(k, 3)`, *optional*):
            Points of the scene that the context showed.
        distance (`float`, *optional*):
            SD of the video (see `camera_distance`), from an estimator that measures it as it goes.
    """

    context_poses: np.ndarray
    poses: np.ndarray
    support: np.ndarray
    context_kind: ContextKind = "moving"
    reason: str | None = None
    sightings: list[Sightings] | None = None
    points: np.ndarray | None = None
    distance: float | None = None

    def aligned(self, context_poses: np.ndarray) -> CameraEstimate | None:
        """
        The estimate in the coordinate system, and the unit, of known context poses.

        Args:
            context_poses (`np.ndarray` of shape `(n, 4, 4)`):
                Camera to world of the context frames.

        Returns:
            [`CameraEstimate`] or `None`: `None` when fewer than two context cameras were found, or their positions
            do not fit. Cameras of a context that only turned stand where it stood: what was found by turning alone
            has no other place.
        """
        context_poses = np.asarray(context_poses, float)
        found = align(self.context_poses, context_poses)
        if found is None or not (np.isfinite(found.scale) or self.context_kind == "turning"):
            return None
        if self.context_kind == "turning":
            found = Similarity(0.0, found.rotation, np.median(context_poses[:, :3, 3], axis=0))
        points = None if self.points is None else found.points(self.points)
        moved = found.poses(self.context_poses), found.poses(self.poses)
        return replace(self, context_poses=moved[0], poses=moved[1], points=points)


@runtime_checkable
class PoseEstimator(Protocol):
    """
    Estimates camera poses.

    `estimate` takes `n` context frames and the frames of a video (`uint8`, `(frames, height, width, 3)`, all of one
    size), the intrinsics `(3, 3)` in pixels and, where they are known, the context's poses `(n, 4, 4)`, which it may
    build on or not: the answer is aligned with them anyway. It returns a [`CameraEstimate`] and never raises for what
    the frames show: a blank video has unknown poses, a context that says nothing is `"unusable"`.

    More methods are used where they are there: `prepare()` refuses, before any work, what could not be loaded,
    `release()` frees memory, `describe()` returns settings that JSON can hold, and `for_row(columns)` returns the
    estimator for one row of a dataset, which may depend on its columns (the room that a row is about).
    """

    name: str

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate: ...


def unusable(context: int, frames: int, reason: str) -> CameraEstimate:
    """What is known where the context says nothing."""
    return CameraEstimate(unknown_poses(context), unknown_poses(frames), np.zeros(frames), "unusable", reason)


def get_pose_estimator(estimator: str | PoseEstimator | Callable[..., Any], **options: Any) -> PoseEstimator:
    """
    Give back a pose estimator, looking it up when it is named.

    Args:
        estimator (`str`, `PoseEstimator` or callable):
            A name in `POSE_ESTIMATORS`, an object with an `estimate` method, or a function as
            [`CallableEstimator`] takes it.
        options:
            Arguments of the named estimator's constructor, or of [`CallableEstimator`].

    Raises:
        `ValueError`: when no estimator has that name.
        `TypeError`: for an option that it does not take, a class instead of an instance, or what cannot estimate.
    """
    if isinstance(estimator, str):
        return make_named(estimator, POSE_ESTIMATORS, kind="pose estimator", options=options)
    if isinstance(estimator, type):
        raise TypeError(f"A pose estimator must be an instance: pass {estimator.__name__}(), not the class.")
    if callable(getattr(estimator, "estimate", None)):
        if options:
            raise TypeError(f"The options {', '.join(options)} are for a pose estimator given by name.")
        return estimator
    if callable(estimator):
        return CallableEstimator(estimator, **options)
    raise TypeError(
        f"A pose estimator needs a method estimate(context, video, intrinsics); {estimator!r} has none. Pass such an "
        f"object, a function, or one of the names {', '.join(sorted(POSE_ESTIMATORS))}."
    )


class CallableEstimator:
    """
    Poses from a function of your own, such as a network that takes all frames at once (VGGT, Depth Anything 3).

    Example:

    ```python
    def vggt(frames, intrinsics):
        extrinsics, confidence = ...          # of all frames: context first, then video
        return {"poses": np.linalg.inv(extrinsics), "support": confidence}

    reward = SceneNavigation(pose_estimator=vggt)
    ```

    Args:
        function (callable):
            `function(frames, intrinsics)` gets all frames, context first, as `uint8` `(n, height, width, 3)`, and the
            intrinsics `(3, 3)` in pixels. It returns camera-to-world matrices `(n, 4, 4)` in OpenCV's axes, in any
            coordinate system and unit, or a mapping with these as `poses` and any of `support` `(n,)` in [0, 1] and
            `points` `(k, 3)`. Poses that it does not know are NaN. Without `support` every known pose has 1.
        name (`str`, *optional*):
            What it is called in settings; the function's name by default. Scores are kept under it: give two functions
            two names.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """
        See [`PoseEstimator`]; the function does not get `context_poses`.

        Raises:
            `ValueError`: when the function returns arrays of other shapes, or matrices that are no poses.
        """
        frames = np.concatenate([context, video])
        answer = self.function(frames, intrinsics)
        answer = answer if isinstance(answer, Mapping) else {"poses": answer}
        if "poses" not in answer:
            raise ValueError(f"{self.name} returned {sorted(answer)} and no 'poses'.")
        poses = check_poses(answer["poses"], len(frames), f"the poses of {self.name}", unknown=True)
        found = known(poses)
        support = np.asarray(answer.get("support", found), float)
        if support.shape != (len(frames),) or not ((support >= 0) & (support <= 1)).all():
            raise ValueError(
                f"{self.name}: support must be {len(frames)} numbers in [0, 1], one a frame; got {support.tolist()}."
            )
        points, split = answer.get("points"), len(context)
        if points is not None and np.asarray(points).shape[1:] != (3,):
            raise ValueError(f"{self.name}: points must have the shape (k, 3), got {np.shape(points)}.")
        if found[:split].sum() < 2:
            return unusable(split, len(video), f"{self.name} found fewer than two context cameras")
        return CameraEstimate(
            poses[:split],
            poses[split:],
            np.where(found, support, 0.0)[split:],
            points=None if points is None else np.asarray(points, float),
        )


def check_poses(poses: Any, count: int | None, name: str, unknown: bool = False) -> np.ndarray:
    """
    Camera-to-world matrices as an array, after a look at them.

    Args:
        poses:
            `(n, 4, 4)` or `(n, 3, 4)`, or both flattened, as an array or nested lists.
        count (`int`, *optional*):
            How many there must be.
        name (`str`):
            What they are; opens the message.
        unknown (`bool`, *optional*, defaults to `False`):
            Whether some may be NaN.

    Returns:
        `np.ndarray` of shape `(n, 4, 4)`.

    Raises:
        `ValueError`: for another shape or number, values that are not finite, or a matrix whose left part is no
            rotation; names the first one.
    """
    try:
        array = np.asarray(poses, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as numbers: {error}") from error
    if array.ndim == 2 and array.shape[1] in (12, 16):
        array = array.reshape(len(array), -1, 4)
    if array.ndim != 3 or array.shape[1:] not in ((4, 4), (3, 4)) or (count is not None and len(array) != count):
        wanted = "n" if count is None else count
        raise ValueError(f"{name} must have the shape ({wanted}, 4, 4), camera to world; got {array.shape}.")
    if array.shape[1] == 3:
        bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(array), 1, 4))
        array = np.concatenate([array, bottom], axis=1)
    bad = ~known(array[:, :3])
    if bad.any() and not unknown:
        raise ValueError(f"{name}: number {int(bad.argmax())} is not finite.")
    rotations = array[~bad][:, :3, :3]
    off = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
    wrong = (off > 1e-2) | (np.linalg.det(rotations) < 0)
    if wrong.any():
        place = int(np.flatnonzero(~bad)[wrong.argmax()])
        raise ValueError(
            f"{name}: number {place} is no pose, because its left 3x3 part is no rotation. Mirrored axes (OpenGL's, "
            "say) must be turned into OpenCV's: x right, y down, z forward."
        )
    array[bad] = np.nan
    return array


def check_intrinsics(intrinsics: Any, name: str = "intrinsics") -> np.ndarray:
    """
    Intrinsics as a matrix `(3, 3)` in pixels.

    Args:
        intrinsics:
            The matrix, its 9 numbers, or `fx, fy, cx, cy`.

    Raises:
        `ValueError`: for another shape, numbers that are not finite, or a focal length that is not above 0.
    """
    array = np.asarray(intrinsics, float)
    if array.shape == (4,):
        fx, fy, cx, cy = array
        array = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    array = array.reshape(3, 3) if array.size == 9 else array
    fine = array.shape == (3, 3) and np.isfinite(array).all() and array[0, 0] > 0 and array[1, 1] > 0
    if not fine:
        raise ValueError(
            f"{name} must be a 3x3 matrix in pixels or fx, fy, cx, cy, with focal lengths above 0; got "
            f"{np.asarray(intrinsics).tolist()}."
        )
    return array
