"""A plot of curves shows which frames count and which are averaged, and takes any text as text."""

import sys

import numpy as np
import pytest
from PIL import Image

from spatialalign_trl.report.score_plots import RelationCurve, plot_curves

BLUE, YELLOW, GREY, INK = (0, 114, 178), (251, 237, 191), (140, 149, 159), (31, 35, 40)
COLORS = [BLUE, (213, 94, 0), (0, 158, 115), (204, 121, 167), (122, 106, 0), (68, 68, 68)]
FALLING, RISING = np.linspace(1, -1, 12), np.linspace(-1, 1, 12)


def two_curves(count=12):
    return [RelationCurve("on the left of (start)", FALLING[:count]), RelationCurve("(end)", RISING[:count])]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(picture, color, tolerance=12):
    return (np.abs(picture - np.array(color)) < tolerance).all(-1)


def draw(path, curves=None, indices=None, num_frames=12, title="a.mp4: DSR-Score 0.9", **options):
    indices = np.arange(12) if indices is None else indices
    return pixels(
        plot_curves(path, two_curves() if curves is None else curves, indices, num_frames, title=title, **options)
    )


def test_the_ends_that_are_averaged_are_shaded(tmp_path):
    picture = draw(tmp_path / "curves.png")
    columns = np.flatnonzero(near(picture, YELLOW).sum(0) > 60)
    gap = int(np.diff(columns).argmax())
    left, right = columns[: gap + 1], columns[gap + 1 :]
    assert len(left) == pytest.approx(len(right), rel=0.1)
    # 3 of 12 frames are shaded at either end, and the 6 between them are not
    assert (columns[gap + 1] - columns[gap]) / len(left) == pytest.approx(6 / 3, rel=0.15)


def test_frames_that_do_not_count_leave_a_gap_and_a_mark(tmp_path):
    complete = draw(tmp_path / "complete.png")
    counted = np.array([0, 1, 2, 3, 8, 9, 10, 11])
    curves = [RelationCurve("first", FALLING[counted])]
    with_gap = draw(tmp_path / "with_gap.png", curves, counted)
    assert near(complete, GREY).sum() < near(with_gap, GREY).sum()
    upper = slice(60, with_gap.shape[0] - 140)  # without the legend
    assert near(with_gap[upper], BLUE).any(0).sum() < 0.8 * near(complete[upper], BLUE).any(0).sum()


def test_the_picture_does_not_depend_on_when_it_is_drawn(tmp_path):
    draw(tmp_path / "one.png", note="A fox.")
    draw(tmp_path / "two.png", note="A fox.")
    draw(tmp_path / "other.png", note="A cat.")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_drawing_asks_for_no_window_system(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    picture = draw(tmp_path / "one.png", note="A fox.")
    assert near(picture, BLUE).sum() > 1000 and heading(picture).any()


def test_a_video_without_a_counted_frame_still_has_a_picture(tmp_path):
    curves = [RelationCurve("first", np.empty(0)), RelationCurve("second", np.empty(0))]
    picture = draw(tmp_path / "empty.png", curves, np.empty(0), 17, title="a.mp4: INVALID", note="no fox found")
    assert near(picture, GREY).sum() > 1000  # the mark lies under all frames
    assert not near(picture, YELLOW).any()


def heading(picture):
    """Return the pixels of the title, which has the colour of ink: above the curves, beside the axis."""
    curves = np.flatnonzero(near(picture, BLUE).any(1))[0]
    return near(picture[: curves - 10, 60:], INK, 40)


def width_of(pixels):
    return int(np.ptp(np.flatnonzero(pixels.any(0)))) if pixels.any() else 0


@pytest.mark.parametrize(
    ("title", "shorter"),
    [
        ("costs $5 and $6", "costs 5 and 6"),  # as a formula it would lose its spaces and dollars
        ("a $x$ b", "a x b"),
        ("x_1^2 {\\alpha}", "x1^2 \\alpha"),
        ("\\$ x", "$ x"),
        ("жук 虫", "жук"),
    ],
)
def test_a_title_is_text_and_not_markup(tmp_path, title, shorter):
    pictures = [draw(tmp_path / "curves.png", title=text) for text in (title, shorter)]
    long, short = (width_of(heading(picture)) for picture in pictures)
    assert long > short > 0


def test_a_long_title_is_broken_into_lines_and_an_empty_one_takes_no_place(tmp_path):
    rows = [heading(draw(tmp_path / "curves.png", title=title)).any(1).sum() for title in ("", "word", "word " * 60)]
    assert rows[0] == 0 < rows[1] < rows[2] / 3


@pytest.mark.parametrize("note", ["costs $5 and $6", "a $x$ b"])
def test_a_note_is_text_below_the_title(tmp_path, note):
    pictures = [draw(tmp_path / "curves.png", title="", note=text) for text in (note, note.replace("$", ""))]
    long, short = (width_of(near(picture[:25, 60:], (87, 96, 106), 30)) for picture in pictures)
    assert long > short > 20


def test_a_single_frame_with_many_relations_is_drawn(tmp_path):
    curves = [RelationCurve(str(k), np.array([1 - k / 4])) for k in range(8)]
    picture = draw(tmp_path / "one.png", curves, np.array([0]), 1)
    shade = near(picture, (248, 227, 144))  # twice: as the first and as the last frame
    shaded_rows, shaded_columns = (np.flatnonzero(shade.sum(axis) > 100) for axis in (1, 0))
    inside = picture[shaded_rows[0] : shaded_rows[-1], shaded_columns[0] : shaded_columns[-1]]
    rows = [np.flatnonzero(near(inside, color).any(1)) for color in COLORS]
    # Every relation has a point of its colour at its height; the last two have the colours of the first two.
    assert all(len(found) for found in rows)
    highest = [found[0] for found in rows]
    assert highest == sorted(highest) and min(np.diff(highest)) > 20


def test_invalid_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no curves"):
        draw(tmp_path / "x.png", [])
    with pytest.raises(ValueError, match="'late' has shape .5,., but 12 frames are counted"):
        draw(tmp_path / "x.png", [RelationCurve("late", np.zeros(5))])
