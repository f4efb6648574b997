"""Helpers for rewards that look at single frames: which frames to take, and how many at a time."""

from collections.abc import Iterator

import numpy as np

from spatialalign_trl.video import Video


def evenly_spaced(video: Video, count: int | None) -> Video:
    """Return `count` frames, evenly spaced from the first to the last; all frames for `None` or a larger count."""
    if count is None or count >= len(video):
        return video
    return video[np.linspace(0, len(video) - 1, count).round().astype(int)]


def in_batches(frames: Video, size: int) -> Iterator[list[np.ndarray]]:
    """Yield the frames in lists of `size`."""
    for start in range(0, len(frames), size):
        yield list(frames[start : start + size])


def check_counts(**counts: int | None) -> None:
    """Raise a `ValueError` that names the first number below 1; `None` is allowed and means all."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1.")
