"""Find SIFT keypoints, and relate two frames by their epipolar geometry or by a rotation of the camera."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from spatialalign_trl.perception.camera.geometry import bearings, nearest_rotation

MAX_FEATURES = 1200
CONTRAST = 0.02
"""SIFT's contrast threshold, half of OpenCV's default, because plain walls have little contrast."""
RATIO = 0.8
"""Largest ratio of the distance to the nearest descriptor to that to the second nearest (Lowe's ratio test)."""
MIN_MATCHES = 12
TOLERANCE = 1.5
"""Largest reprojection error of a point, in pixels of a frame that is `REFERENCE_WIDTH` wide."""
REFERENCE_WIDTH = 640
TURN_TRIALS = 64
"""Number of random samples of two matches from which a rotation is computed."""


class Features(NamedTuple):
    """
    The keypoints of one frame.

    Args:
        pixels (`np.ndarray` of shape `(n, 2)`):
            Their positions.
        descriptors (`np.ndarray` of shape `(n, 128)`, `float32`):
            Their SIFT descriptors, of length 512.
    """

    pixels: np.ndarray
    descriptors: np.ndarray


class Relation(NamedTuple):
    """
    The geometric relation of two frames.

    Args:
        matches (`np.ndarray` of shape `(m, 2)`):
            Pairs of keypoints, of the first and of the second frame, whose descriptors match and that fit one epipolar
            geometry or one rotation.
        candidates (`int`):
            Number of pairs whose descriptors match.
        rotation (`np.ndarray` of shape `(3, 3)`):
            Maps directions in the first camera's axes to the second's.
        translation (`np.ndarray` of shape `(3,)` or `None`):
            Translation from the first camera's system to the second's, of length 1; `None` if a rotation alone
            explains the matches.
        parallax (`np.ndarray` of shape `(m,)`):
            Angle between the matched directions after the rotation is undone, in degrees.
        displacement (`float`):
            Median distance between the matched pixels, in widths of the frame.
    """

    matches: np.ndarray
    candidates: int
    rotation: np.ndarray
    translation: np.ndarray | None
    parallax: np.ndarray
    displacement: float

    @property
    def holds(self) -> bool:
        """Whether the frames show one rigid scene: there are enough matches, and they are not chance ones."""
        return len(self.matches) >= MIN_MATCHES and len(self.matches) >= 0.3 * self.candidates


def opencv() -> Any:
    """Import `cv2`. Raises an `ImportError` that names the extra to install."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("Camera poses by SIFT need OpenCV: pip install 'spatialalign-trl[camera]'") from error
    return cv2


@contextmanager
def repeatable(seed: int = 0) -> Iterator[None]:
    """Make OpenCV's RANSAC deterministic within the context: one thread and a fixed seed."""
    cv2 = opencv()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    cv2.setRNGSeed(seed)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def tolerance(width: int) -> float:
    """Return the largest reprojection error of a point in frames of this width, in pixels; at least 1."""
    return max(1.0, TOLERANCE * width / REFERENCE_WIDTH)


def find_features(frame: np.ndarray) -> Features:
    """Find the SIFT keypoints of a frame `(height, width, 3)`, `uint8`."""
    cv2 = opencv()
    sift = cv2.SIFT_create(nfeatures=MAX_FEATURES, contrastThreshold=CONTRAST)
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None)
    if not keypoints:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    return Features(np.array([point.pt for point in keypoints], float), descriptors)


def descriptor_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances `(n, m)` between descriptors `(n, 128)` and `(m, 128)`."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.sqrt(np.maximum(squares, 0))


