"""SIFT keypoints, and what two frames have in common: the epipolar geometry, or a turn of the camera alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from spatialalign_trl.perception.camera.geometry import bearings, nearest_rotation

MAX_FEATURES = 1200
CONTRAST = 0.02
"""Half of OpenCV's default: walls of one paint have little contrast."""
RATIO = 0.8
MIN_MATCHES = 12
TOLERANCE = 1.5
"""Pixels, at `REFERENCE_WIDTH`, by which a point may miss its place."""
REFERENCE_WIDTH = 640
TURN_TRIALS = 64


class Features(NamedTuple):
    """Keypoints of one frame: `pixels` `(n, 2)` and SIFT `descriptors` `(n, 128)`, `float32`, of length 512."""

    pixels: np.ndarray
    descriptors: np.ndarray


class Relation(NamedTuple):
    """
    What two frames have in common.

    Args:
        matches (`np.ndarray` of shape `(m, 2)`):
            Keypoints of the first and of the second frame that look alike and fit one epipolar geometry or one turn.
        candidates (`int`):
            Keypoints that look alike.
        rotation (`np.ndarray` of shape `(3, 3)`):
            Takes directions in the first camera to the second's.
        translation (`np.ndarray` of shape `(3,)` or `None`):
            The same for points, of length 1; `None` where a turn of the camera alone explains the matches.
        parallax (`np.ndarray` of shape `(m,)`):
            Angle between the matched directions once the turn is undone, in degrees.
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
        """Whether the frames show one rigid scene: enough matches, and not chance ones among the look-alikes."""
        return len(self.matches) >= MIN_MATCHES and len(self.matches) >= 0.3 * self.candidates


def opencv() -> Any:
    """The module `cv2`. Raises an `ImportError` that names the extra that brings it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("Camera poses by SIFT need OpenCV: pip install 'spatialalign-trl[camera]'") from error
    return cv2


@contextmanager
def repeatable(seed: int = 0) -> Iterator[None]:
    """RANSAC draws the same samples every time: one thread, and a seed of its own for OpenCV."""
    cv2 = opencv()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    cv2.setRNGSeed(seed)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def tolerance(width: int) -> float:
    """Pixels by which a point may miss its place in frames of this width; never less than one."""
    return max(1.0, TOLERANCE * width / REFERENCE_WIDTH)


def find_features(frame: np.ndarray) -> Features:
    """SIFT keypoints of a frame `(height, width, 3)`, `uint8`."""
    cv2 = opencv()
    sift = cv2.SIFT_create(nfeatures=MAX_FEATURES, contrastThreshold=CONTRAST)
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None)
    if not keypoints:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    return Features(np.array([point.pt for point in keypoints], float), descriptors)


def descriptor_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances `(n, m)` between descriptors `(n, 128)` and `(m, 128)`."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.sqrt(np.maximum(squares, 0))


def match(first: Features, second: Features) -> np.ndarray:
    """Pairs `(m, 2)` of keypoints that are each other's nearest, and clearly nearer than the second nearest."""
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
    The geometry between two frames of one camera.

    Args:
        first, second ([`Features`]): Of the two frames.
        intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.
        width (`int`): Of the frames.

    Returns:
        [`Relation`] or `None`: `None` with fewer than `MIN_MATCHES` keypoints that look alike.
    """
    pairs = match(first, second)
    if len(pairs) < MIN_MATCHES:
        return None
    pixels = first.pixels[pairs[:, 0]], second.pixels[pairs[:, 1]]
    directions = [bearings(one, intrinsics) for one in pixels]
    slack = tolerance(width)
    rotation, turned = find_turn(*directions, slack / intrinsics[0, 0])
    translation, inliers = None, turned
    epipolar = _essential(*pixels, intrinsics, slack)
    # Any two frames that a turn explains are explained by many essential matrices too, so the simpler one goes first.
    if epipolar is not None and turned.sum() < 0.9 * epipolar[2].sum():
        rotation, translation, inliers = epipolar
    moved = np.linalg.norm(pixels[0] - pixels[1], axis=1)[inliers]
    parallax = _angles(directions[0][inliers] @ rotation.T, directions[1][inliers])
    displacement = float(np.median(moved)) / width if len(moved) else np.nan
    return Relation(pairs[inliers], len(pairs), rotation, translation, parallax, displacement)


def find_turn(first: np.ndarray, second: np.ndarray, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """
    The rotation that takes most directions `first` to within `slack` (radians) of `second`, and which ones.

    Two directions determine a rotation; `TURN_TRIALS` random twos are tried, and the best is fitted to its inliers.
    """
    random = np.random.default_rng(0)
    twos = random.integers(len(first), size=(TURN_TRIALS, 2))
    rotations = nearest_rotation(second[twos].transpose(0, 2, 1) @ first[twos])
    misses = np.linalg.norm(first @ rotations.transpose(0, 2, 1) - second, axis=2)
    best = (misses < slack)[(misses < slack).sum(axis=1).argmax()]
    most = np.eye(3)
    if best.sum() >= 2:
        most = nearest_rotation(second[best].T @ first[best])
        best = np.linalg.norm(first @ most.T - second, axis=1) < slack
    return most, best


def _essential(
    first: np.ndarray, second: np.ndarray, intrinsics: np.ndarray, slack: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rotation, translation and inliers by the essential matrix; `None` where there is none."""
    cv2 = opencv()
    try:
        matrix, mask = cv2.findEssentialMat(
            first, second, intrinsics, method=cv2.USAC_MAGSAC, prob=0.9999, threshold=slack
        )
        if matrix is None or matrix.shape != (3, 3):
            return None
        _, rotation, translation, mask = cv2.recoverPose(matrix, first, second, intrinsics, mask=mask.copy())
    except cv2.error:  # too few distinct points, or all on a line: no geometry
        return None
    return rotation, translation[:, 0], mask[:, 0] > 0


def _angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Degrees between unit directions, row by row."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(first - second, axis=1) / 2, 0, 1)))
