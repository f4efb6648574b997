"""Renders a textured room from camera poses. `views.py` has the functions to call.

Two functions of a quad are linear in the pixel coordinates: the inverse depth of its plane, and the side of each edge
on which the pixel's ray passes. A row of pixels therefore meets a quad in one interval, and visibility costs a few
array operations per quad. Colours are looked up once per pixel, or once per ray where several quads share a pixel.

A *fine* pixel is the part of a pixel that one ray samples, see `supersample` of `views.render`.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from spatialalign_trl.tiny_world.rooms.room import Room
from spatialalign_trl.tiny_world.rooms.surfaces import TEXELS_PER_METRE, Quad, normal_of

_FAR = 1e-4
"""Smallest inverse depth, in 1/m, that counts as in front of the camera."""

_MIP_LEVELS = 6
"""Number of copies of each texture, each half as large as the one before."""

_EDGE = 1e-3
"""Intervals are widened by this many fine pixels, so that no ray passes between two quads that share an edge."""


class _Scene:
    """A room as arrays, one row per quad: corners, normals, texture coordinates; and all textures in one array."""

    def __init__(self, room: Room) -> None:
        self.corners = np.stack([quad.corners for quad in room.quads])
        self.normals = np.stack([normal_of(quad) for quad in room.quads])
        self.two_sided = np.array([quad.two_sided for quad in room.quads])
        self.owners, self.shades = room.owners.astype(np.int16), room.shades.astype(np.float32)
        index = {name: i for i, name in enumerate(room.paints)}
        self.texture = np.array([index[quad.texture] for quad in room.quads])
        self.room = room

    @cached_property
    def texels(self) -> np.ndarray:
        """The texture axes of all quads, `(quads, 2, 4)`, see `_texture_axes`."""
        paints = (self.room.paints[quad.texture] for quad in self.room.quads)
        return np.stack([_texture_axes(q, (p.height, p.width)) for q, p in zip(self.room.quads, paints, strict=True)])

    @cached_property
    def atlas(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All texels in one array; for each texture and level, its start `(textures, levels)` and its height and width
        `(textures, levels, 2)`."""
        texels, offsets, sizes = [], [], []
        start = 0
        for image in self.room.textures.values():
            levels = _mip_levels(image)
            offsets.append([start + sum(level.size for level in levels[:i]) for i in range(_MIP_LEVELS)])
            sizes.append([level.shape for level in levels])
            start = offsets[-1][-1] + levels[-1].size
            texels += [level.ravel() for level in levels]
        return np.concatenate(texels), np.array(offsets), np.array(sizes)


@lru_cache(maxsize=2)
def _scene_of(room: Room) -> _Scene:
    return _Scene(room)


def _texture_axes(quad: Quad, shape: tuple[int, ...]) -> np.ndarray:
    """Return the matrix `(2, 4)` that maps a point of the quad, as (point, 1), to texel x and y."""
    origin, right, down = quad.corners[0], quad.corners[1] - quad.corners[0], quad.corners[3] - quad.corners[0]
    if quad.fitted:
        axes = np.stack([right * shape[1] / (right @ right), down * shape[0] / (down @ down)])
        start = np.zeros(2)
    else:
        right = right / np.linalg.norm(right)
        down = np.cross(right, normal_of(quad))
        down *= np.sign(down @ (quad.corners[2] - quad.corners[1])) or 1.0
        axes = np.stack([right, down]) * TEXELS_PER_METRE
        inside = (quad.corners - origin) @ axes.T
        start = -inside.min(axis=0)
    return np.concatenate([axes, (start - axes @ origin)[:, None]], axis=1)


