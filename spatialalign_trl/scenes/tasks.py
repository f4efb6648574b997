"""Define a task of Video4Spatial: context frames of a scene, an instruction, and a video that is the right answer.

Rendered rooms (`tiny_world/rooms/tasks.py`) and real recordings (`recordings.py`) both become a `SceneTask`. The
context model and the two scene rewards read its `columns()`.

Source: Video4Spatial (arXiv 2512.03040), which has no public code. Its context frames are sampled non-contiguously,
with matching time indices. The way they are drawn here is ours.
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
        task_id (`str`): The id, unique in its set.
        task (`"navigation"` or `"grounding"`): Follow a camera trajectory, or find an object.
        prompt (`str`): The instruction in words.
        context_frames (`np.ndarray` of shape `(k, height, width, 3)`, `uint8`): The known frames of the scene.
        context_indices (`np.ndarray` of shape `(k,)`): Their frame numbers in the recording, increasing.
        context_poses (`np.ndarray` of shape `(k, 4, 4)`): Their camera-to-world matrices, in OpenCV's axes.
        target_frames (`np.ndarray` of shape `(n, height, width, 3)`, `uint8`): A right answer. For grounding, there
            are many right answers.
        target_poses (`np.ndarray` of shape `(n, 4, 4)`): The cameras of the target frames. For navigation, this is the
            requested trajectory.
        intrinsics (`np.ndarray` of shape `(3, 3)`): The intrinsics of all frames, in pixels with their centres at
            whole numbers.
        object (`str`): The name of the object to find; empty for navigation.
        boxes (`np.ndarray` of shape `(n, 4)`): The object's boxes in the target frames: x1, y1, x2, y2 in pixels, NaN
            in frames where it is not visible or not known.
        scene (`Mapping[str, Any]`, *optional*): Columns that identify the scene, for estimators that can render it:
            `room_seed` and `style` of a room. Empty for a real recording.
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
        """Return the task as a row: the inputs of a context model and of the rewards, and the ground truth (`video`).

        Only navigation has the column `camera_poses`: in grounding, the model plans its path itself.
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
    """Check that a task of this name exists.

    Raises:
        ValueError: if it does not exist. The message names the nearest one.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: unknown task. {near_miss(str(task), TASKS)}")


def draw_context_indices(candidates: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw frame numbers for a context, spread over a recording at irregular distances.

    The candidates are divided into `number` equal sections, and one is drawn from each.

    Args:
        candidates (`np.ndarray` of shape `(m,)`): Frame numbers that may be drawn, increasing.
        number (`int`): How many to draw, 1 to m.
        rng (`np.random.Generator`): Source of all randomness.

    Returns:
        `np.ndarray` of shape `(number,)`: the drawn frame numbers, increasing.

    Raises:
        ValueError: if there are fewer candidates than requested.
    """
    if not 1 <= number <= len(candidates):
        raise ValueError(f"number={number}: cannot draw that many context frames from {len(candidates)} candidates.")
    ends = np.linspace(0, len(candidates), number + 1).round().astype(int)
    drawn = [rng.integers(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
    return np.asarray(candidates)[drawn]
