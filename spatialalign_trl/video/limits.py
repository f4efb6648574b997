"""Limit how many pixels a video may decode to: a file of a few kilobytes may contain more than fits into memory."""

from __future__ import annotations

import os

from spatialalign_trl.video.errors import VideoError, unreadable

MAX_PIXELS = 1 << 30
"""Largest frames x height x width of a clip by default: 3.2 GB of RGB, 9 times 129 frames of 720x1280."""

SETTING = "SPATIALALIGN_MAX_PIXELS"
"""The environment variable that replaces `MAX_PIXELS`, in every command and in the reward server."""


def max_pixels() -> int:
    """
    Return the largest frames x height x width that a clip may decode to.

    Raises:
        ValueError: if the environment variable is not a whole number above 0.
    """
    text = os.environ.get(SETTING, "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{SETTING}={text!r}: must be a whole number above 0. Unset it for {MAX_PIXELS}.")
    return int(text)


def largest_frame() -> int:
    """Return the largest height x width of a frame, which FFmpeg takes as its option `max_pixels`."""
    return min(max_pixels(), (1 << 31) - 1)


def check_pixels(frames: int, height: int, width: int, name: str, max_bytes: int | None = None) -> None:
    """
    Check that a clip stays within the limits, before memory is taken for it.

    Args:
        frames, height, width (`int`):
            What the clip decodes to.
        name (`str`):
            How the error calls it.
        max_bytes (`int`, *optional*):
            Another limit, on the bytes of its RGB frames.

    Raises:
        VideoError: if it is larger.
    """
    pixels, limit = frames * height * width, max_pixels()
    if max_bytes is not None and 3 * pixels > max_bytes:
        raise VideoError(f"{name} has more than {max_bytes} bytes of pixels. Send a shorter or smaller video.")
    if pixels > limit:
        raise unreadable(
            name,
            f"it decodes to {frames} frames of {width}x{height}, {pixels} pixels in all, but the limit is {limit}. "
            f"Cut or scale it, or raise the limit with the environment variable {SETTING}",
        )
