"""Textured rooms with named objects, exact cameras and exact depth: the scenes of the tiny world's camera tasks.

layout.py        a seed -> which room: size, walls, furniture; splits that share no layout
room.py          a layout -> all surfaces and textures, and where each named object is
furniture.py     the kinds of objects and what they are built of
surfaces.py      textured quads, boxes and round solids
textures.py      what surfaces look like
raycast.py       room + camera poses -> frames, depth, boxes
trajectories.py  smooth camera paths that keep clear of walls and objects
tasks.py         a seed -> a row of the task datasets; a row -> its context, target video, cameras and boxes
examples.py      tasks as examples that the embedded context model is pretrained on

World, objects and cameras have OpenCV's axes: x right, y down, z forward, in metres; the floor is y = 0. A pose is a
4x4 camera-to-world matrix.
"""

from spatialalign_trl.tiny_world.rooms.layout import SPLIT_SEEDS, STYLES, split_of
from spatialalign_trl.tiny_world.rooms.raycast import Geometry, Rendering, intrinsics_for, render, render_geometry
from spatialalign_trl.tiny_world.rooms.room import Room, RoomObject, sample_room
from spatialalign_trl.tiny_world.rooms.trajectories import (
    TRAJECTORY_KINDS,
    Trajectory,
    is_clear,
    look,
    sample_approach,
    sample_trajectory,
)

__all__ = [
    "SPLIT_SEEDS", "STYLES", "TRAJECTORY_KINDS", "Geometry", "Rendering", "Room", "RoomObject", "Trajectory",
    "intrinsics_for", "is_clear", "look", "render", "render_geometry", "sample_approach", "sample_room",
    "sample_trajectory", "split_of",
]  # fmt: skip
