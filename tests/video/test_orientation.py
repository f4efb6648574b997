"""Frames are read as players show them, whatever way round they are stored, and sizes and cameras go with them."""

import io
import itertools

import av
import numpy as np
import pytest
from video_files import HEIGHT, WIDTH, clip, encode, shown_frames, with_matrix

from spatialalign_trl.report.gallery import Clip, fill_gallery, pair_up
from spatialalign_trl.scenes import load_posed_video
from spatialalign_trl.video import VideoError, browser_mp4_of, read_video

# Whether the picture is stored with rows and columns exchanged, its shown rows reversed, its shown columns reversed.
EIGHT = list(itertools.product([False, True], repeat=3))


def stored(video: np.ndarray, transpose: bool, rows: bool, columns: bool) -> np.ndarray:
    """The frames as a camera stores them that is held the other way."""
    video = video[:, :: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(video.swapaxes(1, 2) if transpose else video)


def matrix(transpose: bool, rows: bool, columns: bool) -> tuple[int, ...]:
    """The matrix (a, b, c, d, x, y) that takes a stored place to the shown one."""
    right, down = -1 if columns else 1, -1 if rows else 1
    offset = (WIDTH if columns else 0, HEIGHT if rows else 0)
    return (0, down, right, 0, *offset) if transpose else (right, 0, 0, down, *offset)


@pytest.mark.parametrize("kind", ["mp4", "mov", "hevc"])
@pytest.mark.parametrize("turns", EIGHT)
def test_every_turn_and_mirror_image_is_undone(kind, turns):
    data = with_matrix(encode(stored(clip(), *turns), kind), *matrix(*turns))
    video = read_video(data)
    assert video.shape == clip().shape
    assert shown_frames(video, clip()) == list(range(len(video)))
    assert np.abs(video.astype(int) - clip()).mean() < 3


@pytest.mark.parametrize("turns", EIGHT)
def test_the_rotation_of_a_matroska_file_counts_too(turns):
    """FFmpeg writes it as the roll of a projection."""
    a, b, c, d, *_ = (65536 * number for number in matrix(*turns))
    buffer, video = io.BytesIO(), stored(clip(), *turns)
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = video.shape[1:3]
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert np.abs(read_video(buffer.getvalue()).astype(int) - clip()).mean() < 3


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (0.5, 0, 0, 0.5), (2, 0, 0, 1), (1, 0.005, -0.005, 1)])
def test_what_is_no_turn_changes_nothing(numbers):
    data = encode(clip())
    np.testing.assert_array_equal(read_video(with_matrix(data, *numbers)), read_video(data))


@pytest.mark.parametrize("numbers", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.5, 0, 1), (1, 0, 0, 0)])
def test_a_slanted_picture_is_refused(numbers):
    with pytest.raises(VideoError, match="its display matrix .* slants the picture.*Encode it upright"):
        read_video(with_matrix(encode(clip()), *numbers))


@pytest.mark.parametrize("turns", EIGHT)
def test_the_label_page_shows_what_is_scored(turns):
    """Not every browser undoes mirroring, so only an upright file is passed on as it is."""
    data = with_matrix(encode(stored(clip(), *turns)), *matrix(*turns))
    page = browser_mp4_of(data, min_height=1)
    assert (page is data) == (turns == (False, False, False))
    with av.open(io.BytesIO(page)) as container:
        frame = next(container.decode(video=0))
        assert (frame.height, frame.width, frame.rotation) == (HEIGHT, WIDTH, 0)
    assert np.abs(read_video(page).astype(int) - clip()).mean() < 4


def test_the_report_shows_the_upright_size(tmp_path):
    turns = (True, False, True)
    (tmp_path / "v.mp4").write_bytes(with_matrix(encode(stored(clip(), *turns)), *matrix(*turns)))
    shown = Clip("p", "s", "a", 0, "v.mp4")
    gallery = fill_gallery(pair_up([shown], "p"), [0], tmp_path, 10**7, lambda clips, videos: [None] * len(clips), {})
    assert f'"size":[{WIDTH},{HEIGHT}]' in gallery.entries[0]


@pytest.mark.parametrize("turns", EIGHT)
def test_a_recording_and_its_cameras_are_upright(tmp_path, turns):
    (tmp_path / "r.mp4").write_bytes(with_matrix(encode(stored(clip(), *turns)), *matrix(*turns)))
    camera = "0.9 1.2 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"
    (tmp_path / "r.txt").write_text("".join(f"{k * 125000} {camera}\n" for k in range(len(clip()))))
    recording = load_posed_video(tmp_path / "r.txt")
    assert recording.size == (HEIGHT, WIDTH)
    assert recording.camera()[0, 0] == pytest.approx(0.9 * WIDTH)
    assert recording.camera()[1, 1] == pytest.approx(1.2 * HEIGHT)
    assert shown_frames(recording.frames([2, 9, 16]), clip()) == [2, 9, 16]
