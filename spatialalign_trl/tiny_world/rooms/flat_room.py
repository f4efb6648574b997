"""Builds a flat room from a seed: solids of plain colours between four painted walls.

Textured rooms are made for 240x416 pixels. At 32x48 their posters and wallpapers are noise that a tiny VAE spends its
capacity on, so flat rooms have only what such a frame can show: walls that differ, with wide stripes, a door or a
window; a rug; and three to five large objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialalign_trl.tiny_world.rooms.base import BaseRoom, Place, RoomObject
from spatialalign_trl.tiny_world.rooms.flat_layout import FLAT_COLORS, FLAT_INDOOR, FLAT_OUTDOOR
from spatialalign_trl.tiny_world.rooms.layout import sample_layout

_WALLS = np.array([
    (214, 92, 80), (88, 140, 214), (106, 178, 98), (226, 196, 84), (168, 110, 190), (90, 190, 190), (232, 150, 84),
    (226, 160, 180), (196, 196, 188), (120, 120, 132), (146, 108, 76), (240, 236, 214),
], np.float32)  # fmt: skip
_FLOORS = np.array([(150, 118, 84), (110, 110, 116), (176, 160, 136), (96, 76, 62)], np.float32)
_CEILING, _SKY, _GRASS, _PATH = (236, 236, 232), (132, 186, 242), (112, 158, 74), (196, 176, 132)
_OPEN = 99.0  # metres: far outside every room


@dataclass(frozen=True)
class FlatWall:
    """A wall, painted in one colour with a pattern of a second one.

    The second colour covers the part `share` of every period along the wall, between two heights.

    Attributes:
        colors (`np.ndarray` of shape `(2, 3)`, `float32`):
            The two colours, RGB.
        origin, period (`float`):
            Start of a period and its length, along x or z, in metres.
        share (`float`):
            Share of the second colour in a period, in [0, 1]. 0 leaves the wall plain.
        low, high (`float`):
            Height above the floor between which the pattern is, in metres.
        top (`float`):
            Height of the wall in metres.
    """

    colors: np.ndarray
    origin: float
    period: float
    share: float
    low: float
    high: float
    top: float


@dataclass(frozen=True)
class Solid:
    """A part of an object.

    Attributes:
        shape (`str`):
            `"box"`, `"cylinder"`, `"cone"` (with its point up) or `"ball"`.
        centre (tuple of 2 `float`):
            x and z in metres.
        bottom, top (`float`):
            Heights above the floor in metres.
        radii (tuple of 2 `float`):
            Half its width and half its depth in metres; equal unless it is a box.
        yaw (`float`):
            Rotation in radians.
        owner (`int`):
            Index of its object.
        color (tuple of 3 `int`):
            RGB colour.
    """

    shape: str
    centre: tuple[float, float]
    bottom: float
    top: float
    radii: tuple[float, float]
    yaw: float
    owner: int
    color: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class FlatRoom(BaseRoom):
    """A flat room.

    Attributes:
        walls (`tuple[FlatWall, ...]`):
            The walls towards +z, +x, -z and -x.
        floor, ceiling, rug_color (`np.ndarray` of shape `(3,)`, `float32`):
            RGB colours. In gardens the ceiling is the sky.
        rug (tuple of 4 `float`):
            x0, z0, x1, z1 of the rug in metres.
        solids (`tuple[Solid, ...]`):
            Parts of all objects.
    """

    walls: tuple[FlatWall, ...]
    floor: np.ndarray
    ceiling: np.ndarray
    rug_color: np.ndarray
    rug: tuple[float, float, float, float]
    solids: tuple[Solid, ...]


def sample_flat_room(seed: int, style: str) -> FlatRoom:
    """Build the flat room of a seed. See `sample_room`."""
    layout = sample_layout(seed, style)
    rng = np.random.default_rng([seed, 77])
    half, indoor = np.array(layout.half), style == "flat"

    # 1. Walls, floor and rug. No two walls have the same colour.
    picks = rng.permutation(len(_WALLS))
    walls = tuple(
        _wall(rng, _WALLS[picks[[i, 4 + i]]], float(half[i % 2]), layout.height if indoor else rng.uniform(1.0, 4.0))
        for i in range(4)
    )
    width, depth = rng.uniform(0.35, 0.6, 2) * 2 * half
    x, z = rng.uniform(-0.4, 0.4, 2) * half
    rug = tuple(float(edge) for edge in (x - width / 2, z - depth / 2, x + width / 2, z + depth / 2))
    floor, rug_color = _FLOORS[rng.integers(len(_FLOORS))], _WALLS[rng.integers(len(_WALLS))]
    ceiling = np.array(_CEILING if indoor else _SKY, np.float32)
    if not indoor:
        floor, rug_color = np.array(_GRASS, np.float32), np.array(_PATH, np.float32)

    # 2. Objects.
    solids = [solid for index, place in enumerate(layout.places) for solid in _solids(place, index)]
    objects = tuple(_object(place) for place in layout.places)
    return FlatRoom(seed, layout, objects, walls, floor, ceiling, rug_color, rug, tuple(solids))


def _wall(rng: np.random.Generator, colors: np.ndarray, half: float, top: float) -> FlatWall:
    """Draw a wall of length `2 * half`: plain, striped, with a door, or with a window."""
    pattern = rng.integers(4)
    if pattern == 0:
        return FlatWall(colors, 0.0, 1.0, 0.0, 0.0, 0.0, top)
    if pattern == 1:
        return FlatWall(colors, float(rng.uniform(0, 2)), float(rng.uniform(1.6, 2.6)), 0.5, -1.0, _OPEN, top)
    width, low, high = (1.1, -1.0, 2.05) if pattern == 2 else (float(rng.uniform(1.3, 2.0)), 1.0, 2.1)
    left = float(rng.uniform(-half + 0.3, half - 0.3 - width))
    return FlatWall(colors, left, _OPEN, width / _OPEN, low, high, top)


def _solids(place: Place, owner: int) -> list[Solid]:
    """Return the parts of an object."""
    kind = (FLAT_INDOOR | FLAT_OUTDOOR)[place.kind]
    width, height, depth = place.size
    return [
        Solid(shape, place.position, low * height, high * height, (wide * width / 2, wide * depth / 2), place.yaw,
              owner, FLAT_COLORS[place.color])
        for shape, low, high, wide in kind.parts
    ]  # fmt: skip


def _object(place: Place) -> RoomObject:
    """Return an object with its exact box."""
    is_box = (FLAT_INDOOR | FLAT_OUTDOOR)[place.kind].depth is not None
    reach = place.half_extent() if is_box else (place.size[0] / 2, place.size[0] / 2)
    (x, z), (reach_x, reach_z) = place.position, reach
    low, high = np.array([x - reach_x, -place.size[1], z - reach_z]), np.array([x + reach_x, 0.0, z + reach_z])
    return RoomObject(place.name, place.kind, place.color, low, high, place.yaw, False)
