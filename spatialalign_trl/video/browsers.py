"""Convert video files so that every browser plays them."""

from __future__ import annotations

from spatialalign_trl.video.containers import open_video
from spatialalign_trl.video.orientation import UPRIGHT, turns_of
from spatialalign_trl.video.reading import decode_frames, read_timed_video
from spatialalign_trl.video.timing import playable_fps
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
    # Decode it in any case: a page shows what is scored, and refuses what is not.
    video, fps = read_timed_video(data)
    with open_video(data) as file:
        context = file.stream.codec_context
        frame, _ = next(decode_frames(file))
        # Browsers disagree about mirrored frames, edit lists and which of several streams is the video.
        is_plain = turns_of(frame, file.name) == UPRIGHT and len(file.packets) == len(video) and file.is_only_video
        is_playable = "mp4" in file.format and context.name == "h264" and context.pix_fmt == "yuv420p"
        if is_playable and is_plain and context.height >= min_height:
            return data
    return browser_mp4(video, playable_fps(fps), min_height)
