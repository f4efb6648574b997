"""Rooms with named objects, exact cameras and exact depth: the scenes of the tiny world's camera tasks.

base.py          what all rooms have: layout, named objects with boxes, distances
layout.py        draws a room from a seed: size, walls, furniture; no two splits share a layout
room.py          builds all surfaces and textures of a layout, and the boxes of its named objects
furniture.py     the kinds of objects and their surfaces
surfaces.py      textured quads, boxes and round solids
textures.py      the images on surfaces
flat_layout.py, flat_room.py
                 rooms of plain colours and few large objects, for frames of 32x48 pixels
views.py         renders a room from camera poses: frames, depth, boxes
raycast.py, flat_raycast.py
                 how views of textured and of flat rooms are computed
path_ranges.py   how far cameras move and turn in each style
trajectories.py  draws smooth camera paths that stay clear of walls and objects
tasks.py         draws a row of the task datasets from a seed, and renders a row: context, target, cameras and boxes
examples.py      turns tasks into examples for pretraining the embedded context model
cameras.py       pose estimator and object detector that know the room

World, objects and cameras have OpenCV's axes in metres: x right, y down, z forward. The floor is y = 0. A pose is a
4x4 camera-to-world matrix.
"""

from spatialalign_trl.tiny_world.rooms.base import BaseRoom, RoomObject
from spatialalign_trl.tiny_world.rooms.flat_room import FlatRoom
from spatialalign_trl.tiny_world.rooms.layout import SPLIT_SEEDS, STYLES, split_of
from spatialalign_trl.tiny_world.rooms.room import Room, sample_room
from spatialalign_trl.tiny_world.rooms.trajectories import (
    TRAJECTORY_KINDS,
    Trajectory,
    is_clear,
    look,
    sample_approach,
    sample_trajectory,
)
from spatialalign_trl.tiny_world.rooms.views import Geometry, Rendering, intrinsics_for, render, render_geometry

__all__ = [
    "SPLIT_SEEDS", "STYLES", "TRAJECTORY_KINDS", "BaseRoom", "FlatRoom", "Geometry", "Rendering",
    "Room", "RoomObject", "Trajectory",
    "intrinsics_for", "is_clear", "look", "render", "render_geometry", "sample_approach", "sample_room",
    "sample_trajectory", "split_of",
]  # fmt: skip
