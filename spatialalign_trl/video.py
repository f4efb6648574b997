"""What a video is in this library, and how it gets in and out of an mp4.

A video is a `uint8` NumPy array of shape (frames, height, width, 3), RGB. Encoding and decoding go through PyAV, whose
wheel brings its own FFmpeg: nothing has to be installed beside it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from spatialalign_trl.files import write_atomic

if TYPE_CHECKING:
    from datasets import Dataset

Video: TypeAlias = npt.NDArray[np.uint8]
"""`uint8` array of shape (frames, height, width, 3), RGB."""


def check_video(video: Video, name: str = "video") -> Video:
    """
    Check that an array follows the video convention.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
            The array to check.
        name (`str`, *optional*, defaults to `"video"`):
            What to call it in the error.

    Returns:
        `np.ndarray`: the video itself.

    Raises:
        TypeError: when it is not a `uint8` NumPy array.
        ValueError: when its shape is wrong or empty.
    """
    if not isinstance(video, np.ndarray):
        raise TypeError(
            f"{name} is a {type(video).__name__}, but a video is a uint8 NumPy array of shape "
            "(frames, height, width, 3)."
        )
    if video.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {video.dtype}, but a video is uint8; scale it to 0..255 and cast it.")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"{name} has shape {video.shape}, but a video is (frames, height, width, 3) and not empty.")
    return video


def check_completions(completions: Sequence[Any]) -> None:
    """What a reward is handed, video by video; see [`check_video`]."""
    for place, video in enumerate(completions):
        check_video(video, name=f"completions[{place}]")


SAME_BYTES = {"threads": "4", "x264-params": "bframes=0"}
"""With B-frames x264's macroblock tree reads memory that nobody wrote, and the output depends on the number of
threads, by default the machine's: what a reward sees of a video would change from process to process. (Without the
tree, frames of a still video differ a little from each other.)"""


def encode_video(video: Video, fps: float, crf: int = 18) -> bytes:
    """
    Encode a video as H.264 in an mp4. The same video gives the same bytes, in every process.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
            The video.
        fps (`float`):
            Frames per second, above 0.
        crf (`int`, *optional*, defaults to `18`):
            Constant rate factor, 0 to 51; lower is better. 0 is lossless and keeps RGB (`libx264rgb`; exact, any size,
            but not every browser plays it). Above 0 the colours are stored at half resolution (yuv420p), which every
            player knows and which needs an even height and width.

    Returns:
        `bytes`: the mp4 file.

    Raises:
        TypeError: when `video` is not a `uint8` array.
        ValueError: when its shape breaks the convention or is odd at `crf > 0`, or `fps` or `crf` are out of range.
    """
    check_video(video)
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be above 0.")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}; x264 takes 0 (lossless) to 51.")
    _, height, width, _ = video.shape
    if crf > 0 and (height % 2 or width % 2):
        raise ValueError(
            f"the video is {width}x{height} pixels; yuv420p needs an even width and height. "
            "Crop it, or use crf=0 (lossless RGB)."
        )
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream(
            "libx264" if crf > 0 else "libx264rgb", rate=Fraction(fps).limit_denominator(1001)
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if crf > 0 else "rgb24"
        # lossless is exact at any preset; this one takes half the time for a few per cent of the size
        stream.options = {"crf": str(crf), **SAME_BYTES, **({} if crf else {"preset": "veryfast"})}
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def write_video(path: str | os.PathLike, video: Video, fps: float, crf: int = 18) -> Path:
    """Encode a video (see [`encode_video`]) and write it atomically; returns the path."""
    return write_atomic(path, encode_video(video, fps, crf))


def browser_mp4(video: Video, fps: float, min_height: int = 240, crf: int = 20) -> bytes:
    """
    Encode a video such that every browser plays it: H.264 in yuv420p, with even sides, tiny frames enlarged.

    Args:
        video (`np.ndarray` of shape (frames, height, width, 3), `uint8`):
            The video.
        fps (`float`):
            Frames per second, above 0.
        min_height (`int`, *optional*, defaults to `240`):
            Lower frames are enlarged by the smallest whole factor that reaches it; each pixel becomes a square, so
            nothing is invented between pixels. 1 keeps the size.
        crf (`int`, *optional*, defaults to `20`):
            Constant rate factor, 1 to 51; lower is better and larger.

    Returns:
        `bytes`: the mp4 file.

    Raises:
        TypeError: when `video` is not a `uint8` array.
        ValueError: when its shape breaks the convention, or `fps` or `crf` are out of range.
    """
    check_video(video)
    if crf == 0:
        raise ValueError("crf is 0, which is lossless RGB; not every browser plays it. Use 1 to 51.")
    factor = max(1, -(-min_height // video.shape[1]))
    large = video.repeat(factor, axis=1).repeat(factor, axis=2)
    # An odd last row or column is doubled rather than cut: boxes drawn over the clip stay where they are.
    odd = [(0, side % 2) for side in large.shape[1:3]]
    return encode_video(np.pad(large, ((0, 0), *odd, (0, 0)), mode="edge"), fps, crf)


def browser_mp4_of(data: bytes, min_height: int = 240) -> bytes:
    """
    The same video in a file that every browser plays; one that already is such a file is kept as it is.

    Args:
        data (`bytes`):
            The content of a video file, in any format that PyAV reads.
        min_height (`int`, *optional*, defaults to `240`):
            See [`browser_mp4`].

    Returns:
        `bytes`: the mp4 file.

    Raises:
        ValueError: when the content is no readable video.
    """
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            streams = container.streams.video
            if not streams:
                raise ValueError(f"<{len(data)} bytes> holds no video stream.")
            stream = streams[0]
            fps = stream.average_rate or stream.guessed_rate
            playable = "mp4" in container.format.name and stream.codec_context.name == "h264"
            if playable and stream.pix_fmt == "yuv420p" and stream.height >= min_height:
                return data
    except av.FFmpegError as error:
        raise ValueError(f"<{len(data)} bytes> are not a readable video ({error}). Make it again.") from error
    # Streams of unknown rate exist (some webm); 16 is what Wan's are shown at.
    return browser_mp4(read_video(data), float(fps or 16), min_height)


SMALL_FRAME = 128 * 128
"""Pixels up to which starting threads takes longer than decoding without."""


def read_video(source: str | os.PathLike | bytes) -> Video:
    """
    Read all frames of a video.

    Args:
        source (`str`, `os.PathLike` or `bytes`):
            A path, or the content of a video file.

    Returns:
        `np.ndarray` of shape (frames, height, width, 3), `uint8`: the video.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no readable video; the message names it.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, opened = f"<{len(source)} bytes>", io.BytesIO(source)
    else:
        name, opened = os.fspath(source), os.fspath(source)
        if not os.path.isfile(opened):
            raise FileNotFoundError(f"{name}: there is no such video file.")
    try:
        with av.open(opened, mode="r") as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no video stream.")
            stream = container.streams.video[0]
            if stream.width * stream.height <= SMALL_FRAME:
                stream.codec_context.thread_count = 1
            else:
                stream.thread_type = "AUTO"
            to_rgb = VideoReformatter()  # one for all frames: making it takes longer than converting a small frame
            frames = [to_rgb.reformat(frame, format="rgb24").to_ndarray() for frame in container.decode(stream)]
    except av.FFmpegError as error:
        raise ValueError(f"{name} is not a readable video ({error}); it may be cut short. Make it again.") from error
    if not frames:
        raise ValueError(f"{name} holds no frame; it may be cut short. Make it again.")
    return np.stack(frames)


