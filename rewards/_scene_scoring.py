"""
The base of the two rewards for camera tasks: reading a row, the factors of perception, and the reward class.

Two kinds of failure are kept apart. A bad *input* (a context without information, a trajectory of another length) is
INVALID, because no video could be judged with it. A bad *video* (black, noise, another room, a camera that is not
found) gets the reward 0, so that collapse is punished instead of being left out.
"""

from abc import abstractmethod
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
from spatialalign_trl.rewards.settings import RewardSettingsOnHub
from spatialalign_trl.video import Video, frames_of

ANGLE_SCALE = 10.0
REST = 0.05
"""Steps up to this size, in units of 10 degrees, count as rest."""
GOOD_SUPPORT = 0.5
"""Share of inliers from which a pose counts in full."""
GOOD_REOBSERVED = 0.3
"""Share of the context's points from which a frame counts as the same scene. Correct videos of rooms have 0.6 to 0.98,
chance gives 0.02 to 0.08. The value leaves a margin for generated videos, which have not been measured."""


class BadInput(ValueError):
    """The row cannot be scored, whatever the video. The message becomes the stored reason."""


@dataclass
class SceneGrade:
    """
    The result of a reward for one video.

    Args:
        reward (`float` or `None`):
            In [0, 1]; `None` when INVALID.
        reason (`str`, *optional*):
            Why it is INVALID, or 0.
        factors (`dict[str, float]`):
            The factors of the reward, and further measurements that are only logged.
    """

    reward: float | None
    reason: str | None = None
    factors: dict[str, float] = field(default_factory=dict)


@dataclass
class Scene:
    """
    The context of one row, with its frames resized to the size of the graded video.

    Args:
        context (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
            The frames of the context that are used.
        context_poses (`np.ndarray` of shape `(n, 4, 4)`, *optional*):
            Their camera-to-world matrices.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels of the resized frames.
    """

    context: Video
    context_poses: np.ndarray | None
    intrinsics: np.ndarray


def read_scene(context: Any, context_poses: Any, intrinsics: Any, video: Video, count: int) -> Scene:
    """
    Read the context of a row.

    Args:
        context (array, path, bytes, or `{"path": ..., "bytes": ...}`):
            The recording.
        context_poses (*optional*):
            One camera-to-world matrix per frame of the recording.
        intrinsics (array):
            In pixels of the recording's frames: 3x3, or `fx, fy, cx, cy`.
        video (`np.ndarray` of shape `(frames, height, width, 3)`):
            The graded video; a context of another size is resized to its size.
        count (`int`):
            Number of frames of the context to use, evenly spaced.

    Raises:
        [`BadInput`]: if it cannot be read, or the columns do not fit together.
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
        frames = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames])
    return Scene(frames, None if poses is None else poses[chosen], matrix)


def support_factor(estimate: CameraEstimate) -> float:
    """Return C: the mean over frames of `min(share of inliers / 0.5, 1)`."""
    return float(np.minimum(estimate.support / GOOD_SUPPORT, 1).mean())


def reobserved_factor(estimate: CameraEstimate) -> tuple[float | None, float]:
    """
    Return O: how much of the context the frames show again in its place.

    Returns:
        `(share, factor)`: the mean share over the frames with a known pose, and `min(share / 0.3, 1)`; `(None, 1)` for
        an estimator without points to look for.
    """
    if estimate.sightings is None:
        return None, 1.0
    shares = [sightings.share() for sightings in estimate.sightings if len(sightings.seen)]
    share = float(np.mean(shares)) if shares else 0.0
    return share, min(share / GOOD_REOBSERVED, 1.0)


def choose_frames(changes: np.ndarray, count: int) -> np.ndarray:
    """Return `count` evenly spaced frames, and both sides of the largest of the changes `(n - 1,)` between frames."""
    even = np.linspace(0, len(changes), count).round().astype(int)
    return np.union1d(even, changes.argmax() + np.arange(2)) if len(changes) else even


def continuity_factor(estimate: CameraEstimate, frames: np.ndarray) -> float:
    """
    Return the cut factor S measured on the poses, which also finds cuts between similar pictures.

    It is `exp(-(ratio - 6) / 6)` if the camera once moves `ratio` > 6 times as far per frame as it usually does, else
    1. A tenth of the context's extent counts as much as 10 degrees.

    Args:
        estimate ([`~spatialalign_trl.perception.camera.estimator.CameraEstimate`]):
            The poses of the chosen frames.
        frames (`np.ndarray` of shape `(n,)`):
            The numbers of these frames, ascending.
    """
    gaps = np.diff(frames)
    rates = step_sizes(estimate.poses, 0.1 * max(extent(estimate.context_poses), 1e-6)) / gaps
    moving = rates[np.isfinite(rates) & (rates * gaps > REST)]
    if len(moving) < 3:
        return 1.0
    return float(np.exp(-max(moving.max() / np.median(moving) - CUT_RATIO, 0) / CUT_RATIO))


def step_sizes(poses: np.ndarray, unit: float) -> np.ndarray:
    """Return how far the camera moves from pose to pose, `(n - 1,)`: degrees / 10 + distance / `unit`."""
    turns = rotation_degrees(poses[1:, :3, :3], poses[:-1, :3, :3])
    return turns / ANGLE_SCALE + np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / unit


def in_box(sightings: Sightings, box: np.ndarray) -> tuple[int, float]:
    """Return how many of the context's points should be in the box, and the share of them that was found there."""
    inside = ((sightings.pixels >= box[:2]) & (sightings.pixels <= box[2:])).all(axis=1)
    return int(inside.sum()), float(sightings.seen[inside].mean()) if inside.any() else 0.0


