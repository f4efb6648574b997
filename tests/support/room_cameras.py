"""Cameras at free positions in a room."""

from __future__ import annotations

import numpy as np

from spatialalign_trl.tiny_world.rooms import BaseRoom, look


def free_cameras(room: BaseRoom, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw cameras at free positions, in any direction."""
    poses = []
    while len(poses) < number:
        x, z = rng.uniform(-1, 1, 2) * np.array(room.layout.half)
        point = np.array([x, -rng.uniform(0.4, 2.2), z])
        if room.clearance(point[None])[0] > 0.3:
            poses.append(look(point, rng.uniform(-180, 180), rng.uniform(-35, 35)))
    return np.stack(poses)
