"""Draws the layout of a room from a seed: size, walls and furniture. No two splits share a layout.

The range of a seed determines its split. A layout also belongs to one split, by a hash of its signature (size of the
room, partition wall, and position of every kind of object). Layouts are drawn until one belongs to the seed's split.
"""

from __future__ import annotations

import numpy as np

from spatialalign_trl.errors import near_miss
from spatialalign_trl.tiny_world.rooms.base import GRID, Layout, Place, is_flat
from spatialalign_trl.tiny_world.rooms.flat_layout import draw_flat_layout
from spatialalign_trl.tiny_world.rooms.furniture import INDOOR, OUTDOOR, Kind

SPLIT_SEEDS: dict[str, range] = {
    "train": range(0, 1_000_000),
    "validation": range(1_000_000, 2_000_000),
    "test": range(2_000_000, 3_000_000),
}
"""Split -> its seeds."""

STYLES = ("indoor", "outdoor", "flat", "flat_outdoor")
"""Textured rooms and gardens, for frames of 240x416 pixels, and flat ones, for frames of 32x48 pixels. A layout's
random numbers depend on the position of its style, so new styles go to the end."""

OUTDOOR_STYLES = ("outdoor", "flat_outdoor")
"""Their layouts exist for validation and test seeds only, so that no model is trained on them."""

_GAP = 0.15  # metres between two objects
_CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_WALLS = {
    "north": (0.0, (0, 1)),
    "east": (np.pi / 2, (1, 0)),
    "south": (np.pi, (0, -1)),
    "west": (-np.pi / 2, (-1, 0)),
}
"""Wall -> yaw of an object with its back to the wall, and direction of the wall in x and z."""


def split_of(seed: int) -> str:
    """Return the split of a room's seed.

    Raises:
        ValueError: If the seed is outside all ranges of `SPLIT_SEEDS`.
    """
    for split, seeds in SPLIT_SEEDS.items():
        if seed in seeds:
            return split
    ranges = ", ".join(f"{split} {seeds.start} to {seeds.stop - 1}" for split, seeds in SPLIT_SEEDS.items())
    raise ValueError(f"seed={seed}: belongs to no split. Use {ranges}.")


