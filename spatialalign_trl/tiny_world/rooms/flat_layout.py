"""Draws the layouts of flat rooms: few large objects of plain colours, which a frame of 32x48 pixels can show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialalign_trl.tiny_world.rooms.base import Layout, Place

FLAT_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (210, 30, 36),
    "green": (30, 150, 52),
    "blue": (30, 60, 200),
    "yellow": (246, 214, 20),
    "purple": (126, 38, 156),
    "orange": (246, 120, 10),
    "white": (250, 250, 250),
    "black": (26, 26, 30),
}
"""Colours of objects, stronger than those of walls, floors and the sky."""


@dataclass(frozen=True)
class FlatKind:
    """A kind of object.

    Attributes:
        parts (tuple of (`str`, `float`, `float`, `float`)):
            Its solids from the floor up: shape (`"box"`, `"cylinder"`, `"cone"` or `"ball"`), lower and upper end as
            shares of its height, and width as a share of its width.
        width, height (tuples of 2 `float`):
            Ranges of its size in metres. Balls indoors are as high as they are wide (`height=(0, 0)`).
        depth (tuple of 2 `float`, *optional*):
            Range of its depth in metres; as deep as wide by default.
    """

    parts: tuple[tuple[str, float, float, float], ...]
    width: tuple[float, float]
    height: tuple[float, float]
    depth: tuple[float, float] | None = None


FLAT_INDOOR: dict[str, FlatKind] = {
    "box": FlatKind((("box", 0, 1, 1),), (0.56, 1.0), (0.5, 1.3), (0.56, 1.0)),
    "pillar": FlatKind((("cylinder", 0, 1, 1),), (0.56, 1.0), (0.9, 1.9)),
    "cone": FlatKind((("cone", 0, 1, 1),), (0.56, 1.0), (0.9, 1.7)),
    "ball": FlatKind((("ball", 0, 1, 1),), (0.56, 1.0), (0, 0)),
}
FLAT_OUTDOOR: dict[str, FlatKind] = {
    "tower": FlatKind((("cylinder", 0, 0.65, 0.7), ("cone", 0.65, 1, 1)), (1.0, 1.6), (2.2, 3.4)),
    "tent": FlatKind((("cone", 0, 1, 1),), (1.4, 2.2), (1.2, 1.9)),
    "bush": FlatKind((("ball", 0, 1, 1),), (1.0, 1.8), (0.7, 1.2)),
    "hedge": FlatKind((("box", 0, 1, 1),), (1.6, 2.6), (0.6, 1.1), (0.5, 0.8)),
}
"""Kinds in gardens, none of which occurs indoors."""

_MIDDLE = 0.9  # metres around the middle of the room that stay free for cameras
_GAP = 0.25  # metres between two objects
_ATTEMPTS = 60


def draw_flat_layout(rng: np.random.Generator, style: str) -> Layout:
    """Draw one layout, whatever its split.

    Args:
        rng (`np.random.Generator`):
            Source of all randomness.
        style (`"flat"` or `"flat_outdoor"`):
            Style of the room.
    """
    indoor = style == "flat"
    kinds = FLAT_INDOOR if indoor else FLAT_OUTDOOR
    low, high = (9, 14) if indoor else (16, 23)  # in half metres
    half = tuple(float(side) / 4 for side in rng.integers(low, high, 2))
    number = int(rng.integers(3, 6))
    places: list[Place] = []
    for _ in range(_ATTEMPTS):
        if len(places) == number:
            break
        name, color = str(rng.choice(list(kinds))), str(rng.choice(list(FLAT_COLORS)))
        place = _place(rng, kinds[name], name, color, half)
        if all(place.name != other.name and _apart(place, other) for other in places):
            places.append(place)
    return Layout(style, half, 2.6 if indoor else 4.0, None, tuple(places))


def _place(rng: np.random.Generator, kind: FlatKind, name: str, color: str, half: tuple[float, float]) -> Place:
    """Draw size and position of an object, inside the room and away from its middle."""
    width, height = rng.uniform(*kind.width), rng.uniform(*kind.height)
    depth = width if kind.depth is None else rng.uniform(*kind.depth)
    yaw = 0.0 if kind.depth is None else float(rng.uniform(0, np.pi))
    size = tuple(round(float(side), 2) for side in (width, height or width, depth))
    reach = _radius(size, kind.depth is not None)
    while True:
        x, z = (float(rng.uniform(-1, 1)) * (side - reach - 0.02) for side in half)
        if np.hypot(x, z) >= reach + _MIDDLE:
            return Place(name, color, (round(x, 3), round(z, 3)), round(yaw, 3), size)


def _radius(size: tuple[float, float, float], is_box: bool) -> float:
    """Return the radius of a circle on the floor that contains an object."""
    return float(np.hypot(size[0], size[2]) / 2) if is_box else size[0] / 2


def _apart(place: Place, other: Place) -> bool:
    """Return whether two objects keep their distance."""
    kinds = FLAT_INDOOR | FLAT_OUTDOOR
    reach = sum(_radius(p.size, kinds[p.kind].depth is not None) for p in (place, other))
    return float(np.hypot(*np.subtract(place.position, other.position))) >= reach + _GAP
