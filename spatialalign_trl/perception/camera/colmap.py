"""
Estimate camera poses with COLMAP: slower and more accurate than `map.py`, for evaluation and for real recordings.

This needs pycolmap: the extra `colmap` (a wheel of 120 MB, CPU only). Context and video are reconstructed together, so
that their cameras share one coordinate system. COLMAP's incremental mapper finds no poses for a camera that only turns
or stands still: such a context is `"unusable"` here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.perception.camera.estimator import CameraEstimate, unusable
from spatialalign_trl.perception.camera.geometry import known, unknown_poses

if TYPE_CHECKING:
    from spatialalign_trl.video import Video


def pycolmap() -> Any:
    """Import `pycolmap`. Raises an `ImportError` that names the extra to install."""
    try:
        import pycolmap as module
    except ImportError as error:
        raise ImportError("Camera poses by COLMAP need pycolmap: pip install 'spatialalign-trl[colmap]'") from error
    return module


class ColmapEstimator:
    """
    Estimates poses by structure from motion on all frames at once. Implements the protocol
    [`~spatialalign_trl.perception.camera.PoseEstimator`].

    The given intrinsics are not refined, so that a zoom cannot be explained by another focal length.

    Args:
        min_frames (`int`, *optional*, defaults to `3`):
            Number of context cameras that must be found, at least 2.

    Raises:
        `ValueError`: when `min_frames` is below 2.
    """

    name = "colmap"

    def __init__(self, min_frames: int = 3) -> None:
        if min_frames < 2:
            raise ValueError(
                f"min_frames is {min_frames}; it must be at least 2, because alignment needs two cameras."
            )
        self.min_frames = min_frames

    def prepare(self) -> None:
        """Raise an `ImportError` if pycolmap is missing."""
        pycolmap()

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-serialisable."""
        return {"name": self.name, "min_frames": self.min_frames}

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """Estimate poses, see [`~spatialalign_trl.perception.camera.PoseEstimator`]. `context_poses` is not used."""
        frames = np.concatenate([context, video])
        with tempfile.TemporaryDirectory(prefix="spatialalign-colmap-") as folder:
            poses, support, points = _reconstruct(frames, intrinsics, Path(folder))
        count = len(context)
        if known(poses)[:count].sum() < self.min_frames:
            reason = f"COLMAP found {known(poses)[:count].sum()} of {count} context cameras"
            return unusable(count, len(video), reason)
        return CameraEstimate(poses[:count], poses[count:], support[count:], points=points)


def _reconstruct(frames: Video, intrinsics: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return poses, support and points of the largest model that COLMAP finds. Raises as `pycolmap`."""
    from PIL import Image

    # 1. Write the frames for COLMAP
    colmap = pycolmap()
    images, database = folder / "images", folder / "database.db"
    images.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(images / f"{number:05d}.png")

    # 2. Match features and reconstruct the scene, with fixed intrinsics. COLMAP's pixel coordinates start at the
    # corner of the image, ours at the centre of the first pixel.
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2] + 0.5, intrinsics[1, 2] + 0.5
    reader = colmap.ImageReaderOptions(camera_model="PINHOLE", camera_params=f"{fx},{fy},{cx},{cy}")
    colmap.set_random_seed(0)
    colmap.extract_features(
        database, images, camera_mode=colmap.CameraMode.SINGLE, reader_options=reader, device=colmap.Device.cpu
    )
    colmap.match_exhaustive(database, device=colmap.Device.cpu)
    options = colmap.IncrementalPipelineOptions(
        ba_refine_focal_length=False, ba_refine_principal_point=False, ba_refine_extra_params=False, num_threads=1
    )
    models = colmap.incremental_mapping(database, images, folder / "model", options)

    # 3. Convert the largest model to camera-to-world poses
    poses, support = unknown_poses(len(frames)), np.zeros(len(frames))
    if not models:
        return poses, support, np.zeros((0, 3))
    largest = max(models.values(), key=lambda model: model.num_reg_images())
    for image in largest.images.values():
        if not image.has_pose:
            continue
        number = int(Path(image.name).stem)
        world_to_camera = np.asarray(image.cam_from_world().matrix())
        poses[number] = np.eye(4)
        poses[number][:3, :3] = world_to_camera[:, :3].T
        poses[number][:3, 3] = -world_to_camera[:, :3].T @ world_to_camera[:, 3]
        # COLMAP reports only the points that fit the pose, so their number has to serve as support.
        support[number] = min(image.num_points3D / 100, 1.0)
    return poses, support, np.array([point.xyz for point in largest.points3D.values()]).reshape(-1, 3)
