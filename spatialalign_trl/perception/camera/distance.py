"""
SD, the spatial distance between what a video shows and the real scene, for evaluation.

The paper gives the number and not its definition (Video4Spatial, arXiv 2512.03040: Wan2.2-5B .534, Veo 3 .221, theirs
.110), so this is our reading: the mean, over the points of a reconstruction of the *generated* video alone, of
`min(distance to the nearest point of the context / size of the scene, 1)`.

The rewards find a video's frames in a map of the context. Here it is the other way round: the map is made of the
generated video, without any known pose, and the context frames are found in it. What pleases one need not please the
other, and with another estimator (`"colmap"`) still less.
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
"""The paper counts an instruction as followed only where SD is below this."""


def scene_size(points: np.ndarray) -> float:
    """The diagonal of the box that holds the middle 90 % of a scene's points `(k, 3)` along each axis."""
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
    SD of a video, lower is better.

    Args:
        estimator ([`~spatialalign_trl.perception.camera.PoseEstimator`]):
            One that gives points.
        context, video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            Of one size.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        context_poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera to world of the context frames.
        context_points (`np.ndarray` of shape `(k, 3)`):
            The real scene, in the same system.

    Returns:
        `float` or `None`: in [0, 1]; 1 when the video cannot be brought together with the scene, `None` when its
        camera did not move enough to reconstruct anything.
    """
    made = estimator.estimate(video, context, intrinsics)
    if made.context_kind != "moving" or made.points is None or not len(made.points):
        return None
    found = align(made.poses, context_poses)
    if found is None or not np.isfinite(found.scale):
        return 1.0
    size = scene_size(context_points)
    distances, _ = cKDTree(context_points).query(found.points(made.points))
    return float(np.minimum(distances / size, 1.0).mean())