def _mip_levels(image: np.ndarray) -> list[np.ndarray]:
    """Return a texture and its copies at half, a quarter, ... of its size, with each texel packed into one number."""
    level, packed = image.astype(np.float32), []
    for _ in range(_MIP_LEVELS):
        whole = np.zeros((*level.shape[:2], 4), np.uint8)
        whole[..., :3] = level + 0.5
        packed.append(whole.view(np.uint32)[..., 0])
        level = level[: level.shape[0] // 2 * 2, : level.shape[1] // 2 * 2]
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
    return packed


class TexturedCamera:
    """A camera with fixed intrinsics that renders one textured room from any poses. See `FlatCamera`."""

    def __init__(self, room: Room, size: tuple[int, int], intrinsics: np.ndarray, supersample: int) -> None:
        self.scene, self.size, self.supersample = _scene_of(room), size, supersample
        self.intrinsics = intrinsics
        self.inverse = np.linalg.inv(intrinsics)
        height, width = size
        # Positions of the fine columns and rows, in pixels.
        shift = (supersample - 1) / 2
        self.columns = np.arange(width * supersample, dtype=np.int32)
        self.x = ((self.columns - shift) / supersample).astype(np.float32)
        self.y = (np.arange(height * supersample) - shift) / supersample

    def render(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return colours `(n, height, width, 3)` uint8, depth and object indices."""
        colors, depth, objects = zip(*(self._render(pose) for pose in poses), strict=True)
        return np.stack(colors), np.stack(depth), np.stack(objects)

    def measure(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return depth and object indices, `(n, height, width)` each."""
        depth, objects = zip(*(self._measure(pose) for pose in poses), strict=True)
        return np.stack(depth), np.stack(objects)

    def _render(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # 1. Find the nearest quad on every fine pixel.
        kept, plane, low, high = self._project(pose)
        ids, inverse_depth = self._cover(plane, low, high)
        depth, objects = self._at_centres(ids, inverse_depth, kept)
        if not len(kept):  # the camera is outside the room and looks away from it
            return np.zeros((*self.size, 3), np.uint8), depth, objects

        # 2. Texel coordinates divided by depth are linear in the pixel, like the inverse depth itself.
        centre, rotation = pose[:3, 3], pose[:3, :3]
        texels = self.scene.texels[kept]
        constant = texels[:, :, :3] @ centre + texels[:, :, 3]
        over_depth = texels[:, :, :3] @ rotation @ self.inverse + constant[..., None] * plane[:, None]
        table = np.concatenate([over_depth.reshape(-1, 6), plane], axis=1).astype(np.float32)
        return self._colors(ids, kept, table).reshape(*self.size, 3), depth, objects

    def _measure(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept, plane, low, high = self._project(pose)
        return self._at_centres(*self._cover(plane, low, high), kept)

    def _at_centres(
        self, ids: np.ndarray, inverse_depth: np.ndarray, kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return depth and object indices at the centres of pixels."""
        centres = slice(self.supersample // 2, None, self.supersample)
        ids, inverse_depth = ids[centres, centres], inverse_depth[centres, centres]
        owners = np.concatenate([self.scene.owners[kept], [-1]]).astype(np.int16)
        with np.errstate(divide="ignore"):
            return np.where(ids >= 0, 1.0 / inverse_depth, np.inf).astype(np.float32), owners[ids]

    def _project(self, pose: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return, for the quads that may be visible: their indices; their inverse depth, as 3 coefficients of
        (x, y, 1); and their first and last fine column on every fine row."""
        # 1. Drop the quads that show their back.
        scene, rotation, centre = self.scene, pose[:3, :3], pose[:3, 3]
        towards = np.einsum("qi,qi->q", scene.normals, centre - scene.corners[:, 0])
        kept = np.flatnonzero((towards > 1e-9) | (scene.two_sided & (np.abs(towards) > 1e-9)))
        corners = (scene.corners[kept] - centre) @ rotation  # in the camera's frame

        # 2. The inverse depth of each plane: z * (normal . ray) = normal . corner, for a ray with z = 1.
        plane = (scene.normals[kept] @ rotation) / -towards[kept, None] @ self.inverse

        # 3. A ray hits a quad if it passes all edges on the inner side and the plane in front of the camera.
        edges = np.cross(corners, np.roll(corners, -1, axis=1))
        edges *= np.sign(np.einsum("qei,qi->qe", edges, corners.mean(axis=1)))[..., None]
        edges = edges @ self.inverse
        edges /= np.abs(edges[..., :2]).max(axis=-1, keepdims=True) + 1e-30
        front = plane - np.array([0.0, 0.0, _FAR])
        low, high = self._intervals(np.concatenate([edges, front[:, None]], axis=1))
        visible = (low <= high).any(axis=1)
        return kept[visible], plane[visible], low[visible], high[visible]

    def _intervals(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and last fine column on every fine row where all lines a*x + b*y + c of a quad are >= 0."""
        slope = lines[..., 0, None]
        rest = lines[..., 1, None] * self.y + lines[..., 2, None]
        flat = np.abs(slope) < 1e-12
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = -rest / slope
        low = np.where(slope > 0, crossing, -np.inf)
        high = np.where(slope < 0, crossing, np.inf)
        low = np.where(flat, np.where(rest < 0, np.inf, -np.inf), low).max(axis=1)
        high = np.where(flat, np.inf, high).min(axis=1)
        last, shift = len(self.columns) - 1, (self.supersample - 1) / 2
        low = np.ceil(np.clip(low * self.supersample + shift - _EDGE, 0, last + 1))
        high = np.floor(np.clip(high * self.supersample + shift + _EDGE, -1, last))
        return low.astype(np.int32), high.astype(np.int32)

    def _cover(self, plane: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest quad on every fine pixel (-1 for none) and its inverse depth."""
        shape = (len(self.y), len(self.columns))
        nearest, ids = np.zeros(shape, np.float32), np.full(shape, -1, np.int16)
        for quad, (a, b, c) in enumerate(plane):
            rows = np.flatnonzero(low[quad] <= high[quad])
            rows = slice(rows[0], rows[-1] + 1)
            first, last = low[quad, rows], high[quad, rows]
            columns = slice(first.min(), last.max() + 1)
            depths = np.add.outer((b * self.y[rows] + c).astype(np.float32), np.float32(a) * self.x[columns])
            positions = self.columns[columns]
            closer = depths > nearest[rows, columns]
            closer &= positions >= first[:, None]
            closer &= positions <= last[:, None]
            np.copyto(nearest[rows, columns], depths, where=closer)
            np.copyto(ids[rows, columns], np.int16(quad), where=closer)
        return ids, nearest

    def _colors(self, ids: np.ndarray, kept: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Return the colours of all pixels, `(height * width, 3)` uint8."""
        height, width = self.size
        fine = self.supersample

        # 1. One look-up per pixel, which is enough where the pixel shows a single quad.
        blocks = ids.reshape(height, fine, width, fine)
        middle = np.ascontiguousarray(blocks[:, fine // 2, :, fine // 2])
        rows, columns = np.divmod(np.arange(height * width), width)
        scale = np.float32(1.0)
        image = self._look_up(middle.ravel(), columns.astype(np.float32), rows.astype(np.float32), kept, table, scale)

        # 2. One look-up per ray where the pixel shows several quads.
        if fine > 1:
            mixed = np.flatnonzero((blocks != middle[:, None, :, None]).any(axis=(1, 3)))
            rows, columns = np.divmod(mixed, width)
            steps = ((np.arange(fine) - fine // 2) / fine).astype(np.float32)
            x = (columns[:, None, None] + steps[None, None, :]).astype(np.float32)
            y = (rows[:, None, None] + steps[None, :, None]).astype(np.float32)
            x, y = np.broadcast_arrays(x, y)
            inner = blocks[rows, :, columns, :]
            rays = self._look_up(inner.ravel(), x.ravel(), y.ravel(), kept, table, scale / fine)
            image[mixed] = rays.reshape(len(mixed), fine * fine, 3).mean(axis=1)
        return (image + 0.5).astype(np.uint8)

    def _look_up(self, ids: np.ndarray, x: np.ndarray, y: np.ndarray, kept: np.ndarray, table: np.ndarray,
                 spacing: np.float32) -> np.ndarray:  # fmt: skip
        """Return the colours where rays meet quads, from texture copies with texels as far apart as the rays."""
        scene = self.scene

        # 1. Texel coordinates and depth of every ray.
        coefficients = table[ids]
        over, down, inverse = (
            coefficients[:, i] * x + coefficients[:, i + 1] * y + coefficients[:, i + 2] for i in (0, 3, 6)
        )
        depth = 1.0 / np.maximum(inverse, _FAR)
        u, v = over * depth, down * depth

        # 2. The level at which texels are as far apart as rays, from the derivatives of the texel coordinates.
        spread = spacing * depth
        u_x, u_y = (coefficients[:, i] - u * coefficients[:, 6 + i] for i in (0, 1))
        v_x, v_y = (coefficients[:, 3 + i] - v * coefficients[:, 6 + i] for i in (0, 1))
        squares = (u_x * u_x + v_x * v_x) * (u_y * u_y + v_y * v_y)
        level = 0.25 * np.log2(np.maximum(squares, 1e-12)) + np.log2(spread)
        level = np.clip((level + 0.5).astype(np.int32), 0, _MIP_LEVELS - 1)

        # 3. Bilinear interpolation between the four nearest texels of that level.
        quads = kept[ids]
        texture = scene.texture[quads]
        atlas, offsets, all_sizes = scene.atlas
        sizes = all_sizes[texture, level]
        smaller = np.ldexp(np.float32(1.0), -level)
        u, v = u * smaller - 0.5, v * smaller - 0.5
        column, row = np.floor(u), np.floor(v)
        right, lower = u - column, v - row
        columns, rows = column.astype(np.int64), row.astype(np.int64)
        left_column, right_column = (np.clip(columns + i, 0, sizes[:, 1] - 1) for i in (0, 1))
        start = offsets[texture, level]
        upper_row, lower_row = (start + np.clip(rows + i, 0, sizes[:, 0] - 1) * sizes[:, 1] for i in (0, 1))
        color = np.zeros((len(ids), 4), np.float32)
        for line, down_share in ((upper_row, 1 - lower), (lower_row, lower)):
            for offset, right_share in ((left_column, 1 - right), (right_column, right)):
                texels = atlas[line + offset].view(np.uint8).reshape(-1, 4)
                color += texels * (down_share * right_share)[:, None]
        shade = np.where(ids >= 0, scene.shades[quads], 0.0)
        return color[:, :3] * shade[:, None]
