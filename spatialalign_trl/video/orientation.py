"""Show frames as players do: turned and mirrored by the display matrix that phones write into their files."""

from __future__ import annotations

import struct

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from spatialalign_trl.video.errors import unreadable

UPRIGHT = (False, False, False)
"""What [`turns_of`] returns for a frame that is shown as it is stored."""

_SLANT = 0.02
"""Largest part of a pixel's step that may go along the other axis: a turn by a degree is a turn by none."""


def turns_of(frame: av.VideoFrame, name: str) -> tuple[bool, bool, bool]:
    """
    Read how a decoded frame is to be shown.

    The matrix of a file (ISO 14496-12, 8.3.2.3) takes the stored place (x, y) to the shown place
    `(a x + c y, b x + d y)`, moved so that the picture starts at 0. Scales do not count: players ignore them, too.

    Args:
        frame (`av.VideoFrame`):
            The frame.
        name (`str`):
            How the error calls the file.

    Returns:
        `(transpose, flip_rows, flip_columns)`: whether to exchange rows and columns, and then to reverse each.

    Raises:
        VideoError: if the matrix is not one of the eight quarter turns and mirror images.
    """
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return UPRIGHT
    a, b, u, c, d, v, *_ = struct.unpack("9i", bytes(data)[:36])
    if not (a or b or c or d):  # some programs leave it empty
        return UPRIGHT
    transpose = abs(b) + abs(c) > abs(a) + abs(d)
    along, across = ((c, b), (a, d)) if transpose else ((a, d), (b, c))
    if u or v or not all(along) or max(map(abs, across)) > _SLANT * min(map(abs, along)):
        numbers = ", ".join(f"{number / 65536:g}" for number in (a, b, c, d))
        raise unreadable(
            name,
            f"its display matrix ({numbers}) slants the picture, but only quarter turns and mirror images are read. "
            "Encode it upright",
        )
    shown_x, shown_y = along  # the signs of the steps along the shown axes
    return transpose, shown_y < 0, shown_x < 0


def upright(pixels: np.ndarray, turns: tuple[bool, bool, bool]) -> np.ndarray:
    """
    Turn and mirror a frame.

    Args:
        pixels (`np.ndarray` of shape (height, width, 3)):
            The stored frame.
        turns (`tuple` of 3 `bool`):
            From [`turns_of`].

    Returns:
        `np.ndarray` of shape (height, width, 3) or (width, height, 3): a view.
    """
    transpose, flip_rows, flip_columns = turns
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
