"""
What the rewards of the camera tasks share: reading a row, the factors of perception, and how a reward is assembled.

Two things are kept apart. A bad *input* (a context that says nothing, a trajectory of another length) is INVALID: no
video could be judged by it. A bad *video* (black, noise, another room, a camera that is nowhere) has the reward 0, so
that collapse is punished and not left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spatialalign_rewards._sampled_frames import evenly_spaced
from spatialalign_trl.perception.camera.diagnosis import CUT_RATIO
from spatialalign_trl.perception.camera.distance import spatial_distance
from spatialalign_trl.perception.camera.estimator import (
    CameraEstimate,
    PoseEstimator,
    Sightings,
    check_intrinsics,
    check_poses,
    get_pose_estimator,
)
from spatialalign_trl.perception.camera.geometry import extent, rotation_degrees, scaled_intrinsics
from spatialalign_trl.video import Video, frames_of

ANGLE_SCALE = 10.0
REST = 0.05
"""Steps up to this size, in units of 10 degrees, are a rest."""
GOOD_SUPPORT = 0.5
"""Share of inliers from which a pose counts in full."""
GOOD_REOBSERVED = 0.3
"""Share of the context's points from which a frame counts as the same scene; correct videos of rooms have 0.6 to 0.98,
chance gives 0.02 to 0.08. It leaves room for generated videos, of which none was measured."""


class BadInput(ValueError):
    """The row cannot be scored, whatever the video."""


@dataclass
class SceneGrade:
    """
    What a reward found out about one video.

    Args:
        reward (`float` or `None`): In [0, 1]; `None` when INVALID.
        reason (`str`, *optional*): Why it is INVALID, or 0.
        factors (`dict[str, float]`): What was multiplied, and what was measured beside it.
    """

    reward: float | None
    reason: str | None = None
    factors: dict[str, float] = field(default_factory=dict)


@dataclass
class Scene:
    """One row's context, with its frames at the size of the video that is graded."""

    context: Video
    context_poses: np.ndarray | None
    intrinsics: np.ndarray


def read_scene(context: Any, context_poses: Any, intrinsics: Any, video: Video, count: int) -> Scene:
    """
    The context of a row.

    Args:
        context (array, path, bytes, or `{"path": ..., "bytes": ...}`): The recording.
        context_poses (*optional*): One camera-to-world matrix a frame of it.
        intrinsics: In pixels of the context's frames.
        video (`np.ndarray`): The video that is graded; contexts of another size are resized to its.
        count (`int`): Frames of the context that are used, evenly spaced.

    Raises:
        [`BadInput`]: when it cannot be read or does not fit together.
    """
    try:
        frames = frames_of(context, "context")
        matrix = check_intrinsics(intrinsics)
        poses = None if context_poses is None else check_poses(context_poses, len(frames), "context_poses")
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(str(error)) from error
    if len(frames) < 2:
        raise BadInput("the context is a single frame, which says nothing of where things are")
    chosen = evenly_spaced(np.arange(len(frames)), count)
    frames, size = frames[chosen], video.shape[1:3]
    if frames.shape[1:3] != size:
        from spatialalign_trl.perception.camera.features import opencv

        cv2 = opencv()
        matrix = scaled_intrinsics(matrix, frames.shape[1:3], size)
        frames = np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_AREA) for one in frames])
    return Scene(frames, None if poses is None else poses[chosen], matrix)


def support_factor(estimate: CameraEstimate) -> float:
    """C: the mean over frames of `min(share of inliers / 0.5, 1)`."""
    return float(np.minimum(estimate.support / GOOD_SUPPORT, 1).mean())


def reobserved_factor(estimate: CameraEstimate) -> tuple[float | None, float]:
    """
    O: how much of the context the frames show again where it belongs.

    Returns:
        `(share, factor)`: the mean share over the frames whose pose is known, and `min(share / 0.3, 1)`; `(None, 1)`
        from an estimator that has no points to look for.
    """
    if estimate.sightings is None:
        return None, 1.0
    shares = [one.share() for one in estimate.sightings if len(one.seen)]
    share = float(np.mean(shares)) if shares else 0.0
    return share, min(share / GOOD_REOBSERVED, 1.0)


