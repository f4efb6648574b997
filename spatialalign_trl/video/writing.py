"""Encode videos as mp4 files: exactly, or as every browser plays them."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from spatialalign_trl.files import write_atomic
from spatialalign_trl.video.arrays import Video, check_video

SAME_BYTES = {"threads": "4", "x264-params": "bframes=0"}
"""x264 options that make the encoder deterministic.

With B-frames, x264's macroblock tree reads uninitialised memory, and the output depends on the number of threads (by
default the machine's): the frames that a reward sees would change from process to process. Without the tree, frames of
a motionless video differ slightly from each other."""

ONE_MACROBLOCK = {"threads": "4", "x264-params": "bframes=0:mbtree=0"}
"""The options for frames of one macroblock: their tree reads uninitialised memory without B-frames, too."""


def encode_video(video: Video, fps: float, crf: int = 18) -> bytes:
    """
    Encode a video as H.264 in an mp4. The same video gives the same bytes in every process.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
            The video.
        fps (`float`):
            Frames per second, above 0.
        crf (`int`, *optional*, defaults to `18`):
            Constant rate factor, 0 to 51; lower is better. 0 is lossless and keeps RGB (`libx264rgb`; exact, any size,
            but not every browser plays it). Above 0 the colours are stored at half resolution (yuv420p), which every
            player supports and which needs an even height and width.

    Returns:
        `bytes`: the mp4 file.

    Raises:
        TypeError: if `video` is not a `uint8` array.
        ValueError: if its shape breaks the convention or is odd at `crf > 0`, or if `fps` or `crf` is out of range.
    """
    check_video(video)
    if not fps > 0:
        raise ValueError(f"fps is {fps}, but it must be above 0.")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}, but x264 takes 0 (lossless) to 51.")
    _, height, width, _ = video.shape
    if crf > 0 and (height % 2 or width % 2):
        raise ValueError(
            f"the video is {width}x{height} pixels, but yuv420p needs an even width and height. "
            "Crop it, or use crf=0 (lossless RGB)."
        )
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        codec = "libx264" if crf > 0 else "libx264rgb"
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if crf > 0 else "rgb24"
        # Lossless encoding is exact at any preset. "veryfast" takes half the time and adds a few per cent to the size.
        same_bytes = ONE_MACROBLOCK if max(height, width) <= 16 else SAME_BYTES
        stream.options = {"crf": str(crf), **same_bytes, **({} if crf else {"preset": "veryfast"})}
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))  # flush the frames that the encoder still buffers
    return buffer.getvalue()


def write_video(path: str | os.PathLike, video: Video, fps: float, crf: int = 18) -> Path:
    """Encode a video and write it to a file atomically, as [`encode_video`] and [`write_atomic`] do."""
    return write_atomic(path, encode_video(video, fps, crf))


def browser_mp4(video: Video, fps: float, min_height: int = 240, crf: int = 20) -> bytes:
    """
    Encode a video so that every browser plays it: H.264 in yuv420p, with even sides and tiny frames enlarged.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
            The video.
        fps (`float`):
            Frames per second, above 0.
        min_height (`int`, *optional*, defaults to `240`):
            Height in pixels. Lower frames are enlarged by the smallest whole factor that reaches it. Each pixel
            becomes a square, so nothing is interpolated. 1 keeps the size.
        crf (`int`, *optional*, defaults to `20`):
            Constant rate factor, 1 to 51; lower is better and larger.

    Returns:
        `bytes`: the mp4 file.

    Raises:
        TypeError: if `video` is not a `uint8` array.
        ValueError: if its shape breaks the convention, or if `fps` or `crf` is out of range.
    """
    check_video(video)
    if crf == 0:
        raise ValueError("crf is 0, which is lossless RGB. Not every browser plays it. Use 1 to 51.")
    factor = max(1, -(-min_height // video.shape[1]))
    enlarged = video.repeat(factor, axis=1).repeat(factor, axis=2)
    # Repeat an odd last row or column instead of cutting it off: boxes drawn over the clip keep their place.
    padding = [(0, side % 2) for side in enlarged.shape[1:3]]
    return encode_video(np.pad(enlarged, ((0, 0), *padding, (0, 0)), mode="edge"), fps, crf)
