"""Draw scored videos side by side, such as base | aligned: a sheet of frames to print, or an animation.

    contact_sheet(rows, "sheet.png")                 evenly spaced frames of every video
    animated_sheet(rows, "sheet.webp", fps=8)        the videos themselves, playing side by side

Small videos are enlarged pixel by pixel, which shows exactly what the model made; large ones are averaged down.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from spatialalign_trl.evaluation import DSR
from spatialalign_trl.files import write_atomic
from spatialalign_trl.report.drawing import enlarge, line_height, load_font, to_ascii, wrap
from spatialalign_trl.video import Video, check_video

THRESHOLD = 0.7
STRIP_FRAME_WIDTH = 140
PLAYING_FRAME_WIDTH = 240
HOLD_FIRST, HOLD_LAST = 0.4, 1.2
"""Seconds that an animation stays on its first and its last frame, which show the two relations."""

_PAPER, _INK, _FAINT, _LINE = "#ffffff", "#1f2328", "#57606a", "#d8dee4"
_PASSED, _FAILED, _INVALID = ("#1a7f37", "#dafbe1"), ("#cf222e", "#ffebe9"), ("#656d76", "#eaeef2")
_SCORED = ("#0969da", "#ddf4ff")
_MARGIN, _GUTTER, _FRAME_GAP = 36, 28, 4
_PROMPT_SIZE, _PLAYING_PROMPT_SIZE, _LABEL_SIZE, _TITLE_SIZE, _LEGEND_SIZE = 24, 20, 22, 32, 18


@dataclass(frozen=True)
class ContactSheetRow:
    """One prompt and the videos made for it.

    Args:
        prompt (`str`): The text above the videos.
        entries (sequence of `(label, video, score)`): From left to right. `video` is `uint8`
            `(frames, height, width, 3)`; `score` is `None` for an INVALID video.
        given (sequence of `(label, video)`): Videos that the model was given along with the prompt, such as the
            recording of a scene; [`contact_sheet`] shows them before the others.
    """

    prompt: str
    entries: Sequence[tuple[str, Video, float | None]]
    given: Sequence[tuple[str, Video]] = ()


def score_style(rewards: Sequence[str]) -> dict[str, Any]:
    """Return the options `score_name` and `threshold` of [`contact_sheet`] for the scores of these rewards.

    Scores are those of the first reward (`evaluation.headline_score`). Only DSR-Score has a known threshold.

    Args:
        rewards (sequence of `str`): The names of the rewards.
    """
    return {} if list(rewards)[:1] == [DSR] else {"score_name": "score", "threshold": None}


def contact_sheet(
    rows: Sequence[ContactSheetRow],
    path: str | os.PathLike,
    *,
    columns: int = 6,
    scale: float | None = None,
    title: str | None = None,
    threshold: float | None = THRESHOLD,
    score_name: str = "DSR",
) -> Path:
    """Write evenly spaced frames of every video, including the first and the last, to a PNG.

    Args:
        rows (sequence of [`ContactSheetRow`]): The rows from top to bottom, all with the same labels and sizes of
            video. The videos may differ in length.
        path (`str` or `os.PathLike`): The `.png` file. Missing folders are created.
        columns (`int`, *optional*, defaults to 6): Frames of each video, at least 1; a shorter video shows all its
            frames.
        scale (`float`, *optional*): Pixels shown per pixel of a video: a whole number enlarges, a number below 1
            reduces. By default, frames become about 140 pixels wide.
        title (`str`, *optional*): A heading above the rows.
        threshold (`float`, *optional*, defaults to 0.7): Scores of at least this are green, lower ones red; `None`:
            all scores are blue.
        score_name (`str`, *optional*, defaults to `"DSR"`): The text before the score.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: when there are no rows, videos differ in size, rows differ in their labels, a score is not finite,
            or an option is out of its range. The message names the row and the label.
    """
    path = _path_with_suffix(path, (".png",))
    if columns < 1:
        raise ValueError(f"columns={columns}: must be at least 1")
    width = _check_rows(rows)[1]
    scale = _check_scale(scale, width, STRIP_FRAME_WIDTH)
    badge = _Badge(threshold, score_name)
    cards = []
    for row in rows:
        shown = [*(video for _, video in row.given), *(video for _, video, _ in row.entries)]
        cards.append(_card(row, [_strip(video, columns, scale) for video in shown], badge, given=row.given))
    page = _page(cards, 1, title, f"Time runs from left to right. {badge.legend()}")
    return write_atomic(path, _encode(page, format="PNG", optimize=True))


def animated_sheet(
    rows: Sequence[ContactSheetRow],
    path: str | os.PathLike,
    fps: float,
    *,
    columns: int = 2,
    scale: float | None = None,
    title: str | None = None,
    threshold: float | None = THRESHOLD,
    score_name: str = "DSR",
) -> Path:
    """Write an endless animation in which the videos of every row play side by side.

    Args:
        rows (sequence of [`ContactSheetRow`]): The rows, all with the same labels, and videos of one size and length.
        path (`str` or `os.PathLike`): The `.webp` (lossless) or `.gif` (256 colours) file.
        fps (`float`): Frames per second, above 0 and at most 50, which players can keep up with.
        columns (`int`, *optional*, defaults to 2): Number of rows that are placed side by side, at least 1.
        scale (`float`, *optional*): As in [`contact_sheet`]. By default, frames become about 240 pixels wide.
        title, threshold, score_name: As in [`contact_sheet`].

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: as in [`contact_sheet`]; also when videos differ in length, or `path` has another suffix.
    """
    path = _path_with_suffix(path, (".webp", ".gif"))
    if not 0 < fps <= 50:
        raise ValueError(f"fps={fps}: must be above 0 and at most 50")
    if columns < 1:
        raise ValueError(f"columns={columns}: must be at least 1")
    length, width = _check_rows(rows, same_length=True)
    scale = _check_scale(scale, width, PLAYING_FRAME_WIDTH)
    badge = _Badge(threshold, score_name)
    # 1. Draw a page per frame.
    pages = []
    for time in range(length):
        cards = [
            _card(row, [enlarge(video[time], scale) for _, video, _ in row.entries], badge, _PLAYING_PROMPT_SIZE)
            for row in rows
        ]
        pages.append(_page(cards, min(columns, len(rows)), title, badge.legend()))

    # 2. Encode the pages, with a pause on the first and the last one.
    durations = [round(1000 / fps)] * length
    durations[0] += round(1000 * HOLD_FIRST)
    durations[-1] += round(1000 * HOLD_LAST)
    if path.suffix.lower() == ".gif":
        pages = _with_one_palette(pages)
        options = {"format": "GIF", "optimize": False, "disposal": 1}
    else:
        options = {"format": "WEBP", "lossless": True, "quality": 50, "method": 2}
    timing = {"save_all": True, "append_images": pages[1:], "duration": durations, "loop": 0}
    return write_atomic(path, _encode(pages[0], **options, **timing))


# Checks -------------------------------------------------------------------------------------------------------------


def _path_with_suffix(path: str | os.PathLike, suffixes: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the file's name must end in {' or '.join(suffixes)}")
    return path


def _check_rows(rows: Sequence[ContactSheetRow], same_length: bool = False) -> tuple[int, int]:
    """Check that labels and sizes agree, and return the number of frames of the first video and the width of all."""
    if not rows:
        raise ValueError("there are no rows to draw. Give at least one prompt with its videos")
    first: tuple[str, tuple[int, ...]] | None = None
    labels = [label for label, _, _ in rows[0].entries]
    for index, row in enumerate(rows):
        if not row.entries:
            raise ValueError(f"row {index} ({row.prompt!r}) has no videos. Give at least one")
        if [label for label, _, _ in row.entries] != labels:
            other = [label for label, _, _ in row.entries]
            raise ValueError(f"row {index} has the labels {other}, row 0 has {labels}. All rows need the same labels")
        for label, video, score in row.entries:
            name = f"row {index}, {label!r}"
            check_video(video, name)
            size = video.shape[1:3] if not same_length else video.shape[:3]
            first = first or (name, size)
            if size != first[1]:
                shape = "(frames, height, width)" if same_length else "(height, width)"
                raise ValueError(f"{name} is {size} and {first[0]} is {first[1]} in {shape}. All videos must agree")
            if score is not None and not math.isfinite(score):
                raise ValueError(f"{name} has the score {score}. Give None for an invalid video")
    return rows[0].entries[0][1].shape[0], rows[0].entries[0][1].shape[2]


def _check_scale(scale: float | None, width: int, wanted: int) -> float:
    if scale is None:
        return float(max(1, round(wanted / width))) if width <= wanted else wanted / width
    if not scale > 0 or (scale > 1 and scale != int(scale)):
        raise ValueError(f"scale={scale}: must be a whole number, or between 0 and 1 to reduce")
    return float(scale)


# Drawing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Badge:
    """The text and colours of scores."""

    threshold: float | None
    score_name: str

    def text(self, score: float | None) -> str:
        if score is None:
            return "invalid"
        # Rounded down, so that a score just below the threshold does not look as if it had reached it.
        return to_ascii(f"{self.score_name} {math.floor(score * 100 + 1e-6) / 100:.2f}")

    def colors(self, score: float | None) -> tuple[str, str]:
        """Return the colours of the text and of its background."""
        if score is None:
            return _INVALID
        if self.threshold is None:
            return _SCORED
        return _PASSED if score >= self.threshold - 1e-9 else _FAILED

    def legend(self) -> str:
        if self.threshold is None:
            return "Grey: invalid, not measurable."
        return f"Green: {self.score_name} of {self.threshold:g} or more; red: less; grey: invalid, not measurable."

    def size(self, score: float | None) -> tuple[int, int]:
        return round(load_font(_LABEL_SIZE).getlength(self.text(score))) + 20, line_height(_LABEL_SIZE) + 4

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, score: float | None) -> None:
        ink, paper = self.colors(score)
        width, height = self.size(score)
        draw.rounded_rectangle([x, y, x + width - 1, y + height - 1], radius=height // 3, fill=paper, outline=ink)
        middle = (x + width / 2, y + height / 2)
        draw.text(middle, self.text(score), fill=ink, font=load_font(_LABEL_SIZE), anchor="mm")


def _strip(video: Video, columns: int, scale: float) -> Image.Image:
    """Draw evenly spaced frames from left to right, on a strip that is always as wide as `columns` frames."""
    times = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    frames = [enlarge(video[time], scale) for time in times]
    width, height = frames[0].size
    strip = Image.new("RGB", (columns * width + (columns - 1) * _FRAME_GAP, height), _PAPER)
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * (width + _FRAME_GAP), 0))
    return strip


def _card(
    row: ContactSheetRow,
    panels: Sequence[Image.Image],
    badge: _Badge,
    prompt_size: int = _PROMPT_SIZE,
    given: Sequence[tuple[str, Video]] = (),
) -> Image.Image:
    """Draw a row: the prompt, and each panel under its label and score. Panels of `given` come first, unscored."""
    font = load_font(_LABEL_SIZE)
    labels = [to_ascii(label) for label in [*(label for label, _ in given), *(label for label, _, _ in row.entries)]]
    label_widths = [round(font.getlength(label)) + 14 for label in labels]
    scored = zip(label_widths[len(given) :], row.entries, strict=True)
    heads = [*label_widths[: len(given)], *(width + badge.size(score)[0] for width, (_, _, score) in scored)]
    # All cells are as wide as the widest one, so that the columns of all rows are aligned.
    cell = max(max(panel.width for panel in panels), *heads)
    width = cell * len(panels) + _GUTTER * (len(panels) - 1)
    lines = wrap(row.prompt, prompt_size, width)
    head_top = len(lines) * line_height(prompt_size) + 10
    head_height = badge.size(None)[1]
    panel_top = head_top + head_height + 10

    card = Image.new("RGB", (width, panel_top + max(panel.height for panel in panels)), _PAPER)
    draw = ImageDraw.Draw(card)
    for number, line in enumerate(lines):
        draw.text((0, number * line_height(prompt_size)), line, fill=_INK, font=load_font(prompt_size))
    for place, panel in enumerate(panels):
        x = place * (cell + _GUTTER)
        draw.text((x, head_top + head_height / 2), labels[place], fill=_FAINT, font=font, anchor="lm")
        if place >= len(given):
            badge.draw(draw, x + label_widths[place], head_top, row.entries[place - len(given)][2])
        card.paste(panel, (x, panel_top))
    return card


def _page(cards: Sequence[Image.Image], columns: int, title: str | None, legend: str) -> Image.Image:
    """Arrange cards in a grid with thin lines between its rows, a title above and the legend below."""
    grid = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    card_width = max(card.width for card in cards)
    inner = card_width * columns + 2 * _GUTTER * (columns - 1)
    heights = [max(card.height for card in row) for row in grid]
    title_lines = wrap(title or "", _TITLE_SIZE, inner)
    legend_lines = wrap(legend, _LEGEND_SIZE, inner)
    head = len(title_lines) * line_height(_TITLE_SIZE) + (_MARGIN // 2 if title_lines else 0)
    between = 2 * _GUTTER
    body = sum(heights) + between * len(grid)
    foot = len(legend_lines) * line_height(_LEGEND_SIZE)

    page = Image.new("RGB", (inner + 2 * _MARGIN, _MARGIN + head + body + foot + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(title_lines):
        place = (_MARGIN, _MARGIN + number * line_height(_TITLE_SIZE))
        for shift in (0, 1):  # drawn twice, because Pillow's own font has no bold weight
            draw.text((place[0] + shift, place[1]), line, fill=_INK, font=load_font(_TITLE_SIZE))
    y = _MARGIN + head
    for row, height in zip(grid, heights, strict=True):
        for place, card in enumerate(row):
            # Align the bottoms: videos side by side are at one height, however long their prompts are.
            page.paste(card, (_MARGIN + place * (card_width + 2 * _GUTTER), y + height - card.height))
        y += height + between
        draw.line([(_MARGIN, y - _GUTTER), (page.width - _MARGIN, y - _GUTTER)], fill=_LINE, width=2)
    for number, line in enumerate(legend_lines):
        place = (_MARGIN, y + number * line_height(_LEGEND_SIZE))
        draw.text(place, line, fill=_FAINT, font=load_font(_LEGEND_SIZE))
    return page


def _with_one_palette(pages: Sequence[Image.Image]) -> list[Image.Image]:
    """Convert all pages to the same 256 colours without dithering; palettes that change between frames flicker."""
    chosen = [pages[0], pages[len(pages) // 2], pages[-1]]
    sample = Image.new("RGB", (chosen[0].width, sum(page.height for page in chosen)))
    for number, page in enumerate(chosen):
        sample.paste(page, (0, number * page.height))
    # Maximum coverage keeps the colours of small sprites; a median cut would spend the palette on the background.
    palette = sample.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    colors = np.reshape(palette.getpalette(), (-1, 3))
    paper = ImageColor.getrgb(_PAPER)
    # Pillow rounds to six bits when it looks up colours, which would tint the white page visibly.
    colors[(np.abs(colors - paper) < 8).all(1)] = paper
    palette.putpalette(colors.ravel().tolist())
    return [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]


def _encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