class SceneReward(RewardSettingsOnHub):
    """
    Base class of the rewards for camera tasks: settings, estimators, calling, and logging. A subclass scores one video
    in [`~SceneReward.grade`].

    Args:
        pose_estimator, pose_options:
            See [`~spatialalign_trl.perception.camera.estimator.get_pose_estimator`].
        distance_estimator, distance_options (*optional*):
            The same for SD. Without it, SD is measured only if the pose estimator does so itself
            (`"room_render_and_compare"`).
        context_frames (`int`):
            Number of frames of the context to use, at least 2.

    Raises:
        `ValueError`: if `context_frames` is below 2.
    """

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
        # The arguments as they were given: settings can only be saved for parts that were given by name.
        self._parts_given = {"pose_estimator": pose_estimator, "distance_estimator": distance_estimator}
        self._options = {"pose_options": dict(pose_options or {}), "distance_options": dict(distance_options or {})}

    @property
    def _parts(self) -> list[Any]:
        """Return the estimators, and the detector if there is one."""
        return [part for part in (self.pose_estimator, self.distance_estimator) if part is not None]

    def _add_required_columns(self) -> None:
        """Add the columns that estimators and detectors need, such as the room of a row."""
        added = [name for part in self._parts for name in getattr(part, "required_columns", ())]
        self.required_columns = tuple(dict.fromkeys((*type(self).required_columns, *added)))

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values. They are stored next to the scores, so that scores
        made with other settings are recognised."""
        return {
            "pose_estimator": getattr(self.pose_estimator, "name", type(self.pose_estimator).__name__),
            "distance_estimator": getattr(self.distance_estimator, "name", None),
            "context_frames": self.context_frames,
            **self._options,
        }

    def settings(self) -> dict[str, Any]:
        """
        Return the constructor's arguments.

        Raises:
            `ValueError`: if a part was passed as an object.
        """
        for part in self._parts_given.values():
            if part is not None and not isinstance(part, str):
                raise ValueError(f"{part!r} is an object: only parts given by name can be saved.")
        return {**self.describe(), **self._parts_given}

    def release(self) -> None:
        """Free the models that grading has loaded; the next video loads them again."""
        for part in self._parts:
            if hasattr(part, "release"):
                part.release()

    def check_prompts(self, intrinsics: Sequence[Any], context_poses: Sequence[Any] | None = None, **_: Any) -> None:
        """
        Check the rows, and that the estimators can run, before anything is sampled.

        Args:
            intrinsics, context_poses (sequences of `N`):
                The columns; see the class.

        Raises:
            `ValueError`: for malformed poses or intrinsics; names the row.
            `ImportError`: if a package is missing.
        """
        for row, matrix in enumerate(intrinsics):
            check_intrinsics(matrix, f"prompt {row}: intrinsics")
        for row, poses in enumerate(context_poses or ()):
            if poses is not None:
                check_poses(poses, None, f"prompt {row}: context_poses")
        for part in self._parts:
            if hasattr(part, "prepare"):
                part.prepare()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Any],
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Score `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not used.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`, or paths of mp4 files.
            log_extra (callable, *optional*):
                Receives every factor as `<reward>_<factor>`, and `<reward>_reason`.
            log_metric (callable, *optional*):
                Receives the mean of every factor.
            columns (sequences of `N`):
                The required columns of the class, `context_poses` if they are known, and any other columns, which are
                passed on to estimators and detectors.

        Returns:
            `list[float | None]`: one reward per video, `None` when INVALID.

        Raises:
            `TypeError`: if a required column is missing.
        """
        for name in type(self).required_columns:
            if columns.get(name) is None:
                raise TypeError(f"The reward {self.__name__!r} needs the column {name!r}; pass it as {name}=[...].")
        # 1. Split the columns into rows. Other arguments, such as trainer_state, are not lists of one value per video.
        count = len(completions)
        by_column = {name: v for name, v in columns.items() if isinstance(v, list) and len(v) == count}
        for name in (*type(self).required_columns, "context_poses"):  # these may be any sequences
            if columns.get(name) is not None:
                by_column[name] = columns[name]
        rows = [{name: values[k] for name, values in by_column.items()} for k in range(count)]

        # 2. Score every video
        grades = [self.grade(video, row) for video, row in zip(completions, rows, strict=True)]

        # 3. Log every factor and its mean
        for name in dict.fromkeys(name for grade in grades for name in grade.factors):
            values = [grade.factors.get(name) for grade in grades]
            if log_extra is not None:
                log_extra(f"{self.__name__}_{name}", values)
            known = [value for value in values if value is not None]
            if log_metric is not None and known:
                log_metric(f"{self.__name__}_{name}", float(np.mean(known)))
        if log_extra is not None:
            log_extra(f"{self.__name__}_reason", [grade.reason for grade in grades])
        return [grade.reward for grade in grades]

    @abstractmethod
    def grade(self, video: Any, row: Mapping[str, Any]) -> SceneGrade:
        """
        Score one video and return the reward with its factors.

        Args:
            video (array or path):
                One of `completions`.
            row (mapping):
                The columns of its row.
        """

    def estimate(self, scene: Scene, frames: Video, columns: Mapping[str, Any]) -> CameraEstimate:
        """
        Estimate the poses of frames, in the context's coordinate system if its poses are known.

        Args:
            scene ([`Scene`]):
                The row's context.
            frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
                Frames of the graded video.
            columns (mapping):
                The columns of the row.

        Raises:
            [`BadInput`]: if the context is unusable.
        """
        estimate = for_row(self.pose_estimator, columns).estimate(
            scene.context, frames, scene.intrinsics, scene.context_poses
        )
        if estimate.context_kind == "unusable":
            raise BadInput(f"the context cannot be used: {estimate.reason}")
        if scene.context_poses is None:
            return estimate
        aligned = estimate.aligned(scene.context_poses)
        if aligned is None:
            raise BadInput("fewer than two context cameras were found where its poses say, so nothing can be aligned")
        return aligned

    def distance(self, scene: Scene, video: Video, estimate: CameraEstimate, columns: Mapping[str, Any]) -> Any:
        """Return SD of a video, from the `distance_estimator` or else from the estimate; `None` if neither can
        measure it."""
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


def for_row(part: Any, columns: Mapping[str, Any]) -> Any:
    """Return the estimator or detector for one row, if it depends on the row; else the part itself."""
    return part.for_row(columns) if hasattr(part, "for_row") else part
