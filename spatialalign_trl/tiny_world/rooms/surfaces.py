"""Textured quads, and boxes and prisms made of them. All rooms and furniture consist of these.

World, objects and cameras have OpenCV's axes in metres: x right, y **down**, z forward. The floor is y = 0, so points
above it have negative y. The front of an object looks towards -z, its back towards +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEXELS_PER_METRE = 128.0
"""Resolution of textures that are not stretched over their quad."""


@dataclass(frozen=True)
class Quad:
    """A flat convex quadrilateral with a texture.

    Attributes:
        corners (`np.ndarray` of shape `(4, 3)`):
            Top left, top right, bottom right and bottom left, as seen from its visible side, in metres.
        texture (`str`):
            Name of its texture.
        fitted (`bool`, *optional*, defaults to `False`):
            Stretch the texture over the quad. Otherwise it has `TEXELS_PER_METRE` and starts at the top left corner.
        two_sided (`bool`, *optional*, defaults to `False`):
            Show the quad from behind, too. Otherwise it is invisible from there.
    """

    corners: np.ndarray
    texture: str
    fitted: bool = False
    two_sided: bool = False


def cuboid(low: tuple[float, float, float], high: tuple[float, float, float], texture: str, *,
           front: str | None = None, bottom: bool = False) -> list[Quad]:  # fmt: skip
    """Build an axis-aligned box that is seen from outside.

    Args:
        low, high (tuples of 3 `float`):
            Corners with the smallest and the largest coordinates, in metres.
        texture (`str`):
            Texture of all faces.
        front (`str`, *optional*):
            Another texture for the front (-z), stretched over it.
        bottom (`bool`, *optional*, defaults to `False`):
            Add a bottom face. Boxes that stand on the floor need none.

    Returns:
        `list[Quad]`: the faces.
    """
    (x0, y0, z0), (x1, y1, z1) = low, high
    faces = {
        "front": [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)],
        "back": [(x1, y0, z1), (x0, y0, z1), (x0, y1, z1), (x1, y1, z1)],
        "right": [(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)],
        "left": [(x0, y0, z1), (x0, y0, z0), (x0, y1, z0), (x0, y1, z1)],
        "top": [(x0, y0, z1), (x1, y0, z1), (x1, y0, z0), (x0, y0, z0)],
        "bottom": [(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)],
    }
    if not bottom:
        del faces["bottom"]
    fitted = {"front"} if front else set()
    return [
        Quad(np.array(corners), front if name in fitted else texture, fitted=name in fitted)
        for name, corners in faces.items()
    ]


def inside_of_cuboid(low: tuple[float, float, float], high: tuple[float, float, float],
                     textures: dict[str, str]) -> list[Quad]:  # fmt: skip
    """Build an axis-aligned box that is seen from inside.

    Args:
        low, high (tuples of 3 `float`):
            Corners with the smallest and the largest coordinates, in metres.
        textures (`dict[str, str]`):
            Face -> texture, stretched over it. The faces are `north` (+z), `east` (+x), `south`, `west`, `floor` and
            `ceiling`. A face without a texture is left out.

    Returns:
        `list[Quad]`: the faces.
    """
    (x0, y0, z0), (x1, y1, z1) = low, high
    faces = {
        "north": [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)],
        "east": [(x1, y0, z1), (x1, y0, z0), (x1, y1, z0), (x1, y1, z1)],
        "south": [(x1, y0, z0), (x0, y0, z0), (x0, y1, z0), (x1, y1, z0)],
        "west": [(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)],
        "floor": [(x0, y1, z1), (x1, y1, z1), (x1, y1, z0), (x0, y1, z0)],
        "ceiling": [(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)],
    }
    return [Quad(np.array(corners), textures[name], True) for name, corners in faces.items() if name in textures]


def frustum(bottom_radius: float, top_radius: float, bottom: float, top: float, texture: str, *, sides: int = 10,
            centre: tuple[float, float] = (0.0, 0.0), lid: str | None = None) -> list[Quad]:  # fmt: skip
    """Build an upright round solid with flat sides.

    Args:
        bottom_radius, top_radius (`float`):
            Radii of its ends in metres.
        bottom, top (`float`):
            y of its ends in metres, `top < bottom`.
        texture (`str`):
            Texture of the sides.
        sides (`int`, *optional*, defaults to `10`):
            Number of sides, even.
        centre (tuple of 2 `float`, *optional*, defaults to `(0.0, 0.0)`):
            x and z of its axis in metres.
        lid (`str`, *optional*):
            Texture of the top. Without one, the top is open.

    Returns:
        `list[Quad]`: the sides and the strips of the lid.
    """
    angles = np.linspace(0.0, 2 * np.pi, sides + 1)

    def ring(radius: float, y: float) -> np.ndarray:
        x, z = centre[0] + radius * np.sin(angles), centre[1] + radius * np.cos(angles)
        return np.stack([x, np.full_like(angles, y), z], axis=1)

    upper, lower = ring(top_radius, top), ring(bottom_radius, bottom)
    quads = [Quad(np.stack([upper[i + 1], upper[i], lower[i], lower[i + 1]]), texture) for i in range(sides)]
    if lid is not None:  # a polygon is no quad, so cut the lid into parallel strips
        for i in range(sides // 2 - 1):
            strip = np.stack([upper[i], upper[i + 1], upper[sides - 1 - i - 1], upper[sides - 1 - i]])
            quads.append(facing(Quad(strip, lid), (0.0, -1.0, 0.0)))
    return quads


def normal_of(quad: Quad) -> np.ndarray:
    """Return the unit normal of a quad, which points to its visible side."""
    diagonals = quad.corners[2] - quad.corners[0], quad.corners[3] - quad.corners[1]
    normal = np.cross(diagonals[1], diagonals[0])
    return normal / np.linalg.norm(normal)


def facing(quad: Quad, direction: tuple[float, float, float]) -> Quad:
    """Return the quad, flipped if its visible side does not face `direction`."""
    if normal_of(quad) @ np.asarray(direction) < 0:
        return Quad(quad.corners[[1, 0, 3, 2]], quad.texture, quad.fitted, quad.two_sided)
    return quad


def placed(quads: list[Quad], yaw: float, position: tuple[float, float, float]) -> list[Quad]:
    """Rotate quads about the y axis and move them.

    Args:
        quads (`list[Quad]`):
            Quads of one object. They are not changed.
        yaw (`float`):
            Angle in radians. A positive angle turns the back (+z) towards +x.
        position (tuple of 3 `float`):
            Translation in metres.

    Returns:
        `list[Quad]`: the moved quads.
    """
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    return [
        Quad(quad.corners @ turn.T + np.asarray(position), quad.texture, quad.fitted, quad.two_sided) for quad in quads
    ]
