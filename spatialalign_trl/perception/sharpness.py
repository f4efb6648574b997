"""Measure how sharp the frames of a video are, for the guard `frames` and the reward `sharpness`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spatialalign_trl.video import Video


def video_sharpness(video: Video) -> float:
    """
    Return the root mean square difference of neighbouring pixels of a video's frames.

    It falls when the frames blur and rises when they dissolve into noise. The differences are squared because the sum
    of absolute differences across an edge equals the height of the edge, however wide the blur.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8` or `int16`):
            The video, in 0..255. `int16` saves the conversion.

    Returns:
        `float`: in [0, 1]; 0 for frames of a single pixel.
    """
    pixels = video.astype(np.int16, copy=False)  # exact, and half of float32: a Wan clip has 97 million values
    squares = [np.square(step, dtype=np.float32).mean() for step in _neighbour_differences(pixels)]
    return float(np.sqrt(np.mean(squares))) / 255.0 if squares else 0.0


def _neighbour_differences(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the differences of neighbouring pixels along height and width, unless that side is a single pixel."""
    return (np.diff(pixels, axis=axis) for axis in (1, 2) if pixels.shape[axis] > 1)
