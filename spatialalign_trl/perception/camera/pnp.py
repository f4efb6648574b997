"""PnP: the camera that sees known points where they were seen."""

from __future__ import annotations

import numpy as np

from spatialalign_trl.perception.camera.features import MIN_MATCHES, opencv
from spatialalign_trl.perception.camera.geometry import nearest_rotation, project

TRIALS = 2000
"""Samples of 4 points: with 25 % of them right, 4 in 1000 samples are."""


def find_pose(
    points: np.ndarray, pixels: np.ndarray, intrinsics: np.ndarray, slack: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    The camera that sees points where they were seen, by PnP with RANSAC.

    Args:
        points (`np.ndarray` of shape `(n, 3)`): In the world.
        pixels (`np.ndarray` of shape `(n, 2)`): Where they were seen; some are wrong.
        intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.
        slack (`float`): Pixels; a point within twice that fits.

    Returns:
        Pose `(4, 4)` and inliers `(n,)`; `None` when fewer than `MIN_MATCHES` fit.
    """
    cv2 = opencv()
    try:
        fine, turn, shift, inliers = cv2.solvePnPRansac(
            points, pixels, intrinsics, None, iterationsCount=TRIALS, reprojectionError=2 * slack, confidence=0.999,
            flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
    except cv2.error:  # the samples were all degenerate
        return None
    if not fine or inliers is None or len(inliers) < MIN_MATCHES:
        return None
    pose = refine_pose(points[inliers[:, 0]], pixels[inliers[:, 0]], pose_of(turn, shift), intrinsics)
    within = np.linalg.norm(project(points, pose, intrinsics)[0] - pixels, axis=1) < 2 * slack
    return (pose, within) if within.sum() >= MIN_MATCHES else None


def refine_pose(points: np.ndarray, pixels: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """The pose after Levenberg-Marquardt on the distances in the picture."""
    cv2 = opencv()
    rotation = pose[:3, :3].T
    start = cv2.Rodrigues(rotation)[0], -rotation @ pose[:3, 3:]
    refined = pose_of(*cv2.solvePnPRefineLM(points, pixels, intrinsics, None, *start))
    return refined if np.isfinite(refined).all() else pose


def pose_of(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Camera to world from OpenCV's rotation vector and translation of world to camera."""
    return inverse(opencv().Rodrigues(turn)[0], shift[:, 0])


def inverse(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Camera to world `(4, 4)` from world to camera."""
    pose = np.eye(4)
    pose[:3, :3] = nearest_rotation(rotation).T
    pose[:3, 3] = -pose[:3, :3] @ translation
    return pose
