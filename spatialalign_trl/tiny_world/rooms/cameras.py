"""
Pose estimator and detector for the tiny world's rooms: both know the room that a row is about, as an oracle does.
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
"""Rooms whose views are kept, 10 MB each at 32x48, so that samples of a few prompts may come in any order."""


@lru_cache(maxsize=KEPT_ROOMS)
def _room(seed: int, style: str) -> Room:
    from spatialalign_trl.tiny_world.rooms import sample_room

    return sample_room(seed, style)


class RoomRenderAndCompare:
    """
    [`RenderAndCompare`] for rows about the tiny world's rooms. The row's columns say which: `room_seed` and
    `style`.

    Args:
        climbs, alike: As of [`RenderAndCompare`].
        places (`int`, *optional*, defaults to `6`):
            Starts stand on a grid of this many places along each side of the room, looking in eight directions, ahead
            and down.
    """

    name = "room_render_and_compare"
    required_columns = ("room_seed",)

    def __init__(self, climbs: int = 3, alike: float = ALIKE, places: int = 6) -> None:
        self.climbs, self.alike, self.places = climbs, alike, places
        self._kept: OrderedDict[tuple[int, str], RenderAndCompare] = OrderedDict()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "climbs": self.climbs, "alike": self.alike, "places": self.places}

    def release(self) -> None:
        """Forget the rooms."""
        self._kept.clear()

    def for_row(self, columns: Mapping[str, Any]) -> RenderAndCompare:
        """
        The estimator for the row's room.

        Raises:
            `ValueError`: when the row names no room.
        """
        if columns.get("room_seed") is None:
            raise ValueError("room_render_and_compare needs the column 'room_seed', the room a row is about.")
        key = int(columns["room_seed"]), str(columns.get("style") or "indoor")
        if key not in self._kept:
            self._kept[key] = self._estimator(*key)
            if len(self._kept) > KEPT_ROOMS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def estimate(self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: Any = None) -> Any:
        raise TypeError("room_render_and_compare depends on the row: ask for_row(columns) for an estimator.")

    def _estimator(self, seed: int, style: str) -> RenderAndCompare:
        from spatialalign_trl.tiny_world.rooms import look, render

        room = _room(seed, style)
        x, z = (np.linspace(-half + 0.5, half - 0.5, self.places) for half in room.layout.half)
        spots = np.array([(one, -1.4, other) for one in x for other in z])
        free = spots[room.clearance(spots) > 0.2]
        views = [(yaw, pitch) for yaw in range(0, 360, 45) for pitch in (-5.0, -25.0)]
        starts = np.stack([look(spot, *view) for spot in free for view in views])

        def shown(poses: np.ndarray, size: tuple[int, int], intrinsics: np.ndarray) -> tuple[Video, np.ndarray]:
            seen = render(room, poses, size, intrinsics=intrinsics, supersample=3)
            return seen.frames, seen.depth

        return RenderAndCompare(shown, starts, self.climbs, self.alike)


class RoomObjects:
    """
    A detector for the tiny world's rooms that knows where things stand: boxes of a named object as the estimated
    camera must see it. Whether the frame does show it there is for the reward's same-object factor to say.

    Its rows name the room, as those of [`RoomRenderAndCompare`]; poses have to be in the room's system.
    """

    name = "room_objects"
    required_columns = ("room_seed",)

    def __init__(self) -> None:
        self._row: Mapping[str, Any] = {}

    def for_row(self, columns: Mapping[str, Any]) -> RoomObjects:
        """A detector for the row's room."""
        found = RoomObjects()
        found._row = columns
        return found

    def detect_at(self, video: Video, names: list[str], poses: np.ndarray, intrinsics: np.ndarray) -> list[Detections]:
        """
        Boxes of what the cameras see, with score 1; nothing where the pose is unknown.

        Args:
            video (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`): Only its size is read.
            names (list of `str`): Of objects of the room.
            poses (`np.ndarray` of shape `(n, 4, 4)`): Camera to world.
            intrinsics (`np.ndarray` of shape `(3, 3)`): In pixels.

        Raises:
            `ValueError`: when the room has no such object.
        """
        from spatialalign_trl.tiny_world.rooms import render_geometry

        room = _room(int(self._row["room_seed"]), str(self._row.get("style") or "indoor"))
        every = [one.name for one in room.objects]
        missing = [name for name in names if name not in every]
        if missing:
            raise ValueError(f"room {room.seed} has no {missing[0]!r}; it has: {', '.join(every)}")
        places = [every.index(name) for name in names]
        answers = [Detections(np.zeros((0, 4)), np.zeros(0), ()) for _ in poses]
        there = np.flatnonzero(known(poses))
        if len(there):
            seen = render_geometry(room, poses[there], video.shape[1:3], intrinsics=intrinsics)
            for frame, boxes in zip(there, seen.boxes[:, places], strict=True):
                shown = np.isfinite(boxes).all(axis=1)
                labels = tuple(name for name, one in zip(names, shown, strict=True) if one)
                answers[frame] = Detections(boxes[shown], np.ones(len(labels)), labels)
        return answers
