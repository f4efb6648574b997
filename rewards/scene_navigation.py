"""
Scene navigation as a reward: does the video follow the camera trajectory, through the scene of the context?

    R = P * sqrt(C) * O * M * S                                                                   all in [0, 1]

    P  mean over frames of exp(-angle / 10 deg) * exp(-distance / (0.1 L)); 0 for a frame that is nowhere in the scene
    C  mean over frames of min(share of inliers of the pose / 0.5, 1)
    O  min(share of the context's points seen again where they belong / 0.3, 1)
    M  mean over the steps in which the target moves of clip(own step along the target's / half the target's, -1, 1),
       or 0 where that is negative: an estimator's jitter, which goes to and fro, is no motion
    S  exp(-(ratio - 6) / 6) where one step changes the picture, or moves the camera, `ratio` > 6 times as much as
       others do, else 1

L is the length of the target's path, and at least 10 % of the context's extent. A target that turns on the spot has no
path to divide by: its distance is divided by L itself. Poses are aligned with the context's cameras and never with the
generated ones: see `spatialalign_trl/perception/camera.py`.

The task is Video4Spatial's (arXiv 2512.03040). The paper publishes no formula for it: this one is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialalign_rewards._scene_scoring import (
    ANGLE_SCALE,
    REST,
    BadInput,
    SceneGrade,
    SceneReward,
    continuity_factor,
    looked_at,
    read_scene,
    reobserved_factor,
    support_factor,
)
from spatialalign_trl.perception.camera.diagnosis import cut_factor, moving_share, steps
from spatialalign_trl.perception.camera.estimator import PoseEstimator, check_poses
from spatialalign_trl.perception.camera.geometry import extent, known, path_length, rotation_degrees
from spatialalign_trl.rewards.settings import RewardSettingsOnHub
from spatialalign_trl.video import frames_of

FORMULA = 2
"""Which formula stored scores are of: in the first one M had no direction."""
DIRECTION_SCALE = 20.0
DISTANCE_SHARE = 0.1
MIN_LENGTH_SHARE = 0.1


class SceneNavigation(SceneReward, RewardSettingsOnHub):
    """
    Reward in [0, 1]: how well a video follows a camera trajectory through the scene that its context shows. `None`
    when the row cannot be scored.

    Columns: `context` (the recording), `camera_poses` (the trajectory: camera to world, one a frame of the video),
    `intrinsics` (of the context's frames), and `context_poses` in the system of `camera_poses`. A row without
    `context_poses` is scored by its steps alone: the rotation, and the direction of the translation, from frame to
    frame.

    Args:
        pose_estimator (`str`, [`~spatialalign_trl.perception.camera.PoseEstimator`] or callable, *optional*, defaults
            to `"sift"`):
            What finds the camera; a function as in
            [`~spatialalign_trl.perception.camera.CallableEstimator`].
        pose_options (`dict`, *optional*):
            Arguments of the estimator when it is given by name.
        frames (`int`, *optional*, defaults to `11`):
            Frames of the video that are looked at, evenly spaced.
        context_frames (`int`, *optional*, defaults to `16`):
            Frames of the context that are used, evenly spaced.
        distance_estimator, distance_options (*optional*):
            What measures SD, which is logged and is no part of the reward. By default only pose estimators that
            measure it themselves do (`"room_render_and_compare"`).
    """

    required_columns = ("context", "camera_poses", "intrinsics")
    installed_name = "scene_navigation"

    def __init__(
        self,
        pose_estimator: str | PoseEstimator | Callable[..., Any] = "sift",
        pose_options: dict[str, Any] | None = None,
        frames: int = 11,
        context_frames: int = 16,
        distance_estimator: str | PoseEstimator | None = None,
        distance_options: dict[str, Any] | None = None,
    ) -> None:
        if frames < 2:
            raise ValueError(f"frames is {frames}; it must be at least 2.")
        super().__init__(pose_estimator, pose_options, distance_estimator, distance_options, context_frames)
        self.frames = frames
        self._need_columns()

    def describe(self) -> dict[str, Any]:
        """What this reward was made with."""
        return {**super().describe(), "frames": self.frames, "formula": FORMULA}

    def settings(self) -> dict[str, Any]:
        """As [`SceneReward.settings`]."""
        return {name: value for name, value in super().settings().items() if name != "formula"}

    def check_prompts(self, camera_poses: Sequence[Any], **columns: Any) -> None:
        """As [`SceneReward.check_prompts`], and the trajectories."""
        for row, poses in enumerate(camera_poses):
            check_poses(poses, None, f"prompt {row}: camera_poses")
        super().check_prompts(**columns)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Any],
        context: Sequence[Any],
        camera_poses: Sequence[Any],
        intrinsics: Sequence[Any],
        context_poses: Sequence[Any] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Score `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not read.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`, or paths of mp4 files.
            context, camera_poses, intrinsics, context_poses (sequences of `N`):
                The columns; see the class.
            log_extra, log_metric (callables, *optional*):
                Get every factor as `scene_navigation_<factor>`, and the reasons.

        Returns:
            `list[float | None]`: one reward a video, `None` when INVALID.
        """
        columns = {
            "context": context, "camera_poses": camera_poses, "intrinsics": intrinsics, "context_poses": context_poses
        }  # fmt: skip
        return self.grade_all(completions, columns, kwargs, log_extra, log_metric)

    def grade(self, video: Any, row: Mapping[str, Any]) -> SceneGrade:
        """
        Score one video, and keep what the reward was made of.

        Args:
            video: As one of `completions`.
            row (mapping): The columns of its row.
        """
        video = frames_of(video, "the video")
        changes = steps(video)
        chosen = looked_at(changes, self.frames)
        try:
            target = _trajectory(row["camera_poses"], len(video))
            scene = read_scene(row["context"], row.get("context_poses"), row["intrinsics"], video, self.context_frames)
            estimate = self.estimate(scene, video[chosen], row)
            if scene.context_poses is not None and estimate.context_kind == "turning" and path_length(target) > 0.05:
                raise BadInput(f"the target moves, and {estimate.reason}")
        except BadInput as error:
            return SceneGrade(None, str(error))
        target = target[chosen]
        if scene.context_poses is None:
            factors = step_factors(estimate.poses, target)
        else:
            factors = pose_factors(estimate.poses, target, extent(scene.context_poses))
        factors["C"] = support_factor(estimate)
        factors["reobserved"], factors["O"] = reobserved_factor(estimate)
        factors["S"] = min(cut_factor(changes), continuity_factor(estimate, chosen))
        factors["registered"] = float(known(estimate.poses).mean())
        reason = None
        if moving_share(changes) == 0 and factors.pop("target_moves"):
            factors["M"], reason = 0.0, "nothing moves in the video"
        factors.pop("target_moves", None)
        reward = factors["P"] * np.sqrt(factors["C"]) * factors["O"] * factors["M"] * factors["S"]
        if not factors["registered"]:
            reason = "no frame was found in the scene of the context"
        distance = self.distance(scene, video, estimate, row)
        return SceneGrade(float(reward), reason, factors | ({} if distance is None else {"SD": distance}))


def pose_factors(poses: np.ndarray, target: np.ndarray, context_extent: float) -> dict[str, Any]:
    """
    P and M of poses in the target's system.

    Args:
        poses, target (`np.ndarray` of shape `(n, 4, 4)`): Unknown poses are NaN.
        context_extent (`float`): Largest distance between two context cameras.

    Returns:
        `dict`: `P`, `M`, `target_moves`, and the mean `rotation_error` (degrees) and `position_error` (target's unit)
        over known frames.
    """
    found = known(poses)
    floor = max(MIN_LENGTH_SHARE * context_extent, 1e-6)
    length = max(path_length(target), floor)
    # On the spot there is no path: a tenth of the floor would ask for more than any estimator can give.
    slack = DISTANCE_SHARE * length if length > floor else length
    angle = rotation_degrees(poses[:, :3, :3], target[:, :3, :3])
    distance = np.linalg.norm(poses[:, :3, 3] - target[:, :3, 3], axis=1)
    precision = np.where(found, np.exp(-angle / ANGLE_SCALE - distance / slack), 0.0)
    own, wanted = (
        _steps(one[1:, :3, :3] @ one[:-1, :3, :3].transpose(0, 2, 1), np.diff(one[:, :3, 3], axis=0), slack)
        for one in (poses, target)
    )
    factors = {"P": float(precision.mean()), **_motion(own, wanted)}
    if found.any():
        factors["rotation_error"] = float(angle[found].mean())
        factors["position_error"] = float(distance[found].mean())
    return factors


def step_factors(poses: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """P and M by the steps alone, for rows whose context has no known poses: `exp(-angle / 10 deg)` of the relative
    rotation times `exp(-angle / 20 deg)` between the directions of the relative translation."""
    both = known(poses)[:-1] & known(poses)[1:]
    ours, theirs = _relative(poses), _relative(target)
    angle = rotation_degrees(ours[:, :3, :3], theirs[:, :3, :3])
    lengths = [np.linalg.norm(one[:, :3, 3], axis=1) for one in (ours, theirs)]
    total = max(lengths[1].sum(), 1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (ours[:, :3, 3] * theirs[:, :3, 3]).sum(axis=1) / (lengths[0] * lengths[1])
    turned = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    moves = lengths[1] > 0.01 * total
    heading = np.where(moves, np.exp(-np.nan_to_num(turned, nan=180.0) / DIRECTION_SCALE), 1.0)
    precision = np.where(both, np.exp(-angle / ANGLE_SCALE) * heading, 0.0)
    # Each path in its own length: the unit of the estimate is unknown.
    own_total = max(np.nansum(lengths[0]), 1e-9)
    own, wanted = (
        _steps(one[:, :3, :3], one[:, :3, 3], DISTANCE_SHARE * whole)
        for one, whole in ((ours, own_total), (theirs, total))
    )
    factors = {"P": float(precision.mean()), **_motion(own, wanted)}
    if both.any():
        factors["rotation_error"] = float(angle[both].mean())
    return factors


def _trajectory(poses: Any, frames: int) -> np.ndarray:
    """The target of a row. Raises [`BadInput`] when it is none, or not for so many frames."""
    try:
        target = check_poses(poses, None, "camera_poses")
    except ValueError as error:
        raise BadInput(str(error)) from error
    if len(target) != frames:
        raise BadInput(f"the trajectory has {len(target)} poses and the video {frames} frames")
    return target


def _relative(poses: np.ndarray) -> np.ndarray:
    """Each pose after the first, in the axes of the one before."""
    relative = poses[1:].copy()
    before = poses[:-1, :3, :3].transpose(0, 2, 1)
    relative[:, :3, :3] = before @ poses[1:, :3, :3]
    relative[:, :3, 3] = (before @ (poses[1:, :3, 3:] - poses[:-1, :3, 3:]))[..., 0]
    return relative


def _steps(rotations: np.ndarray, ways: np.ndarray, unit: float) -> np.ndarray:
    """Steps as vectors `(n, 2, 3)`: the turn in units of 10 degrees, the way in `unit`s; NaN where one is unknown."""
    from scipy.spatial.transform import Rotation

    whole = np.isfinite(rotations).all(axis=(1, 2))
    vectors = np.full((len(rotations), 2, 3), np.nan)
    if whole.any():
        vectors[whole, 0] = np.degrees(Rotation.from_matrix(rotations[whole]).as_rotvec()) / ANGLE_SCALE
    vectors[:, 1] = ways / unit
    return vectors


def _motion(own: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """M: how much of the target's steps is made at all, at half its size or more and in its direction; unknown steps
    count as none."""
    sizes = np.linalg.norm(wanted, axis=2)
    moves = sizes.sum(axis=1) > REST
    if not moves.any():
        return {"M": 1.0, "target_moves": False}
    along = (own * wanted).sum(axis=2) / np.maximum(sizes, 1e-9)
    made = np.nan_to_num(along.sum(axis=1)[moves], nan=0.0) / (0.5 * sizes.sum(axis=1)[moves])
    return {"M": max(float(np.clip(made, -1, 1).mean()), 0.0), "target_moves": True}
