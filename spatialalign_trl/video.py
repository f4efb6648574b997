"""Define what a video is in this library, encode and decode mp4 files, and read videos from dataset cells.

A video is a `uint8` NumPy array of shape (frames, height, width, 3), RGB. Encoding and decoding use PyAV. Its
wheel contains FFmpeg, so nothing else has to be installed.
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

SAME_BYTES = {"threads": "4", "x264-params": "bframes=0"}
"""x264 options that make the encoder deterministic.

With B-frames, x264's macroblock tree reads uninitialised memory, and the output depends on the number of threads (by
default the machine's): the frames that a reward sees would change from process to process. Without the tree, frames of
a motionless video differ slightly from each other."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,ogg,asf,nut,mxf,dv,"
    "gif,apng,webp_pipe,yuv4mpegpipe"
)
"""FFmpeg's names of what is read. Playlists and picture lists (hls, concat, image2) are not: they name other files."""

_READ_OPTIONS = {"format_whitelist": FORMATS}

SMALL_FRAME = 128 * 128
"""Number of pixels up to which starting decoder threads takes longer than decoding without them."""


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


# ------------------------------------------------------------------------------------------------ writing and reading


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
        stream.options = {"crf": str(crf), **SAME_BYTES, **({} if crf else {"preset": "veryfast"})}
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))  # flush the frames that the encoder still buffers
    return buffer.getvalue()


def write_video(path: str | os.PathLike, video: Video, fps: float, crf: int = 18) -> Path:
    """Encode a video and write it to a file atomically, as [`encode_video`] and [`write_atomic`] do."""
    return write_atomic(path, encode_video(video, fps, crf))


def read_video(source: str | os.PathLike | bytes, max_bytes: int | None = None) -> Video:
    """
    Read all frames of a video.

    Args:
        source (`str`, `os.PathLike` or `bytes`):
            The path of a video file, or its content.
        max_bytes (`int`, *optional*):
            Largest size of the frames in bytes, for files of strangers: a small file may contain a huge video.

    Returns:
        `np.ndarray` of shape (frames, height, width, 3), `uint8`: the video.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a readable video, or larger than `max_bytes`. The message names it.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = f"<{len(source)} bytes>", io.BytesIO(source)
    else:
        name, file = os.fspath(source), os.fspath(source)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{name}: there is no such video file.")
    try:
        with av.open(file, mode="r", options=_READ_OPTIONS) as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no video stream.")
            stream = container.streams.video[0]
            _check_size(3 * stream.width * stream.height, max_bytes, name)
            if stream.width * stream.height <= SMALL_FRAME:
                stream.codec_context.thread_count = 1
            else:
                stream.thread_type = "AUTO"
            # One reformatter for all frames: creating one takes longer than converting a small frame.
            to_rgb = VideoReformatter()
            frames, size = [], 0
            for frame in container.decode(stream):
                size += 3 * frame.width * frame.height
                _check_size(size, max_bytes, name)
                frames.append(to_rgb.reformat(frame, format="rgb24").to_ndarray())
    except av.FFmpegError as error:
        raise ValueError(f"{name} is not a readable video ({error}). It may be truncated. Make it again.") from error
    if not frames:
        raise ValueError(f"{name} has no frames. It may be truncated. Make it again.")
    return np.stack(frames)


def _check_size(size: int, max_bytes: int | None, name: str) -> None:
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{name} has more than {max_bytes} bytes of pixels. Send a shorter or smaller video.")


def check_video_file(content: bytes, name: str) -> bytes:
    """Return the content of a file if it is a video (nothing is decoded), else raise a `ValueError` with this name."""
    try:
        with av.open(io.BytesIO(content), mode="r", options=_READ_OPTIONS) as container:
            if container.streams.video:
                return content
    except av.FFmpegError:
        pass
    raise ValueError(f"{name} is not a video file, so it is neither copied nor published. Remove it.")


# ------------------------------------------------------------------------------------------------------- for browsers


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


def browser_mp4_of(data: bytes, min_height: int = 240) -> bytes:
    """
    Convert a video file so that every browser plays it. A file that every browser plays already is returned unchanged.

    Args:
        data (`bytes`):
            The content of a video file, in any format that PyAV reads.
        min_height (`int`, *optional*, defaults to `240`):
            Height in pixels that lower frames are enlarged to; see [`browser_mp4`].

    Returns:
        `bytes`: the mp4 file.

    Raises:
        ValueError: if the content is not a readable video.
    """
    try:
        with av.open(io.BytesIO(data), mode="r", options=_READ_OPTIONS) as container:
            if not container.streams.video:
                raise ValueError(f"<{len(data)} bytes> has no video stream.")
            stream = container.streams.video[0]
            fps = stream.average_rate or stream.guessed_rate
            playable = "mp4" in container.format.name and stream.codec_context.name == "h264"
            if playable and stream.pix_fmt == "yuv420p" and stream.height >= min_height:
                return data
    except av.FFmpegError as error:
        raise ValueError(f"<{len(data)} bytes> is not a readable video ({error}). Make it again.") from error
    # Some streams (some webm files) have no known rate. 16 is the frame rate of Wan's videos.
    return browser_mp4(read_video(data), float(fps or 16), min_height)


# -------------------------------------------------------------------------------------------- videos in dataset cells


def with_undecoded_videos(dataset: Dataset) -> Dataset:
    """Return a dataset with every `Video` column cast to `Video(decode=False)`: decoding needs another package."""
    from datasets import Video

    for name, feature in dataset.features.items():
        if isinstance(feature, Video):
            dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def is_video_cell(value: Any) -> bool:
    """Return whether a value is a cell of a `datasets.Video(decode=False)` column."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def is_frames(cell: Any) -> bool:
    """Return whether a cell contains decoded frames (an array or nested lists), not a video file."""
    return isinstance(cell, (list, tuple, np.ndarray)) or hasattr(cell, "__array__")


