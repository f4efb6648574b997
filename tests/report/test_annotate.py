"""Boxes are drawn at their places on clips of any size, and frames without boxes are left alone."""

import numpy as np
import pytest
from PIL import Image

from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.report.annotate import annotate_video, annotated_strip
from spatialalign_trl.video import encode_video, read_video

BLUE, ORANGE = (31, 111, 235), (232, 89, 12)
FOX, STUMP = (10.0, 8.0, 20.0, 16.0), (28.0, 14.0, 36.0, 24.0)


def tracks(num_frames=5, frames=None, scale=1.0):
    boxes = np.array([FOX, STUMP]) * scale
    return Tracks([FrameBoxes(k, ("fox", "stump"), boxes) for k in frames or range(num_frames)], num_frames)


def grey(num_frames=5, height=32, width=48):
    return np.full((num_frames, height, width, 3), 90, np.uint8)


def box_of_color(frame, color):
    """Return the smallest box around all pixels of a colour: x1, y1, x2, y2."""
    rows, columns = np.nonzero((np.abs(frame.astype(int) - color) < 8).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_small_videos_are_enlarged_and_their_boxes_with_them():
    annotated = annotate_video(grey(), tracks())
    assert annotated.shape[0] == 5
    assert annotated.shape[2] == 480
    assert annotated.shape[1] > 320  # the bar below the picture
    x1, y1, x2, y2 = box_of_color(annotated[0], BLUE)
    # the name stands above the box and does not reach beyond its right end
    assert (x1, x2, y2) == pytest.approx((100, 200, 160), abs=2)
    assert y1 < 80
    x1, y1, x2, y2 = box_of_color(annotated[0], ORANGE)
    assert (x1, y1, x2) == pytest.approx((280, 140, 360), abs=2)
    assert y2 > 240


def test_large_videos_keep_their_size():
    annotated = annotate_video(grey(2, 480, 832), tracks(2, scale=15.0))
    assert annotated.shape[2] == 832
    assert box_of_color(annotated[0], BLUE)[0] == pytest.approx(150, abs=2)


def test_frames_without_boxes_are_left_alone_above_the_bar():
    annotated = annotate_video(grey(), tracks(frames=[0, 4]))
    assert (annotated[2, :320] == 90).all()
    assert not (annotated[0, :320] == 90).all()


def test_an_empty_mask_is_no_box():
    empty = Tracks([FrameBoxes(0, ("fox", "stump"), np.array([[0.0, 0, 0, 0], STUMP]))], 1)
    annotated = annotate_video(grey(1), empty)
    assert not (np.abs(annotated[0].astype(int) - BLUE) < 8).all(-1).any()
    box_of_color(annotated[0], ORANGE)


@pytest.mark.parametrize("size", [(32, 48), (33, 49), (480, 832), (101, 77), (1, 1)])
def test_the_result_is_a_video_that_every_player_takes(size):
    annotated = annotate_video(grey(2, *size), tracks(2), ["one", "two"])
    assert read_video(encode_video(annotated, fps=8)).shape == annotated.shape


@pytest.mark.parametrize("box", [(-30, -30, 5, 5), (40, 25, 90, 60), (0, 0, 48, 32)])
def test_boxes_and_names_at_the_borders_stay_inside(box):
    at_border = Tracks([FrameBoxes(0, ("a rather long name",), np.array([box], float))], 1)
    annotated = annotate_video(grey(1), at_border)
    height, width = annotated.shape[1:3]
    x1, y1, x2, y2 = box_of_color(annotated[0], BLUE)
    assert 0 <= x1 < x2 < width and 0 <= y1 < y2 < 320 < height  # the bar stays free
    # The name is wider than what is seen of the box, and lies within the picture as a whole.
    short = Tracks([FrameBoxes(0, ("a",), np.array([box], float))], 1)
    long_name, short_name = (
        (np.abs(annotate_video(grey(1), boxes)[0].astype(int) - BLUE) < 8).all(-1).sum()
        for boxes in (at_border, short)
    )
    assert long_name > short_name


def test_the_strip_shows_first_and_last_frame(tmp_path):
    video = grey(17)
    video[0], video[-1] = (200, 10, 10), (10, 10, 200)
    path = annotated_strip(tmp_path / "strip.png", video, Tracks([], 17), title="a.mp4", note="A fox. " * 40)
    picture = np.asarray(Image.open(path).convert("RGB"))
    first, last = (box_of_color(picture, color) for color in ((200, 10, 10), (10, 10, 200)))
    assert first[0] < last[0] and first[1] < last[1]


def strip(path, *arguments, **options):
    """Return the pixels of a strip."""
    return np.asarray(Image.open(annotated_strip(path, *arguments, **options)).convert("RGB"))


@pytest.mark.parametrize(("length", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (6, 2, 4), (8, 2, 4), (81, 2, 4)])
def test_a_strip_of_a_clip_of_any_length(tmp_path, length, rows, columns):
    """Every frame is shown, eight of long clips, in rows of four, enlarged, with boxes, bar and caption."""
    plain = strip(tmp_path / "plain.png", grey(length), Tracks([], length), title="")
    grey_pixels = (plain == 90).all(-1)
    scale = round(np.sqrt(grey_pixels.sum() / (min(length, 8) * 32 * 48)))
    assert grey_pixels.sum() == min(length, 8) * 32 * 48 * scale**2 and scale > 1
    panel = 48 * scale
    assert (grey_pixels.sum(axis=1) > 0).sum() == rows * 32 * scale
    assert (grey_pixels.sum(axis=0) > 0).sum() == columns * panel

    boxed = strip(tmp_path / "boxed.png", grey(length), tracks(length), title="")
    assert boxed.shape == plain.shape
    for color in (BLUE, ORANGE):
        x1, y1, x2, y2 = box_of_color(boxed, color)
        assert (x2 - x1) // panel == columns - 1 and (y2 - y1) // (32 * scale) == rows - 1  # in the first and the last
    captioned = strip(tmp_path / "captioned.png", grey(length), tracks(length), title="", captions=["x"] * length)
    assert (captioned != boxed).any() and ((captioned == boxed) | ~grey_pixels[..., None]).all()  # only in the bars


def test_a_strip_has_its_title_and_note_above_the_frames(tmp_path):
    def first_row_of_frames(**texts):
        return np.flatnonzero((strip(tmp_path / "strip.png", grey(), Tracks([], 5), **texts) == 90).all(-1).any(1))[0]

    assert first_row_of_frames(title="") < first_row_of_frames(title="a.mp4: DSR-Score 0.9")
    assert first_row_of_frames(title="a.mp4") < first_row_of_frames(title="a.mp4", note="A fox.")


def test_invalid_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 captions for 5 frames"):
        annotate_video(grey(), tracks(), ["a", "b"])
    with pytest.raises(ValueError, match="count=0"):
        annotated_strip(tmp_path / "strip.png", grey(), tracks(), title="", count=0)
