"""
Define the protocol of a camera pose estimator, and look up estimators by name.

An estimator receives the context frames and the frames of a generated video together, and returns the poses of all of
them in a coordinate system and a unit of its choice. [`CameraEstimate.aligned`] maps that system onto the known poses
of the *context* cameras. The generated cameras do not take part in the alignment: a similarity fitted to them would
hide errors, such as half the motion or the wrong direction.

| name | for | needs |
|---|---|---|
| `sift` | frames of 240 rows and more | OpenCV: the extra `camera` |
| `colmap` | the same, slower and more accurate | pycolmap: the extra `colmap` |
| `room_render_and_compare` | small frames of the tiny world's rooms | the column `room_seed` |

For small frames of another scene that can be rendered, see `render.py`. To use a network (VGGT, Depth Anything 3),
pass a function, see [`CallableEstimator`].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from spatialalign_trl.perception.camera.geometry import Similarity, align, known, unknown_poses
from spatialalign_trl.perception.tracks import get_named

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

# Name -> "module:class", in the form of TRACKERS.
POSE_ESTIMATORS: dict[str, str] = {
    "sift": "spatialalign_trl.perception.camera.map:SIFTEstimator",
    "colmap": "spatialalign_trl.perception.camera.colmap:ColmapEstimator",
    "room_render_and_compare": "spatialalign_trl.tiny_world.rooms.cameras:RoomRenderAndCompare",
}

ContextKind = Literal["moving", "turning", "unusable"]


class Sightings(NamedTuple):
    """
    The points of the context that a frame should show, and which of them it does show.

    Args:
        pixels (`np.ndarray` of shape `(k, 2)`):
            Expected positions of the points inside the frame.
        seen (`np.ndarray` of shape `(k,)`, `bool`):
            Whether the frame shows there what the context showed.
    """

    pixels: np.ndarray
    seen: np.ndarray

    def share(self, box: np.ndarray | None = None) -> float | None:
        """
        Return the share of points that are seen.

        Args:
            box (`np.ndarray` of shape `(4,)`, *optional*):
                Corners `x1, y1, x2, y2`; only points inside are counted. Defaults to the whole frame.

        Returns:
            `float` or `None`: in [0, 1]; `None` if there are no points.
        """
        inside = np.ones(len(self.seen), bool)
        if box is not None:
            inside = ((self.pixels >= box[:2]) & (self.pixels <= box[2:])).all(axis=1)
        return float(self.seen[inside].mean()) if inside.any() else None


@dataclass
class CameraEstimate:
    """
    The camera poses of context and video, in one coordinate system.

    Args:
        context_poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera-to-world matrices of the context frames, in OpenCV's axes; NaN where unknown.
        poses (`np.ndarray` of shape `(frames, 4, 4)`):
            Camera-to-world matrices of the video's frames; NaN where unknown.
        support (`np.ndarray` of shape `(frames,)`):
            Share of the matches between a frame and the context that fit the frame's pose, in [0, 1]; 0 where the pose
            is unknown.
        context_kind (`str`, *optional*, defaults to `"moving"`):
            `"moving"`: positions and depths are known. `"turning"`: the context's camera only turns, so rotations are
            known and positions are not. `"unusable"`: neither is known, see `reason`.
        reason (`str`, *optional*):
            Why the context is not `"moving"`.
        sightings (`list[Sightings]`, *optional*):
            For every frame, which points of the context it shows; empty for a frame whose pose is unknown. `None` if
            the estimator has no points.
        points (`np.ndarray` of shape `(k, 3)`, *optional*):
            Points of the scene that the context shows.
        distance (`float`, *optional*):
            SD of the video (see `distance.py`), if the estimator measures it.
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
        Transform the estimate to the coordinate system and the unit of known context poses.

        Args:
            context_poses (`np.ndarray` of shape `(n, 4, 4)`):
                Camera-to-world matrices of the context frames.

        Returns:
            [`CameraEstimate`] or `None`: `None` if fewer than two context cameras were found, or their positions do
            not fit. If the context's camera only turns, all cameras are placed at its position.
        """
        context_poses = np.asarray(context_poses, float)
        similarity = align(self.context_poses, context_poses)
        if similarity is None or not (np.isfinite(similarity.scale) or self.context_kind == "turning"):
            return None
        if self.context_kind == "turning":
            similarity = Similarity(0.0, similarity.rotation, np.median(context_poses[:, :3, 3], axis=0))
        return replace(
            self,
            context_poses=similarity.poses(self.context_poses),
            poses=similarity.poses(self.poses),
            points=None if self.points is None else similarity.points(self.points),
        )


@runtime_checkable
class PoseEstimator(Protocol):
    """
    Estimates camera poses.

    `estimate` takes `n` context frames and the frames of a video (`uint8`, `(frames, height, width, 3)`, all of the
    same size), the intrinsics `(3, 3)` in pixels and, if they are known, the context's poses `(n, 4, 4)`, which it may
    ignore: the result is aligned with them in any case. It returns a [`CameraEstimate`] and never raises because of
    the content of the frames: a blank video has unknown poses, a context without information is `"unusable"`.

    More methods are optional: `prepare()` raises, before anything is sampled, when something cannot be loaded,
    `release()` frees memory, `describe()` returns JSON-serialisable settings, and `for_row(columns)` returns the
    estimator for one row of a dataset, which may depend on its columns (such as the row's room).
    """

    name: str

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate: ...


def unusable(context: int, frames: int, reason: str) -> CameraEstimate:
    """Return the estimate for an unusable context of `context` frames and a video of `frames` frames."""
    return CameraEstimate(unknown_poses(context), unknown_poses(frames), np.zeros(frames), "unusable", reason)


def get_pose_estimator(estimator: str | PoseEstimator | Callable[..., Any], **options: Any) -> PoseEstimator:
    """
    Return a pose estimator, looking it up if it is given by name.

    Args:
        estimator (`str`, `PoseEstimator` or callable):
            A name in `POSE_ESTIMATORS`, an object with an `estimate` method, which is returned unchanged, or a
            function for a [`CallableEstimator`].
        options:
            Arguments of the named estimator's constructor, or of [`CallableEstimator`].

    Raises:
        `ValueError`: when no estimator has that name.
        `TypeError`: for an option that the estimator does not take, options passed with an object, a class instead of
            an instance, or an object that is neither callable nor has an `estimate` method.
    """
    has_method = callable(getattr(estimator, "estimate", None))
    if callable(estimator) and not isinstance(estimator, type) and not has_method:
        return CallableEstimator(estimator, **options)
    return get_named(
        estimator,
        POSE_ESTIMATORS,
        kind="pose estimator",
        method="estimate(context, video, intrinsics)",
        options=options,
        accepted="an object that has it, a function",
    )


class CallableEstimator:
    """
    Estimates poses with a given function, such as a network that takes all frames at once (VGGT, Depth Anything 3).

    Example:

    ```python
    def vggt(frames, intrinsics):
        extrinsics, confidence = ...          # of all frames: context first, then video
        return {"poses": np.linalg.inv(extrinsics), "support": confidence}

    reward = SceneNavigation(pose_estimator=vggt)
    ```

    Args:
        function (callable):
            `function(frames, intrinsics)` receives all frames, context first, as `uint8` `(n, height, width, 3)`, and
            the intrinsics `(3, 3)` in pixels. It returns camera-to-world matrices `(n, 4, 4)` in OpenCV's axes, in any
            coordinate system and unit, or a mapping with these as `poses` and optionally `support` `(n,)` in [0, 1]
            and `points` `(k, 3)`. Unknown poses are NaN. Without `support`, every known pose has support 1.
        name (`str`, *optional*):
            Name in stored settings, defaults to the function's name. Scores are stored with it, so give different
            functions different names.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """
        Estimate poses, see [`PoseEstimator`]. The function does not receive `context_poses`.

        Raises:
            `ValueError`: when the function returns arrays of other shapes, or matrices that are not poses.
        """
        # 1. Call the function
        frames = np.concatenate([context, video])
        result = self.function(frames, intrinsics)
        result = result if isinstance(result, Mapping) else {"poses": result}

        # 2. Check its result
        if "poses" not in result:
            raise ValueError(
                f"{self.name} returned {sorted(result)} and no 'poses'. Return the poses under this name."
            )
        poses = check_poses(result["poses"], len(frames), f"the poses of {self.name}", unknown=True)
        is_known = known(poses)
        support = np.asarray(result.get("support", is_known), float)
        if support.shape != (len(frames),) or not ((support >= 0) & (support <= 1)).all():
            raise ValueError(
                f"{self.name}: support must be {len(frames)} numbers in [0, 1], one per frame; got {support.tolist()}."
            )
        points = result.get("points")
        if points is not None and np.asarray(points).shape[1:] != (3,):
            raise ValueError(f"{self.name}: points must have the shape (k, 3), got {np.shape(points)}.")

        # 3. Split it into context and video
        split = len(context)
        if is_known[:split].sum() < 2:
            return unusable(split, len(video), f"{self.name} found fewer than two context cameras")
        return CameraEstimate(
            poses[:split],
            poses[split:],
            np.where(is_known, support, 0.0)[split:],
            points=None if points is None else np.asarray(points, float),
        )


def check_poses(poses: Any, count: int | None, name: str, unknown: bool = False) -> np.ndarray:
    """
    Convert camera-to-world matrices to an array and check them.

    Args:
        poses:
            Shape `(n, 4, 4)` or `(n, 3, 4)`, or either flattened to two dimensions, as an array or nested lists.
        count (`int`, *optional*):
            Expected number of poses.
        name (`str`):
            What the poses are, the first words of the error message.
        unknown (`bool`, *optional*, defaults to `False`):
            Whether poses may be NaN.

    Returns:
        `np.ndarray` of shape `(n, 4, 4)`.

    Raises:
        `ValueError`: for another shape or number, values that are not finite, or a matrix whose left part is not a
            rotation. The message names the first such pose.
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
    not_finite = ~known(array[:, :3])
    if not_finite.any() and not unknown:
        raise ValueError(f"{name}: number {int(not_finite.argmax())} is not finite.")
    rotations = array[~not_finite][:, :3, :3]
    errors = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
    wrong = (errors > 1e-2) | (np.linalg.det(rotations) < 0)
    if wrong.any():
        index = int(np.flatnonzero(~not_finite)[wrong.argmax()])
        raise ValueError(
            f"{name}: number {index} is no pose, because its left 3x3 part is not a rotation. Convert mirrored axes "
            "(such as OpenGL's) to OpenCV's: x right, y down, z forward."
        )
    array[not_finite] = np.nan
    return array


def check_intrinsics(intrinsics: Any, name: str = "intrinsics") -> np.ndarray:
    """
    Convert intrinsics to a matrix `(3, 3)` in pixels and check them.

    Args:
        intrinsics:
            The matrix, its 9 numbers, or `fx, fy, cx, cy`.
        name (`str`, *optional*):
            What the intrinsics are, the first words of the error message.

    Returns:
        `np.ndarray` of shape `(3, 3)`.

    Raises:
        `ValueError`: for another shape, numbers that are not finite, or a focal length that is not above 0.
    """
    array = np.asarray(intrinsics, float)
    if array.shape == (4,):
        fx, fy, cx, cy = array
        array = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    array = array.reshape(3, 3) if array.size == 9 else array
    is_valid = array.shape == (3, 3) and np.isfinite(array).all() and array[0, 0] > 0 and array[1, 1] > 0
    if not is_valid:
        raise ValueError(
            f"{name} must be a 3x3 matrix in pixels or fx, fy, cx, cy, with focal lengths above 0; got "
            f"{np.asarray(intrinsics).tolist()}."
        )
    return array
