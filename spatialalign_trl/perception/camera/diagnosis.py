"""
Classify a video before estimating its camera: moving, turning, static, blank, noise, or cut.

A pose estimator cannot distinguish the degenerate kinds: it finds no poses in any of them, or poses that fit and mean
nothing (a static video has a perfect epipolar error). Changes are measured on frames `THUMBNAIL` pixels wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from spatialalign_trl.perception.camera.features import (
    MIN_MATCHES,
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
LINKS = 6
"""Number of evenly spaced pairs of frames whose geometry is estimated."""

VideoKind = Literal["moving", "turning", "static", "blank", "noise", "cut"]


class Diagnosis(NamedTuple):
    """
    The kind of a video.

    Args:
        kind (`str`):
            `"moving"`: the camera moves. `"turning"`: it only turns. `"static"`: nothing changes. `"blank"`: frames
            have no texture. `"noise"`: the texture is unrelated to that of the next frame. `"cut"`: parts of the video
            show different scenes.
        reason (`str`):
            An explanation with numbers.
        cut (`int`, *optional*):
            The first frame after the cut.
    """

    kind: VideoKind
    reason: str
    cut: int | None = None


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


def diagnose(video: Video, intrinsics: np.ndarray) -> Diagnosis:
    """
    Classify a video.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The clip.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            In pixels.

    Returns:
        [`Diagnosis`].

    Raises:
        `ImportError`: when OpenCV is missing.
    """
    changes = steps(video)
    picked = np.unique(np.linspace(0, len(video) - 1, LINKS + 1).round().astype(int))
    with repeatable():
        features = {int(frame): find_features(video[frame]) for frame in picked}
        # Blank and static videos need no geometry
        most = max(len(frame_features.pixels) for frame_features in features.values())
        if most < MIN_MATCHES:
            return Diagnosis("blank", f"no frame has more than {most} keypoints")
        if moving_share(changes) == 0:
            return Diagnosis("static", f"no step changes the picture by more than {STILL} grey levels")
        # Relate pairs of frames that span the video
        links, broken = [], []
        for first, last in zip(picked, picked[1:], strict=False):
            link = relate(features[int(first)], features[int(last)], intrinsics, video.shape[2])
            if link is None or not link.holds:
                # With a fast camera, frames far apart have little in common. Only a cut separates consecutive frames.
                step = int(first + changes[first:last].argmax())
                pair = [find_features(video[frame]) for frame in (step, step + 1)]
                link = relate(*pair, intrinsics, video.shape[2])
                if link is None or not link.holds:
                    broken.append(step + 1)
            links.append(link if link is not None and link.holds else None)

    # Choose the kind by the pairs that show the same scene
    holding = [link for link in links if link is not None]
    if len(holding) <= len(links) / 2:
        return Diagnosis("noise", f"of {len(links)} pairs of frames only {len(holding)} show the same things")
    if broken:
        return Diagnosis("cut", f"frame {broken[0]} has nothing to do with the one before", broken[0])
    if all(link.translation is None for link in holding):
        return Diagnosis("turning", f"a turn of the camera alone explains all {len(holding)} pairs of frames")
    return Diagnosis("moving", f"{len(holding)} of {len(links)} pairs of frames show one rigid scene")
