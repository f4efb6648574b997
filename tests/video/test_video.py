"""A video that is written is the video that is read, the same bytes in every process, and playable in browsers."""

import io
import os

import av
import numpy as np
import pytest
from fresh_process import run_program

from spatialalign_trl.video import (
    browser_mp4,
    browser_mp4_of,
    check_video,
    check_video_file,
    encode_video,
    frames_of,
    read_video,
    self_contained,
    video_bytes,
    write_video,
)


def moving_square(frames=9, height=32, width=48):
    video = np.full((frames, height, width, 3), 40, np.uint8)
    video[:, :, :, 2] = np.linspace(0, 200, width, dtype=np.uint8)
    for i in range(frames):
        video[i, 8:24, 2 * i : 2 * i + 16] = (220, 60, 30)
    return video


@pytest.mark.parametrize("shape", [(9, 32, 48, 3), (1, 16, 16, 3), (5, 17, 31, 3)])
def test_lossless_round_trip_is_exact(shape):
    video = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(read_video(encode_video(video, fps=8, crf=0)), video)


def test_lossy_round_trip_keeps_frames_order_and_colours(tmp_path):
    video = moving_square()
    path = write_video(tmp_path / "clip.mp4", video, fps=8)
    decoded = read_video(path)
    assert decoded.shape == video.shape
    assert decoded.dtype == np.uint8
    error = np.abs(decoded.astype(int) - video.astype(int))
    assert error.mean() < 4
    closest = [np.abs(decoded[i].astype(int) - video.astype(int)).mean(axis=(1, 2, 3)).argmin() for i in range(9)]
    assert closest == list(range(9))


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="fills memory and picks cores as Linux can")
@pytest.mark.skipif(CORES < 2, reason="compares one core with several")
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 48), (64, 96), (240, 416)])
def test_the_same_video_gives_the_same_bytes_in_every_process(tmp_path, height, width):
    video = np.random.default_rng(0).integers(0, 256, (9, height // 8, width // 8, 3), dtype=np.uint8)
    np.save(tmp_path / "video.npy", video.repeat(8, 1).repeat(8, 2))
    digests = set()
    for fill, cores in (("0", CORES), ("85", 1), ("170", CORES)):  # the byte that malloc fills memory with; cores
        environment = os.environ | {"MALLOC_PERTURB_": fill}
        digests.add(run_program("encode_digest.py", tmp_path / "video.npy", cores, env=environment).stdout)
    assert len(digests) == 1


def test_frames_of_one_macroblock_are_the_same_every_time():
    video = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    assert len({encode_video(video, 8) for _ in range(100)}) == 1


@pytest.mark.parametrize(
    ("height", "width", "tree"), [(16, 16, b"mbtree=0"), (8, 16, b"mbtree=0"), (16, 32, b"mbtree=1")]
)
def test_only_frames_of_one_macroblock_go_without_the_tree(height, width, tree):
    """x264 writes its options into the file. The tree of a single macroblock reads memory that nothing wrote."""
    data = encode_video(np.zeros((3, height, width, 3), np.uint8), 8)
    assert tree in data and b"bframes=0" in data


def test_lower_crf_is_closer():
    video = moving_square()

    def error(crf):
        return np.abs(read_video(encode_video(video, 8, crf=crf)).astype(int) - video.astype(int)).mean()

    assert error(0) == 0 < error(10) <= error(45)


@pytest.mark.parametrize("fps", [8, 16, 23.976, 0.5])
def test_fps_survives(fps):
    with av.open(io.BytesIO(encode_video(moving_square(), fps))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)


def test_a_reversed_view_is_encoded_in_its_own_order():
    video = moving_square()[::-1, :, ::-1]
    np.testing.assert_array_equal(read_video(encode_video(video, 8, crf=0)), video)


def test_odd_sizes_name_the_remedy():
    with pytest.raises(ValueError, match=r"31x17 pixels.*crf=0"):
        encode_video(np.zeros((2, 17, 31, 3), np.uint8), 8)


@pytest.mark.parametrize(("fps", "crf", "message"), [(0, 18, "fps is 0"), (8, 52, "crf is 52"), (8, -1, "crf is -1")])
def test_settings_out_of_range_are_refused(fps, crf, message):
    with pytest.raises(ValueError, match=message):
        encode_video(moving_square(), fps, crf)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], TypeError, "clip is a list"),
        (np.zeros((2, 4, 4, 3), np.float32), TypeError, "clip has dtype float32"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, r"clip has shape \(4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), ValueError, r"clip has shape \(2, 3, 4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "not empty"),
    ],
)
def test_check_video_says_what_is_wrong(value, error, message):
    with pytest.raises(error, match=message):
        check_video(value, "clip")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4")