def video_bytes(cell: Any, where: str) -> bytes:
    """
    Read the video file in a cell.

    Args:
        cell (`dict`, `str`, `PurePath` or `bytes`):
            An undecoded `Video`, a path, or the content of the file.
        where (`str`):
            How errors name the cell.

    Returns:
        `bytes`: the content of the video file.

    Raises:
        ValueError: if the cell holds none of these, or its file cannot be read. The message names the cell.
    """
    source = _video_source(cell, where)
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise ValueError(f"{where}: the video file cannot be read: {error}") from error


def frames_of(cell: Any, where: str) -> Video:
    """
    Read the frames in a cell.

    Args:
        cell (`np.ndarray` or `torch.Tensor` of shape (frames, height, width, 3), `list`, `dict`, `str` or `bytes`):
            `uint8` frames, the same as nested lists, or a video file in one of the forms that [`video_bytes`] reads.
        where (`str`):
            How errors name the cell.

    Returns:
        `np.ndarray` of shape (frames, height, width, 3), `uint8`: the video.

    Raises:
        TypeError, ValueError: if the cell holds none of these, or its file cannot be read. The message names the cell.
    """
    if is_frames(cell):
        return check_video(np.asarray(cell, np.uint8 if isinstance(cell, (list, tuple)) else None), where)
    source = _video_source(cell, where)
    try:
        return read_video(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _video_source(cell: Any, where: str) -> bytes | Path:
    """Return the content of a cell's video file if the cell contains it, otherwise the file's path."""
    if isinstance(cell, Mapping):
        content, path = cell.get("bytes"), cell.get("path")
        if content and not isinstance(content, bytes):  # a text here would be taken for a path below
            raise ValueError(f"{where}: expected the content of a video under 'bytes', got {brief(content)}")
        cell = content or path
    if isinstance(cell, bytes) and cell:
        return cell
    if not isinstance(cell, (str, PurePath)) or not str(cell):
        raise ValueError(f"{where}: expected a video as bytes or a path, got {brief(cell)}")
    return Path(cell)


def videos_of(row: Mapping[str, Any]) -> list[tuple[str, Video]]:
    """
    Read the videos of a row, for pictures. A video with a missing file is skipped.

    Args:
        row (`Mapping[str, Any]`):
            A dataset row with undecoded videos.

    Returns:
        `list[tuple[str, np.ndarray]]`: pairs of a column's name and its video. A `ValueError` names a broken column.
    """
    videos = []
    for name, value in row.items():
        if is_video_cell(value) and (value["bytes"] or Path(value["path"] or "").is_file()):
            videos.append((name, frames_of(value, f"column {name!r}")))
    return videos


def self_contained(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    Return a copy of a row that contains its videos: the bytes of each file, and its bare name instead of its path.

    Args:
        row (`Mapping[str, Any]`):
            A dataset row with undecoded videos.
        where (`str`):
            How errors name the row.

    Returns:
        `dict[str, Any]`: the row, with the same columns.

    Raises:
        ValueError: if a video file cannot be read, or is no video: a cell may name any file of this machine, and these
            rows are published. The message names the row and the column.
    """
    contained = dict(row)
    for name, value in row.items():
        if is_video_cell(value):
            content = check_video_file(video_bytes(value, place := f"{where}, column {name!r}"), place)
            contained[name] = {"bytes": content, "path": PurePath(value["path"] or name).name}
    return contained


def brief(value: Any) -> str:
    """Return the `repr` of a value, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"
