"""Tasks in rooms as examples to pretrain on: rendered once into files, and mirrored left to right for twice as many.

A file holds the examples of a few rooms. Of a context only the frames are rendered that the model will see
(`models.context.choose_context_frames`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.context import as_intrinsics, choose_context_frames, draw_boxes, pack_cameras
from spatialalign_trl.scenes.tasks import TASKS, SceneTask
from spatialalign_trl.tiny_world.rooms.furniture import INDOOR
from spatialalign_trl.tiny_world.rooms.layout import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row
from spatialalign_trl.tiny_world.rooms.textures import COLORS

ROOMS_A_FILE = 10
NUM_CONTEXT = 24
"""Of a recording, from which the seen ones are chosen."""

_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
_SIDES = {"left": "right", "right": "left"}


def room_phrases() -> list[str]:
    """All words that instructions in rooms are made of, but numbers."""
    grammar = (
        "Stand still and turn left right by degrees. degrees, Walk Move Circle forward backward to the metres. "
        "metres, turning looking at it. Find"
    )
    return [grammar, *COLORS, *INDOOR, *(f"{kind}." for kind in INDOOR)]


@dataclass
class RoomExample:
    """
    What a context model learns from.

    Attributes:
        prompt (`str`): The instruction.
        context (`np.ndarray` of shape `(k, height, width, 3)`, `uint8`): The frames that it sees.
        numbers (`list[int]`): Their numbers in the recording.
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`): The answer, with its box for grounding.
        cameras (`torch.Tensor` of shape `(frames, 16)`): Of the answer, packed; zeros for grounding.
        context_cameras (`torch.Tensor` of shape `(k, 16)`): Of the context, packed.
    """

    prompt: str
    context: np.ndarray
    numbers: list[int]
    video: np.ndarray
    cameras: torch.Tensor
    context_cameras: torch.Tensor


def example_of(task: SceneTask) -> RoomExample:
    """A rendered task as an example."""
    size = task.target_frames.shape[1:3]
    intrinsics = as_intrinsics(task.intrinsics, *size)
    origin = task.context_poses[-1]
    cameras, video = pack_cameras(task.target_poses, intrinsics, origin), task.target_frames
    if task.task == "grounding":
        cameras = torch.zeros_like(cameras)
        video = draw_boxes(video, [None if np.isnan(box).any() else box.tolist() for box in task.boxes])
    return RoomExample(
        task.prompt, task.context_frames, task.context_indices.tolist(), video, cameras,
        pack_cameras(task.context_poses, intrinsics, origin),
    )  # fmt: skip


def mirrored(example: RoomExample) -> RoomExample:
    """The same scene seen in a mirror: left is right, in pictures, cameras and words."""
    prompt = re.sub("left|right", lambda word: _SIDES[word.group()], example.prompt)
    return RoomExample(
        prompt, example.context[:, :, ::-1], example.numbers, example.video[:, :, ::-1],
        _mirror_cameras(example.cameras), _mirror_cameras(example.context_cameras),
    )  # fmt: skip


def _mirror_cameras(cameras: torch.Tensor) -> torch.Tensor:
    """Packed cameras (rotation by rows, centre, intrinsics) mirrored at x = 0; their axis is the picture's middle."""
    signs = torch.ones(16)
    signs[[1, 2, 3, 6, 9]] = -1.0  # M R M and M t
    return cameras * signs


def seen_context(row: dict, frames: int) -> dict:
    """The row with only those context frames that a model of so many sees."""
    from spatialalign_trl.tiny_world.rooms.trajectories import Trajectory

    indices = np.asarray(row["context_indices"])
    survey = Trajectory("survey", tuple(map(tuple, row["context_knots"])), "").poses(int(row["context_length"]))
    path = Trajectory(row["trajectory"], tuple(map(tuple, row["knots"])), row["prompt"]).poses(9)
    targets = path if row["task"] == "navigation" else None  # in grounding nobody knows the path beforehand
    chosen = choose_context_frames(len(indices), frames, survey[indices], targets)
    return row | {"context_indices": indices[chosen].tolist()}


def render_examples(
    folder: Path, rooms: int, variants: int, context_frames: int, size: tuple[int, int], num_frames: int
) -> Iterator[int]:
    """
    Renders what is missing of the examples of the first training rooms: `variants` of each task in each room.

    Yields:
        `int`: rooms that are there, after every file.
    """
    first = SPLIT_SEEDS["train"].start
    for start in range(0, rooms, ROOMS_A_FILE):
        path = folder / f"{start:06d}.safetensors"
        if not path.exists():
            seeds = range(first + start, first + min(start + ROOMS_A_FILE, rooms))
            rows = [row for seed in seeds for row in _rows(seed, variants)]
            found = [example_of(render_row(seen_context(row, context_frames), size, num_frames)) for row in rows]
            write_atomic(path, _pack(found))
        yield min(start + ROOMS_A_FILE, rooms)


def _rows(seed: int, variants: int) -> Iterator[dict]:
    for task in TASKS:
        for variant in range(variants):
            try:
                yield make_row(seed, task, num_context=NUM_CONTEXT, variant=variant)
            except RuntimeError:  # the room has no such task
                continue


def _pack(examples: list[RoomExample]) -> bytes:
    tensors = {
        "context": torch.from_numpy(np.stack([one.context for one in examples])),
        "numbers": torch.tensor([one.numbers for one in examples]),
        "video": torch.from_numpy(np.stack([one.video for one in examples])),
        "cameras": torch.stack([one.cameras for one in examples]),
        "context_cameras": torch.stack([one.context_cameras for one in examples]),
    }
    return save(tensors, {"prompts": "\n".join(one.prompt for one in examples)})


def load_examples(folder: Path) -> list[RoomExample]:
    """All examples of a folder, in order."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            prompts = file.metadata()["prompts"].split("\n")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for i, prompt in enumerate(prompts):
            found.append(
                RoomExample(
                    prompt,
                    tensors["context"][i].numpy(),
                    tensors["numbers"][i].tolist(),
                    tensors["video"][i].numpy(),
                    tensors["cameras"][i],
                    tensors["context_cameras"][i],
                )  # fmt: skip
            )
    return found
