"""Camera poses as numbers: angles, bearings, and the alignment of one coordinate system with another.

A pose is a camera-to-world matrix `(4, 4)` in OpenCV's axes: x right, y down, z forward. An unknown pose is all NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Similarity(NamedTuple):
    """`x -> scale * rotation @ x + translation`.

    Args:
        scale (`float`): Units of the target system per unit of the source; `NaN` where the cameras cannot tell.
        rotation (`np.ndarray` of shape `(3, 3)`): A rotation.
        translation (`np.ndarray` of shape `(3,)`): In units of the target system.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points `(..., 3)` moved into the target system."""
        return self.scale * points @ self.rotation.T + self.translation

    def poses(self, poses: np.ndarray) -> np.ndarray:
        """Camera-to-world matrices `(..., 4, 4)` moved into the target system."""
        moved = np.array(poses, float)
        moved[..., :3, :3] = self.rotation @ moved[..., :3, :3]
        moved[..., :3, 3] = self.points(moved[..., :3, 3])
        return moved


def known(poses: np.ndarray) -> np.ndarray:
    """Which of the poses `(n, 4, 4)` are known: `bool` `(n,)`."""
    return np.isfinite(poses).all(axis=(1, 2))


def unknown_poses(count: int) -> np.ndarray:
    """`count` poses of which nothing is known."""
    return np.full((count, 4, 4), np.nan)


def rotation_degrees(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angle between rotations `(..., 3, 3)`, in degrees, in [0, 180].

    By the chord, which is exact near 0, where the arc cosine of a trace loses half of the digits.
    """
    chord = np.linalg.norm(first - second, axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotations nearest to matrices `(..., 3, 3)` in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def align(source: np.ndarray, target: np.ndarray) -> Similarity | None:
    """
    The similarity that moves the cameras `source` onto `target`.

    The rotation is the mean of what every camera says, not what the positions say: cameras on a line leave the turn
    about the line open. Scale and translation are least squares of the positions.

    Args:
        source, target (`np.ndarray` of shape `(n, 4, 4)`):
            Poses of the same `n` cameras; unknown ones are left out.

    Returns:
        [`Similarity`] or `None`: `None` when fewer than two cameras are known in both. The scale is NaN when the
        positions of either are one point, or do not fit at all.
    """
    both = known(source) & known(target)
    if both.sum() < 2:
        return None
    source, target = source[both], target[both]
    rotation = nearest_rotation((target[:, :3, :3] @ source[:, :3, :3].transpose(0, 2, 1)).sum(axis=0))
    ours, theirs = source[:, :3, 3] @ rotation.T, target[:, :3, 3]
    ours_mean, theirs_mean = np.median(ours, axis=0), np.median(theirs, axis=0)
    ours, theirs = ours - ours_mean, theirs - theirs_mean
    square = (ours**2).sum()
    scale = (ours * theirs).sum() / square if square > 1e-12 else np.nan
    if not scale > 0 or not (theirs**2).sum() > 1e-12:
        scale = np.nan
    return Similarity(scale, rotation, theirs_mean - scale * ours_mean)


def path_length(poses: np.ndarray) -> float:
    """Length of the way through the camera centres of `(n, 4, 4)`."""
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


def extent(poses: np.ndarray) -> float:
    """Largest distance of two of the known camera centres of `(n, 4, 4)`; 0 with fewer than two."""
    centres = poses[known(poses), :3, 3]
    if len(centres) < 2:
        return 0.0
    return float(np.linalg.norm(centres[:, None] - centres[None], axis=-1).max())


def bearings(pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Unit directions `(n, 3)` in the camera's axes of pixels `(n, 2)`."""
    rays = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ np.linalg.inv(intrinsics).T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def project(points: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Where a camera sees points of the world.

    Args:
        points (`np.ndarray` of shape `(n, 3)`): In the world.
        pose (`np.ndarray` of shape `(4, 4)`): Camera to world.
        intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.

    Returns:
        `(pixels (n, 2), depths (n,))`; pixels are NaN for points that are not in front of the camera.
    """
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    depths = local[:, 2]
    safe = np.where(depths > 1e-9, depths, np.nan)
    pixels = (local @ intrinsics.T)[:, :2] / safe[:, None]
    return pixels, depths


def triangulate(centres: np.ndarray, directions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    The points nearest to their rays, in the least squares sense.

    Args:
        centres, directions (`np.ndarray` of shape `(n, views, 3)`):
            Rays in the world, of unit direction.
        weights (`np.ndarray` of shape `(n, views)`):
            0 for a ray that is not there.

    Returns:
        `np.ndarray` of shape `(n, 3)`: NaN where the rays leave a point open.
    """
    across = np.eye(3) - directions[..., :, None] * directions[..., None, :]
    across = across * weights[..., None, None]
    normal = across.sum(axis=1)
    right = (across @ centres[..., None]).sum(axis=1)
    fine = np.linalg.det(normal) > 1e-9
    points = np.full((len(centres), 3), np.nan)
    points[fine] = np.linalg.solve(normal[fine], right[fine])[..., 0]
    return points


def scaled_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Intrinsics `(3, 3)` for frames of another `(height, width)`: the same picture, resized."""
    across, down = new_size[1] / size[1], new_size[0] / size[0]
    # Pixels' middles are whole numbers, so it is the picture's corner, at -0.5, that stays where it is.
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]]) @ intrinsics
