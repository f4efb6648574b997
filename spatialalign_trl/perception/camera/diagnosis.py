"""
What kind of video it is, before anybody asks where its camera stood: static, a pan, blank, noise, or cut.

These look alike to a pose estimator, which finds nothing in all of them, or finds something that fits and means
nothing (a still video has a perfect epipolar error). Frames are compared at a width of `THUMBNAIL` pixels.
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
"""Grey levels by which neighbouring thumbnails differ at most where nothing moves; compression leaves less."""
CUT_RATIO = 6.0
"""A step that changes the picture this many times as much as the others do is no movement."""
LINKS = 6
"""Pairs of frames, evenly spaced, whose geometry is looked at."""

VideoKind = Literal["moving", "turning", "static", "blank", "noise", "cut"]


class Diagnosis(NamedTuple):
    """
    What kind of video it is.

    Args:
        kind (`str`):
            `"moving"`: the camera moves. `"turning"`: it turns and does not move. `"static"`: nothing changes.
            `"blank"`: frames without texture. `"noise"`: texture that has nothing to do with the next frame's.
            `"cut"`: parts that show different things.
        reason (`str`): In words, with numbers.
        cut (`int`, *optional*): The first frame after the cut.
    """

    kind: VideoKind
    reason: str
    cut: int | None = None


def steps(video: Video) -> np.ndarray:
    """Mean absolute change from frame to frame `(frames - 1,)`, in grey levels of thumbnails."""
    cv2 = opencv()
    height = max(8, round(THUMBNAIL * video.shape[1] / video.shape[2]))
    small = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (THUMBNAIL, height), interpolation=cv2.INTER_AREA)
        for frame in video
    ]
    return np.abs(np.diff(np.array(small, np.float32), axis=0)).mean(axis=(1, 2))


def moving_share(changes: np.ndarray) -> float:
    """Share of the steps in which something moves."""
    return float((changes > STILL).mean()) if len(changes) else 0.0


def cut_factor(changes: np.ndarray) -> float:
    """
    1 for a video in one piece, towards 0 the more one step stands out: `exp(-(ratio - 6) / 6)` where the largest step
    is `ratio` times the median of those that move.
    """
    moving = changes[changes > STILL]
    if not len(moving):
        return 1.0
    # The largest steps themselves are left out of the median: a clip of few moving steps would excuse its own cut.
    usual = max(float(np.median(np.sort(moving)[: max(1, len(moving) - 1)])), 2 * STILL)
    return float(np.exp(-max(moving.max() / usual - CUT_RATIO, 0.0) / CUT_RATIO))


def flat_share(video: Video, intrinsics: np.ndarray) -> float | None:
    """
    How well one picture, shifted and enlarged, explains the video: of the keypoints that frames a third of the clip
    apart share, the share that one 2-D similarity explains, the median over the pairs that differ by 1 % of the width.

    Near 1 for a zoom into a still, which pose estimators take for a walk towards a wall. A camera that moves through a
    room, or turns, bends and shears what it sees.

    Returns:
        `float` or `None`: in [0, 1]; `None` where no pair moves, or shows the same things.
    """
    cv2 = opencv()
    picked = np.unique(np.linspace(0, len(video) - 1, 4).round().astype(int))
    width, shares = video.shape[2], []
    with repeatable():
        features = [find_features(video[frame]) for frame in picked]
        for first, second in zip(features, features[1:], strict=False):
            found = relate(first, second, intrinsics, width)
            if found is None or not found.holds or found.displacement < 0.01:
                continue
            before, after = first.pixels[found.matches[:, 0]], second.pixels[found.matches[:, 1]]
            _, inliers = cv2.estimateAffinePartial2D(before, after, ransacReprojThreshold=tolerance(width))
            shares.append(0.0 if inliers is None else float(inliers.mean()))
    return float(np.median(shares)) if shares else None


def diagnose(video: Video, intrinsics: np.ndarray) -> Diagnosis:
    """
    Tell what kind of video it is.

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
        most = max(len(one.pixels) for one in features.values())
        if most < MIN_MATCHES:
            return Diagnosis("blank", f"no frame has more than {most} keypoints")
        if moving_share(changes) == 0:
            return Diagnosis("static", f"no step changes the picture by more than {STILL} grey levels")
        links, broken = [], []
        for first, last in zip(picked, picked[1:], strict=False):
            link = relate(features[int(first)], features[int(last)], intrinsics, video.shape[2])
            if link is None or not link.holds:
                # A fast camera leaves little in common over several frames; a cut leaves nothing over one.
                step = int(first + changes[first:last].argmax())
                pair = [find_features(video[frame]) for frame in (step, step + 1)]
                link = relate(*pair, intrinsics, video.shape[2])
                if link is None or not link.holds:
                    broken.append(step + 1)
            links.append(link if link is not None and link.holds else None)
    holding = [link for link in links if link is not None]
    if len(holding) <= len(links) / 2:
        return Diagnosis("noise", f"of {len(links)} pairs of frames only {len(holding)} show the same things")
    if broken:
        return Diagnosis("cut", f"frame {broken[0]} has nothing to do with the one before", broken[0])
    if all(link.translation is None for link in holding):
        return Diagnosis("turning", f"a turn of the camera alone explains all {len(holding)} pairs of frames")
    return Diagnosis("moving", f"{len(holding)} of {len(links)} pairs of frames show one rigid scene")
