"""Videos with the boxes drawn in, to see what a score was read from: every frame, or a strip of a few.

Boxes and names are drawn after a frame was brought to its size, so that they are as sharp on 32x48 pixels as on
480x832.
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
from spatialalign_trl.report.drawing import enlarge, font_of, line_height, plain, wrap
from spatialalign_trl.video import Video, check_video

PLAYING_WIDTH = 480
"""Narrower videos are enlarged by whole numbers until they are at least this wide; wider ones stay as they are."""

STRIP_WIDTH, STRIP_COLUMNS = 320, 4
_COLORS = ("#1f6feb", "#e8590c", "#8250df", "#1a7f37")
"""By the order in which names first appear: the animal is blue, the object orange."""

_PAPER, _INK, _FAINT, _HALO = "#ffffff", "#1f2328", "#57606a", "#ffffff"
_MARGIN, _GAP, _SMALLEST_LETTERS = 24, 10, 8


def annotate_video(video: Video, tracks: Tracks, captions: Sequence[str] | None = None) -> Video:
    """Every frame with its boxes, above a bar that counts the frames.

    Args:
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`): The video.
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]): Its boxes.
        captions (sequence of `str`, *optional*): What the bar says of every frame beside its number.

    Returns:
        `np.ndarray` of shape `(frames, even height, even width, 3)`, `uint8`: small videos are enlarged pixel by
        pixel, and the size is even, as the common mp4 asks for.

    Raises:
        ValueError: when `video` breaks the convention, or there is not one caption a frame.
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
    """Write evenly spaced frames with their boxes, first and last included, to a PNG.

    Args:
        path (`str` or `os.PathLike`): Where the `.png` goes. Missing folders are made.
        video, tracks, captions: As in [`annotate_video`].
        title (`str`): A heading, such as the score.
        note (`str`, *optional*): Smaller text below it, such as the prompt, or why the video is INVALID.
        count (`int`, *optional*, defaults to 8): Frames shown, in rows of four; a shorter video shows all it has.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: as [`annotate_video`], and when `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; at least 1 frame must be shown")
    width = check_video(video).shape[2]
    scale = float(max(1, round(STRIP_WIDTH / width))) if width <= STRIP_WIDTH else STRIP_WIDTH / width
    times = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int).tolist()
    buffer = io.BytesIO()
    _grid(list(_panels(video, tracks, captions, times, scale)), title, note).save(buffer, format="PNG", optimize=True)
    return write_atomic(path, buffer.getvalue())


def _panels(
    video: Video, tracks: Tracks, captions: Sequence[str] | None, times: Iterable[int], scale: float
) -> Iterator[Image.Image]:
    """The frames at `times`, enlarged, with boxes and bar."""
    if captions is not None and len(captions) != len(video):
        raise ValueError(f"there are {len(captions)} captions for {len(video)} frames; give one each")
    boxes, colors = _by_frame(tracks), _color_of_names(tracks)
    for index in times:
        picture = _with_boxes(video[index], boxes.get(index), colors, scale)
        caption = captions[index] if captions is not None else ""
        yield _with_bar(picture, f"frame {index}/{len(video) - 1}", caption)


def _by_frame(tracks: Tracks) -> dict[int, FrameBoxes]:
    """The frames with a box to see; a box without area stands for an empty mask."""
    return {frame.frame_index: frame for frame in tracks if any(map(_has_area, np.reshape(frame.boxes, (-1, 4))))}


def _has_area(box: np.ndarray) -> bool:
    return bool(np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1])


def _color_of_names(tracks: Tracks) -> dict[str, str]:
    names = dict.fromkeys(label for frame in tracks for label in frame.labels)
    return {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(names)}


def _with_boxes(pixels: np.ndarray, found: FrameBoxes | None, colors: dict[str, str], scale: float) -> Image.Image:
    picture = enlarge(pixels, scale)
    if found is None:
        return picture
    draw = ImageDraw.Draw(picture)
    line = max(2, round(picture.width / 240))
    seen = [(label, box) for label, box in zip(found.labels, found.boxes, strict=True) if _has_area(box)]
    for label, box in seen:
        corners = (np.asarray(box) * scale).round().tolist()
        # A white line around the coloured one: seen on any background.
        draw.rectangle([corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline=_HALO, width=line + 2)
        draw.rectangle(corners, outline=colors[label], width=line)
    highest = min((box[1] for _, box in seen), default=0)
    for label, box in seen:  # after all boxes, so that no line crosses a name
        # The upper thing's name goes above it and the lower one's below, where the other's box is not.
        _draw_name(draw, picture.size, label, np.asarray(box) * scale, colors[label], above=box[1] == highest)
    return picture


def _draw_name(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], name: str, box: np.ndarray, color: str, above: bool
) -> None:
    """A name on its colour beside its box, or just inside of it where the picture ends."""
    width, height = size
    letters = min(22, max(12, round(width / 34)))
    font, text = font_of(letters), plain(name)
    label_width, label_height = round(font.getlength(text)) + 10, round(letters * 1.35)
    x = int(np.clip(box[0], 0, max(width - label_width, 0)))
    y = box[1] - label_height - 2 if above else box[3] + 3
    y = int(np.clip(y, 0, max(height - label_height, 0)))
    draw.rectangle([x, y, x + label_width - 1, y + label_height - 1], fill=color)
    draw.text((x + label_width / 2, y + label_height / 2), text, fill=_PAPER, font=font, anchor="mm")


def _with_bar(picture: Image.Image, number: str, caption: str) -> Image.Image:
    """The picture above a bar with the frame's number and its caption; both sides of the whole are even."""
    letters = min(20, max(13, round(picture.width / 36)))
    height = round(letters * 1.9)
    page = Image.new("RGB", (picture.width + picture.width % 2, picture.height + height), _PAPER)
    page = page.crop((0, 0, page.width, page.height + page.height % 2))
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    draw.rectangle([0, picture.height, page.width, page.height], fill=_PAPER)
    middle = picture.height + height / 2
    draw.text((6, middle), number, fill=_INK, font=font_of(letters), anchor="lm")
    caption, room = plain(caption), page.width - 24 - font_of(letters).getlength(number)
    while letters > _SMALLEST_LETTERS and font_of(letters).getlength(caption) > room:
        letters -= 1  # a sequence of many relations has much to say
    draw.text((page.width - 6, middle), caption, fill=_FAINT, font=font_of(letters), anchor="rm")
    return page


def _grid(panels: Sequence[Image.Image], title: str, note: str | None) -> Image.Image:
    """Panels in rows of four below a heading."""
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
        draw.text((_MARGIN, y), text, fill=color, font=font_of(size))
        y += line_height(size)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        page.paste(panel, (_MARGIN + column * (width + _GAP), _MARGIN + head + row * (height + _GAP)))
    return page
