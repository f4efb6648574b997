"""Turns tasks in rooms into examples for pretraining: rendered once into files, and mirrored to double their number.

Each file contains the examples of a few rooms. Only the context frames that the model will see are rendered
(`models.context.choose_context_frames`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.context import as_intrinsics, choose_context_frames, draw_boxes, pack_cameras
from spatialalign_trl.scenes.tasks import TASKS, SceneTask
from spatialalign_trl.tiny_world.rooms.flat_layout import FLAT_COLORS, FLAT_INDOOR
from spatialalign_trl.tiny_world.rooms.furniture import INDOOR
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row
from spatialalign_trl.tiny_world.rooms.textures import COLORS
from spatialalign_trl.tiny_world.rooms.trajectories import Trajectory

ROOMS_PER_FILE = 10
"""Number of rooms per file."""

NUM_CONTEXT = 24
"""Number of context frames in a row, from which those that the model sees are chosen."""

_SIDES = {"left": "right", "right": "left"}


def room_phrases(style: str = "indoor") -> list[str]:
    """Return phrases that contain all words of instructions in rooms of a style, except numbers."""
    grammar = (
        "Stand still and turn left right by degrees. degrees, Walk Move Circle forward backward to the metres. "
        "metres, turning looking at it. Find"
    )
    colors, kinds = (FLAT_COLORS, FLAT_INDOOR) if style == "flat" else (COLORS, INDOOR)
    return [grammar, *colors, *kinds, *(f"{kind}." for kind in kinds)]


@dataclass
class RoomExample:
    """
    A training example of a context model.

    Attributes:
        prompt (`str`):
            The instruction.
        context (`np.ndarray` of shape `(k, height, width, 3)`, `uint8`):
            The context frames that the model sees.
        numbers (`list[int]`):
            Frame numbers of the context in the recording.
        video (`np.ndarray` of shape `(frames, height, width, 3)`, `uint8`):
            The target video. For grounding, the box of the object is drawn on it.
        cameras (`torch.Tensor` of shape `(frames, 16)`):
            Packed cameras of the target video, see `models.context.pack_cameras`. Zeros for grounding.
        context_cameras (`torch.Tensor` of shape `(k, 16)`):
            Packed cameras of the context.
    """

    prompt: str
    context: np.ndarray
    numbers: list[int]
    video: np.ndarray
    cameras: torch.Tensor
    context_cameras: torch.Tensor


def example_of(task: SceneTask) -> RoomExample:
    """Turn a rendered task into an example."""
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
    """Mirror an example: left and right are swapped in its frames, cameras and instruction."""
    prompt = re.sub("left|right", lambda word: _SIDES[word.group()], example.prompt)
    return RoomExample(
        prompt, example.context[:, :, ::-1], example.numbers, example.video[:, :, ::-1],
        _mirror_cameras(example.cameras), _mirror_cameras(example.context_cameras),
    )  # fmt: skip


def _mirror_cameras(cameras: torch.Tensor) -> torch.Tensor:
    """Mirror packed cameras (rows of the rotation, centre, intrinsics) at x = 0."""
    signs = torch.ones(16)
    # M R M and M t, with M = diag(-1, 1, 1). The camera's axis is in the middle of the picture, so intrinsics stay.
    signs[[1, 2, 3, 6, 9]] = -1.0
    return cameras * signs


def seen_context(row: dict, frames: int) -> dict:
    """Reduce the context of a row to the frames that the model will see.

    Args:
        row (`dict`):
            Row from `make_row`.
        frames (`int`):
            Number of context frames that the model sees.

    Returns:
        `dict`: a copy of the row with fewer `context_indices`.
    """
    indices = np.asarray(row["context_indices"])
    survey = Trajectory("survey", tuple(map(tuple, row["context_knots"])), "").poses(int(row["context_length"]))
    path = Trajectory(row["trajectory"], tuple(map(tuple, row["knots"])), row["prompt"]).poses(9)
    targets = path if row["task"] == "navigation" else None  # in grounding the path is not known in advance
    chosen = choose_context_frames(len(indices), frames, survey[indices], targets)
    return row | {"context_indices": indices[chosen].tolist()}


@dataclass(frozen=True)
class ExampleSettings:
    """What the examples of a folder have in common.

    Attributes:
        style (`str`):
            Style of the rooms, see `layout.STYLES`.
        variants (`int`):
            Number of examples of each task in each room.
        context_frames (`int`):
            Number of context frames that the model sees.
        size (tuple of 2 `int`):
            Height and width in pixels.
        num_frames (`int`):
            Frames of a target video.
    """

    style: str
    variants: int
    context_frames: int
    size: tuple[int, int]
    num_frames: int


def render_examples(folder: Path, seeds: range, settings: ExampleSettings, workers: int = 1) -> Iterator[int]:
    """
    Render the examples of some rooms. Existing files are kept.

    Args:
        folder (`Path`):
            Folder for the files.
        seeds (`range`):
            Seeds of the rooms.
        settings (`ExampleSettings`):
            Style, tasks and sizes.
        workers (`int`, *optional*, defaults to `1`):
            Number of processes.

    Yields:
        `int`: number of finished rooms, after every file.
    """
    parts = [seeds[start : start + ROOMS_PER_FILE] for start in range(0, len(seeds), ROOMS_PER_FILE)]
    paths = [folder / f"{part.start - seeds.start:06d}.safetensors" for part in parts]
    missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
    done = len(seeds) - sum(len(part) for _, part in missing)
    if done:
        yield done
    render = partial(_render_file, settings=settings)
    # Fresh processes: a forked one would inherit the locks of PyTorch's threads.
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 and missing else None
    try:
        for number in (map if pool is None else pool.map)(render, missing):
            done += number
            yield done
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _render_file(work: tuple[Path, range], settings: ExampleSettings) -> int:
    """Render the examples of a few rooms into a file, and return the number of rooms."""
    path, seeds = work
    rows = [row for seed in seeds for row in _rows(seed, settings)]
    size, frames = settings.size, settings.num_frames
    examples = [example_of(render_row(seen_context(row, settings.context_frames), size, frames)) for row in rows]
    write_atomic(path, _pack(examples))
    return len(seeds)


def _rows(seed: int, settings: ExampleSettings) -> Iterator[dict]:
    """Yield the rows of all tasks and variants that the room of a seed has."""
    for task in TASKS:
        for variant in range(settings.variants):
            try:
                yield make_row(seed, task, settings.style, num_context=NUM_CONTEXT, variant=variant)
            except RuntimeError:  # the room has no such task or variant
                continue


def _pack(examples: list[RoomExample]) -> bytes:
    tensors = {
        "context": torch.from_numpy(np.stack([example.context for example in examples])),
        "numbers": torch.tensor([example.numbers for example in examples]),
        "video": torch.from_numpy(np.stack([example.video for example in examples])),
        "cameras": torch.stack([example.cameras for example in examples]),
        "context_cameras": torch.stack([example.context_cameras for example in examples]),
    }
    return save(tensors, {"prompts": "\n".join(example.prompt for example in examples)})


def load_videos(folder: Path, rooms: int | None = None) -> np.ndarray:
    """Load the target videos of the examples of a folder.

    Args:
        folder (`Path`):
            Folder with examples.
        rooms (`int`, *optional*):
            Number of rooms, rounded up to whole files. All by default.

    Returns:
        `np.ndarray` of shape `(n, frames, height, width, 3)`, `uint8`: the videos.

    Raises:
        FileNotFoundError: If the folder has no examples.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if rooms is not None:  # a file's name is the index of its first room
        paths = [path for path in paths if int(path.stem) < rooms]
    if not paths:
        raise FileNotFoundError(f"{folder} contains no examples. Run the stage render first.")
    parts = []
    for path in paths:
        with safe_open(path, "pt") as file:
            parts.append(file.get_tensor("video").numpy())
    return np.concatenate(parts)


def load_examples(folder: Path) -> list[RoomExample]:
    """Load all examples of a folder, in the order of their rooms."""
    return [example for path in sorted(folder.glob("*.safetensors")) for example in load_file_of_examples(path)]


def load_file_of_examples(path: Path) -> list[RoomExample]:
    """Load the examples of one file."""
    with safe_open(path, "pt") as file:
        prompts = file.metadata()["prompts"].split("\n")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return [
        RoomExample(
            prompt, tensors["context"][i].numpy(), tensors["numbers"][i].tolist(), tensors["video"][i].numpy(),
            tensors["cameras"][i], tensors["context_cameras"][i],
        )
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
