"""Videos for the page: every browser plays them, and large ones are averaged down so that more of them fit."""

from __future__ import annotations

import os

import av
import numpy as np

from ..video import Video, browser_mp4
from .drawing import enlarge

LOWEST, WIDEST = 128, 480
"""Pixels: lower videos are enlarged pixel by pixel, wider ones are averaged down."""

CRF = 23
PAPER_FPS = 16.0


def page_mp4(video: Video, fps: float) -> bytes:
    """The video as an mp4 of a size that a page shows side by side with others."""
    scale = WIDEST / video.shape[2]
    if scale < 1:
        video = np.stack([np.asarray(enlarge(frame, scale)) for frame in video])
    return browser_mp4(video, fps, min_height=LOWEST, crf=CRF)


def frame_rate(path: str | os.PathLike) -> float:
    """Frames per second as the file says, or the paper's where it says none or nonsense."""
    with av.open(os.fspath(path)) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate and 1 <= rate <= 120 else PAPER_FPS
