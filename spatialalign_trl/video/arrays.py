"""Define what a video is in this library: a `uint8` NumPy array of shape (frames, height, width, 3), RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Video: TypeAlias = npt.NDArray[np.uint8]
"""`uint8` array of shape (frames, height, width, 3), RGB."""


def check_video(video: Video, name: str = "video") -> Video:
    """
    Check that an array follows the video convention.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
            The array to check.
        name (`str`, *optional*, defaults to `"video"`):
            How the error message calls the array.

    Returns:
        `np.ndarray`: the video itself.

    Raises:
        TypeError: if it is not a `uint8` NumPy array.
        ValueError: if its shape is wrong or it is empty.
    """
    if not isinstance(video, np.ndarray):
        raise TypeError(
            f"{name} is a {type(video).__name__}, but a video is a uint8 NumPy array of shape "
            "(frames, height, width, 3)."
        )
    if video.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {video.dtype}, but a video is uint8. Scale it to 0..255 and cast it.")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"{name} has shape {video.shape}, but a video is (frames, height, width, 3) and not empty.")
    return video


def check_completions(completions: Sequence[Any]) -> None:
    """Check every video of a reward's input with [`check_video`]. Errors name its place, as in `completions[0]`."""
    for index, video in enumerate(completions):
        check_video(video, name=f"completions[{index}]")