def with_undecoded_videos(dataset: Dataset) -> Dataset:
    """A dataset whose videos are files; to decode them would take a package that nothing here needs."""
    from datasets import Video

    for name, kind in dataset.features.items():
        if isinstance(kind, Video):
            dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def is_video_cell(value: Any) -> bool:
    """Whether a value is an undecoded `datasets.Video`."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def video_bytes(cell: Any, where: str) -> bytes:
    """
    The bytes of the video file in a cell: an undecoded `Video`, a path, or the bytes themselves.

    Raises:
        ValueError: nothing of the kind, or a file that cannot be read.
    """
    source = _source(cell, where)
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: the video file cannot be read: {error}") from error


def _source(cell: Any, where: str) -> bytes | Path:
    """The video file of a cell: what is in it, or where it is."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if not isinstance(cell, (str, PurePath)) or not str(cell):
        raise ValueError(f"{where}: expected a video as bytes or a path, got {brief(cell)}")
    return Path(cell)


def is_frames(cell: Any) -> bool:
    """Whether a cell holds frames, and no file of a video."""
    return isinstance(cell, (list, tuple, np.ndarray)) or hasattr(cell, "__array__")


def frames_of(cell: Any, where: str) -> Video:
    """
    The frames in a cell: an array of them, or those of a video file as of [`video_bytes`].

    Args:
        cell: A `uint8` array or tensor of shape (frames, height, width, 3), the same as nested lists, or a video.
        where (`str`): How errors name the cell.

    Raises:
        TypeError, ValueError: nothing of the kind, or a file that cannot be read; names it.
    """
    from spatialalign_trl.video import check_video, read_video

    if is_frames(cell):
        return check_video(np.asarray(cell, np.uint8 if isinstance(cell, (list, tuple)) else None), where)
    source = _source(cell, where)
    try:
        return read_video(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def videos_of(row: Mapping[str, Any]) -> list[tuple[str, Video]]:
    """The videos that a row holds, by their columns. They are for pictures: one whose file is gone is left out."""
    found = []
    for name, value in row.items():
        if is_video_cell(value) and (value["bytes"] or Path(value["path"] or "").is_file()):
            found.append((name, frames_of(value, f"column {name!r}")))
    return found


def self_contained(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row whose videos are in it: their bytes, and of their paths the files' names alone."""
    return {
        name: {"bytes": video_bytes(value, f"{where}, column {name!r}"), "path": PurePath(value["path"] or name).name}
        if is_video_cell(value)
        else value
        for name, value in row.items()
    }


def brief(value: Any) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
