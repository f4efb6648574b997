"""
Detect static videos, cuts, and zooms into a still image.

A pose estimator cannot detect them: it finds no poses, or poses that fit and mean nothing (a static video has a
perfect epipolar error). Changes are measured on frames `THUMBNAIL` pixels wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialalign_trl.perception.camera.features import (
    find_features,
    opencv,
    relate,
    repeatable,
    tolerance,
)

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

THUMBNAIL = 64
STILL = 0.4
"""Largest mean change in grey levels between consecutive thumbnails of a static video; compression causes less."""
CUT_RATIO = 6.0
"""A step that changes the frame by more than this many times the usual change is a cut, not motion."""


def steps(video: Video) -> np.ndarray:
    """Return the mean absolute change from frame to frame `(frames - 1,)`, in grey levels of thumbnails."""
    cv2 = opencv()
    height = max(8, round(THUMBNAIL * video.shape[1] / video.shape[2]))
    thumbnails = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (THUMBNAIL, height), interpolation=cv2.INTER_AREA)
        for frame in video
    ]
    return np.abs(np.diff(np.array(thumbnails, np.float32), axis=0)).mean(axis=(1, 2))


def moving_share(changes: np.ndarray) -> float:
    """Return the share of the steps with motion, from the changes returned by [`steps`]."""
    return float((changes > STILL).mean()) if len(changes) else 0.0


def cut_factor(changes: np.ndarray) -> float:
    """
    Return 1 for a video without cuts, and less the more the largest step stands out: `exp(-(ratio - 6) / 6)`, where
    `ratio` is the largest step divided by the median of the steps with motion.

    Args:
        changes (`np.ndarray` of shape `(frames - 1,)`):
            The result of [`steps`].

    Returns:
        `float`: in (0, 1].
    """
    moving = changes[changes > STILL]
    if not len(moving):
        return 1.0
    # Leave the largest step out of the median. Otherwise the cut of a clip with few moving steps would seem usual.
    usual = max(float(np.median(np.sort(moving)[: max(1, len(moving) - 1)])), 2 * STILL)
    return float(np.exp(-max(moving.max() / usual - CUT_RATIO, 0.0) / CUT_RATIO))


def flat_share(video: Video, intrinsics: np.ndarray) -> float | None:
    """
    Measure how well a single image, shifted and enlarged, explains the video.

    For pairs of frames a third of the clip apart that differ by at least 1 % of the width, this is the share of their
    common keypoints that one 2-D similarity explains; the median over the pairs. It is near 1 for a zoom into a still
    image, which pose estimators take for a camera that approaches a wall. A camera that moves through a room or turns
    distorts the image more than a similarity can.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.

    Returns:
        `float` or `None`: in [0, 1]; `None` if there is no pair with motion and common content.

    Raises:
        `ImportError`: when OpenCV is missing.
    """
    cv2 = opencv()
    picked = np.unique(np.linspace(0, len(video) - 1, 4).round().astype(int))
    width, shares = video.shape[2], []
    with repeatable():
        features = [find_features(video[frame]) for frame in picked]
        for first, second in zip(features, features[1:], strict=False):
            relation = relate(first, second, intrinsics, width)
            if relation is None or not relation.holds or relation.displacement < 0.01:
                continue
            before, after = first.pixels[relation.matches[:, 0]], second.pixels[relation.matches[:, 1]]
            _, inliers = cv2.estimateAffinePartial2D(before, after, ransacReprojThreshold=tolerance(width))
            shares.append(0.0 if inliers is None else float(inliers.mean()))
    return float(np.median(shares)) if shares else None