def sample_layout(seed: int, style: str = "indoor") -> Layout:
    """Draw the layout of a room from its seed.

    Args:
        seed (`int`):
            Seed of the room, in a range of `SPLIT_SEEDS`.
        style (`str`, *optional*, defaults to `"indoor"`):
            One of `STYLES`.

    Returns:
        `Layout`: a layout of the seed's split.

    Raises:
        ValueError: If the style is unknown, the seed belongs to no split, or an outdoor seed is a training seed.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r}: unknown. {near_miss(str(style), STYLES)}")
    split = split_of(seed)
    if style in OUTDOOR_STYLES and split == "train":
        raise ValueError(
            f"seed={seed}: a training seed, but {style} rooms are only for tests outside the training domain. "
            f"Use a seed from {SPLIT_SEEDS['validation'].start} on."
        )
    # Splits get their layouts by rejection, so rooms of all splits have the same distribution.
    rng = np.random.default_rng([seed, STYLES.index(style)])
    while True:
        layout = draw_flat_layout(rng, style) if is_flat(style) else _draw(rng, style)
        if layout.split() == split:
            return layout


def _draw(rng: np.random.Generator, style: str) -> Layout:
    """Draw one layout of a textured room, whatever its split."""
    # 1. The shell of the room.
    indoor = style == "indoor"
    low, high = (9, 14) if indoor else (18, 25)  # in half metres
    half = tuple(float(size) * GRID / 2 for size in rng.integers(low, high, 2))
    height = float(rng.integers(25, 31)) / 10 if indoor else 4.0
    partition = _partition(rng, half) if indoor and rng.random() < 0.4 else None

    # 2. A random order of kinds: all of them once, then some again.
    kinds = INDOOR if indoor else OUTDOOR
    number = int(rng.integers(6, 10))
    names = [*rng.permutation(list(kinds)), *rng.choice(list(kinds), 4)]
    if rng.random() < 0.5:  # have two objects of one kind, which differ in colour only
        names.insert(int(rng.integers(1, 4)), names[0])

    # 3. Place objects in this order until there are enough. Kinds that do not fit are skipped.
    places: list[Place] = []
    for name in names:
        if len(places) == number:
            break
        free = sum(kinds[place.kind].stands == "free" for place in places)
        if indoor and kinds[name].stands == "free" and free >= 3:
            continue  # leave space for cameras
        colors = [color for color in kinds[name].colors if (name, color) not in {(p.kind, p.color) for p in places}]
        if colors:
            place = _find_place(rng, str(name), str(rng.choice(colors)), kinds[name], half, partition, places)
            places += [place] if place else []
    return Layout(style, half, height, partition, tuple(places))


def _partition(rng: np.random.Generator, half: tuple[float, float]) -> tuple[float, float, float, float]:
    """Draw a wall, 12 cm thick, that runs from one of the walls into the room."""
    axis, side = int(rng.integers(2)), int(rng.choice([-1, 1]))
    at = float(rng.integers(-2, 3)) * GRID / 2
    end = side * (half[axis] - half[axis] * 2 * rng.choice([0.35, 0.45]))
    along = sorted((side * half[axis], end))
    box = np.empty((2, 2))
    box[:, axis], box[:, 1 - axis] = along, (at - 0.06, at + 0.06)
    return tuple(float(x) for x in box.round(3).ravel())


def _find_place(rng: np.random.Generator, name: str, color: str, kind: Kind, half: tuple[float, float],
                partition: tuple[float, ...] | None, places: list[Place]) -> Place | None:  # fmt: skip
    """Draw a position for an object, or return `None` if 30 draws do not fit."""
    size = tuple(float(x) for x in (np.asarray(kind.size) * rng.uniform(0.9, 1.12, 3)).round(2))
    for _ in range(30):
        yaw, position = _candidate(rng, kind.stands, size, half)
        place = Place(name, color, position, yaw, size)
        if _fits(place, half, partition, places):
            return place
    return None


def _candidate(rng: np.random.Generator, stands: str, size: tuple[float, float, float],
               half: tuple[float, float]) -> tuple[float, tuple[float, float]]:  # fmt: skip
    """Draw a yaw and a position for an object."""
    on_grid = [float(rng.integers(np.ceil(-h / GRID), np.floor(h / GRID) + 1)) * GRID for h in half]
    if stands == "free":
        return float(rng.uniform(-np.pi, np.pi)), (on_grid[0], on_grid[1])
    if stands == "corner":
        reach = max(size[0], size[2]) / 2 + 0.08
        side = _CORNERS[rng.integers(4)]
        return float(rng.uniform(-np.pi, np.pi)), tuple(s * (h - reach) for s, h in zip(side, half, strict=True))
    yaw, wall = list(_WALLS.values())[rng.integers(4)]
    inset = size[2] / 2 + 0.02
    position = [s * (h - inset) if s else at for s, h, at in zip(wall, half, on_grid, strict=True)]
    return yaw, (position[0], position[1])


def _fits(place: Place, half: tuple[float, float], partition: tuple[float, ...] | None, places: list[Place]) -> bool:
    """Return whether an object lies inside the room, clear of the partition and of the other objects."""
    reach = np.array(place.half_extent())
    middle = np.array(place.position)
    if np.any(np.abs(middle) + reach > np.asarray(half) - 0.005):
        return False
    if partition is not None:
        low, high = np.array(partition[:2]), np.array(partition[2:])
        if np.all(middle + reach > low - 0.3) and np.all(middle - reach < high + 0.3):
            return False
    return all(
        np.any(np.abs(middle - np.array(other.position)) > reach + np.array(other.half_extent()) + _GAP)
        for other in places
    )
