"""Renders a flat room: one ray through the centre of every pixel, and more where neighbouring pixels differ.

All rays of all cameras are traced at once. A ray has z = 1 in its camera's frame, so the way along it is the depth.
"""

from __future__ import annotations

import numpy as np

from spatialalign_trl.tiny_world.rooms.flat_room import FlatRoom, Solid

_FLOOR, _RUG, _CEILING, _SKY, _WALL, _PATTERN, _NOTHING, _SOLID = 0, 1, 2, 3, 4, 8, 12, 16
"""Surface numbers: four walls from `_WALL` on, their patterns from `_PATTERN` on, then `_FACES` for each solid."""
_FACES = 4
_TOP, _SIDE, _BACK = 0, 1, 2
_BOX_SHADES = {_TOP: 1.0, _SIDE: 0.82, _BACK: 0.66}
_SKY_DEPTH = 60.0  # metres
_NEAR = 1e-3  # metres

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]


class FlatCamera:
    """A camera with fixed intrinsics that renders one flat room from any poses.

    Args:
        room (`FlatRoom`):
            Room to render.
        size (tuple of 2 `int`):
            Height and width in pixels.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            Intrinsics in pixels.
        supersample (`int`):
            Rays along each side of a pixel that shows several surfaces, odd.
    """

    def __init__(self, room: FlatRoom, size: tuple[int, int], intrinsics: np.ndarray, supersample: int) -> None:
        self.room, self.size, self.intrinsics, self.supersample = room, size, intrinsics, supersample
        self._inverse = np.linalg.inv(intrinsics)
        rows, columns = np.mgrid[: size[0], : size[1]]
        self._rays = self._inverse @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])  # (3, pixels)
        walls = room.walls
        self._walls = {
            name: np.array([getattr(wall, name) for wall in walls], np.float32)
            for name in ("share", "low", "high", "top")
        }
        self._walls["scale"] = np.array([1 / wall.period for wall in walls], np.float32)
        self._walls["start"] = np.array([wall.origin / wall.period for wall in walls], np.float32)
        # Colours and owners of all surfaces, in the order of their numbers.
        colors = [room.floor, room.rug_color, room.ceiling, room.ceiling]
        colors += [wall.colors[0] for wall in walls] + [wall.colors[1] for wall in walls] + 4 * [np.zeros(3)]
        for solid in room.solids:
            shades = [_BOX_SHADES.get(face, 1.0) if solid.shape == "box" else 1.0 for face in range(_FACES)]
            colors += [np.array(solid.color) * shade for shade in shades]
        self._colors = np.array(colors, np.float32)
        owners = np.repeat([solid.owner for solid in room.solids], _FACES)
        self._owners = np.concatenate([np.full(_SOLID, -1), owners]).astype(np.int16)

    def measure(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return depth and object indices, `(n, height, width)` each."""
        depth, surfaces, _ = self._trace_centres(self._directions(poses), poses)
        return depth, self._owners[surfaces]

    def render(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return colours `(n, height, width, 3)` uint8, depth and object indices."""
        directions = self._directions(poses)
        depth, surfaces, shades = self._trace_centres(directions, poses)
        image = self._colors.take(surfaces, axis=0)
        image *= shades[..., None]
        if self.supersample > 1:
            self._refine(image, surfaces, directions, poses)
        return (image + 0.5).astype(np.uint8), depth, self._owners[surfaces]

    def _directions(self, poses: np.ndarray) -> Vector:
        """Return the rays through the centres of pixels in the world, `(n, pixels)` each."""
        return tuple((poses[:, i, :3] @ self._rays).astype(np.float32) for i in range(3))

    def _trace_centres(self, directions: Vector, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trace one ray per pixel and return depth, surface numbers and shades, `(n, height, width)` each."""
        origins = tuple(poses[:, i, 3:].astype(np.float32) for i in range(3))
        shown = [np.flatnonzero(self._may_show(solid, poses)) for solid in self.room.solids]
        parts = self._trace(directions, origins, shown)
        return tuple(part.reshape(len(poses), *self.size) for part in parts)

    def _may_show(self, solid: Solid, poses: np.ndarray) -> np.ndarray:
        """Return the cameras, as a mask, whose cone of view meets the sphere around a solid."""
        middle = np.array([solid.centre[0], -(solid.bottom + solid.top) / 2, solid.centre[1]])
        radius = np.sqrt(sum(reach**2 for reach in solid.radii) + (solid.top - solid.bottom) ** 2 / 4)
        away = middle - poses[:, :3, 3]
        distance = np.linalg.norm(away, axis=1)
        rays = self._rays / np.linalg.norm(self._rays, axis=0)
        widest = np.arccos(np.clip(rays[2].min(), -1, 1))
        ahead = np.einsum("ni,ni->n", away, poses[:, :3, 2]) / np.maximum(distance, 1e-9)
        angle = np.arccos(np.clip(ahead, -1, 1)) - np.arcsin(np.clip(radius / np.maximum(distance, 1e-9), 0, 1))
        return (angle < widest) | (distance <= radius)

    def _refine(self, image: np.ndarray, surfaces: np.ndarray, centres: Vector, poses: np.ndarray) -> None:
        """Replace the colours of pixels near an edge by the mean over several rays, in place."""
        # 1. A pixel next to another surface may show several.
        mixed = np.zeros(surfaces.shape, bool)
        here, there = mixed[:, 1:], mixed[:, :-1]
        for first, second, a, b in (
            (here, there, surfaces[:, 1:], surfaces[:, :-1]),
            (mixed[:, :, 1:], mixed[:, :, :-1], surfaces[:, :, 1:], surfaces[:, :, :-1]),
            (here[:, :, 1:], there[:, :, :-1], surfaces[:, 1:, 1:], surfaces[:, :-1, :-1]),
            (here[:, :, :-1], there[:, :, 1:], surfaces[:, 1:, :-1], surfaces[:, :-1, 1:]),
        ):
            differs = a != b
            first |= differs
            second |= differs
        frames, rows, columns = np.nonzero(mixed)
        if not len(frames):
            return

        # 2. Trace the rays of these pixels, against the solids that they or their neighbours show.
        steps = (np.arange(self.supersample) - self.supersample // 2) / self.supersample
        y, x = (step.ravel() for step in np.meshgrid(steps, steps, indexing="ij"))
        offsets = self._inverse @ np.stack([x, y, np.zeros_like(x)])
        pixels = rows * self.size[1] + columns
        directions = tuple(
            centre[frames, pixels, None] + (pose @ offsets).astype(np.float32)[frames]
            for centre, pose in zip(centres, poses[:, :3, :3].transpose(1, 0, 2), strict=True)
        )
        origins = tuple(poses[frames, i, 3:].astype(np.float32) for i in range(3))
        solids = (surfaces.astype(np.int16) - _SOLID) // _FACES
        shown = [np.flatnonzero(_widened(solids == index)[mixed]) for index in range(len(self.room.solids))]
        _, found, shades = self._trace(directions, origins, shown)
        colors = self._colors.take(found, axis=0)
        colors *= shades[..., None]
        image[mixed] = colors.mean(axis=1)

    def _trace(
        self, directions: Vector, origins: Vector, shown: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the nearest surface on rays.

        Args:
            directions (tuple of 3 `np.ndarray` of shape `(n, m)`):
                Directions of the rays in the world.
            origins (tuple of 3 `np.ndarray` of shape `(n, 1)`):
                Where they start.
            shown (list of `np.ndarray`):
                For each solid, the indices in n of the rays that may meet it.

        Returns:
            Three arrays of shape `(n, m)`: depth, surface numbers (int8 or int16) and shades.
        """
        depth, surfaces = self._trace_shell(directions, origins)
        shades = np.ones_like(depth)
        for index, (solid, rows) in enumerate(zip(self.room.solids, shown, strict=True)):
            if not len(rows):
                continue
            every = len(rows) == len(depth)
            d = directions if every else tuple(part[rows] for part in directions)
            o = origins if every else tuple(part[rows] for part in origins)
            with np.errstate(divide="ignore", invalid="ignore"):
                hit, face, shade = _HITS[solid.shape](solid, d, o)
            farther = depth if every else depth[rows]
            nearer = hit < farther
            at = np.nonzero(nearer)
            to = at if every else (rows[at[0]], at[1])
            depth[to] = hit[at]
            surfaces[to] = _SOLID + _FACES * index + (face[at] if isinstance(face, np.ndarray) else face)
            if shade is not None:
                shades[to] = shade[at]
            elif index:
                shades[to] = 1.0
        return depth, surfaces, shades

    def _trace_shell(self, directions: Vector, origins: Vector) -> tuple[np.ndarray, np.ndarray]:
        """Return depth and surface numbers of floor, ceiling and walls."""
        (dx, dy, dz), (ox, oy, oz) = directions, origins
        room, walls = self.room, self._walls
        (half_x, half_z), middle = (np.float32(side) for side in room.layout.half), np.float32(room.layout.height / 2)
        # 1. The camera is inside a box, so a ray meets the nearest of the three sides that it looks towards.
        with np.errstate(divide="ignore", invalid="ignore"):
            to_x = (np.copysign(half_x, dx) - ox) / dx
            to_z = (np.copysign(half_z, dz) - oz) / dz
            to_y = (np.copysign(middle, dy) - (middle + oy)) / dy
        along_x = to_x < to_z
        depth = np.minimum(to_x, to_z)
        level = to_y < depth
        depth = np.minimum(depth, to_y)
        x, y, z = ox + depth * dx, oy + depth * dy, oz + depth * dz

        # 2. The wall and its pattern.
        wall = along_x + 2 * (np.where(along_x, dx, dz) < 0).astype(np.int8)  # +z, +x, -z, -x
        period = np.where(along_x, z, x)
        period *= walls["scale"].take(wall)
        period -= walls["start"].take(wall)
        period -= np.floor(period)
        height = -y
        second = period < walls["share"].take(wall)
        second &= height > walls["low"].take(wall)
        second &= height < walls["high"].take(wall)
        surfaces = wall + np.int8(_WALL)
        surfaces += second * np.int8(_PATTERN - _WALL)

        # 3. Floor with rug, and ceiling.
        x0, z0, x1, z1 = room.rug
        on_rug = (x > x0) & (x < x1) & (z > z0) & (z < z1)
        flat = np.where(dy > 0, np.where(on_rug, np.int8(_RUG), np.int8(_FLOOR)), np.int8(_CEILING))
        np.copyto(surfaces, flat, where=level)
        behind = depth <= 0  # the camera is outside the room and looks away from it
        if walls["top"].min() < room.layout.height:  # the sky begins above the walls
            sky = (~level & (height > walls["top"].take(wall))) | (surfaces == _CEILING)
            surfaces[sky], depth[sky] = _SKY, _SKY_DEPTH
        if behind.any():
            surfaces[behind], depth[behind] = _NOTHING, np.inf
        return depth, surfaces


def _widened(mask: np.ndarray) -> np.ndarray:
    """Return a mask `(n, height, width)` widened by one pixel in all directions."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    high = wide.copy()
    wide[:, :, 1:] |= high[:, :, :-1]
    wide[:, :, :-1] |= high[:, :, 1:]
    return wide


def _hit_box(solid: Solid, directions: Vector, origins: Vector) -> tuple[np.ndarray, np.ndarray, None]:
    """Return depth (infinite without a hit) and face of a box."""
    (dx, dy, dz), (ox, oy, oz) = directions, origins
    cos, sin = np.float32(np.cos(solid.yaw)), np.float32(np.sin(solid.yaw))
    x, z = ox - np.float32(solid.centre[0]), oz - np.float32(solid.centre[1])
    enter, leave, face = None, None, None
    for axis, start, slope, low, high in (
        (_SIDE, cos * x - sin * z, cos * dx - sin * dz, -solid.radii[0], solid.radii[0]),
        (_TOP, oy, dy, -solid.top, -solid.bottom),
        (_BACK, sin * x + cos * z, sin * dx + cos * dz, -solid.radii[1], solid.radii[1]),
    ):
        a, b = (np.float32(low) - start) / slope, (np.float32(high) - start) / slope
        first, last = np.minimum(a, b), np.maximum(a, b)
        if face is None:
            enter, leave, face = first, last, np.full(first.shape, axis, np.int8)
        else:
            face[first > enter] = axis
            enter, leave = np.maximum(enter, first), np.minimum(leave, last)
    return np.where((enter < leave) & (enter > _NEAR), enter, np.float32(np.inf)), face, None


def _hit_cylinder(solid: Solid, directions: Vector, origins: Vector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (dx, dy, dz), (ox, oy, oz) = directions, origins
    x, z, radius = ox - np.float32(solid.centre[0]), oz - np.float32(solid.centre[1]), np.float32(solid.radii[0])
    a, b, c = dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - radius * radius
    side = (-b - np.sqrt(b * b - a * c)) / a  # NaN if the ray passes by
    y = oy + side * dy
    on_side = (side > _NEAR) & (y > -solid.top) & (y < -solid.bottom)
    cap = (np.float32(-solid.top) - oy) / dy
    on_cap = (dy > 0) & (cap > _NEAR) & ((x + cap * dx) ** 2 + (z + cap * dz) ** 2 < radius * radius)
    depth = np.where(on_side, side, np.where(on_cap, cap, np.float32(np.inf)))
    shade = np.where(on_side, 0.76 + 0.1 * (x + side * dx) / radius, np.float32(1.0))
    return depth, np.where(on_side, np.int8(_SIDE), np.int8(_TOP)), shade


def _hit_cone(solid: Solid, directions: Vector, origins: Vector) -> tuple[np.ndarray, int, np.ndarray]:
    (dx, dy, dz), (ox, oy, oz) = directions, origins
    x, z, y = ox - np.float32(solid.centre[0]), oz - np.float32(solid.centre[1]), oy + np.float32(solid.top)
    slope = np.float32(solid.radii[0] / (solid.top - solid.bottom))
    square = slope * slope
    a = dx * dx + dz * dz - square * dy * dy
    b = x * dx + z * dz - square * y * dy
    c = x * x + z * z - square * y * y
    root = np.sqrt(b * b - a * c)
    depth = np.full(a.shape, np.inf, np.float32)
    # Of the two points on the double cone, the nearer one on the lower half.
    for point in ((-b - root) / a, (-b + root) / a):
        below = y + point * dy
        np.copyto(
            depth, point, where=(point > _NEAR) & (point < depth) & (below > 0) & (below < solid.top - solid.bottom)
        )
    reach = slope * (y + depth * dy)
    return depth, _SIDE, 0.82 + 0.12 * (x + depth * dx) / np.maximum(reach, 1e-6)


def _hit_ball(solid: Solid, directions: Vector, origins: Vector) -> tuple[np.ndarray, int, np.ndarray]:
    """Scale the height so that an ellipsoid becomes a ball."""
    (dx, dy, dz), (ox, oy, oz) = directions, origins
    radius = np.float32(solid.radii[0])
    scale = np.float32(2 * radius / (solid.top - solid.bottom))
    x, z = ox - np.float32(solid.centre[0]), oz - np.float32(solid.centre[1])
    y, dy = (oy + np.float32((solid.top + solid.bottom) / 2)) * scale, dy * scale
    a, b = dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz
    c = x * x + y * y + z * z - radius * radius
    depth = (-b - np.sqrt(b * b - a * c)) / a
    shade = 0.8 - 0.2 * (y + depth * dy) / radius
    return np.where(depth > _NEAR, depth, np.float32(np.inf)), _SIDE, shade


_HITS = {"box": _hit_box, "cylinder": _hit_cylinder, "cone": _hit_cone, "ball": _hit_ball}
