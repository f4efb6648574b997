"""How sharp a video's frames are, without knowing what they show: the guard `frames` and the reward `sharpness`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spatialalign_trl.video import Video


def video_sharpness(video: Video) -> float:
    """
    Root mean square difference of neighbouring pixels of a frame.

    It falls when the picture blurs and rises when it dissolves into noise. Squared, because the sum of absolute
    differences across an edge is its height however wide the blur.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`, or `int16` as its differences need it):
            The video, in 0..255.

    Returns:
        `float`: in [0, 1]; 0 where a frame is one pixel.
    """
    pixels = video.astype(np.int16, copy=False)  # exact, and half of float32: a Wan clip has 97 million values
    squares = [np.square(step, dtype=np.float32).mean() for step in _inner_steps(pixels)]
    return float(np.sqrt(np.mean(squares))) / 255.0 if squares else 0.0


def _inner_steps(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Differences of neighbours along a frame's height and width, where it has neighbours."""
    return (np.diff(pixels, axis=axis) for axis in (1, 2) if pixels.shape[axis] > 1)
