"""Make rows with a context and a trajectory for the tiny random Wan: random frames, cameras that turn and walk."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, wan_pipeline

from spatialalign_trl.models import WanContextVideoModel

PROMPT = "a fox is on the left of a stump"


def context_model(**options: Any) -> WanContextVideoModel:
    """Make a random context model, the same at every call."""
    return WanContextVideoModel(wan_pipeline(), "tiny-random-wan", **options)


def walk(count: int, first: float = 0.0) -> list[list[list[float]]]:
    """Return camera-to-world matrices along a walk with a turn."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for i, pose in enumerate(poses):
        angle = 0.1 * (first + i)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = [0.2 * (first + i), 0.0, 0.1 * i]
    return poses.tolist()


def scene_row(seed: int = 0, frames: int = 5, prompt: str = PROMPT, **changes: Any) -> dict[str, Any]:
    """Return a row with all columns that condition a context model."""
    size = frames, HEIGHT, WIDTH, 3
    row = {
        "prompt": prompt,
        "context": np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8),
        "context_indices": [7 * i for i in range(frames)],
        "context_poses": walk(frames),
        "camera_poses": walk(NUM_FRAMES, first=frames),
        "intrinsics": [WIDTH * 0.9, WIDTH * 0.9, (WIDTH - 1) / 2, (HEIGHT - 1) / 2],
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not None}
