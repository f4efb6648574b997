"""Renders a room from camera poses: frames, exact depth, and the boxes of all objects.

Pixels follow OpenCV: the centre of the top left pixel is (0, 0), and the camera looks along its z axis with x right
and y down. A pose is a 4x4 camera-to-world matrix: `world = pose[:3, :3] @ camera + pose[:3, 3]`. Textured rooms are
drawn by `raycast.py`, flat rooms by `flat_raycast.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialalign_trl.tiny_world.rooms.base import BaseRoom
from spatialalign_trl.tiny_world.rooms.flat_raycast import FlatCamera
from spatialalign_trl.tiny_world.rooms.flat_room import FlatRoom
from spatialalign_trl.tiny_world.rooms.raycast import TexturedCamera


@dataclass(frozen=True)
class Geometry:
    """Depth and objects in the views of n cameras.

    Attributes:
        depth (`np.ndarray` of shape `(n, height, width)`, `float32`):
            Depth at the centre of each pixel in metres: z in the camera's frame, not the length of the ray.
        objects (`np.ndarray` of shape `(n, height, width)`, `int16`):
            Index in `room.objects` of the object at the centre of each pixel, -1 for walls, floor and decoration.
        boxes (`np.ndarray` of shape `(n, objects, 4)`, `float64`):
            x1, y1, x2, y2 around the *visible* pixels of each object, with exclusive right and lower ends. NaN where
            the object is not visible.
        visible_pixels (`np.ndarray` of shape `(n, objects)`, `int64`):
            Number of pixels that show each object.
        intrinsics (`np.ndarray` of shape `(3, 3)`):
            Intrinsics of the camera in pixels.
    """

    depth: np.ndarray
    objects: np.ndarray
    boxes: np.ndarray
    visible_pixels: np.ndarray
    intrinsics: np.ndarray


@dataclass(frozen=True)
class Rendering(Geometry):
    """The views of n cameras: frames, and the attributes of `Geometry`.

    Attributes:
        frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
            RGB frames.
    """

    frames: np.ndarray


def intrinsics_for(size: tuple[int, int], field_of_view: float = 75.0) -> np.ndarray:
    """Compute the intrinsics of a camera with square pixels and its axis through the centre of the image.

    Args:
        size (tuple of 2 `int`):
            Height and width in pixels.
        field_of_view (`float`, *optional*, defaults to `75.0`):
            Horizontal field of view in degrees, in (0, 180).

    Returns:
        `np.ndarray` of shape `(3, 3)`: the intrinsics in pixels.

    Raises:
        ValueError: If the field of view is out of range.
    """
    height, width = size
    if not 0 < field_of_view < 180:
        raise ValueError(f"field_of_view={field_of_view}: out of range. Choose an angle in (0, 180) degrees.")
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def render(room: BaseRoom, poses: np.ndarray, size: tuple[int, int] = (240, 416), *,
           intrinsics: np.ndarray | None = None, supersample: int = 3) -> Rendering:  # fmt: skip
    """Render a room.

    Args:
        room (`BaseRoom`):
            Room from `sample_room`.
        poses (`np.ndarray` of shape `(n, 4, 4)`):
            Camera-to-world matrices with OpenCV's axes, in metres.
        size (tuple of 2 `int`, *optional*, defaults to `(240, 416)`):
            Height and width in pixels.
        intrinsics (`np.ndarray` of shape `(3, 3)`, *optional*, defaults to `intrinsics_for(size)`):
            Intrinsics in pixels.
        supersample (`int`, *optional*, defaults to `3`):
            Rays along each side of a pixel. It must be odd, so that one ray passes through the pixel's centre. 1 is
            fastest but gives jagged edges. Use 5 or more for small images.

    Returns:
        `Rendering`: frames, depth, objects and boxes.

    Raises:
        ValueError: If the poses, the intrinsics, the size or `supersample` are invalid.
    """
    poses = np.asarray(poses, np.float64)
    camera = _camera(room, poses, size, intrinsics, supersample)
    frames, depth, objects = camera.render(poses)
    return Rendering(**vars(_geometry(room, camera.intrinsics, depth, objects)), frames=frames)


def render_geometry(room: BaseRoom, poses: np.ndarray, size: tuple[int, int] = (240, 416), *,
                    intrinsics: np.ndarray | None = None) -> Geometry:  # fmt: skip
    """Render depth, objects and boxes without colours, with the arguments of `render` and one ray per pixel.

    It takes a tenth of the time of `render` if the textures of the room are not painted yet.
    """
    poses = np.asarray(poses, np.float64)
    camera = _camera(room, poses, size, intrinsics, 1)
    return _geometry(room, camera.intrinsics, *camera.measure(poses))


def _camera(room: BaseRoom, poses: np.ndarray, size: tuple[int, int], intrinsics: np.ndarray | None,
            supersample: int) -> FlatCamera | TexturedCamera:  # fmt: skip
    """Check the arguments of a rendering and build its camera."""
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses) or not np.isfinite(poses).all():
        raise ValueError(f"poses have shape {poses.shape}: they must be finite camera-to-world matrices, (n, 4, 4).")
    if supersample < 1 or supersample % 2 == 0:
        raise ValueError(f"supersample={supersample}: it must be odd and at least 1.")
    if min(size) < 1:
        raise ValueError(f"size={size}: height and width must be at least 1.")
    intrinsics = intrinsics_for(size) if intrinsics is None else np.asarray(intrinsics, np.float64)
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics have shape {intrinsics.shape}: they must be a 3x3 matrix.")
    kind = FlatCamera if isinstance(room, FlatRoom) else TexturedCamera
    return kind(room, size, intrinsics, supersample)


def _geometry(room: BaseRoom, intrinsics: np.ndarray, depth: np.ndarray, objects: np.ndarray) -> Geometry:
    """Find the visible boxes of all objects in views with the given depth and objects."""
    boxes = np.full((len(objects), len(room.objects), 4), np.nan)
    visible = np.zeros((len(objects), len(room.objects)), np.int64)
    height, width = objects.shape[1:]
    for index in range(len(room.objects)):
        mask = objects == index
        visible[:, index] = mask.sum(axis=(1, 2))
        columns, rows = mask.any(axis=1), mask.any(axis=2)
        edges = [
            columns.argmax(axis=1), rows.argmax(axis=1),
            width - columns[:, ::-1].argmax(axis=1), height - rows[:, ::-1].argmax(axis=1),
        ]  # fmt: skip
        is_visible = visible[:, index] > 0
        boxes[is_visible, index] = np.stack(edges, axis=1)[is_visible]
    return Geometry(depth, objects, boxes, visible, intrinsics)
