"""Find the pose of a camera from known points and the pixels where they were seen (PnP)."""

from __future__ import annotations

import numpy as np

from spatialalign_trl.perception.camera.features import MIN_MATCHES, opencv
from spatialalign_trl.perception.camera.geometry import nearest_rotation, project

TRIALS = 2000
"""Number of RANSAC samples of 4 matches: if 25 % of the matches are right, about 4 in 1000 samples are."""


def find_pose(
    points: np.ndarray, pixels: np.ndarray, intrinsics: np.ndarray, slack: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Find the pose of a camera by PnP with RANSAC.

    Args:
        points (`np.ndarray` of shape `(n, 3)`):
            In world coordinates.
        pixels (`np.ndarray` of shape `(n, 2)`):
            Where the points were seen; some may be wrong.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        slack (`float`):
            Half of the largest reprojection error of an inlier, in pixels.

    Returns:
        The pose `(4, 4)` and the inliers `(n,)`, `bool`; `None` if fewer than `MIN_MATCHES` points fit.
    """
    cv2 = opencv()
    try:
        success, turn, shift, inliers = cv2.solvePnPRansac(
            points, pixels, intrinsics, None, iterationsCount=TRIALS, reprojectionError=2 * slack, confidence=0.999,
            flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
    except cv2.error:  # all samples were degenerate
        return None
    if not success or inliers is None or len(inliers) < MIN_MATCHES:
        return None
    pose = refine_pose(points[inliers[:, 0]], pixels[inliers[:, 0]], pose_of(turn, shift), intrinsics)
    within = np.linalg.norm(project(points, pose, intrinsics)[0] - pixels, axis=1) < 2 * slack
    return (pose, within) if within.sum() >= MIN_MATCHES else None


def refine_pose(points: np.ndarray, pixels: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Refine a pose by minimising the reprojection error with Levenberg-Marquardt."""
    cv2 = opencv()
    rotation = pose[:3, :3].T
    start = cv2.Rodrigues(rotation)[0], -rotation @ pose[:3, 3:]
    refined = pose_of(*cv2.solvePnPRefineLM(points, pixels, intrinsics, None, *start))
    return refined if np.isfinite(refined).all() else pose


def pose_of(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Convert OpenCV's rotation vector and translation (world to camera) to a camera-to-world matrix."""
    return inverse(opencv().Rodrigues(turn)[0], shift[:, 0])


def inverse(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Convert a world-to-camera rotation and translation to a camera-to-world matrix `(4, 4)`."""
    pose = np.eye(4)
    pose[:3, :3] = nearest_rotation(rotation).T
    pose[:3, 3] = -pose[:3, :3] @ translation
    return pose
