"""
Camera poses by COLMAP: slower than `map.py` and more exact, for evaluation and for real recordings.

Needs pycolmap: the extra `colmap` (a wheel of 120 MB, CPU only). Context and video are reconstructed together, so that
their cameras stand in one system. COLMAP's incremental mapper finds nothing where a camera only turns or stands: such
a context is `"unusable"` here.
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
    """The module. Raises an `ImportError` that names the extra that brings it."""
    try:
        import pycolmap as module
    except ImportError as error:
        raise ImportError("Camera poses by COLMAP need pycolmap: pip install 'spatialalign-trl[colmap]'") from error
    return module


class ColmapEstimator:
    """
    Poses by structure from motion on all frames at once. Follows
    [`~spatialalign_trl.perception.camera.PoseEstimator`].

    The intrinsics are taken as they are and not refined: a zoom must not be explained by another focal length.

    Args:
        min_frames (`int`, *optional*, defaults to `3`):
            Context cameras that must be found.
    """

    name = "colmap"

    def __init__(self, min_frames: int = 3) -> None:
        if min_frames < 2:
            raise ValueError(f"min_frames is {min_frames}; two cameras are needed to align anything.")
        self.min_frames = min_frames

    def prepare(self) -> None:
        """Raises an `ImportError` when pycolmap is missing."""
        pycolmap()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "min_frames": self.min_frames}

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """See [`~spatialalign_trl.perception.camera.PoseEstimator`]; the known poses are not used."""
        frames = np.concatenate([context, video])
        with tempfile.TemporaryDirectory(prefix="spatialalign-colmap-") as folder:
            poses, seen, points = _reconstruct(frames, intrinsics, Path(folder))
        count = len(context)
        if known(poses)[:count].sum() < self.min_frames:
            reason = f"COLMAP found {known(poses)[:count].sum()} of {count} context cameras"
            return unusable(count, len(video), reason)
        return CameraEstimate(poses[:count], poses[count:], seen[count:], points=points)


def _reconstruct(frames: Video, intrinsics: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses, support and points; the largest model where there are several. Raises as `pycolmap`."""
    from PIL import Image

    colmap = pycolmap()
    images, database = folder / "images", folder / "database.db"
    images.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(images / f"{number:05d}.png")
    height, width = frames.shape[1:3]
    # COLMAP counts from the picture's corner, where we count from the first pixel's middle.
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
    poses, support = unknown_poses(len(frames)), np.zeros(len(frames))
    if not models:
        return poses, support, np.zeros((0, 3))
    best = max(models.values(), key=lambda model: model.num_reg_images())
    for image in best.images.values():
        if not image.has_pose:
            continue
        number = int(Path(image.name).stem)
        to_camera = np.asarray(image.cam_from_world().matrix())
        poses[number] = np.eye(4)
        poses[number][:3, :3] = to_camera[:, :3].T
        poses[number][:3, 3] = -to_camera[:, :3].T @ to_camera[:, 3]
        support[number] = min(
            image.num_points3D / 100, 1.0
        )  # COLMAP tells of points that fit, not of those that do not
    return poses, support, np.array([point.xyz for point in best.points3D.values()]).reshape(-1, 3)
