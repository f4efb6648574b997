"""One task of Video4Spatial: the context frames of a scene, an instruction, and the video that is the right answer.

Rendered rooms (`tiny_world/rooms/tasks.py`) and real recordings (`recordings.py`) become the same `SceneTask`, and
its `columns()` are what the context model and the two rewards read.

Source: Video4Spatial (arXiv 2512.03040), which has no public code: context frames are sampled non-contiguously, with
time indices to match; how they are drawn is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from spatialalign_trl.errors import near_miss
from spatialalign_trl.video import Video

TaskName = Literal["navigation", "grounding"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)


@dataclass(frozen=True, eq=False)
class SceneTask:
    """A task with its ground truth.

    Attributes:
        task_id (`str`): Unique in its set.
        task (`"navigation"` or `"grounding"`): Follow a camera trajectory, or find an object.
        prompt (`str`): The instruction in words.
        context_frames (`np.ndarray` of shape `(k, height, width, 3)`, `uint8`): What is known of the scene.
        context_indices (`np.ndarray` of shape `(k,)`): Their frame numbers in the recording, increasing.
        context_poses (`np.ndarray` of shape `(k, 4, 4)`): Camera to world, OpenCV's axes.
        target_frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`): A right answer; for grounding one of
            many.
        target_poses (`np.ndarray` of shape `(n, 4, 4)`): Its cameras; for navigation the trajectory that is asked for.
        intrinsics (`np.ndarray` of shape `(3, 3)`): Of all frames, in pixels whose middles are at whole numbers.
        object (`str`): The name of what is to be found; empty for navigation.
        boxes (`np.ndarray` of shape `(n, 4)`): The object in the target frames, x1, y1, x2, y2 in pixels, NaN where it
            is not in view or not known.
        scene (`Mapping[str, Any]`, *optional*): Columns that say which scene it is, for estimators that can render it:
            `room_seed` and `style` of a room; nothing for a real recording.
    """

    task_id: str
    task: TaskName
    prompt: str
    context_frames: Video
    context_indices: np.ndarray
    context_poses: np.ndarray
    target_frames: Video
    target_poses: np.ndarray
    intrinsics: np.ndarray
    object: str
    boxes: np.ndarray
    scene: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The task as a row: what conditions a context model, what the rewards read, and the ground truth (`video`).

        `camera_poses` is in rows of navigation only: in grounding the model plans its path itself.
        """
        row = {
            "prompt_id": self.task_id,
            "prompt": self.prompt,
            "context": self.context_frames,
            "context_indices": self.context_indices.tolist(),
            "context_poses": self.context_poses.tolist(),
            "intrinsics": self.intrinsics.tolist(),
            "video": self.target_frames,
            **self.scene,
        }
        if self.task == "navigation":
            return row | {"camera_poses": self.target_poses.tolist()}
        boxes = [None if np.isnan(box).any() else box.tolist() for box in self.boxes]
        return row | {"object": self.object, "boxes": boxes}


def check_task(task: str) -> None:
    """Check the name of a task.

    Raises:
        ValueError: when there is no such task; names the nearest.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}. {near_miss(str(task), TASKS)}")


def draw_context_indices(candidates: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Frame numbers for a context: spread over a recording, at irregular distances.

    The candidates are cut into `number` equal stretches and one is drawn from each.

    Args:
        candidates (`np.ndarray` of shape `(m,)`): Frame numbers that may be drawn, increasing.
        number (`int`): How many are drawn, 1 to m.
        rng: Source of all randomness.

    Raises:
        ValueError: when there are fewer candidates than asked for.
    """
    if not 1 <= number <= len(candidates):
        raise ValueError(f"{number} context frames were asked for, of {len(candidates)}; take 1 to that many.")
    ends = np.linspace(0, len(candidates), number + 1).round().astype(int)
    drawn = [rng.integers(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
    return np.asarray(candidates)[drawn]