def looked_at(changes: np.ndarray, count: int) -> np.ndarray:
    """Frames whose poses are estimated: `count` evenly spaced ones, and both sides of the step that changes most."""
    even = np.linspace(0, len(changes), count).round().astype(int)
    return np.union1d(even, changes.argmax() + np.arange(2)) if len(changes) else even


def continuity_factor(estimate: CameraEstimate, frames: np.ndarray) -> float:
    """
    The cut factor S by poses, for cuts between similar pictures: `exp(-(ratio - 6) / 6)` where the camera once moves
    `ratio` > 6 times as far in a frame as it usually does.

    Args:
        estimate ([`~spatialalign_trl.perception.camera.CameraEstimate`]): Of the frames that were looked at. A tenth
            of its context's extent counts as much as 10 degrees.
        frames (`np.ndarray` of shape `(n,)`): Their numbers, growing.
    """
    gaps = np.diff(frames)
    rates = step_sizes(estimate.poses, 0.1 * max(extent(estimate.context_poses), 1e-6)) / gaps
    moving = rates[np.isfinite(rates) & (rates * gaps > REST)]
    if len(moving) < 3:
        return 1.0
    return float(np.exp(-max(moving.max() / np.median(moving) - CUT_RATIO, 0) / CUT_RATIO))


def step_sizes(poses: np.ndarray, unit: float) -> np.ndarray:
    """How far the camera goes from pose to pose `(n - 1,)`: degrees / 10 + distance / `unit`."""
    turns = rotation_degrees(poses[1:, :3, :3], poses[:-1, :3, :3])
    return turns / ANGLE_SCALE + np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / unit


def in_box(sightings: Sightings, box: np.ndarray) -> tuple[int, float]:
    """How many points of the context belong into the box, and which share of them is there."""
    inside = ((sightings.pixels >= box[:2]) & (sightings.pixels <= box[2:])).all(axis=1)
    return int(inside.sum()), float(sightings.seen[inside].mean()) if inside.any() else 0.0


