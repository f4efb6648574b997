"""The words of the tiny world, their colours, and the combinations that pretraining never sees.

Animals have saturated colours, every object has one fixed colour, and a scene is two pale tones. Every pixel of a
clean render is therefore nearest to the palette entry it was painted with, and colour segmentation alone can track
both sprites.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import product

Color = tuple[int, int, int]

ANIMALS: tuple[str, ...] = ("fox", "rabbit", "turtle", "duck", "elephant")

ANIMAL_COLORS: dict[str, Color] = {
    "red": (214, 32, 36),
    "yellow": (250, 208, 16),
    "blue": (32, 72, 224),
    "pink": (246, 84, 178),
    "white": (255, 255, 255),
}

OBJECT_COLORS: dict[str, Color] = {
    "stump": (112, 64, 24),
    "rock": (92, 96, 106),
    "bucket": (0, 140, 136),
    "crate": (238, 128, 20),
    "bush": (16, 92, 36),
}
OBJECTS: tuple[str, ...] = tuple(OBJECT_COLORS)

SCENES: dict[str, tuple[Color, Color]] = {
    "In a meadow": ((168, 206, 240), (152, 200, 128)),
    "In a desert": ((184, 212, 224), (224, 194, 142)),
    "On a beach": ((150, 200, 226), (232, 214, 168)),
    "In a forest clearing": ((190, 214, 180), (134, 168, 118)),
    "In a kitchen": ((216, 206, 190), (180, 164, 148)),
    "In a park at dusk": ((206, 170, 196), (160, 150, 180)),
}
"""Scene phrase -> (colour above the horizon, colour of the ground)."""

VERBS: tuple[str, ...] = ("jumps", "hops", "leaps", "bounces")

HELD_OUT_SHARE = 0.1
"""Approximate share of the combinations that pretraining never sees."""


def combinations() -> list[tuple[str, str, str, str]]:
    """Return all `(scene, color, animal, object)` combinations in a fixed order."""
    return list(product(SCENES, ANIMAL_COLORS, ANIMALS, OBJECTS))


def is_held_out(scene: str, color: str, animal: str, object: str) -> bool:
    """Return whether a combination is kept out of pretraining. A hash of its words decides."""
    digest = hashlib.sha256("|".join((scene, color, animal, object)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


@lru_cache(maxsize=1)
def split_combinations() -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
    """Return the combinations as `(pretraining, held_out)`."""
    pretraining = [words for words in combinations() if not is_held_out(*words)]
    held_out = [words for words in combinations() if is_held_out(*words)]
    return pretraining, held_out
