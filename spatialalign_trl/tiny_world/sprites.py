"""The shapes of the animals and objects of the tiny world.

Every sprite is drawn once from simple shapes, in three layers (body, shade, dark), on a canvas `SUPERSAMPLING` times
finer than the video. To place a sprite, the layers are shifted by the sub-pixel offset of its position and averaged
down to pixels. The results are cached, so an anti-aliased sprite that moves smoothly costs a table look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from spatialalign_trl.tiny_world.vocabulary import ANIMALS, OBJECTS

SUPERSAMPLING = 8
BODY, SHADE, DARK = 1, 2, 3
SHADE_FACTOR = 0.84
DARK_COLOR = (24, 22, 26)

SIZES: dict[str, tuple[int, int]] = {
    "fox": (16, 12),
    "rabbit": (10, 14),
    "turtle": (14, 10),
    "duck": (12, 12),
    "elephant": (14, 12),
    "stump": (10, 10),
    "rock": (12, 8),
    "bucket": (10, 10),
    "crate": (10, 10),
    "bush": (12, 8),
}
"""Width and height of each sprite's exact box, in pixels of the 32x48 world. They are even, like all positions."""

_DESIGN_SIZES: dict[str, tuple[int, int]] = {
    "fox": (15, 11),
    "rabbit": (10, 13),
    "turtle": (14, 9),
    "duck": (12, 11),
    "elephant": (14, 12),
    "stump": (10, 9),
    "rock": (11, 8),
    "bucket": (9, 9),
    "crate": (9, 9),
    "bush": (11, 9),
}
"""Width and height of each sprite in the units used by its drawing function below; the pen scales them to `SIZES`."""


class _Pen:
    """Draw in design units onto a supersampled label canvas (0 empty, 1 body, 2 shade, 3 dark)."""

    def __init__(self, name: str) -> None:
        size = [side * SUPERSAMPLING for side in SIZES[name]]
        self.image = Image.new("L", size, 0)
        self.draw = ImageDraw.Draw(self.image)
        self._unit = [side / design for side, design in zip(size, _DESIGN_SIZES[name], strict=True)]

    def _scale(self, *values: float) -> list[float]:
        """Convert `x, y, x, y, ...` from design units to canvas pixels."""
        return [value * self._unit[index % 2] for index, value in enumerate(values)]

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, layer: int = BODY) -> None:
        """Draw the ellipse that fills a box."""
        a, b, c, d = self._scale(x0, y0, x1, y1)
        self.draw.ellipse([a, b, c - 1, d - 1], fill=layer)

    def box(self, x0: float, y0: float, x1: float, y1: float, layer: int = BODY) -> None:
        """Draw a filled box."""
        a, b, c, d = self._scale(x0, y0, x1, y1)
        self.draw.rectangle([a, b, c - 1, d - 1], fill=layer)

    def shape(self, *points: tuple[float, float], layer: int = BODY) -> None:
        """Draw a filled polygon."""
        self.draw.polygon([tuple(self._scale(*point)) for point in points], fill=layer)

    def dome(self, x0: float, y0: float, x1: float, y1: float, layer: int = BODY) -> None:
        """Draw the upper half of an ellipse; `(x1, y1)` is its flat lower right corner."""
        a, b, c, d = self._scale(x0, y0, x1, y1)
        self.draw.pieslice([a, b, c - 1, 2 * d - b - 1], 180, 360, fill=layer)


def _draw_fox(pen: _Pen) -> None:
    pen.shape((0, 2.4), (3.2, 3.2), (5.4, 6.6), (3.6, 8.4), (0.6, 5.6))  # the bushy tail, raised
    pen.ellipse(0.4, 2.6, 4.2, 7.0)
    pen.ellipse(3.2, 4.6, 11.2, 8.8)
    for x in (4.0, 5.8, 8.4, 10.0):
        pen.box(x, 7.6, x + 1.2, 11)
    pen.shape(
        (8.6, 0), (10.2, 2.4), (12.4, 2.2), (12.6, 0), (13.0, 3.0), (15, 5.6), (12.0, 6.6), (9.4, 6.2), (8.6, 3.4)
    )
    pen.box(0.9, 3.2, 2.1, 4.4, SHADE)
    pen.box(11.2, 3.3, 12.3, 4.4, DARK)


