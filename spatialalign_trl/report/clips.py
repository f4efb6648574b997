"""Videos for the page: every browser plays them, and large ones are averaged down so that more of them fit."""

from __future__ import annotations

import io
import os

import av
import numpy as np
from PIL import Image

from spatialalign_trl.report.drawing import enlarge
from spatialalign_trl.video import Video, browser_mp4

LOWEST, WIDEST = 128, 480
"""Pixels: lower videos are enlarged pixel by pixel, wider ones are averaged down."""

STRIP_WIDTH = 144
"""Pixels of a frame in a strip."""

CRF = 23
PAPER_FPS = 16.0


def page_mp4(video: Video, fps: float) -> bytes:
    """The video as an mp4 of a size that a page shows side by side with others."""
    scale = WIDEST / video.shape[2]
    if scale < 1:
        video = np.stack([np.asarray(enlarge(frame, scale)) for frame in video])
    return browser_mp4(video, fps, min_height=LOWEST, crf=CRF)


def page_strip(video: Video, columns: int = 6) -> bytes:
    """Evenly spaced frames of a video in one row, as a small WebP: what a prompt gave beside its words."""
    times = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    width = video.shape[2]
    scale = STRIP_WIDTH / width if width > STRIP_WIDTH else max(1, STRIP_WIDTH // width)
    strip = np.concatenate([np.asarray(enlarge(video[time], scale)) for time in times], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def frame_rate(path: str | os.PathLike) -> float:
    """Frames per second as the file says, or the paper's where it says none or nonsense."""
    with av.open(os.fspath(path)) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate and 1 <= rate <= 120 else PAPER_FPS
