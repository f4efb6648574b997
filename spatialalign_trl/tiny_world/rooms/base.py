"""What all rooms have, textured or flat: places of objects, a layout with its split, and named objects with boxes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

GRID = 0.5
"""Objects of textured rooms stand on a grid of this many metres, and layouts are compared on it."""


def is_flat(style: str) -> bool:
    """Return whether rooms of a style have plain colours instead of textures."""
    return style in ("flat", "flat_outdoor")


@dataclass(frozen=True)
class Place:
    """The position of one object.

    Attributes:
        kind, color (`str`):
            Words of `furniture.py` or `flat_layout.py`.
        position (tuple of 2 `float`):
            x and z of its centre in metres.
        yaw (`float`):
            Rotation in radians. At 0 its back looks towards +z.
        size (tuple of 3 `float`):
            Width, height and depth before rotation, in metres.
    """

    kind: str
    color: str
    position: tuple[float, float]
    yaw: float
    size: tuple[float, float, float]

    @property
    def name(self) -> str:
        """Colour and kind, such as `"green plant"`."""
        return f"{self.color} {self.kind}"

    def half_extent(self) -> tuple[float, float]:
        """Return half the extent of the object along x and z, in metres."""
        cos, sin = abs(np.cos(self.yaw)), abs(np.sin(self.yaw))
        width, _, depth = self.size
        return (cos * width + sin * depth) / 2, (sin * width + cos * depth) / 2


@dataclass(frozen=True)
class Layout:
    """A room without its surfaces.

    Attributes:
        style (`str`):
            One of `layout.STYLES`.
        half (tuple of 2 `float`):
            Half the size of the room along x and z in metres. The centre of the floor is the origin.
        height (`float`):
            Height of the walls in metres.
        partition (tuple of 4 `float`, *optional*):
            x0, z0, x1, z1 of a partition wall in metres, or `None`.
        places (tuple of `Place`):
            The objects. No two have the same kind and colour.
    """

    style: str
    half: tuple[float, float]
    height: float
    partition: tuple[float, float, float, float] | None
    places: tuple[Place, ...]

    def signature(self) -> str:
        """Return a text that is equal for rooms with the same layout, whatever their colours and textures."""
        places = sorted((place.kind, *(round(x / GRID) for x in place.position)) for place in self.places)
        return repr((self.style, self.half, self.partition, places))

    def split(self) -> str:
        """Return the split that this layout belongs to. Eight tenths of the layouts are for training."""
        bucket = hashlib.sha256(self.signature().encode()).digest()[0] % 10
        return {8: "validation", 9: "test"}.get(bucket, "train")


@dataclass(frozen=True)
class RoomObject:
    """A named object.

    Attributes:
        name (`str`):
            Colour and kind, such as `"green plant"`. Unique in the room.
        kind, color (`str`):
            The two words of the name.
        low, high (`np.ndarray` of shape `(3,)`):
            Corners of its axis-aligned box in metres. `low[1]` is its top, because y points down.
        yaw (`float`):
            Rotation in radians. Its back looks along (sin yaw, 0, cos yaw).
        has_front (`bool`):
            Whether it stands with its back to a wall.
    """

    name: str
    kind: str
    color: str
    low: np.ndarray
    high: np.ndarray
    yaw: float
    has_front: bool

    @property
    def centre(self) -> np.ndarray:
        """Centre of its box, `(3,)`, in metres."""
        return (self.low + self.high) / 2


@dataclass(frozen=True, eq=False)
class BaseRoom:
    """A room without its surfaces: layout and named objects.

    Attributes:
        seed (`int`):
            Seed that it was built from.
        layout (`Layout`):
            Layout drawn from the seed.
        objects (`tuple[RoomObject, ...]`):
            The named objects.
    """

    seed: int
    layout: Layout
    objects: tuple[RoomObject, ...]

    @property
    def style(self) -> str:
        """One of `layout.STYLES`."""
        return self.layout.style

    @property
    def split(self) -> str:
        """The split that the room belongs to."""
        return self.layout.split()

    @cached_property
    def obstacles(self) -> np.ndarray:
        """Boxes that no camera may enter, `(n, 2, 3)`: low and high corners of the objects and of the partition."""
        boxes = [(thing.low, thing.high) for thing in self.objects]
        if self.layout.partition is not None:
            x0, z0, x1, z1 = self.layout.partition
            boxes.append((np.array([x0, -self.layout.height, z0]), np.array([x1, 0.0, z1])))
        return np.array(boxes, dtype=np.float64).reshape(-1, 2, 3)

    def object_named(self, name: str) -> RoomObject:
        """Return the object with a name.

        Raises:
            KeyError: If the room has no such object. The message lists the objects that it has.
        """
        for thing in self.objects:
            if thing.name == name:
                return thing
        names = ", ".join(thing.name for thing in self.objects)
        raise KeyError(f"object={name!r}: room {self.seed} has no {name!r}. Choose from {names}.")

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Measure the distance of points from the nearest wall, floor, ceiling or obstacle.

        Args:
            points (`np.ndarray` of shape `(n, 3)`):
                World coordinates in metres.

        Returns:
            `np.ndarray` of shape `(n,)`: distances in metres, 0 or less inside an obstacle or outside the room.
        """
        points = np.asarray(points, np.float64)
        half = np.array(self.layout.half)
        walls = (half - np.abs(points[:, [0, 2]])).min(axis=1)
        upright = np.minimum(-points[:, 1], points[:, 1] + self.layout.height)
        if not len(self.obstacles):
            return np.minimum(walls, upright)
        outside = np.maximum(self.obstacles[:, 0] - points[:, None], points[:, None] - self.obstacles[:, 1])
        away = np.linalg.norm(np.maximum(outside, 0.0), axis=2) + np.minimum(outside.max(axis=2), 0.0)
        return np.minimum(np.minimum(walls, upright), away.min(axis=1))