def _draw_rabbit(pen: _Pen) -> None:
    pen.ellipse(1.0, 6.6, 8.2, 13)
    pen.ellipse(4.2, 4.6, 10, 9.6)
    pen.ellipse(4.4, 0, 6.4, 6.4)
    pen.ellipse(7.0, 0, 9.0, 6.4)
    pen.ellipse(0, 8.4, 2.4, 10.8)
    pen.box(6.4, 11.6, 9.2, 13)
    pen.ellipse(5.0, 1.0, 5.8, 5.0, SHADE)
    pen.box(7.6, 6.2, 8.7, 7.3, DARK)


def _draw_turtle(pen: _Pen) -> None:
    pen.dome(0.4, 0, 10.6, 7.0)
    pen.box(1.6, 6.8, 3.6, 9)
    pen.box(7.2, 6.8, 9.2, 9)
    pen.shape((0, 6.4), (2, 5.4), (2, 7.2))
    pen.box(9.4, 5.0, 12, 6.8)
    pen.ellipse(10.6, 3.0, 14, 6.8)
    for x in (2.4, 5.0, 7.6):
        pen.box(x, 2.6, x + 0.9, 5.6, SHADE)
    pen.box(12.0, 4.0, 13.0, 5.0, DARK)


def _draw_duck(pen: _Pen) -> None:
    pen.shape((0, 3.8), (3.4, 6.2), (9.4, 5.4), (9.6, 9.0), (7.4, 10.2), (3.0, 10.2), (0.6, 7.6))
    pen.ellipse(1.6, 5.2, 9.8, 10.4)
    pen.box(6.8, 2.4, 9.4, 7.0)
    pen.ellipse(6.0, 0, 10.4, 4.2)
    pen.shape((9.8, 1.8), (12, 2.7), (9.8, 3.4), layer=SHADE)
    pen.box(4.6, 10.0, 6.6, 11, SHADE)
    pen.ellipse(3.0, 6.6, 6.6, 8.6, SHADE)
    pen.box(8.2, 1.2, 9.2, 2.2, DARK)


def _draw_elephant(pen: _Pen) -> None:
    pen.ellipse(0, 1.6, 9.8, 8.8)
    pen.box(1.0, 6.8, 3.4, 12)
    pen.box(6.2, 6.8, 8.6, 12)
    pen.ellipse(7.0, 0, 13.0, 6.2)
    pen.box(11.6, 3.2, 13.4, 10.4)
    pen.box(12.4, 8.9, 14, 10.4)
    pen.ellipse(6.6, 0.8, 9.6, 5.8, SHADE)
    pen.box(10.6, 1.9, 11.6, 2.9, DARK)


def _draw_stump(pen: _Pen) -> None:
    pen.box(1.2, 1.2, 8.8, 8.0)
    pen.shape((1.2, 6), (8.8, 6), (10, 9), (0, 9))
    pen.ellipse(1.2, 0, 8.8, 2.8, SHADE)


def _draw_rock(pen: _Pen) -> None:
    pen.shape((0, 8), (1.0, 3.6), (3.6, 0.6), (6.4, 0), (9.6, 3.0), (11, 8))
    pen.shape((3.6, 0.6), (5.2, 4.0), (4.2, 8), (7.0, 8), (6.4, 0), layer=SHADE)


