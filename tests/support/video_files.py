"""Make small video files of every kind that people bring, and say which frames a reader found in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import numpy as np

FRAMES, HEIGHT, WIDTH = 17, 144, 192
"""More pixels than `SMALL_FRAME`, so that the decoder starts threads."""

# Container, encoder and pixel format of the formats that people bring most.
CODECS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "mov": ("mov", "libx264", "yuv420p"),
    "webm": ("webm", "libvpx-vp9", "yuv420p"),
    "mkv": ("matroska", "libx264", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "ts": ("mpegts", "libx264", "yuv420p"),
    "flv": ("flv", "flv1", "yuv420p"),
    "hevc": ("mp4", "libx265", "yuv420p10le"),
    "prores": ("mov", "prores_ks", "yuv422p10le"),
    "vp8": ("webm", "libvpx", "yuv420p"),
    "apng": ("apng", "apng", "rgb24"),
}


def clip(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A clip in which every frame differs from every other, and which is neither symmetrical nor square."""
    video = np.full((frames, height, width, 3), 40, np.uint8)
    video[..., 2] = np.linspace(0, 200, width, dtype=np.uint8)
    for i in range(frames):
        left = i * (width - 40) // max(1, frames - 1)
        video[i, height // 4 : height // 4 + 40, left : left + 40] = (220, 60, 30)
    return video


def encode(
    video: np.ndarray,
    kind: str = "mp4",
    rate: int | Fraction = 8,
    *,
    places: Sequence[int] | None = None,
    end: int | None = None,
    options: Mapping[str, str] | None = None,
    muxer: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a clip in one of `CODECS`. Frame k is shown from step `places[k]` on, by default k, and the last one
    until step `end`, if it is given; a step is 1/rate."""
    container_format, codec, pixels = CODECS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format, options=dict(muxer or {})) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = 1 / Fraction(rate)
        if codec == "libx265":
            options = {"x265-params": "log-level=none", **(options or {})}
        stream.options = dict(options or {})
        places, packets = list(range(len(video)) if places is None else places), []
        for place, pixels_of_frame in zip(places, video, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of_frame), format="rgb24")
            frame.pts, frame.time_base = place, stream.codec_context.time_base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if end is not None:  # then each packet says how long it is shown
            for packet in packets:
                place = round(packet.pts * packet.time_base * Fraction(rate))
                following = [*places, end][places.index(place) + 1]
                packet.duration = round((following - place) / Fraction(rate) / packet.time_base)
        container.mux(packets)
    return buffer.getvalue()


def shown_frames(decoded: np.ndarray, video: np.ndarray) -> list[int]:
    """For each decoded frame, the frame of the clip that it resembles most."""
    small = video[:, ::4, ::4].astype(int)
    return [int(np.abs(small - frame[::4, ::4]).mean(axis=(1, 2, 3)).argmin()) for frame in decoded]


def with_matrix(data: bytes, a: float, b: float, c: float, d: float, x: float = 0, y: float = 0) -> bytes:
    """An mp4 whose picture has the display matrix ((a, b), (c, d)) and the offset (x, y), in place of the identity."""
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    at = data.find(identity, data.find(b"tkhd"))
    fixed = [round(65536 * number) for number in (a, b, 0, c, d, 0, x, y)]
    return data[:at] + struct.pack(">9i", *fixed, 1 << 30) + data[at + 36 :]


def trimmed(data: bytes, first: int, count: int, rate: int) -> bytes:
    """An mp4 or mov that shows `count` frames from `first` on. Its edit list hides the others, which stay in it."""
    at = data.find(b"elst") + 4
    version, entries = data[at], int.from_bytes(data[at + 4 : at + 8], "big")
    assert (version, entries) == (0, 1)
    movie = data.find(b"mvhd") + 4
    movie_scale = int.from_bytes(data[movie + 12 : movie + 16], "big")
    media = data.find(b"mdhd") + 4
    media_scale = int.from_bytes(data[media + 12 : media + 16], "big")
    start = int.from_bytes(data[at + 12 : at + 16], "big") + first * media_scale // rate
    entry = struct.pack(">II", count * movie_scale // rate, start)
    return data[:at] + data[at : at + 8] + entry + data[at + 16 :]
