"""Draw text and frames on a picture: helpers of the sheets, strips and plots."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from PIL import Image, ImageFont

_LEADING = 1.3
_ASCII_FORMS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "×": "x"})


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load Pillow's own font, which every installation has."""
    return ImageFont.load_default(size=size)


def line_height(size: int) -> int:
    """Return the distance from one line of text to the next, in pixels."""
    return round(size * _LEADING)


def to_ascii(text: str) -> str:
    """Convert text to ASCII, all that Pillow's own font has: accents are dropped, other letters become "?"."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_ASCII_FORMS))
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode("ascii")


def wrap(text: str, size: int, width: int) -> list[str]:
    """Break text between words into lines of at most `width` pixels; a wider word gets its own line."""
    lines: list[str] = []
    for word in to_ascii(text).split():
        if lines and load_font(size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def enlarge(frame: np.ndarray, scale: float) -> Image.Image:
    """Scale a frame of shape `(height, width, 3)`: above 1 pixel by pixel, below 1 by averaging."""
    image = Image.fromarray(frame)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