def match(first: Features, second: Features) -> np.ndarray:
    """Return pairs `(m, 2)` of keypoints that are mutual nearest neighbours and pass the ratio test."""
    if len(first.pixels) < 2 or len(second.pixels) < 2:
        return np.zeros((0, 2), int)
    distances = descriptor_distances(first.descriptors, second.descriptors)
    rows, nearest, back = np.arange(len(distances)), distances.argmin(1), distances.argmin(0)
    best = distances[rows, nearest]
    distances[rows, nearest] = np.inf
    kept = (back[nearest] == rows) & (best < RATIO * distances.min(1))
    return np.stack([rows[kept], nearest[kept]], axis=1)


def relate(first: Features, second: Features, intrinsics: np.ndarray, width: int) -> Relation | None:
    """
    Estimate the geometric relation of two frames of one camera.

    Args:
        first, second ([`Features`]):
            Keypoints of the two frames.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.
        width (`int`):
            Width of the frames in pixels.

    Returns:
        [`Relation`] or `None`: `None` if the descriptors of fewer than `MIN_MATCHES` keypoints match.
    """
    pairs = match(first, second)
    if len(pairs) < MIN_MATCHES:
        return None
    pixels = first.pixels[pairs[:, 0]], second.pixels[pairs[:, 1]]
    directions = [bearings(points, intrinsics) for points in pixels]
    slack = tolerance(width)

    # Matches that fit a rotation fit many essential matrices too, so prefer the simpler model.
    rotation, inliers = find_turn(*directions, slack / intrinsics[0, 0])
    translation = None
    epipolar = _essential(*pixels, intrinsics, slack)
    if epipolar is not None and inliers.sum() < 0.9 * epipolar[2].sum():
        rotation, translation, inliers = epipolar

    distances = np.linalg.norm(pixels[0] - pixels[1], axis=1)[inliers]
    displacement = float(np.median(distances)) / width if len(distances) else np.nan
    # By the chord, which is exact for small angles.
    chords = np.linalg.norm(directions[0][inliers] @ rotation.T - directions[1][inliers], axis=1)
    parallax = np.degrees(2 * np.arcsin(np.clip(chords / 2, 0, 1)))
    return Relation(pairs[inliers], len(pairs), rotation, translation, parallax, displacement)


def find_turn(first: np.ndarray, second: np.ndarray, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the rotation that fits most matched directions, by RANSAC.

    Two directions determine a rotation. `TURN_TRIALS` random pairs are tried, and the best is fitted to its inliers.

    Args:
        first, second (`np.ndarray` of shape `(n, 3)`):
            Matched unit directions.
        slack (`float`):
            Largest error of an inlier, in radians.

    Returns:
        The rotation `(3, 3)` that maps `first` to `second`, and the inliers `(n,)`, `bool`.
    """
    generator = np.random.default_rng(0)
    samples = generator.integers(len(first), size=(TURN_TRIALS, 2))
    rotations = nearest_rotation(second[samples].transpose(0, 2, 1) @ first[samples])
    errors = np.linalg.norm(first @ rotations.transpose(0, 2, 1) - second, axis=2)
    inliers = (errors < slack)[(errors < slack).sum(axis=1).argmax()]
    rotation = np.eye(3)
    if inliers.sum() >= 2:
        rotation = nearest_rotation(second[inliers].T @ first[inliers])
        inliers = np.linalg.norm(first @ rotation.T - second, axis=1) < slack
    return rotation, inliers


def _essential(
    first: np.ndarray, second: np.ndarray, intrinsics: np.ndarray, slack: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return rotation, translation and inliers by the essential matrix; `None` if there is none."""
    cv2 = opencv()
    try:
        matrix, mask = cv2.findEssentialMat(
            first, second, intrinsics, method=cv2.USAC_MAGSAC, prob=0.9999, threshold=slack
        )
        if matrix is None or matrix.shape != (3, 3):
            return None
        _, rotation, translation, mask = cv2.recoverPose(matrix, first, second, intrinsics, mask=mask.copy())
    except cv2.error:  # degenerate: too few distinct points, or all on a line
        return None
    return rotation, translation[:, 0], mask[:, 0] > 0
