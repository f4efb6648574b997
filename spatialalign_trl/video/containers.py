"""Open a video file: which formats are read, which of its streams is the video, and whether the file is complete.

The content of a file decides how FFmpeg reads it, and some formats name other files or addresses. Only the formats in
`FORMATS` are read, FFmpeg gets the open file instead of a path, and nothing else can be opened through it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av

from spatialalign_trl.video.errors import MissingVideoError, VideoError, unreadable
from spatialalign_trl.video.kinds import HEAD_BYTES, other_kind
from spatialalign_trl.video.limits import largest_frame
from spatialalign_trl.video.structure import check_structure

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,ogg,asf,nut,mxf,dv,"
    "gif,apng,yuv4mpegpipe"
)
"""FFmpeg's names of what is read. Playlists and picture lists (hls, concat, sdp, image2) are not: they name others."""

_DURATION_FORMATS = ("matroska", "flv", "mxf")
"""Formats that announce a duration, but no number of frames."""


@dataclass(frozen=True, eq=False)
class OpenVideo:
    """
    A video file that is open, complete as far as its container can tell, and not decoded yet.

    Attributes:
        name (`str`): How errors call it.
        stream (`av.VideoStream`): The stream that is the video.
        packets (`list[av.Packet]`): Its packets in decoding order, hidden ones included.
        is_only_video (`bool`): Whether the file has no other video stream.
        format (`str`): FFmpeg's name of the container.
        duration (`float`, *optional*): Seconds that the container announces.
    """

    name: str
    stream: av.VideoStream
    packets: list[av.Packet]
    is_only_video: bool
    format: str
    duration: float | None

    @property
    def shown(self) -> list[av.Packet]:
        """The packets that are shown: a losslessly trimmed file (edit list) has others, which are only decoded."""
        return [packet for packet in self.packets if packet.size and not packet.is_discard]


@contextmanager
def open_video(source: str | os.PathLike | bytes) -> Iterator[OpenVideo]:
    """
    Open a video file and check that it is one, and complete.

    Args:
        source (`str`, `os.PathLike` or `bytes`):
            The path of a video file, or its content.

    Returns:
        Context manager of an [`OpenVideo`].

    Raises:
        MissingVideoError: if the file does not exist.
        VideoError: if it is no readable video, or truncated. Errors in decoding inside the block become one, too.
    """
    name, file = _open_file(source)
    with file:
        kind = other_kind(file.read(HEAD_BYTES))
        if kind is not None:
            raise unreadable(name, f"it is {kind}")
        is_complete = check_structure(file, name)
        try:
            with _open_container(file) as container:
                tracks = _read_packets(container)
                stream = _choose_stream(container, tracks, name)
                video = OpenVideo(
                    name=name,
                    stream=stream,
                    packets=tracks[stream.index],
                    is_only_video=len(container.streams.video) == 1,
                    format=container.format.name,
                    duration=None if container.duration is None else container.duration / av.time_base,
                )
                if not video.shown:
                    raise unreadable(name, "it has no frames. It may be truncated. Make it again")
                if not is_complete:
                    _check_packets(file, video, tracks)
                yield video
        except av.FFmpegError as error:
            raise unreadable(name, f"{_words(error)}. It may be truncated. Make it again") from error


def _open_file(source: str | os.PathLike | bytes) -> tuple[str, BinaryIO]:
    """Return how errors call a file, and the open file."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>", io.BytesIO(source)
    name = os.fspath(source)
    if not os.path.isfile(name):  # a pipe would block
        target = f" (it is a link to {os.readlink(name)})" if os.path.islink(name) else ""
        what = "it is not a file" if os.path.exists(name) else f"there is no such video file{target}"
        raise MissingVideoError(f"{name}: {what}.")
    try:
        return name, Path(name).open("rb")
    except OSError as error:
        raise VideoError(f"{name} cannot be read: {error.strerror}.") from error


def _open_container(file: BinaryIO, **options: str) -> Any:
    """Open FFmpeg's demuxer on an open file."""
    file.seek(0)
    # FFmpeg also passes these options to the decoders that it looks at the first frames with: they must not take the
    # memory of frames that are too large.
    options |= {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "none",
        "max_pixels": str(largest_frame()),
    }
    return av.open(file, mode="r", options=options, metadata_errors="replace")


