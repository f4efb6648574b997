"""The objects in rooms and gardens: size, position and surfaces of each kind.

A builder returns the quads of an object that stands on the floor at the origin, with its front towards -z. The texture
`main` has the object's own colour; the other textures are the same on all objects of the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spatialalign_trl.tiny_world.rooms.surfaces import Quad, cuboid, frustum
from spatialalign_trl.tiny_world.rooms.textures import Color

Builder = Callable[[float, float, float, np.random.Generator], list[Quad]]
"""`builder(width, height, depth, rng) -> quads`, with sizes in metres."""


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        build (`Builder`):
            Function that builds the object.
        size (tuple of 3 `float`):
            Width, height and depth in metres. Objects differ from it by up to 12 %.
        stands (`str`):
            Where it stands: `"wall"` (with its back against a wall), `"corner"` or `"free"`.
        main (`str`):
            Texture function for the object's own colour.
        colors (tuple of `str`):
            Colours that the kind comes in.
        others (`dict[str, tuple[str, Color]]`):
            Further textures of the kind: name -> (texture function, colour).
    """

    build: Builder
    size: tuple[float, float, float]
    stands: str
    main: str
    colors: tuple[str, ...]
    others: dict[str, tuple[str, Color]]


BROWN: Color = (134, 92, 58)
DARK: Color = (66, 58, 54)
STEEL: Color = (150, 154, 160)


def _legs(width: float, depth: float, height: float, thick: float, texture: str, inset: float = 0.03) -> list[Quad]:
    """Build four square legs of `thick` metres, `inset` metres from the edges."""
    quads = []
    for x in (-width / 2 + inset, width / 2 - inset - thick):
        for z in (-depth / 2 + inset, depth / 2 - inset - thick):
            quads += cuboid((x, -height, z), (x + thick, 0.0, z + thick), texture)
    return quads


