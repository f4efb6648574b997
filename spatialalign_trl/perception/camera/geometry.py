"""Compute with camera poses: angles, bearings, projections, and the alignment of two coordinate systems.

A pose is a camera-to-world matrix `(4, 4)` in OpenCV's axes: x right, y down, z forward. An unknown pose is all NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Similarity(NamedTuple):
    """
    The similarity `x -> scale * rotation @ x + translation`.

    Args:
        scale (`float`):
            Units of the target system per unit of the source; NaN if the cameras do not determine it.
        rotation (`np.ndarray` of shape `(3, 3)`):
            A rotation.
        translation (`np.ndarray` of shape `(3,)`):
            In units of the target system.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def points(self, points: np.ndarray) -> np.ndarray:
        """Transform points `(..., 3)` to the target system."""
        return self.scale * points @ self.rotation.T + self.translation

    def poses(self, poses: np.ndarray) -> np.ndarray:
        """Transform camera-to-world matrices `(..., 4, 4)` to the target system."""
        transformed = np.array(poses, float)
        transformed[..., :3, :3] = self.rotation @ transformed[..., :3, :3]
        transformed[..., :3, 3] = self.points(transformed[..., :3, 3])
        return transformed


def known(poses: np.ndarray) -> np.ndarray:
    """Return which of the poses `(n, 4, 4)` are known, `bool` `(n,)`."""
    return np.isfinite(poses).all(axis=(1, 2))


def unknown_poses(count: int) -> np.ndarray:
    """Return `count` unknown poses."""
    return np.full((count, 4, 4), np.nan)


def rotation_degrees(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Return the angles between rotations `(..., 3, 3)`, in degrees, in [0, 180].

    They are computed from the chord, which is accurate near 0, where the arc cosine of a trace loses half the digits.
    """
    chord = np.linalg.norm(first - second, axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Return the rotations nearest to matrices `(..., 3, 3)` in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def align(source: np.ndarray, target: np.ndarray) -> Similarity | None:
    """
    Find the similarity that maps the cameras `source` onto `target`.

    The rotation is the mean over the cameras' orientations. It is not fitted to the positions, because cameras on a
    line do not determine the rotation about that line. The scale is the least squares fit of the positions relative to
    their medians.

    Args:
        source, target (`np.ndarray` of shape `(n, 4, 4)`):
            Poses of the same `n` cameras; unknown ones are left out.

    Returns:
        [`Similarity`] or `None`: `None` if fewer than two cameras are known in both. The scale is NaN if the positions
        of either coincide, or do not fit at all.
    """
    both = known(source) & known(target)
    if both.sum() < 2:
        return None
    source, target = source[both], target[both]
    rotation = nearest_rotation((target[:, :3, :3] @ source[:, :3, :3].transpose(0, 2, 1)).sum(axis=0))
    rotated, wanted = source[:, :3, 3] @ rotation.T, target[:, :3, 3]
    rotated_centre, wanted_centre = np.median(rotated, axis=0), np.median(wanted, axis=0)
    rotated, wanted = rotated - rotated_centre, wanted - wanted_centre
    square = (rotated**2).sum()
    scale = (rotated * wanted).sum() / square if square > 1e-12 else np.nan
    if not scale > 0 or not (wanted**2).sum() > 1e-12:
        scale = np.nan
    return Similarity(scale, rotation, wanted_centre - scale * rotated_centre)


def path_length(poses: np.ndarray) -> float:
    """Return the length of the path through the camera centres of poses `(n, 4, 4)`."""
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


def extent(poses: np.ndarray) -> float:
    """Return the largest distance between two known camera centres of poses `(n, 4, 4)`; 0 with fewer than two."""
    centres = poses[known(poses), :3, 3]
    if len(centres) < 2:
        return 0.0
    return float(np.linalg.norm(centres[:, None] - centres[None], axis=-1).max())


def bearings(pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return the unit directions `(n, 3)` of pixels `(n, 2)`, in the camera's axes."""
    rays = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ np.linalg.inv(intrinsics).T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def project(points: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Project points to the pixels of a camera.

    Args:
        points (`np.ndarray` of shape `(n, 3)`):
            In world coordinates.
        pose (`np.ndarray` of shape `(4, 4)`):
            Camera-to-world matrix.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.

    Returns:
        `(pixels (n, 2), depths (n,))`: pixels are NaN for points that are not in front of the camera.
    """
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    depths = local[:, 2]
    safe = np.where(depths > 1e-9, depths, np.nan)
    pixels = (local @ intrinsics.T)[:, :2] / safe[:, None]
    return pixels, depths


def triangulate(centres: np.ndarray, directions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Find the points nearest to their rays, in the least squares sense.

    Args:
        centres, directions (`np.ndarray` of shape `(n, views, 3)`):
            Origins and unit directions of the rays, in world coordinates.
        weights (`np.ndarray` of shape `(n, views)`):
            0 for a missing ray.

    Returns:
        `np.ndarray` of shape `(n, 3)`: NaN if the rays do not determine the point.
    """
    # The distance to a ray is measured by the projection onto the plane across it: I - d d^T.
    projections = np.eye(3) - directions[..., :, None] * directions[..., None, :]
    projections = projections * weights[..., None, None]
    left = projections.sum(axis=1)
    right = (projections @ centres[..., None]).sum(axis=1)
    solvable = np.linalg.det(left) > 1e-9
    points = np.full((len(centres), 3), np.nan)
    points[solvable] = np.linalg.solve(left[solvable], right[solvable])[..., 0]
    return points


def scaled_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Return the intrinsics `(3, 3)` of frames resized from one `(height, width)` to another."""
    scale_x, scale_y = new_size[1] / size[1], new_size[0] / size[0]
    # Pixel centres have integer coordinates, so the fixed point of the scaling is the corner of the frame, at -0.5.
    return np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]]) @ intrinsics
