"""Draw the boxes that a score was computed from into a video: every frame, or a strip of a few.

Frames are scaled before boxes and names are drawn, so that these are as sharp on 32x48 pixels as on 480x832.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from spatialalign_trl.files import write_atomic
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.report.drawing import enlarge, line_height, load_font, to_ascii, wrap
from spatialalign_trl.video import Video, check_video

PLAYING_WIDTH = 480
"""Narrower videos are enlarged by a whole number until they are at least this wide; wider ones keep their size."""

STRIP_WIDTH, STRIP_COLUMNS = 320, 4
_COLORS = ("#1f6feb", "#e8590c", "#8250df", "#1a7f37")
"""Colours of the names in the order in which they first appear: the animal is blue, the object orange."""

_PAPER, _INK, _FAINT, _HALO = "#ffffff", "#1f2328", "#57606a", "#ffffff"
_MARGIN, _GAP, _SMALLEST_LETTERS = 24, 10, 8


def annotate_video(video: Video, tracks: Tracks, captions: Sequence[str] | None = None) -> Video:
    """Draw the boxes into every frame, and add a bar with the frame's number below it.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`): The video.
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]): Its boxes.
        captions (sequence of `str`, *optional*): For each frame, text for the bar in addition to the number.

    Returns:
        `np.ndarray` of shape `(frames, even height, even width, 3)`, `uint8`: small videos are enlarged pixel by
        pixel. Height and width are even, which the usual pixel format of mp4 files needs.

    Raises:
        ValueError: when `video` is not a video in this library's convention, or there is not one caption per frame.
    """
    scale = float(max(1, -(-PLAYING_WIDTH // check_video(video).shape[2])))
    return np.stack([np.asarray(panel) for panel in _panels(video, tracks, captions, range(len(video)), scale)])


def annotated_strip(
    path: str | os.PathLike,
    video: Video,
    tracks: Tracks,
    *,
    title: str,
    note: str | None = None,
    captions: Sequence[str] | None = None,
    count: int = 8,
) -> Path:
    """Write evenly spaced frames with their boxes, including the first and the last, to a PNG.

    Args:
        path (`str` or `os.PathLike`): The `.png` file. Missing folders are created.
        video, tracks, captions: As in [`annotate_video`].
        title (`str`): A heading, such as the score.
        note (`str`, *optional*): Smaller text below it, such as the prompt, or why the video is INVALID.
        count (`int`, *optional*, defaults to 8): Number of frames, in rows of four; a shorter video shows all its
            frames.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: as in [`annotate_video`], and when `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    width = check_video(video).shape[2]
    scale = float(max(1, round(STRIP_WIDTH / width))) if width <= STRIP_WIDTH else STRIP_WIDTH / width
    times = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int).tolist()
    buffer = io.BytesIO()
    _grid(list(_panels(video, tracks, captions, times, scale)), title, note).save(buffer, format="PNG", optimize=True)
    return write_atomic(path, buffer.getvalue())


def _panels(
    video: Video, tracks: Tracks, captions: Sequence[str] | None, times: Iterable[int], scale: float
) -> Iterator[Image.Image]:
    """Yield the frames at `times`, scaled, with boxes and bar."""
    if captions is not None and len(captions) != len(video):
        raise ValueError(f"there are {len(captions)} captions for {len(video)} frames. Give one caption per frame")
    # A box without area stands for an empty mask: nothing to draw.
    boxes = {frame.frame_index: frame for frame in tracks if any(map(_has_area, np.reshape(frame.boxes, (-1, 4))))}
    names = dict.fromkeys(label for frame in tracks for label in frame.labels)
    colors = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(names)}
    for index in times:
        picture = _with_boxes(video[index], boxes.get(index), colors, scale)
        caption = captions[index] if captions is not None else ""
        yield _with_bar(picture, f"frame {index}/{len(video) - 1}", caption)


def _has_area(box: np.ndarray) -> bool:
    return bool(np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1])


def _with_boxes(pixels: np.ndarray, boxes: FrameBoxes | None, colors: dict[str, str], scale: float) -> Image.Image:
    picture = enlarge(pixels, scale)
    if boxes is None:
        return picture
    draw = ImageDraw.Draw(picture)
    line = max(2, round(picture.width / 240))
    named_boxes = [(label, box) for label, box in zip(boxes.labels, boxes.boxes, strict=True) if _has_area(box)]
    for label, box in named_boxes:
        corners = (np.asarray(box) * scale).round().tolist()
        # A white line around the coloured one makes the box visible on any background.
        draw.rectangle([corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline=_HALO, width=line + 2)
        draw.rectangle(corners, outline=colors[label], width=line)
    highest = min((box[1] for _, box in named_boxes), default=0)
    for label, box in named_boxes:  # after all boxes, so that no line crosses a name
        # The name of the upper box goes above it and that of the lower one below it, away from the other box.
        _draw_name(draw, picture.size, label, np.asarray(box) * scale, colors[label], above=box[1] == highest)
    return picture


def _draw_name(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], name: str, box: np.ndarray, color: str, above: bool
) -> None:
    """Draw a name on a coloured background above or below its box, moved inward at the picture's edge."""
    width, height = size
    letters = min(22, max(12, round(width / 34)))
    font, text = load_font(letters), to_ascii(name)
    label_width, label_height = round(font.getlength(text)) + 10, round(letters * 1.35)
    x = int(np.clip(box[0], 0, max(width - label_width, 0)))
    y = box[1] - label_height - 2 if above else box[3] + 3
    y = int(np.clip(y, 0, max(height - label_height, 0)))
    draw.rectangle([x, y, x + label_width - 1, y + label_height - 1], fill=color)
    draw.text((x + label_width / 2, y + label_height / 2), text, fill=_PAPER, font=font, anchor="mm")


def _with_bar(picture: Image.Image, number: str, caption: str) -> Image.Image:
    """Add a bar with the frame's number and caption below the picture, and make height and width even."""
    letters = min(20, max(13, round(picture.width / 36)))
    height = round(letters * 1.9)
    page = Image.new("RGB", (picture.width + picture.width % 2, picture.height + height), _PAPER)
    page = page.crop((0, 0, page.width, page.height + page.height % 2))
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    draw.rectangle([0, picture.height, page.width, page.height], fill=_PAPER)
    middle = picture.height + height / 2
    draw.text((6, middle), number, fill=_INK, font=load_font(letters), anchor="lm")
    caption, room = to_ascii(caption), page.width - 24 - load_font(letters).getlength(number)
    while letters > _SMALLEST_LETTERS and load_font(letters).getlength(caption) > room:
        letters -= 1  # the captions of sequences of many relations are long
    draw.text((page.width - 6, middle), caption, fill=_FAINT, font=load_font(letters), anchor="rm")
    return page


def _grid(panels: Sequence[Image.Image], title: str, note: str | None) -> Image.Image:
    """Arrange panels in rows of four below a heading."""
    width, height = panels[0].size
    columns = min(STRIP_COLUMNS, len(panels))
    inner = columns * width + (columns - 1) * _GAP
    titles, notes = wrap(title, 26, inner), wrap(note or "", 18, inner)
    head = len(titles) * line_height(26) + len(notes) * line_height(18) + 12
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (inner + 2 * _MARGIN, head + rows * (height + _GAP) - _GAP + 2 * _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for text, size, color in [*((line, 26, _INK) for line in titles), *((line, 18, _FAINT) for line in notes)]:
        draw.text((_MARGIN, y), text, fill=color, font=load_font(size))
        y += line_height(size)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        page.paste(panel, (_MARGIN + column * (width + _GAP), _MARGIN + head + row * (height + _GAP)))
    return page