def chair(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a chair."""
    seat = 0.5 * height
    x, z = width / 2, depth / 2
    quads = _legs(width, depth, seat, 0.05, "legs", 0.0)
    quads += cuboid((-x, -seat - 0.06, -z), (x, -seat, z), "main", bottom=True)
    quads += cuboid((-x, -height, z - 0.06), (x, -seat - 0.1, z), "main", bottom=True)
    for left in (-x, x - 0.05):
        quads += cuboid((left, -seat - 0.1, z - 0.05), (left + 0.05, -seat - 0.06, z), "legs")
    return quads


def stool(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a stool with a round seat."""
    radius = min(width, depth) / 2
    return _legs(1.3 * radius, 1.3 * radius, height - 0.06, 0.045, "legs", 0.0) + frustum(
        radius, radius, -height + 0.09, -height, "main", lid="main"
    )


def seat_with_arms(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a sofa or an armchair; the width sets the number of cushions."""
    x, z, arm, back, seat = width / 2, depth / 2, 0.16, 0.2, 0.45 * height
    quads = cuboid((-x + arm, -seat, -z), (x - arm, 0.0, z - back), "main")
    quads += cuboid((-x, -height, z - back), (x, 0.0, z), "main")
    for left in (-x, x - arm):
        quads += cuboid((left, -0.68 * height, -z), (left + arm, 0.0, z - back), "main")
    cushions = max(1, round((width - 2 * arm) / 0.65))
    pitch = (width - 2 * arm) / cushions
    for i in range(cushions):
        left = -x + arm + i * pitch
        quads += cuboid((left + 0.02, -seat - 0.12, -z + 0.02), (left + pitch - 0.02, -seat, z - back), "cushion")
    return quads


def table(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a table."""
    x, z = width / 2, depth / 2
    return _legs(width, depth, height - 0.05, 0.07, "main") + cuboid(
        (-x, -height, -z), (x, -height + 0.06, z), "main", bottom=True
    )


def lamp(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a floor lamp."""
    radius = min(width, depth) / 2
    shade = 0.72 * height
    quads = frustum(0.75 * radius, 0.7 * radius, 0.0, -0.04, "stand", lid="stand")
    quads += frustum(0.022, 0.022, -0.04, -shade, "stand", sides=6)
    # The shade is open, so its inside is visible, too.
    return quads + [
        Quad(quad.corners, quad.texture, two_sided=True)
        for quad in frustum(radius, 0.6 * radius, -shade, -height, "main", sides=12)
    ]


def bookshelf(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a bookshelf with books on its front."""
    return cuboid((-width / 2, -height, -depth / 2), (width / 2, 0.0, depth / 2), "main", front="front")


def cabinet(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a cabinet on a plinth."""
    quads = cuboid((-width / 2, -height, -depth / 2), (width / 2, -0.06, depth / 2), "main", front="front")
    return quads + cuboid((-width / 2 + 0.04, -0.06, -depth / 2 + 0.04), (width / 2 - 0.04, 0.0, depth / 2), "plinth")


def bed(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a bed with two pillows."""
    x, z, top = width / 2, depth / 2, 0.5
    quads = cuboid((-x, -0.28, -z), (x, 0.0, z - 0.08), "frame")
    quads += cuboid((-x + 0.02, -top, -z + 0.02), (x - 0.02, -0.28, z - 0.08), "main")
    quads += cuboid((-x, -height, z - 0.08), (x, 0.0, z), "frame")
    for left in (-x + 0.1, 0.06):
        quads += cuboid((left, -top - 0.12, z - 0.5), (left + x - 0.16, -top, z - 0.12), "pillow")
    return quads


def box(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a box with a picture on its front."""
    return cuboid((-width / 2, -height, -depth / 2), (width / 2, 0.0, depth / 2), "main", front="front")


def vase(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a vase with an open top."""
    radius = min(width, depth) / 2
    return [
        *frustum(0.55 * radius, radius, 0.0, -0.45 * height, "main", sides=12),
        *frustum(radius, 0.45 * radius, -0.45 * height, -0.85 * height, "main", sides=12),
        *frustum(0.45 * radius, 0.6 * radius, -0.85 * height, -height, "main", sides=12, lid="hollow"),
    ]


def plant(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a potted plant."""
    pot, radius = 0.32 * height, min(width, depth) / 2
    quads = frustum(0.4 * radius, 0.6 * radius, 0.0, -pot, "pot", lid="soil")
    number = 26
    for i in range(number):
        angle = 2.4 * i + rng.uniform(-0.3, 0.3)  # the golden angle spreads leaves evenly
        rise = (i + 0.5) / number
        reach = radius * (1.0 - 0.55 * rise) * rng.uniform(0.8, 1.0)
        base = np.array([0.0, -pot - 0.35 * rise * (height - pot), 0.0])
        tip_height = pot + (height - pot) * (0.25 + 0.75 * rise)
        tip = np.array([reach * np.sin(angle), -tip_height, reach * np.cos(angle)])
        middle = base + 0.55 * (tip - base)
        across = 0.19 * np.linalg.norm(tip - base) * np.array([np.cos(angle), 0.0, -np.sin(angle)])
        quads.append(Quad(np.stack([tip, middle + across, base, middle - across]), "main", two_sided=True))
    return quads


def tree(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a tree with three crowns above each other."""
    radius = min(width, depth) / 2
    quads = frustum(0.09 * height / 2, 0.07 * height / 2, 0.0, -0.35 * height, "trunk", sides=8)
    for low, high, wide in ((0.25, 0.55, 1.0), (0.45, 0.78, 0.75), (0.68, 1.0, 0.5)):
        under = frustum(0.3 * radius * wide, radius * wide, -low * height, -(low + 0.06) * height, "main", sides=8)
        quads += under + frustum(
            radius * wide, 0.15 * radius * wide, -(low + 0.06) * height, -high * height, "main", sides=8, lid="main"
        )
    return quads


def bush(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a round bush."""
    radius = min(width, depth) / 2
    return [
        *frustum(0.75 * radius, radius, 0.0, -0.4 * height, "main"),
        *frustum(radius, 0.8 * radius, -0.4 * height, -0.75 * height, "main"),
        *frustum(0.8 * radius, 0.4 * radius, -0.75 * height, -height, "main", lid="main"),
    ]


def bench(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a bench with slats."""
    x, z, seat = width / 2, depth / 2, 0.5 * height
    quads = _legs(width, depth, seat, 0.07, "legs", 0.06)
    for i in range(3):
        front = -z + i * depth / 3
        quads += cuboid((-x, -seat - 0.04, front), (x, -seat, front + depth / 3 - 0.03), "main", bottom=True)
    for i in range(2):
        top = -height + i * 0.17
        quads += cuboid((-x, top, z - 0.05), (x, top + 0.13, z), "main", bottom=True)
    for left in (-x + 0.06, x - 0.13):
        quads += cuboid((left, -height, z), (left + 0.07, 0.0, z + 0.05), "legs")
    return quads


def barrel(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a barrel with a hoop."""
    radius = min(width, depth) / 2
    return [
        *frustum(0.85 * radius, radius, 0.0, -0.45 * height, "main", sides=12),
        *frustum(1.02 * radius, 1.02 * radius, -0.42 * height, -0.5 * height, "hoop", sides=12),
        *frustum(radius, 0.85 * radius, -0.47 * height, -height, "main", sides=12, lid="hoop"),
    ]


def mailbox(width: float, height: float, depth: float, rng: np.random.Generator) -> list[Quad]:
    """Build a mailbox on a post."""
    x, z = width / 2, depth / 2
    return cuboid((-0.05, -0.65 * height, -0.05), (0.05, 0.0, 0.05), "post") + cuboid(
        (-x, -height, -z), (x, -0.65 * height, z), "main", front="front", bottom=True
    )


# Textures that several kinds share.
_LEGS = {"legs": ("wood", BROWN)}
_PAINTED = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
_CLOTH = {"cushion": ("fabric", (206, 196, 178))}

INDOOR: dict[str, Kind] = {
    "chair": Kind(chair, (0.5, 0.95, 0.5), "free", "fabric", _PAINTED, _LEGS),
    "stool": Kind(stool, (0.42, 0.62, 0.42), "free", "fabric", _PAINTED, _LEGS),
    "table": Kind(table, (1.25, 0.74, 0.8), "free", "wood", ("white", "blue", "green", "red", "black"), {}),
    "armchair": Kind(seat_with_arms, (0.95, 0.85, 0.85), "wall", "fabric", _PAINTED, _CLOTH),
    "sofa": Kind(seat_with_arms, (1.9, 0.85, 0.9), "wall", "fabric", _PAINTED, _CLOTH),
    "bookshelf": Kind(bookshelf, (1.0, 1.9, 0.34), "wall", "wood", ("white", "black", "red", "blue", "green"), {}),
    "cabinet": Kind(cabinet, (1.15, 0.95, 0.46), "wall", "wood", _PAINTED, {"plinth": ("wood", DARK)}),
    "bed": Kind(bed, (1.45, 1.0, 1.95), "wall", "fabric", ("red", "green", "blue", "yellow", "purple"),
                {"frame": ("wood", BROWN), "pillow": ("fabric", (236, 234, 228))}),
    "lamp": Kind(lamp, (0.46, 1.55, 0.46), "corner", "fabric", ("red", "green", "blue", "yellow", "orange"),
                 {"stand": ("plaster", DARK)}),
    "plant": Kind(plant, (0.85, 1.3, 0.85), "corner", "leaves", ("green", "red", "yellow", "purple"),
                  {"pot": ("wood", (176, 98, 66)), "soil": ("leaves", (70, 50, 38))}),
    "vase": Kind(vase, (0.42, 0.75, 0.42), "corner", "wallpaper", ("white", "blue", "red", "yellow", "black"),
                 {"hollow": ("plaster", (24, 22, 22))}),
    "box": Kind(box, (0.55, 0.45, 0.45), "free", "wood", _PAINTED, {}),
}  # fmt: skip

OUTDOOR: dict[str, Kind] = {
    "tree": Kind(tree, (2.0, 3.6, 2.0), "free", "leaves", ("green", "red", "yellow", "orange"),
                 {"trunk": ("wood", BROWN)}),
    "bush": Kind(bush, (1.2, 0.95, 1.2), "wall", "leaves", ("green", "red", "yellow", "purple"), {}),
    "bench": Kind(bench, (1.5, 0.85, 0.5), "wall", "wood", _PAINTED, {"legs": ("plaster", DARK)}),
    "barrel": Kind(barrel, (0.7, 0.95, 0.7), "free", "wood", _PAINTED, {"hoop": ("plaster", STEEL)}),
    "mailbox": Kind(mailbox, (0.5, 1.25, 0.42), "free", "wood", _PAINTED, {"post": ("wood", DARK)}),
    "box": INDOOR["box"],
}  # fmt: skip

FRONTS: dict[str, str] = {"bookshelf": "books", "cabinet": "cabinet_front", "box": "painting", "mailbox": "painting"}
"""Kind -> texture function of its front, for kinds with a separate front texture."""