class SceneReward(ABC):
    """
    What both rewards do alike: settings, estimators, one row after another, and the columns that are logged.

    Args:
        pose_estimator, pose_options: As of [`~spatialalign_trl.perception.camera.get_pose_estimator`].
        distance_estimator, distance_options (*optional*): The same for SD; without it SD is measured where the pose
            estimator does so itself (`"room_render_and_compare"`).
        context_frames (`int`): Frames of the context that are used.
    """

    installed_name: str
    required_columns: tuple[str, ...] = ()

    def __init__(
        self,
        pose_estimator: str | PoseEstimator | Callable[..., Any],
        pose_options: dict[str, Any] | None,
        distance_estimator: str | PoseEstimator | None,
        distance_options: dict[str, Any] | None,
        context_frames: int,
    ) -> None:
        if context_frames < 2:
            raise ValueError(f"context_frames is {context_frames}; it must be at least 2.")
        self.__name__ = self.installed_name
        self.pose_estimator = get_pose_estimator(pose_estimator, **(pose_options or {}))
        self.distance_estimator = (
            None if distance_estimator is None else get_pose_estimator(distance_estimator, **(distance_options or {}))
        )
        self.context_frames = context_frames
        self._given = (pose_estimator, distance_estimator)
        self._options = {"pose_options": dict(pose_options or {}), "distance_options": dict(distance_options or {})}

    @property
    def _parts(self) -> list[Any]:
        return [part for part in (self.pose_estimator, self.distance_estimator) if part is not None]

    def _need_columns(self) -> None:
        """An estimator or a detector may need columns more, such as the room that a row is about."""
        more = [name for part in self._parts for name in getattr(part, "required_columns", ())]
        self.required_columns = tuple(dict.fromkeys((*type(self).required_columns, *more)))

    def describe(self) -> dict[str, Any]:
        """What this reward was made with; kept beside the scores, so that another's are not taken for its."""
        return {
            "pose_estimator": getattr(self.pose_estimator, "name", type(self.pose_estimator).__name__),
            "distance_estimator": getattr(self.distance_estimator, "name", None),
            "context_frames": self.context_frames,
            **self._options,
        }

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments. Raises a `ValueError` when a part was handed over as an object."""
        for part in self._given:
            if part is not None and not isinstance(part, str):
                raise ValueError(f"{part!r} is an object: only what is named can be saved.")
        return {**self.describe(), "pose_estimator": self._given[0], "distance_estimator": self._given[1]}

    def release(self) -> None:
        """Free what grading has loaded; the next video loads it again."""
        for part in self._parts:
            if hasattr(part, "release"):
                part.release()

    def check_prompts(self, intrinsics: Sequence[Any], context_poses: Sequence[Any] | None = None, **_: Any) -> None:
        """
        Refuse rows that cannot be scored, and make sure that the estimators can run, before anything is sampled.

        Raises:
            `ValueError`: for poses or intrinsics that are none; names the row.
            `ImportError`: when a package is missing.
        """
        for row, matrix in enumerate(intrinsics):
            check_intrinsics(matrix, f"prompt {row}: intrinsics")
        for row, poses in enumerate(context_poses or ()):
            if poses is not None:
                check_poses(poses, None, f"prompt {row}: context_poses")
        for part in self._parts:
            if hasattr(part, "prepare"):
                part.prepare()

    def estimate(self, scene: Scene, frames: Video, columns: Mapping[str, Any]) -> CameraEstimate:
        """
        Poses of the frames, in the context's system where it has poses.

        Raises:
            [`BadInput`]: when the context says nothing.
        """
        found = for_row(self.pose_estimator, columns).estimate(
            scene.context, frames, scene.intrinsics, scene.context_poses
        )
        if found.context_kind == "unusable":
            raise BadInput(f"the context cannot be used: {found.reason}")
        if scene.context_poses is None:
            return found
        aligned = found.aligned(scene.context_poses)
        if aligned is None:
            raise BadInput("fewer than two context cameras were found where its poses say, so nothing can be aligned")
        return aligned

    def distance(self, scene: Scene, video: Video, estimate: CameraEstimate, columns: Mapping[str, Any]) -> Any:
        """SD of a video, by the `distance_estimator` or else by an estimate that has it; `None` where it is not or
        cannot be measured."""
        if self.distance_estimator is None:
            return estimate.distance
        if scene.context_poses is None or estimate.points is None:
            return None
        return spatial_distance(
            for_row(self.distance_estimator, columns),
            scene.context,
            evenly_spaced(video, self.context_frames),
            scene.intrinsics,
            scene.context_poses,
            estimate.points,
        )

    @abstractmethod
    def grade(self, video: Any, row: Mapping[str, Any]) -> SceneGrade:
        """Score one video, and keep what the reward was made of."""

    def grade_all(
        self,
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any] | None],
        others: Mapping[str, Any],
        log_extra: Any,
        log_metric: Any,
    ) -> list[float | None]:
        """
        Score `N` videos, log their factors, and return their rewards.

        Args:
            completions (sequence of `N` videos): As of the rewards' `__call__`.
            columns (mapping): The columns that the reward reads; `None` for one that the prompts do not have.
            others (mapping): What else the reward was handed; of it the columns are passed on.
            log_extra, log_metric (callables, *optional*): See [`~SceneReward.log`].
        """
        count = len(completions)
        passed = {name: [None] * count if values is None else values for name, values in columns.items()}
        passed |= {
            name: values for name, values in others.items() if isinstance(values, list) and len(values) == count
        }
        rows = [{name: values[k] for name, values in passed.items()} for k in range(count)]
        grades = [self.grade(video, row) for video, row in zip(completions, rows, strict=True)]
        self.log(grades, log_extra, log_metric)
        return [grade.reward for grade in grades]

    def log(self, grades: Sequence[SceneGrade], log_extra: Any, log_metric: Any) -> None:
        """The factors of every video, and their means."""
        for name in dict.fromkeys(name for grade in grades for name in grade.factors):
            values = [grade.factors.get(name) for grade in grades]
            if log_extra is not None:
                log_extra(f"{self.__name__}_{name}", values)
            known = [value for value in values if value is not None]
            if log_metric is not None and known:
                log_metric(f"{self.__name__}_{name}", float(np.mean(known)))
        if log_extra is not None:
            log_extra(f"{self.__name__}_reason", [grade.reason for grade in grades])


def for_row(part: Any, columns: Mapping[str, Any]) -> Any:
    """The estimator or detector for one row, where it depends on the row."""
    return part.for_row(columns) if hasattr(part, "for_row") else part
