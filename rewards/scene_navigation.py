"""
Scene navigation as a reward: does the video follow the camera trajectory, through the scene of the context?

    R = P * sqrt(C) * O * M * S                                                                   all in [0, 1]

    P  mean over frames of exp(-angle / 10 deg) * exp(-distance / (0.1 L)); 0 for a frame without a pose in the scene
    C  mean over frames of min(share of inliers of the pose / 0.5, 1)
    O  min(share of the context's points seen again in their place / 0.3, 1)
    M  mean over the steps in which the target moves of clip(component of the video's step along the target's step /
       half the target's step, -1, 1), or 0 if that is negative: an estimator's jitter goes back and forth and adds up
       to no motion
    S  exp(-(ratio - 6) / 6) if one step changes the picture, or moves the camera, `ratio` > 6 times as much as the
       other steps do, else 1

L is the length of the target's path, and at least 10 % of the context's extent. A target that turns on the spot has no
path to divide by, so its distance is divided by L itself instead of 0.1 L. Poses are aligned with the context's
cameras, never with the generated ones: see `spatialalign_trl/perception/camera/estimator.py`.

The task is from Video4Spatial (arXiv 2512.03040). The paper publishes no formula for it; this one is ours.
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
    choose_frames,
    continuity_factor,
    read_scene,
    reobserved_factor,
    support_factor,
)
from spatialalign_trl.perception.camera.diagnosis import cut_factor, moving_share, steps
from spatialalign_trl.perception.camera.estimator import PoseEstimator, check_poses
from spatialalign_trl.perception.camera.geometry import extent, known, path_length, rotation_degrees
from spatialalign_trl.video import frames_of

FORMULA = 2
"""Version of the formula, stored next to the scores. In version 1, M ignored the direction."""
DIRECTION_SCALE = 20.0
DISTANCE_SHARE = 0.1
MIN_LENGTH_SHARE = 0.1


class SceneNavigation(SceneReward):
    """
    Reward in [0, 1]: how well a video follows a camera trajectory through the scene that its context shows. `None` if
    the row cannot be scored.

    Columns: `context` (the recording), `camera_poses` (the trajectory: one camera-to-world matrix per frame of the
    video), `intrinsics` (of the context's frames), and `context_poses` in the coordinate system of `camera_poses`. A
    row without `context_poses` is scored by its steps alone: the rotation, and the direction of the translation, from
    frame to frame.

    Args:
        pose_estimator (`str`, [`~spatialalign_trl.perception.camera.estimator.PoseEstimator`] or callable, *optional*,
            defaults to `"sift"`):
            What finds the camera; for a function see
            [`~spatialalign_trl.perception.camera.estimator.CallableEstimator`].
        pose_options (`dict`, *optional*):
            Arguments for an estimator that is given by name.
        frames (`int`, *optional*, defaults to `11`):
            Number of frames of the video that poses are estimated for, evenly spaced; at least 2.
        context_frames (`int`, *optional*, defaults to `16`):
            Number of frames of the context to use, evenly spaced; at least 2.
        distance_estimator, distance_options (*optional*):
            What measures SD, which is logged and is not part of the reward. By default SD is measured only if the pose
            estimator does so itself (`"room_render_and_compare"`).

    Raises:
        `ValueError`: for a count below its minimum, or an unknown estimator.
        `TypeError`: for an option that an estimator does not have.
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
        self._add_required_columns()

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
        return {**super().describe(), "frames": self.frames, "formula": FORMULA}

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments. See [`SceneReward.settings`]."""
        return {name: value for name, value in super().settings().items() if name != "formula"}

    def check_prompts(self, camera_poses: Sequence[Any], **columns: Any) -> None:
        """Check the rows as [`SceneReward.check_prompts`] does, and the trajectories."""
        for row, poses in enumerate(camera_poses):
            check_poses(poses, None, f"prompt {row}: camera_poses")
        super().check_prompts(**columns)

    def grade(self, video: Any, row: Mapping[str, Any]) -> SceneGrade:
        """Score one video and return the reward with its factors. See [`SceneReward.grade`]."""
        # 1. Choose the frames to look at
        video = frames_of(video, "the video")
        changes = steps(video)
        chosen = choose_frames(changes, self.frames)

        # 2. Estimate their poses
        try:
            target = _trajectory(row["camera_poses"], len(video))
            scene = read_scene(row["context"], row.get("context_poses"), row["intrinsics"], video, self.context_frames)
            estimate = self.estimate(scene, video[chosen], row)
            if scene.context_poses is not None and estimate.context_kind == "turning" and path_length(target) > 0.05:
                raise BadInput(f"the target moves, and {estimate.reason}")
        except BadInput as error:
            return SceneGrade(None, str(error))

        # 3. Compare them with the trajectory
        target = target[chosen]
        if scene.context_poses is None:
            factors = step_factors(estimate.poses, target)
        else:
            factors = pose_factors(estimate.poses, target, extent(scene.context_poses))

        # 4. Multiply the factors
        factors["C"] = support_factor(estimate)
        factors["reobserved"], factors["O"] = reobserved_factor(estimate)
        factors["S"] = min(cut_factor(changes), continuity_factor(estimate, chosen))
        factors["registered"] = float(known(estimate.poses).mean())
        reason = None
        target_moves = factors.pop("target_moves")
        if target_moves and moving_share(changes) == 0:  # an estimator's jitter must not count as motion
            factors["M"], reason = 0.0, "nothing moves in the video"
        reward = factors["P"] * np.sqrt(factors["C"]) * factors["O"] * factors["M"] * factors["S"]

        # 5. Add what is only logged
        if not factors["registered"]:
            reason = "no frame was found in the scene of the context"
        distance = self.distance(scene, video, estimate, row)
        return SceneGrade(float(reward), reason, factors | ({} if distance is None else {"SD": distance}))


def pose_factors(poses: np.ndarray, target: np.ndarray, context_extent: float) -> dict[str, Any]:
    """
    Compute P and M from poses in the target's coordinate system.

    Args:
        poses, target (`np.ndarray` of shape `(n, 4, 4)`):
            Camera-to-world matrices; unknown poses are NaN.
        context_extent (`float`):
            Largest distance between two context cameras.

    Returns:
        `dict`: `P`, `M`, `target_moves`, and the mean `rotation_error` (degrees) and `position_error` (target's unit)
        over known frames.
    """
    found = known(poses)
    floor = max(MIN_LENGTH_SHARE * context_extent, 1e-6)
    length = max(path_length(target), floor)
    # A target on the spot has no path: a tenth of the floor would demand more precision than any estimator has.
    slack = DISTANCE_SHARE * length if length > floor else length
    angle = rotation_degrees(poses[:, :3, :3], target[:, :3, :3])
    distance = np.linalg.norm(poses[:, :3, 3] - target[:, :3, 3], axis=1)
    precision = np.where(found, np.exp(-angle / ANGLE_SCALE - distance / slack), 0.0)
    video_steps, target_steps = (
        _steps(path[1:, :3, :3] @ path[:-1, :3, :3].transpose(0, 2, 1), np.diff(path[:, :3, 3], axis=0), slack)
        for path in (poses, target)
    )
    factors = {"P": float(precision.mean()), **_motion(video_steps, target_steps)}
    if found.any():
        factors["rotation_error"] = float(angle[found].mean())
        factors["position_error"] = float(distance[found].mean())
    return factors


def step_factors(poses: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """
    Compute P and M from the steps alone, for rows without context poses.

    P is the mean of `exp(-angle / 10 deg)` of the relative rotation times `exp(-angle / 20 deg)` between the
    directions of the relative translation.

    Args:
        poses, target (`np.ndarray` of shape `(n, 4, 4)`):
            Camera-to-world matrices, each in its own coordinate system and unit; unknown poses are NaN.

    Returns:
        `dict`: `P`, `M`, `target_moves`, and the mean `rotation_error` (degrees) over known steps.
    """
    both = known(poses)[:-1] & known(poses)[1:]
    video_relative, target_relative = _relative(poses), _relative(target)
    angle = rotation_degrees(video_relative[:, :3, :3], target_relative[:, :3, :3])
    video_lengths, target_lengths = (
        np.linalg.norm(relative[:, :3, 3], axis=1) for relative in (video_relative, target_relative)
    )
    target_total = max(target_lengths.sum(), 1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        dot = (video_relative[:, :3, 3] * target_relative[:, :3, 3]).sum(axis=1)
        cosine = dot / (video_lengths * target_lengths)
    turned = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    moves = target_lengths > 0.01 * target_total
    heading = np.where(moves, np.exp(-np.nan_to_num(turned, nan=180.0) / DIRECTION_SCALE), 1.0)
    precision = np.where(both, np.exp(-angle / ANGLE_SCALE) * heading, 0.0)
    # Each path is measured in its own length, because the unit of the estimate is unknown.
    video_total = max(np.nansum(video_lengths), 1e-9)
    video_steps, target_steps = (
        _steps(relative[:, :3, :3], relative[:, :3, 3], DISTANCE_SHARE * total)
        for relative, total in ((video_relative, video_total), (target_relative, target_total))
    )
    factors = {"P": float(precision.mean()), **_motion(video_steps, target_steps)}
    if both.any():
        factors["rotation_error"] = float(angle[both].mean())
    return factors


def _trajectory(poses: Any, frames: int) -> np.ndarray:
    """Return the target of a row; raise [`BadInput`] if it is malformed or has another number of frames."""
    try:
        target = check_poses(poses, None, "camera_poses")
    except ValueError as error:
        raise BadInput(str(error)) from error
    if len(target) != frames:
        raise BadInput(f"the trajectory has {len(target)} poses and the video {frames} frames")
    return target


def _relative(poses: np.ndarray) -> np.ndarray:
    """Return each pose after the first, in the axes of the pose before it."""
    relative = poses[1:].copy()
    before = poses[:-1, :3, :3].transpose(0, 2, 1)
    relative[:, :3, :3] = before @ poses[1:, :3, :3]
    relative[:, :3, 3] = (before @ (poses[1:, :3, 3:] - poses[:-1, :3, 3:]))[..., 0]
    return relative


def _steps(rotations: np.ndarray, translations: np.ndarray, unit: float) -> np.ndarray:
    """Return steps as vectors `(n, 2, 3)`: rotation in units of 10 degrees, translation in `unit`s; NaN if unknown."""
    from scipy.spatial.transform import Rotation

    finite = np.isfinite(rotations).all(axis=(1, 2))
    vectors = np.full((len(rotations), 2, 3), np.nan)
    if finite.any():
        vectors[finite, 0] = np.degrees(Rotation.from_matrix(rotations[finite]).as_rotvec()) / ANGLE_SCALE
    vectors[:, 1] = translations / unit
    return vectors


def _motion(video_steps: np.ndarray, target_steps: np.ndarray) -> dict[str, Any]:
    """Return M and whether the target moves at all; unknown steps count as no motion."""
    sizes = np.linalg.norm(target_steps, axis=2)
    moves = sizes.sum(axis=1) > REST
    if not moves.any():
        return {"M": 1.0, "target_moves": False}
    along = (video_steps * target_steps).sum(axis=2) / np.maximum(sizes, 1e-9)
    made = np.nan_to_num(along.sum(axis=1)[moves], nan=0.0) / (0.5 * sizes.sum(axis=1)[moves])
    return {"M": max(float(np.clip(made, -1, 1).mean()), 0.0), "target_moves": True}
