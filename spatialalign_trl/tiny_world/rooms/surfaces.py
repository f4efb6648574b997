"""Textured quads: what rooms and furniture are made of, and the boxes and prisms that are made of them.

Axes are OpenCV's, for the world as for objects and cameras: x right, y **down**, z forward, in metres. The floor is
y = 0, so whatever stands on it has negative y. An object's front looks towards -z, its back towards +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEXELS_PER_METRE = 128.0


@dataclass(frozen=True)
class Quad:
    """A flat convex quadrilateral with a texture.

    Attributes:
        corners (`np.ndarray` of shape `(4, 3)`): Top left, top right, bottom right, bottom left as seen from the side
            that it shows; metres.
        texture (`str`): Name of its texture.
        fitted (`bool`): Whether the texture is stretched over the quad. If not, it lies on it at
            `TEXELS_PER_METRE`, from the top left corner on.
        two_sided (`bool`): Whether it is seen from behind too; one that is not vanishes there.
    """

    corners: np.ndarray
    texture: str
    fitted: bool = False
    two_sided: bool = False


def cuboid(low: tuple[float, float, float], high: tuple[float, float, float], texture: str, *,
           front: str | None = None, bottom: bool = False) -> list[Quad]:  # fmt: skip
    """A box with faces along the axes, seen from outside.

    Args:
        low, high (tuples of 3 `float`): Its corners with the smallest and the largest coordinates.
        texture (`str`): On all faces.
        front (`str`, *optional*): A texture of its own for the front (-z), fitted to it.
        bottom (`bool`, *optional*, defaults to `False`): Whether it has a bottom; what stands on the floor needs none.
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
    """A box seen from inside, its textures fitted: keys `north` (+z), `east` (+x), `south`, `west`, `floor`,
    `ceiling`; a face without a texture is left out."""
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
    """An upright round solid with flat sides.

    Args:
        bottom_radius, top_radius (`float`): In metres.
        bottom, top (`float`): The y of its ends, `top < bottom`.
        texture (`str`): On the sides.
        sides (`int`, *optional*, defaults to `10`): An even number.
        centre (tuple of 2 `float`): x and z of its axis.
        lid (`str`, *optional*): Texture of the top; left open without.
    """
    angles = np.linspace(0.0, 2 * np.pi, sides + 1)

    def ring(radius: float, y: float) -> np.ndarray:
        x, z = centre[0] + radius * np.sin(angles), centre[1] + radius * np.cos(angles)
        return np.stack([x, np.full_like(angles, y), z], axis=1)

    upper, lower = ring(top_radius, top), ring(bottom_radius, bottom)
    quads = [Quad(np.stack([upper[i + 1], upper[i], lower[i], lower[i + 1]]), texture) for i in range(sides)]
    if lid is not None:  # strips across the polygon, each from one pair of opposite edges to the next
        for i in range(sides // 2 - 1):
            strip = np.stack([upper[i], upper[i + 1], upper[sides - 1 - i - 1], upper[sides - 1 - i]])
            quads.append(facing(Quad(strip, lid), (0.0, -1.0, 0.0)))
    return quads


def normal_of(quad: Quad) -> np.ndarray:
    """Unit vector towards the side that a quad shows."""
    diagonals = quad.corners[2] - quad.corners[0], quad.corners[3] - quad.corners[1]
    normal = np.cross(diagonals[1], diagonals[0])
    return normal / np.linalg.norm(normal)


def facing(quad: Quad, direction: tuple[float, float, float]) -> Quad:
    """The quad, turned round if it shows its side away from a direction."""
    if normal_of(quad) @ np.asarray(direction) < 0:
        return Quad(quad.corners[[1, 0, 3, 2]], quad.texture, quad.fitted, quad.two_sided)
    return quad


def placed(quads: list[Quad], yaw: float, position: tuple[float, float, float]) -> list[Quad]:
    """Quads turned about the y axis by `yaw` radians (the back, +z, turns towards +x) and moved to a position."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    return [
        Quad(quad.corners @ turn.T + np.asarray(position), quad.texture, quad.fitted, quad.two_sided) for quad in quads
    ]
