"""
Pose estimator and object detector for the tiny world's rooms. Both are oracles: they know the room of a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.perception.camera.geometry import known
from spatialalign_trl.perception.camera.render import ALIKE, RenderAndCompare
from spatialalign_trl.perception.detections import Detections

if TYPE_CHECKING:
    from spatialalign_trl.tiny_world.rooms import Room
    from spatialalign_trl.video import Video

KEPT_ROOMS = 4
"""Number of rooms with cached views (10 MB each at 32x48), so that samples of a few prompts may alternate."""


@lru_cache(maxsize=KEPT_ROOMS)
def _room(seed: int, style: str) -> Room:
    from spatialalign_trl.tiny_world.rooms import sample_room

    return sample_room(seed, style)


class RoomRenderAndCompare:
    """
    Pose estimator for rows with a room of the tiny world: [`RenderAndCompare`] with the room's renderer.

    The columns `room_seed` and `style` of a row identify its room.

    Args:
        climbs (`int`, *optional*, defaults to `3`):
            See [`RenderAndCompare`].
        alike (`float`, *optional*, defaults to `ALIKE`):
            See [`RenderAndCompare`].
        places (`int`, *optional*, defaults to `6`):
            Grid points along each side of the room. At every free point the search may start in eight directions, with
            the camera nearly level or tilted down.
    """

    name = "room_render_and_compare"
    required_columns = ("room_seed",)

    def __init__(self, climbs: int = 3, alike: float = ALIKE, places: int = 6) -> None:
        self.climbs, self.alike, self.places = climbs, alike, places
        self._estimators: OrderedDict[tuple[int, str], RenderAndCompare] = OrderedDict()

    def describe(self) -> dict[str, Any]:
        """Return the name and the settings, as they are stored with scores."""
        return {"name": self.name, "climbs": self.climbs, "alike": self.alike, "places": self.places}

    def release(self) -> None:
        """Free the cached rooms."""
        self._estimators.clear()

    def for_row(self, columns: Mapping[str, Any]) -> RenderAndCompare:
        """
        Return the estimator for the room of a row.

        Args:
            columns (`Mapping[str, Any]`):
                Columns of the row: `room_seed` and, unless the room is indoors, `style`.

        Raises:
            `ValueError`: If `room_seed` is missing.
        """
        if columns.get("room_seed") is None:
            raise ValueError("room_seed=None: room_render_and_compare needs this column, the seed of the row's room.")
        key = int(columns["room_seed"]), str(columns.get("style") or "indoor")
        if key not in self._estimators:
            self._estimators[key] = self._new_estimator(*key)
            if len(self._estimators) > KEPT_ROOMS:  # drop the least recently used room
                self._estimators.popitem(last=False)
        self._estimators.move_to_end(key)
        return self._estimators[key]

    def estimate(self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: Any = None) -> Any:
        """Raise an error, because the estimator needs a row: use the result of `for_row`."""
        raise TypeError("room_render_and_compare depends on the row. Call for_row(columns) and use its estimator.")

    def _new_estimator(self, seed: int, style: str) -> RenderAndCompare:
        from spatialalign_trl.tiny_world.rooms import look, render

        room = _room(seed, style)
        # Search from all free points of a grid at eye height.
        x, z = (np.linspace(-half + 0.5, half - 0.5, self.places) for half in room.layout.half)
        grid = np.array([(grid_x, -1.4, grid_z) for grid_x in x for grid_z in z])
        free = grid[room.clearance(grid) > 0.2]
        directions = [(yaw, pitch) for yaw in range(0, 360, 45) for pitch in (-5.0, -25.0)]
        starts = np.stack([look(position, *direction) for position in free for direction in directions])

        def render_room(poses: np.ndarray, size: tuple[int, int], intrinsics: np.ndarray) -> tuple[Video, np.ndarray]:
            rendering = render(room, poses, size, intrinsics=intrinsics, supersample=3)
            return rendering.frames, rendering.depth

        return RenderAndCompare(render_room, starts, self.climbs, self.alike)


class RoomObjects:
    """
    Object detector for the tiny world's rooms, which knows the positions of all objects.

    It returns the box of a named object as the estimated camera must see it. It does not check that the frame shows
    the object there; the same-object factor of the reward does. The columns `room_seed` and `style` of a row identify
    its room, and poses must be in the room's coordinates.
    """

    name = "room_objects"
    required_columns = ("room_seed",)

    def __init__(self) -> None:
        self._row: Mapping[str, Any] = {}

    def for_row(self, columns: Mapping[str, Any]) -> RoomObjects:
        """Return a detector for the room of a row."""
        detector = RoomObjects()
        detector._row = columns
        return detector

    def detect_at(self, video: Video, names: list[str], poses: np.ndarray, intrinsics: np.ndarray) -> list[Detections]:
        """
        Return the boxes of objects as the cameras see them.

        Args:
            video (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`):
                The video. Only its size is read.
            names (list of `str`):
                Names of objects in the room.
            poses (`np.ndarray` of shape `(n, 4, 4)`):
                Camera-to-world matrices, NaN where the pose is unknown.
            intrinsics (`np.ndarray` of shape `(3, 3)`):
                Intrinsics in pixels.

        Returns:
            `list[Detections]`: visible objects with score 1, one `Detections` per frame. Empty where the pose is
            unknown.

        Raises:
            `ValueError`: If the room has no object of that name.
        """
        from spatialalign_trl.tiny_world.rooms import render_geometry

        room = _room(int(self._row["room_seed"]), str(self._row.get("style") or "indoor"))
        room_names = [thing.name for thing in room.objects]
        missing = [name for name in names if name not in room_names]
        if missing:
            raise ValueError(
                f"object={missing[0]!r}: room {room.seed} has no {missing[0]!r}. Choose from {', '.join(room_names)}."
            )
        indices = [room_names.index(name) for name in names]
        detections = [Detections(np.zeros((0, 4)), np.zeros(0), ()) for _ in poses]
        frames = np.flatnonzero(known(poses))
        if len(frames):
            geometry = render_geometry(room, poses[frames], video.shape[1:3], intrinsics=intrinsics)
            for frame, boxes in zip(frames, geometry.boxes[:, indices], strict=True):
                visible = np.isfinite(boxes).all(axis=1)
                labels = tuple(name for name, is_visible in zip(names, visible, strict=True) if is_visible)
                detections[frame] = Detections(boxes[visible], np.ones(len(labels)), labels)
        return detections