def test_a_file_that_is_no_video_is_named(tmp_path):
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"this is no video at all" * 10)
    with pytest.raises(ValueError, match=r"noise\.mp4 is not a readable video"):
        read_video(noise)


def test_a_truncated_file_is_named(tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(encode_video(moving_square(), 8)[:-200])
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        read_video(cut)


def test_empty_bytes_are_refused():
    with pytest.raises(ValueError, match="<0 bytes>"):
        read_video(b"")


def stream_of(data):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, stream.pix_fmt, stream.height, stream.width, float(stream.average_rate)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (17, 31), (300, 201)])
def test_a_browser_gets_yuv420p_with_even_sides_enlarged_by_a_whole_factor(height, width):
    data = browser_mp4(moving_square(height=height, width=width), fps=8, min_height=100)
    factor = -(-100 // height)
    even = [side * factor + side * factor % 2 for side in (height, width)]
    assert stream_of(data) == ("h264", "yuv420p", *even, 8.0)


def test_an_enlarged_clip_shows_the_same_pixels():
    video = moving_square()
    large = read_video(browser_mp4(video, fps=8, min_height=128, crf=4))
    assert np.abs(large[:, 2::4, 2::4].astype(int) - video).mean() < 6


def test_videos_that_browsers_cannot_play_or_that_are_too_small_are_encoded_again():
    video = moving_square(height=64, width=96)
    playable, lossless = encode_video(video, 12, crf=18), encode_video(video, 12, crf=0)
    assert browser_mp4_of(playable, min_height=64) is playable
    assert stream_of(browser_mp4_of(lossless, min_height=64)) == ("h264", "yuv420p", 64, 96, 12.0)
    assert stream_of(browser_mp4_of(playable, min_height=65))[2:4] == (128, 192)
    assert len(read_video(browser_mp4_of(lossless))) == len(video)


@pytest.mark.parametrize("data", [b"", b"no video"])
def test_bytes_that_are_no_video_are_refused(data):
    with pytest.raises(ValueError, match="not a readable video"):
        browser_mp4_of(data)


def test_lossless_videos_for_browsers_are_refused():
    with pytest.raises(ValueError, match="crf is 0"):
        browser_mp4(moving_square(), 8, crf=0)


# ---------------------------------------------------------------------------------------------------- hostile files


@pytest.fixture
def private(tmp_path):
    """A video in a format that playlists may contain."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "private.ts").write_bytes(buffer.getvalue())
    return tmp_path / "private.ts"


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat", "frame_%d.png"])
def test_a_list_of_other_files_is_no_video(private, name):
    lists = {
        ".m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nprivate.ts\n#EXT-X-ENDLIST\n",
        ".ffconcat": "ffconcat version 1.0\nfile private.ts\n",
    }
    text = lists[".m3u8" if name.endswith("m3u8") else ".ffconcat"]
    (private.parent / name).write_text(text)
    assert len(read_video(private)) == 5
    for source in (private.parent / name, text.encode()):
        with pytest.raises(ValueError, match="not a readable video"):
            read_video(source)
    with pytest.raises(ValueError, match="is not a video file"):
        check_video_file(text.encode(), "it")


def test_a_small_file_with_many_pixels_is_refused_before_they_are_in_memory():
    bomb = encode_video(np.zeros((50, 64, 64, 3), np.uint8), 8, crf=30)
    size = 50 * 64 * 64 * 3
    assert read_video(bomb, max_bytes=size).nbytes == size
    for limit in (size - 1, 10):
        with pytest.raises(ValueError, match=f"has more than {limit} bytes of pixels"):
            read_video(bomb, max_bytes=limit)


@pytest.mark.parametrize("content", ["/etc/hostname", ["x"], 3])
def test_a_cell_with_a_text_for_its_content_is_refused(content):
    for read in (video_bytes, frames_of):
        with pytest.raises(ValueError, match="row 1: expected the content of a video under 'bytes'"):
            read({"bytes": content, "path": None}, "row 1")


def test_what_is_published_with_a_row_is_a_video(tmp_path):
    (tmp_path / "passwords.mp4").write_text("root:x:0:0\n" * 50)
    row = {"prompt": "p", "extra": {"bytes": None, "path": str(tmp_path / "passwords.mp4")}}
    with pytest.raises(ValueError, match=r"prompt 'p', column 'extra' is not a video file.*neither copied nor pub"):
        self_contained(row, "prompt 'p'")
    write_video(tmp_path / "ok.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    row["extra"]["path"] = str(tmp_path / "ok.mp4")
    assert self_contained(row, "")["extra"] == {"bytes": (tmp_path / "ok.mp4").read_bytes(), "path": "ok.mp4"}
