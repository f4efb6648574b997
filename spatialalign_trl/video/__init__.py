"""Define what a video is in this library, and read and write it: one reader for every file that people bring.

A video is a `uint8` NumPy array of shape (frames, height, width, 3), RGB. Encoding and decoding use PyAV. Its wheel
contains FFmpeg, so nothing else has to be installed. A file is read as players show it, or refused with the reason:

`containers` opens a file (`kinds` says what else it is, `structure` whether it is complete), `orientation`
turns it upright, `timing` gives it one frame rate, `limits` bounds its size, and `reading` puts these together.
`writing` and `browsers` make mp4 files. `cells` reads videos from dataset cells.
"""

from spatialalign_trl.video.arrays import Video, check_completions, check_video
from spatialalign_trl.video.browsers import browser_mp4_of
from spatialalign_trl.video.cells import (
    brief,
    frames_of,
    is_frames,
    is_video_cell,
    self_contained,
    video_bytes,
    videos_of,
    with_undecoded_videos,
)
from spatialalign_trl.video.containers import FORMATS, OpenVideo, open_video
from spatialalign_trl.video.errors import MissingVideoError, VideoError
from spatialalign_trl.video.limits import MAX_PIXELS, check_pixels, max_pixels
from spatialalign_trl.video.reading import (
    TimedVideo,
    check_video_file,
    decode_frames,
    read_fps,
    read_timed_video,
    read_video,
)
from spatialalign_trl.video.timing import DEFAULT_FPS, playable_fps
from spatialalign_trl.video.writing import SAME_BYTES, browser_mp4, encode_video, write_video

__all__ = [
    "DEFAULT_FPS",
    "FORMATS",
    "MAX_PIXELS",
    "SAME_BYTES",
    "MissingVideoError",
    "OpenVideo",
    "TimedVideo",
    "Video",
    "VideoError",
    "brief",
    "browser_mp4",
    "browser_mp4_of",
    "check_completions",
    "check_pixels",
    "check_video",
    "check_video_file",
    "decode_frames",
    "encode_video",
    "frames_of",
    "is_frames",
    "is_video_cell",
    "max_pixels",
    "open_video",
    "playable_fps",
    "read_fps",
    "read_timed_video",
    "read_video",
    "self_contained",
    "video_bytes",
    "videos_of",
    "with_undecoded_videos",
    "write_video",
]
