"""A contact sheet shows frames, scores and prompts of every video, and an animation plays them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from spatialalign_trl.report import contact_sheet as contact_sheet_module
from spatialalign_trl.report import drawing
from spatialalign_trl.report.contact_sheet import ContactSheetRow, animated_sheet, contact_sheet
from spatialalign_trl.tiny_world.clips import caption_for
from spatialalign_trl.tiny_world.renderer import Scene, render

SCENE = Scene(scene="In a meadow", color="red", animal="fox", object="stump", verb="jumps", type="LR")
GREEN, RED, GREY = ((218, 251, 225), (255, 235, 233), (234, 238, 242))
MARGIN = 36


def fox_row(scores=(0.41, 0.93), labels=("base", "aligned")):
    videos = [render(replace(SCENE, motion="static")).video, render(SCENE).video]
    return ContactSheetRow(caption_for(SCENE).prompt, list(zip(labels, videos, scores, strict=True)))


def plain_row(*shapes, score=0.5, value=90):
    entries = [(f"video {k}", np.full((*shape, 3), value, np.uint8), score) for k, shape in enumerate(shapes)]
    return ContactSheetRow("A fox.", entries)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def count(picture, color):
    return int((picture == color).all(-1).sum())


def test_a_sheet_shows_the_frames_of_every_video_pixel_by_pixel(tmp_path):
    row = fox_row()
    picture = pixels(contact_sheet([row], tmp_path / "sheet.png"))
    # 48 pixels x 3 = 144 wide; six of them with gaps of 4 make a strip, two strips a row
    strip = 6 * 144 + 5 * 4
    assert picture.shape[1] == 2 * MARGIN + 2 * strip + 28
    times = [0, 3, 6, 10, 13, 16]
    first = np.kron(row.entries[0][1][0], np.ones((3, 3, 1), np.uint8))
    top = next(y for y in range(picture.shape[0] - 96) if (picture[y : y + 96, MARGIN : MARGIN + 144] == first).all())
    for place, (_, video, _) in enumerate(row.entries):
        for column, time in enumerate(times):
            left = MARGIN + place * (strip + 28) + column * 148
            cell = picture[top : top + 96, left : left + 144]
            assert (cell[1::3, 1::3] == video[time]).all(), (place, time)


def test_given_videos_come_first_and_have_no_score(tmp_path):
    row = plain_row((4, 32, 48), (4, 32, 48))
    with_context = replace(row, given=[("context", np.full((12, 32, 48, 3), 200, np.uint8))])
    without, together = (
        pixels(contact_sheet([sheet_row], tmp_path / "sheet.png")) for sheet_row in (row, with_context)
    )
    assert together.shape[1] > 1.4 * without.shape[1]
    assert count(together, RED) == count(without, RED) and not count(together, GREY)
    columns = np.flatnonzero((together == 200).all(-1).sum(0) > 90)
    others = np.flatnonzero((together == 90).all(-1).sum(0) > 90)
    assert columns.max() < others.min()


def test_the_picture_is_the_same_every_time_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    assert contact_sheet([fox_row()], path) == path
    first = path.read_bytes()
    contact_sheet([fox_row((0.1, 0.2))], str(path))
    assert path.read_bytes() != first
    contact_sheet([fox_row()], path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("score", "color"),
    [(0.93, GREEN), (0.7, GREEN), (0.7 - 1e-12, GREEN), (0.6999, RED), (0.0, RED), (None, GREY)],
)
def test_scores_are_green_from_the_threshold_on_red_below_and_grey_when_invalid(tmp_path, score, color):
    picture = pixels(contact_sheet([plain_row((5, 8, 8), score=score)], tmp_path / "sheet.png"))
    assert [other for other in (GREEN, RED, GREY) if count(picture, other) > 500] == [color]


def test_scores_are_rounded_down_so_that_red_never_reads_like_green():
    badge = contact_sheet_module._Badge(threshold=0.7, score_name="DSR")
    assert badge.text(0.93) == "DSR 0.93"
    assert badge.text(0.6999) == "DSR 0.69"
    assert badge.text(0.7) == badge.text(0.7 - 1e-12) == "DSR 0.70"
    assert badge.text(1.0) == "DSR 1.00"
    assert badge.text(None) == "invalid"
    assert "DSR of 0.7 or more" in badge.legend()


def test_scores_without_a_known_threshold_are_neither_green_nor_red(tmp_path):
    style = contact_sheet_module.score_style(["motion"])
    assert contact_sheet_module.score_style(["dsr_score"]) == {}
    assert contact_sheet_module.score_style(["dsr_score", "motion"]) == {}  # the score is the first reward's
    for score in (0.1, 0.9):
        picture = pixels(contact_sheet([plain_row((5, 8, 8), score=score)], tmp_path / "sheet.png", **style))
        assert count(picture, GREEN) == count(picture, RED) == count(picture, GREY) == 0
    invalid = pixels(contact_sheet([plain_row((5, 8, 8), score=None)], tmp_path / "sheet.png", **style))
    assert count(invalid, GREY) > 500


def test_the_threshold_and_the_name_of_the_score_can_be_chosen(tmp_path):
    path = contact_sheet([plain_row((5, 8, 8))], tmp_path / "sheet.png", threshold=0.5, score_name="grounding")
    assert count(pixels(path), GREEN) > 500


@pytest.mark.parametrize(("frames", "columns", "shown"), [(9, 3, 3), (2, 6, 2), (1, 6, 1), (5, 1, 1)])
def test_short_videos_and_few_columns(tmp_path, frames, columns, shown):
    row = plain_row((frames, 32, 48), value=91)
    picture = pixels(contact_sheet([row], tmp_path / "sheet.png", columns=columns))
    assert count(picture, (91, 91, 91)) == shown * 144 * 96


@pytest.mark.parametrize(
    ("size", "scale", "shown"),
    [((32, 48), None, (96, 144)), ((480, 832), None, (81, 140)), ((64, 100), None, (64, 100)), ((10, 20), 4, (40, 80)),
     ((480, 832), 0.25, (120, 208))],
)  # fmt: skip
def test_frames_are_enlarged_by_whole_numbers_and_reduced_to_a_readable_width(tmp_path, size, scale, shown):
    path = contact_sheet([plain_row((2, *size), value=91)], tmp_path / "sheet.png", columns=1, scale=scale)
    assert count(pixels(path), (91, 91, 91)) == shown[0] * shown[1]


def test_a_title_and_long_prompts_make_the_picture_higher_and_not_wider(tmp_path):
    def shape(prompt="A fox.", **options):
        row = replace(plain_row((5, 32, 48), (5, 32, 48)), prompt=prompt)
        return Image.open(contact_sheet([row], tmp_path / "sheet.png", columns=2, **options)).size

    width, height = shape()
    for other in (shape(title="Before and after"), shape("A fox jumps over the very lazy dog " * 5)):
        assert other[0] == width and other[1] > height


def test_letters_that_the_font_lacks_are_written_in_ascii():
    assert drawing.to_ascii("An artist’s café – naïve “goats” ×2 狐") == 'An artist\'s cafe - naive "goats" x2 ?'


def test_texts_are_wrapped_between_words():
    assert drawing.wrap("one two three", 24, 10) == ["one", "two", "three"]
    assert drawing.wrap("one two three", 24, 10_000) == ["one two three"]


def test_three_policies_and_several_rows_fit_a_narrow_sheet(tmp_path):
    rows = [plain_row(*[(3, 8, 8)] * 3, score=score) for score in (0.1, None, 0.9)]
    picture = pixels(contact_sheet(rows, tmp_path / "sheet.png", columns=1, scale=1))
    # labels and scores are wider than a video of 8 pixels: the cells grow so that nothing overlaps
    assert count(picture, (90, 90, 90)) == 9 * 64
    assert min(count(picture, color) for color in (GREEN, RED, GREY)) > 3 * 500


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_plays_every_frame_and_rests_at_both_ends(tmp_path, suffix):
    path = animated_sheet([fox_row(), fox_row()], tmp_path / f"sheet{suffix}", fps=8)
    durations, shots = [], []
    with Image.open(path) as picture:
        # two rows side by side, each of two frames of 240 x 160
        assert picture.size[0] == 2 * MARGIN + 4 * 240 + 2 * 28 + 2 * 28
        assert picture.info.get("loop") == 0
        for frame in range(picture.n_frames):
            picture.seek(frame)
            shots.append(np.asarray(picture.convert("RGB")).astype(int))
            durations.append(picture.info["duration"])
    # Frames that are equal, such as those before the jump, are stored as one which lasts longer. A GIF counts in
    # hundredths of a second.
    assert sum(durations) == pytest.approx(17 * 125 + 400 + 1200, abs=17 * 5)
    assert durations[0] >= 520 and durations[-1] >= 1320
    jump = render(SCENE).video
    assert len(shots) == 1 + int((jump[1:] != jump[:-1]).any((1, 2, 3)).sum())
    moved = np.flatnonzero((np.abs(shots[0] - shots[len(shots) // 2]).max(-1) > 40).any(0))
    assert moved.min() >= MARGIN + 240 + 28  # the base stands still, the aligned fox does not
    assert np.abs(shots[0] - shots[-1]).max() > 100


def test_a_gif_keeps_the_sprites_colours(tmp_path):
    path = animated_sheet([fox_row()], tmp_path / "sheet.gif", fps=8)
    picture = pixels(path).astype(int)
    assert (np.abs(picture - (214, 32, 36)).max(-1) < 12).sum() > 1000
    assert (picture[0, 0] == 255).all()


@pytest.mark.parametrize(("draw", "name"), [(contact_sheet, "sheet.png"), (animated_sheet, "sheet.gif")])
def test_sheets_that_cannot_be_drawn_are_refused(tmp_path, draw, name):
    more = {"fps": 8} if draw is animated_sheet else {}
    path = tmp_path / name

    def refused(match, rows, error=ValueError, where=path, **options):
        with pytest.raises(error, match=match):
            draw(rows, where, **{**more, **options})

    refused("no rows", [])
    refused("row 0 .* has no videos", [ContactSheetRow("A fox.", [])])
    refused("row 0, 'video 1' is .*9, 8.* and row 0, 'video 0' is .*8, 8", [plain_row((5, 8, 8), (5, 9, 8))])
    refused("row 1, 'video 0'", [plain_row((5, 8, 8)), plain_row((5, 8, 9))])
    refused("row 1 has the labels .*'video 0', 'video 1'", [plain_row((5, 8, 8)), plain_row((5, 8, 8), (5, 8, 8))])
    refused("row 0, 'video 0' has the score nan. Give None", [plain_row((5, 8, 8), score=float("nan"))])
    wrong_type = ContactSheetRow("A fox.", [("base", np.zeros((5, 8, 8, 3)), 0.5)])
    refused("row 0, 'base' has dtype float64", [wrong_type], error=TypeError)
    good = [plain_row((5, 8, 8))]
    refused("scale=1.5", good, scale=1.5)
    refused("scale=0", good, scale=0)
    refused("columns=0", good, columns=0)
    refused("sheet.jpg: the file's name must end in", good, where=tmp_path / "sheet.jpg")
    assert not list(tmp_path.iterdir())


def test_videos_of_different_lengths_make_a_sheet_but_no_animation(tmp_path):
    rows = [plain_row((5, 8, 8), (9, 8, 8))]
    assert contact_sheet(rows, tmp_path / "sheet.png").exists()
    with pytest.raises(ValueError, match="row 0, 'video 1' is .*9, 8, 8.* and row 0, 'video 0' is .*5, 8, 8"):
        animated_sheet(rows, tmp_path / "sheet.webp", fps=8)


@pytest.mark.parametrize("fps", [0, -1, 60])
def test_an_unplayable_frame_rate_is_refused(tmp_path, fps):
    with pytest.raises(ValueError, match=f"fps={fps}: must be above 0 and at most 50"):
        animated_sheet([fox_row()], tmp_path / "sheet.webp", fps=fps)
