"""The words of the tiny world, their colours, and the held-out combinations.

Animals are saturated, objects have one fixed colour each, scenes are two pale tones: every pixel of a clean render is
nearest to the palette entry it was painted with, so that colour segmentation alone can track both sprites.
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


def combinations() -> list[tuple[str, str, str, str]]:
    """All (scene, color, animal, object) combinations, in a fixed order."""
    return list(product(SCENES, ANIMAL_COLORS, ANIMALS, OBJECTS))


def is_held_out(scene: str, color: str, animal: str, object: str) -> bool:
    """Whether a combination is kept out of pretraining; about `HELD_OUT_SHARE` of all, by a hash of the words."""
    digest = hashlib.sha256("|".join((scene, color, animal, object)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


@lru_cache(maxsize=1)
def split_combinations() -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
    """`(pretraining, held_out)` combinations."""
    everything = combinations()
    return [c for c in everything if not is_held_out(*c)], [c for c in everything if is_held_out(*c)]
