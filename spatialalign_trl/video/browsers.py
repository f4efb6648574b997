"""Convert video files so that every browser plays them."""

from __future__ import annotations

from spatialalign_trl.video.containers import open_video
from spatialalign_trl.video.reading import read_timed_video
from spatialalign_trl.video.writing import browser_mp4


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
        VideoError: if the content is not a readable video, truncated or damaged.
    """
    # Decode it in any case: a page must show what is scored, and refuse what is not.
    video, fps = read_timed_video(data)
    with open_video(data) as file:
        context = file.stream.codec_context
        is_stored = len(file.packets) == len(video) and (context.height, context.width) == video.shape[1:3]
        is_playable = "mp4" in file.format and context.name == "h264" and context.pix_fmt == "yuv420p"
        if is_playable and is_stored and file.is_only_stream and context.height >= min_height:
            return data
    return browser_mp4(video, fps, min_height)
