"""Builds a room from a seed: all surfaces with their textures, and the named objects with their boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spatialalign_trl.tiny_world.rooms.base import BaseRoom, Layout, Place, RoomObject, is_flat
from spatialalign_trl.tiny_world.rooms.flat_room import FlatRoom, sample_flat_room
from spatialalign_trl.tiny_world.rooms.furniture import FRONTS, INDOOR, OUTDOOR
from spatialalign_trl.tiny_world.rooms.layout import sample_layout
from spatialalign_trl.tiny_world.rooms.surfaces import (
    TEXELS_PER_METRE,
    Quad,
    cuboid,
    inside_of_cuboid,
    normal_of,
    placed,
)
from spatialalign_trl.tiny_world.rooms.textures import COLORS, TEXTURES, Color, Texture

_WALL_COLORS: tuple[Color, ...] = (
    (206, 196, 172), (178, 196, 200), (208, 180, 168), (188, 200, 172), (214, 206, 196), (192, 184, 206),
)  # fmt: skip
_FLOOR_COLORS: tuple[Color, ...] = ((162, 118, 78), (126, 88, 60), (178, 150, 116), (150, 146, 140), (190, 180, 164))
_LIGHT = np.array([0.35, -0.78, -0.52])
_SKY_DISTANCE = 60.0  # metres
_OBJECT_TEXELS = 256
"""Height and width of the textures of objects."""


@dataclass(frozen=True)
class Paint:
    """The recipe of one texture.

    Attributes:
        function (`str`):
            A name in `TEXTURES`.
        color (`Color`):
            Colour passed to the function.
        height, width (`int`):
            Size in texels. Multiples of 32, so that it can be halved five times without a remainder.
        shadows (`"wall"` or `"floor"`, *optional*):
            Shadows to multiply the texture with.
        density (`float`, *optional*, defaults to `TEXELS_PER_METRE`):
            Texels per metre, for the shadows of walls.
    """

    function: str
    color: Color
    height: int
    width: int
    shadows: str | None = None
    density: float = TEXELS_PER_METRE


@dataclass(frozen=True, eq=False)
class Room(BaseRoom):
    """A textured room: its surfaces, and the recipes of its textures.

    Attributes:
        quads (`tuple[Quad, ...]`):
            All surfaces.
        owners (`np.ndarray` of shape `(quads,)`):
            Index in `objects` of the object that each surface belongs to, -1 for walls, floor and decoration.
        shades (`np.ndarray` of shape `(quads,)`):
            Brightness of each surface, in [0.6, 1].
        paints (`dict[str, Paint]`):
            Name of a texture -> its recipe.
    """

    quads: tuple[Quad, ...]
    owners: np.ndarray
    shades: np.ndarray
    paints: dict[str, Paint]

    @cached_property
    def textures(self) -> dict[str, np.ndarray]:
        """Name -> texture, uint8 `(height, width, 3)`.

        Painting is most of the work of a room and geometry does not need it, so it is done on first use.
        """
        painted = {}
        for index, (name, paint) in enumerate(self.paints.items()):
            # A separate generator per texture, so that a change of one texture leaves the others as they are.
            rng = np.random.default_rng([self.seed, 78, index])
            image = TEXTURES[paint.function](rng, paint.height, paint.width, paint.color)
            if paint.shadows == "wall":
                image *= _edge_shadow(paint.height, paint.width, paint.density)
            elif paint.shadows == "floor":
                image *= _floor_shadow(self.layout, paint.height, paint.width)
            painted[name] = np.clip(image + 0.5, 0, 255).astype(np.uint8)
        return painted


def sample_room(seed: int, style: str = "indoor") -> Room | FlatRoom:
    """Build the room of a seed. The room is the same on every machine with the same NumPy.

    Args:
        seed (`int`):
            Seed of the room. Its range determines the split, see `SPLIT_SEEDS`.
        style (`str`, *optional*, defaults to `"indoor"`):
            `"indoor"`, or `"outdoor"` for a garden, which has no training seeds. `"flat"` and `"flat_outdoor"` are
            rooms and gardens of plain colours.

    Returns:
        `Room` or `FlatRoom`: the room. The textures of a `Room` are painted on first use.

    Raises:
        ValueError: If the style is unknown, or if it has no such seed.
    """
    if is_flat(style):
        return sample_flat_room(seed, style)
    # The layout has its own generator, because the number of draws until one belongs to the split varies.
    layout = sample_layout(seed, style)
    rng = np.random.default_rng([seed, 77])
    builder = _Builder(layout, rng)
    builder.shell()
    if layout.style == "indoor":
        builder.decorate()
    # The layout lists the objects; building them gives their exact boxes.
    objects = tuple(builder.furnish(index, place) for index, place in enumerate(layout.places))
    # Light falls from one direction, so that the faces of an object differ. The sky needs none.
    normals = np.stack([normal_of(quad) for quad in builder.quads])
    light = np.clip(normals @ (_LIGHT / np.linalg.norm(_LIGHT)), -1, 1)
    shades = np.array([0.8 + 0.2 * x if not lit else 1.0 for x, lit in zip(light, builder.self_lit, strict=True)])
    return Room(seed, layout, objects, tuple(builder.quads), np.array(builder.owners), shades, builder.paints)


class _Builder:
    """Collects the quads of one room and the recipes of their textures."""

    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout, self.rng = layout, rng
        self.quads: list[Quad] = []
        self.owners: list[int] = []
        self.self_lit: list[bool] = []
        self.paints: dict[str, Paint] = {}

    def add(self, quads: list[Quad], owner: int = -1, self_lit: bool = False) -> None:
        """Add quads of one object, or of no object (-1)."""
        self.quads += quads
        self.owners += [owner] * len(quads)
        self.self_lit += [self_lit] * len(quads)

    def paint(self, name: str, function: str, color: Color, height: float, width: float,
              shadows: str | None = None, density: float = TEXELS_PER_METRE) -> str:  # fmt: skip
        """Add the recipe of a texture, rounded to a size that can be halved, and return its name."""
        height, width = (max(32, round(side / 32) * 32) for side in (height, width))
        self.paints[name] = Paint(function, color, height, width, shadows, density)
        return name

    def shell(self) -> None:
        """Add floor, walls, partition, and ceiling or sky."""
        (x, z), height = self.layout.half, self.layout.height
        indoor = self.layout.style == "indoor"
        density = TEXELS_PER_METRE if indoor else TEXELS_PER_METRE * 0.6
        floors, walls = (("planks", "tiles"), ("plaster", "wallpaper")) if indoor else (("grass",), ("facade",))

        # Indoor walls share one colour, with bricks on some; every wall of a garden is another house.
        base = _WALL_COLORS[self.rng.integers(len(_WALL_COLORS))]
        names = {}
        for side, length in (("north", 2 * x), ("east", 2 * z), ("south", 2 * x), ("west", 2 * z)):
            function = str(self.rng.choice(walls)) if self.rng.random() > 0.15 or not indoor else "bricks"
            color = base if indoor else tuple(self.rng.uniform(120, 215, 3))
            names[side] = self.paint(side, function, color, height * density, length * density, "wall", density)

        floor_color = _FLOOR_COLORS[self.rng.integers(len(_FLOOR_COLORS))] if indoor else (92, 146, 66)
        function = str(self.rng.choice(floors))
        names["floor"] = self.paint("floor", function, floor_color, 2 * z * density, 2 * x * density, "floor", density)
        if indoor:
            names["ceiling"] = self.paint("ceiling", "plaster", (226, 224, 218), z * density, x * density)
        self.add(inside_of_cuboid((-x, -height, -z), (x, 0.0, z), names))
        if not indoor:
            self._sky()
        elif self.layout.partition is not None:
            x0, z0, x1, z1 = self.layout.partition
            self.paint("partition", "wallpaper", base, height * density, int(max(x1 - x0, z1 - z0) * density))
            self.add(cuboid((x0, -height, z0), (x1, 0.0, z1), "partition"))

    def _sky(self) -> None:
        """Add a large box with the sky on its inside."""
        far, names = _SKY_DISTANCE, {}
        for side in ("north", "east", "south", "west"):
            names[side] = self.paint(f"sky {side}", "sky", (112, 168, 232), 384, 768)
        names["ceiling"] = self.paint("sky top", "sky", (104, 160, 228), 384, 384)
        self.add(inside_of_cuboid((-far, -far, -far), (far, 0.0, far), names), self_lit=True)

    def decorate(self) -> None:
        """Add pictures, a window, a door and a rug, which give feature matching something to find."""
        (x, z), height = self.layout.half, self.layout.height
        lengths = {"north": x, "east": z, "south": x, "west": z}
        with_door, with_window = self.rng.permutation(list(lengths))[:2]
        for side, half_length in lengths.items():
            left = -half_length + 0.55
            number = 0
            while left < half_length - 0.6:
                kind = "painting"
                if number == 0 and side == with_window:
                    kind = "window"
                if number == 1 and side == with_door:
                    kind = "door"
                wide = {"painting": self.rng.uniform(0.5, 1.1), "window": 1.5, "door": 0.9}[kind]
                tall = {"painting": self.rng.uniform(0.45, 0.8), "window": 1.1, "door": 2.05}[kind]
                if left + wide > half_length - 0.25:
                    break
                top = -2.05 if kind == "door" else -min(1.55 + tall / 2, height - 0.15)
                self._hang(side, left + wide / 2, wide, top, tall, kind, f"{kind} {side} {number}")
                left += wide + self.rng.uniform(0.25, 0.8)
                number += 1
        wide, deep = self.rng.uniform(0.35, 0.5, 2) * 2 * np.array([x, z])
        self.paint("rug", "carpet", tuple(self.rng.uniform(70, 200, 3)), deep * 128, wide * 128)
        corners = [(-wide / 2, -0.008, deep / 2), (wide / 2, -0.008, deep / 2), (wide / 2, -0.008, -deep / 2),
                   (-wide / 2, -0.008, -deep / 2)]  # fmt: skip
        self.add([Quad(np.array(corners), "rug", True)])

    def _hang(self, side: str, middle: float, wide: float, top: float, tall: float, kind: str, name: str) -> None:
        """Add a picture, window or door to a wall, with its middle at `middle` along x or z."""
        color = {"door": (150, 104, 70), "window": (238, 236, 230)}.get(kind, tuple(self.rng.uniform(30, 120, 3)))
        self.paint(name, kind, color, tall * 160, wide * 160)
        x, z = self.layout.half
        thin = 0.015
        left = middle - wide / 2
        low = {"north": (left, z - thin), "south": (left, -z), "east": (x - thin, left), "west": (-x, left)}[side]
        extent = (wide, thin) if side in ("north", "south") else (thin, wide)
        box = cuboid((low[0], top, low[1]), (low[0] + extent[0], top + tall, low[1] + extent[1]), name)
        # Only the face towards the room can be seen.
        inward = {"north": (0, 0, -1), "south": (0, 0, 1), "east": (-1, 0, 0), "west": (1, 0, 0)}[side]
        self.add([Quad(quad.corners, name, True) for quad in box if normal_of(quad) @ np.array(inward) > 0.5])

    def furnish(self, index: int, place: Place) -> RoomObject:
        """Build an object, and return it with its exact box."""
        kind = (INDOOR if self.layout.style == "indoor" else OUTDOOR)[place.kind]
        quads = placed(kind.build(*place.size, self.rng), place.yaw, (place.position[0], 0.0, place.position[1]))
        color = COLORS[place.color]
        recipes = {"main": (kind.main, color), **kind.others}
        if place.kind in FRONTS:
            recipes["front"] = (FRONTS[place.kind], color)
        for name in sorted({quad.texture for quad in quads}):
            function, tint = recipes[name]
            sides = (_OBJECT_TEXELS, _OBJECT_TEXELS)
            if name == "front":
                sides = (int(place.size[1] * TEXELS_PER_METRE), int(place.size[0] * TEXELS_PER_METRE))
            self.paint(f"{index} {name}", function, tint, *sides)
        self.add([Quad(q.corners, f"{index} {q.texture}", q.fitted, q.two_sided) for q in quads], index)
        corners = np.concatenate([quad.corners for quad in quads])
        low, high = corners.min(axis=0), corners.max(axis=0)
        return RoomObject(place.name, place.kind, place.color, low, high, place.yaw, kind.stands == "wall")


def _edge_shadow(height: int, width: int, density: float) -> Texture:
    """Return the brightness of a wall, which is slightly darker towards floor, ceiling and corners."""
    y, x = (np.arange(side, dtype=np.float32)[:, None] / density for side in (height, width))
    rows = np.minimum(y, y[::-1])
    columns = np.minimum(x, x[::-1])
    return (1 - 0.22 * np.exp(-rows / 0.2))[..., None] * (1 - 0.22 * np.exp(-columns / 0.25)).T[..., None]


def _floor_shadow(layout: Layout, height: int, width: int) -> Texture:
    """Return the brightness of the floor, which is darker along the walls and under and around objects."""
    x, z = layout.half
    at_z = np.linspace(z, -z, height, dtype=np.float32)[:, None]
    at_x = np.linspace(-x, x, width, dtype=np.float32)[None, :]
    wall = np.minimum(x - np.abs(at_x), z - np.abs(at_z))
    light = 1.0 - 0.3 * np.exp(-wall / 0.2)
    for place in layout.places:
        (px, pz), (hx, hz) = place.position, place.half_extent()
        away = np.hypot(np.maximum(np.abs(at_x - px) - hx, 0), np.maximum(np.abs(at_z - pz) - hz, 0))
        light *= 1.0 - 0.42 * np.exp(-away / 0.14)
    return light[..., None]