def _draw_bucket(pen: _Pen) -> None:
    pen.shape((0, 1.0), (9, 1.0), (7.6, 9), (1.4, 9))
    pen.box(0, 0, 9, 1.6, SHADE)
    pen.shape((1.0, 4.4), (8.0, 4.4), (7.8, 5.4), (1.2, 5.4), layer=SHADE)


def _draw_crate(pen: _Pen) -> None:
    pen.box(0, 0, 9, 9)
    pen.shape((1.2, 1.2), (2.6, 1.2), (7.8, 6.4), (7.8, 7.8), (6.4, 7.8), (1.2, 2.6), layer=SHADE)
    pen.shape((7.8, 1.2), (6.4, 1.2), (1.2, 6.4), (1.2, 7.8), (2.6, 7.8), (7.8, 2.6), layer=SHADE)


def _draw_bush(pen: _Pen) -> None:
    pen.ellipse(2.0, 0, 8.6, 6.6)
    pen.ellipse(0, 2.8, 6.0, 9)
    pen.ellipse(5.0, 2.8, 11, 9)
    pen.box(2.6, 6, 8.4, 9)
    pen.ellipse(3.6, 1.6, 5.4, 3.4, SHADE)
    pen.ellipse(6.8, 4.4, 8.6, 6.2, SHADE)


_DRAW = {name: globals()[f"_draw_{name}"] for name in (*ANIMALS, *OBJECTS)}


@dataclass(frozen=True)
class Stamp:
    """A sprite at one sub-pixel offset.

    Attributes:
        body, shade, dark (`np.ndarray` of shape `(height, width)`, `float32`):
            Share of each pixel that the layer covers, in [0, 1]. Their sum is the sprite's alpha.
    """

    body: np.ndarray
    shade: np.ndarray
    dark: np.ndarray

    @property
    def alpha(self) -> np.ndarray:
        """Share of each pixel that the sprite covers, `(height, width)`, in [0, 1]."""
        return self.body + self.shade + self.dark

    def paint(self, color: tuple[int, int, int]) -> np.ndarray:
        """Return the colours of the sprite, `(height, width, 3)`, already multiplied by the coverage."""
        base = np.asarray(color, np.float32)
        layers = (
            (self.body, base),
            (self.shade, SHADE_FACTOR * base),
            (self.dark, np.asarray(DARK_COLOR, np.float32)),
        )
        return sum(coverage[..., None] * layer_color for coverage, layer_color in layers)


@cache
def _labels(name: str, mirrored: bool) -> np.ndarray:
    pen = _Pen(name)
    _DRAW[name](pen)
    labels = np.asarray(pen.image)
    return labels[:, ::-1] if mirrored else labels


@cache
def stamp(name: str, mirrored: bool = False, offset_x: int = 0, offset_y: int = 0) -> Stamp:
    """Return an anti-aliased sprite, shifted by less than a pixel.

    Args:
        name (`str`):
            An animal or object of `vocabulary.py`.
        mirrored (`bool`, *optional*, defaults to `False`):
            Flip the sprite horizontally. Animals face right otherwise.
        offset_x, offset_y (`int`, *optional*, defaults to `0`):
            Shift in units of 1 / `SUPERSAMPLING` pixels, in [0, `SUPERSAMPLING`).

    Returns:
        `Stamp`: one pixel wider and higher than `SIZES[name]`, so that every offset fits.
    """
    # One more pixel in each direction leaves space for the shift.
    width, height = SIZES[name]
    canvas = np.zeros(((height + 1) * SUPERSAMPLING, (width + 1) * SUPERSAMPLING), np.uint8)
    canvas[offset_y : offset_y + height * SUPERSAMPLING, offset_x : offset_x + width * SUPERSAMPLING] = _labels(
        name, mirrored
    )
    blocks = canvas.reshape(height + 1, SUPERSAMPLING, width + 1, SUPERSAMPLING)
    return Stamp(*((blocks == layer).mean((1, 3), dtype=np.float32) for layer in (BODY, SHADE, DARK)))
