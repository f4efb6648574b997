"""
Measure SD, the spatial distance between the scene in a video and the real scene, for evaluation.

The paper reports values without a definition (Video4Spatial, arXiv 2512.03040: Wan2.2-5B .534, Veo 3 .221, theirs
.110). We define SD as the mean, over the points of a reconstruction of the *generated* video alone, of
`min(distance to the nearest point of the context / size of the scene, 1)`.

The rewards locate a video's frames in a map of the context. Here it is the other way round: the map is built from the
generated video, without any known pose, and the context frames are located in it. This makes SD an independent check
of the rewards, and more so with another estimator (`"colmap"`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from spatialalign_trl.perception.camera.geometry import align

if TYPE_CHECKING:
    from spatialalign_trl.perception.camera.estimator import PoseEstimator
    from spatialalign_trl.video import Video

GOOD_DISTANCE = 0.2
"""The paper counts an instruction as followed only if SD is below this value."""


def scene_size(points: np.ndarray) -> float:
    """Return the diagonal of the box around the middle 90 % of a scene's points `(k, 3)` along each axis."""
    low, high = np.percentile(points, (5, 95), axis=0)
    return float(np.linalg.norm(high - low))


def spatial_distance(
    estimator: PoseEstimator,
    context: Video,
    video: Video,
    intrinsics: np.ndarray,
    context_poses: np.ndarray,
    context_points: np.ndarray,
) -> float | None:
    """
    Compute the SD of a video. Lower is better.

    Args:
        estimator ([`~spatialalign_trl.perception.camera.PoseEstimator`]):
            An estimator that returns points.
        context, video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The recorded and the generated frames, of the same size.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        context_poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera to world of the context frames.
        context_points (`np.ndarray` of shape `(k, 3)`):
            Points of the real scene, in the coordinate system of `context_poses`.

    Returns:
        `float` or `None`: in [0, 1]; 1 if the video cannot be aligned with the scene, `None` if its camera does not
        move enough for a reconstruction.
    """
    # The roles are exchanged: the generated video is the context of the estimate.
    estimate = estimator.estimate(video, context, intrinsics)
    if estimate.context_kind != "moving" or estimate.points is None or not len(estimate.points):
        return None
    alignment = align(estimate.poses, context_poses)
    if alignment is None or not np.isfinite(alignment.scale):
        return 1.0
    size = scene_size(context_points)
    distances, _ = cKDTree(context_points).query(alignment.points(estimate.points))
    return float(np.minimum(distances / size, 1.0).mean())