def _read_packets(container: Any) -> dict[int, list[av.Packet]]:
    """Return the packets of every stream by its index."""
    tracks: dict[int, list[av.Packet]] = {stream.index: [] for stream in container.streams}
    for packet in container.demux():
        if packet.size or packet.dts is not None:  # FFmpeg ends with an empty packet per stream
            tracks[packet.stream_index].append(packet)
    return tracks


def _choose_stream(container: Any, tracks: dict[int, list[av.Packet]], name: str) -> av.VideoStream:
    """Return the stream that a player shows: not a cover or a preview, but the largest moving picture."""
    streams = [stream for stream in container.streams.video if not _is_picture(stream)]
    if not streams:
        kind = "an audio file" if container.streams.audio else "a file without pictures that move"
        raise unreadable(name, f"it has no video stream, it is {kind}")
    readable = [stream for stream in streams if stream.codec_context is not None and stream.codec_context.width]
    if not readable:
        raise unreadable(
            name,
            "its header is damaged or truncated, or its codec cannot be decoded here. Download it again, or encode it "
            "with H.264",
        )
    longest = max(len(tracks[stream.index]) for stream in readable)

    def rank(stream: av.VideoStream) -> tuple[bool, int, int]:
        is_long = 2 * len(tracks[stream.index]) > longest  # pictures and slides have fewer frames
        return is_long, stream.codec_context.width * stream.codec_context.height, -stream.index

    return max(readable, key=rank)


def _is_picture(stream: av.VideoStream) -> bool:
    """Return whether a stream is the cover or thumbnails of its file."""
    disposition = av.stream.Disposition
    return bool(stream.disposition & (disposition.attached_pic | disposition.timed_thumbnails))


def _check_packets(file: BinaryIO, video: OpenVideo, tracks: dict[int, list[av.Packet]]) -> None:
    """Raise a `VideoError` if the file has less data than its container announces."""
    if video.packets and video.packets[-1].is_corrupt:
        raise unreadable(video.name, "it is truncated, it ends inside a frame. Download or make it again")
    announced, found = video.stream.frames, len(video.packets)
    if found < announced and video.format.startswith("mov"):
        # Edit lists hide frames of complete files, so count without them.
        with _open_container(file, ignore_editlist="1") as container:
            found = len(_read_packets(container)[video.stream.index])
    if found < announced:
        raise unreadable(
            video.name,
            f"it is truncated, its header announces {announced} frames, but it contains {found}. Download or make it "
            "again",
        )
    if video.duration and video.format.startswith(_DURATION_FORMATS):
        end = max(map(_end, (packet for packets in tracks.values() for packet in packets)), default=0.0)
        rate = video.stream.average_rate or video.stream.guessed_rate or 0
        tolerance = 2.5 / float(rate) if rate > 1 else 2.5
        if end < video.duration - tolerance:
            raise unreadable(
                video.name,
                f"it is truncated, its header announces {video.duration:.2f} s, but it contains {end:.2f} s. Download "
                "or make it again",
            )


def _end(packet: av.Packet) -> float:
    """Return the second at which a packet ends."""
    start = packet.dts if packet.pts is None else packet.pts
    return float((start + (packet.duration or 0)) * packet.time_base)


def _words(error: Exception) -> str:
    """Return an error of FFmpeg without the name of the file, which the message begins with."""
    return getattr(error, "strerror", None) or str(error)


def shown_times(packets: Sequence[av.Packet]) -> list[float] | None:
    """Return the seconds at which packets are shown, in order; `None` if the file has no time stamps."""
    stamps = [packet.pts for packet in packets]
    if None in stamps:
        return None
    return sorted(float(packet.pts * packet.time_base) for packet in packets)
