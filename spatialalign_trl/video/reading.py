"""Read videos: one reader for every file that people bring, whatever reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from spatialalign_trl.video.arrays import Video
from spatialalign_trl.video.containers import OpenVideo, open_video, shown_times
from spatialalign_trl.video.errors import VideoError, unreadable
from spatialalign_trl.video.limits import check_pixels, largest_frame
from spatialalign_trl.video.orientation import turns_of, upright
from spatialalign_trl.video.timing import Timing, find_timing

SMALL_FRAME = 128 * 128
"""Number of pixels up to which starting decoder threads takes longer than decoding without them."""

_FRAME_PER_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "gif", "apng")
"""Decoders that make one frame of each packet. Others (vp8) have packets that only help to decode."""


class TimedVideo(NamedTuple):
    """A video of shape (frames, height, width, 3), `uint8`, and its frames per second."""

    video: Video
    fps: float


def read_video(source: str | os.PathLike | bytes, max_bytes: int | None = None) -> Video:
    """
    Read all frames of a video as players show them: upright, and at one frame rate.

    Args:
        source (`str`, `os.PathLike` or `bytes`):
            The path of a video file, or its content.
        max_bytes (`int`, *optional*):
            Largest size of the frames in bytes, in addition to the limit of every video (`SPATIALALIGN_MAX_PIXELS`).

    Returns:
        `np.ndarray` of shape (frames, height, width, 3), `uint8`: the video.

    Raises:
        MissingVideoError: if the file does not exist. It is a `FileNotFoundError` as well.
        VideoError: if the file is not a readable video, truncated, damaged, or too large. The message names it.
    """
    return read_timed_video(source, max_bytes).video


def read_timed_video(source: str | os.PathLike | bytes, max_bytes: int | None = None) -> TimedVideo:
    """Read all frames of a video, and its frame rate. Arguments and errors are those of [`read_video`]."""
    with open_video(source) as file:
        # 1. Check the size before memory is taken for it.
        _check_size(file, max_bytes)

        # 2. Decode
        video, times, end = _decode(file, max_bytes)

        # 3. Repeat the frames that a file with a variable frame rate shows for longer.
        timing = find_timing(times, end, _rates(file.stream))
        if timing.indices is not None:
            check_pixels(len(timing.indices), *video.shape[1:3], file.name, max_bytes)
            video = video[timing.indices]
        return TimedVideo(video, timing.fps)


def read_fps(source: str | os.PathLike | bytes) -> float:
    """Read the frame rate of a video and check that the file is complete, without decoding it.

    Arguments and errors are those of [`read_video`]. Damage inside a frame is not noticed."""
    with open_video(source) as file:
        return _check_size(file, None).fps


def check_video_file(content: bytes, name: str) -> bytes:
    """Return the content of a file if it is a complete video (nothing is decoded), else raise a `VideoError`."""
    try:
        with open_video(content):
            return content
    except VideoError as error:
        reason = str(error).removeprefix(f"<{len(content)} bytes>").strip()
        raise VideoError(
            f"{name} is not a video file, so it is neither copied nor published. Remove it. It {reason}"
        ) from error


def _check_size(file: OpenVideo, max_bytes: int | None) -> Timing:
    """Check how many pixels a file will decode to, by its packets, and return when these are shown."""
    height, width = file.stream.codec_context.height, file.stream.codec_context.width
    check_pixels(len(file.shown), height, width, file.name, max_bytes)
    last = max(file.shown, key=lambda packet: packet.pts or 0)
    times = shown_times(file.shown)
    end = None if not times else _end(file, times, last.duration or 0)
    timing = find_timing(times, end, _rates(file.stream))
    if timing.indices is not None:
        check_pixels(len(timing.indices), height, width, file.name, max_bytes)
    return timing


def _end(file: OpenVideo, times: list[float], last_duration: int) -> float:
    """Return the second at which the last frame ends."""
    # Containers store how long a packet is the last one in decoding order. With B-frames that may be too long.
    stream, end = file.stream, times[-1] + float(last_duration * file.stream.time_base)
    whole = [] if stream.duration is None else [float(stream.duration * stream.time_base)]
    whole += [] if file.duration is None else [file.duration]
    return min([end, *(times[0] + duration for duration in whole)])


def _rates(stream: av.VideoStream) -> list[float]:
    """Return the frame rates that the header names."""
    return [float(rate) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]


def decode_frames(file: OpenVideo) -> Iterator[tuple[av.VideoFrame, np.ndarray]]:
    """
    Decode the frames of an open video one by one.

    Args:
        file ([`OpenVideo`]):
            The video.

    Returns:
        `Iterator[tuple[av.VideoFrame, np.ndarray]]`: each stored frame, and its RGB pixels of shape (height, width, 3)
        as they are shown, which may be a view.

    Raises:
        VideoError: for a damaged frame, or one of another size.
    """
    context = file.stream.codec_context
    if context.width * context.height <= SMALL_FRAME:
        context.thread_count = 1
    else:
        context.thread_type = "AUTO"
    context.options = {"max_pixels": str(largest_frame())}  # the stream may differ from the header
    # One reformatter for all frames: creating one takes longer than converting a small frame.
    to_rgb = VideoReformatter()
    size, number = None, 0
    # Where transport streams were joined, the demuxer marks a packet, and the decoder its frame, which is sound.
    joints = {packet.pts for packet in file.packets if packet.is_corrupt}
    for packet in [*file.packets, None]:  # None makes the decoder return what it still holds
        for frame in context.decode(packet):
            size = size or (frame.width, frame.height)
            if frame.is_corrupt and frame.pts not in joints:
                reason = f"it is damaged, frame {number} cannot be decoded. Download or make it again"
                raise unreadable(file.name, reason)
            if (frame.width, frame.height) != size:
                sizes = f"{frame.width}x{frame.height}, the first one {size[0]}x{size[1]}"
                raise unreadable(file.name, f"its size changes, frame {number} is {sizes}. Encode it at one size")
            yield frame, upright(to_rgb.reformat(frame, format="rgb24").to_ndarray(), turns_of(frame, file.name))
            number += 1


def _decode(file: OpenVideo, max_bytes: int | None) -> tuple[Video, list[float] | None, float | None]:
    """Return all frames, the second at which each is shown, and the second at which the last one ends."""
    video, stamps = np.empty((0, 0, 0, 3), np.uint8), []
    last_duration, is_interlaced = 0, False
    for frame, pixels in decode_frames(file):
        count = len(stamps)
        if count == len(video):  # at first; and some packets contain several frames
            capacity = max(1, len(file.shown), 2 * count)
            check_pixels(capacity, frame.height, frame.width, file.name, max_bytes)  # the header may be wrong
            larger = np.empty((capacity, *pixels.shape), np.uint8)
            larger[:count] = video.reshape(count, *pixels.shape)
            video = larger
        video[count] = pixels
        stamps.append(frame.pts)
        last_duration, is_interlaced = frame.duration or 0, is_interlaced or frame.interlaced_frame
    if not stamps:
        raise unreadable(file.name, "it is damaged, none of its frames can be decoded. Download or make it again")
    if file.stream.codec_context.name in _FRAME_PER_PACKET and not is_interlaced:
        _check_decoded(file, stamps)
    video = video[: len(stamps)]
    if None in stamps:
        return video, None, None
    times = [float(stamp * file.stream.time_base) for stamp in stamps]
    return video, times, _end(file, times, last_duration)


def _check_decoded(file: OpenVideo, stamps: list[int | None]) -> None:
    """Raise a `VideoError` if packets after the first frame were not decoded: threads lose the decoder's errors."""
    if None in stamps:
        return
    expected = {packet.pts for packet in file.shown if packet.pts is not None and packet.pts >= stamps[0]}
    missing = len(expected.difference(stamps))
    if missing:
        reason = f"it is damaged, {missing} of its {len(expected)} frames cannot be decoded"
        raise unreadable(file.name, f"{reason}. Download or make it again")
