"""Encode videos for the page, so that every browser plays them and large ones leave room for others."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from spatialalign_trl.report.drawing import enlarge
from spatialalign_trl.video import Video, browser_mp4, playable_fps

LOWEST, WIDEST = 128, 480
"""Limits in pixels: videos lower than `LOWEST` are enlarged pixel by pixel, wider ones than `WIDEST` averaged down."""

STRIP_WIDTH = 144
"""Width of a frame in a strip, in pixels."""

CRF = 23


def page_mp4(video: Video, fps: float) -> bytes:
    """Encode a video as an mp4 small enough to be shown side by side with others.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`): The video.
        fps (`float`): Frames per second.
    """
    scale = WIDEST / video.shape[2]
    if scale < 1:
        video = np.stack([np.asarray(enlarge(frame, scale)) for frame in video])
    return browser_mp4(video, playable_fps(fps), min_height=LOWEST, crf=CRF)


def page_strip(video: Video, columns: int = 6) -> bytes:
    """Encode evenly spaced frames of a video in one row as a small WebP, for videos that belong to a prompt.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`): The video.
        columns (`int`, *optional*, defaults to 6): Number of frames; a shorter video shows all its frames.
    """
    times = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    width = video.shape[2]
    scale = STRIP_WIDTH / width if width > STRIP_WIDTH else max(1, STRIP_WIDTH // width)
    strip = np.concatenate([np.asarray(enlarge(video[time], scale)) for time in times], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
