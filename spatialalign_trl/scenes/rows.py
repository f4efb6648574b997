"""Scene tasks as rows that a run carries: recordings as files, all else as words and numbers.

A published set holds either tasks of rooms (`datasets/video4spatial_*`: numbers and words, from which videos of any
size are rendered) or finished rows, whose column `context` is a video; real recordings become finished rows by
`scenes/curation.py` and [`task_row`]. Both end in rows of the same columns: see [`SceneTask.columns`].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.files import read_json, write_atomic, write_json
from spatialalign_trl.prompts.loading import read_rows
from spatialalign_trl.scenes.tasks import SceneTask
from spatialalign_trl.video import Video, read_video, video_bytes, with_undecoded_videos, write_video

if TYPE_CHECKING:
    from datasets import Dataset

CONTEXT, VIDEO, BOXES = "context", "video", "boxes"
GROUND_TRUTH = (VIDEO, BOXES)
"""Columns that hold the right answer: to learn from and to compare with, and never sampled from."""

FPS = 8.0
"""Of the files, for whoever looks at them; the model reads frames."""


def load_scene_rows(source: str | Path | Dataset, split: str = "train", limit: int | None = None) -> Dataset:
    """
    Load a set of scene tasks as it is published.

    Args:
        source (`str`, `Path` or [`~datasets.Dataset`]):
            As of [`~spatialalign_trl.prompts.load_prompts`]: a dataset folder, a Hub id, a `.jsonl` file or a dataset.
        split (`str`, *optional*, defaults to `"train"`):
            The split of a folder or of a Hub dataset.
        limit (`int`, *optional*):
            Only the first so many.

    Returns:
        [`~datasets.Dataset`] with the set's own columns, videos undecoded.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the set is empty, or a row is no task; names the source and the row.
    """
    from datasets import Dataset

    rows: list[dict[str, Any]] = []
    place_of_id: dict[str, str] = {}
    source = with_undecoded_videos(source) if isinstance(source, Dataset) else source
    for place, row in read_rows(source, split):
        if len(rows) == limit:
            break
        earlier = place_of_id.setdefault(_checked_id(row, place), place)
        if earlier != place:
            raise ValueError(f"{place}: its id was already used at {earlier}; ids are unique")
        rows.append(dict(row))
    if not rows:
        raise ValueError(f"{source} holds no scene tasks")
    return Dataset.from_list(rows)


def _checked_id(row: Mapping[str, Any], place: str) -> str:
    name = row.get("prompt_id") or row.get("task_id")
    if not isinstance(name, str):
        raise ValueError(f"{place}: a scene task needs an id, in the column 'task_id' or 'prompt_id'; it has {name!r}")
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError(f"{place}: column 'prompt': expected a text, got {row.get('prompt')!r}")
    if row.get(CONTEXT) is None and row.get("room_seed") is None:
        raise ValueError(
            f"{place}: a scene task has a recording (the column 'context') or names a room to render one "
            f"('room_seed'); this row has {', '.join(sorted(row))}"
        )
    return name


def complete_rows(
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    size: tuple[int, int],
    num_frames: int,
    *,
    supersample: int = 3,
    ground_truth: bool = False,
) -> Dataset:
    """
    Rows of a published set as a model samples them at one size.

    What is rendered is kept in `folder` and found there by the row and the size, so that a run which goes on renders
    nothing again. (After a change of the renderer itself, take another folder.)

    Args:
        rows (iterable of `dict`):
            From [`load_scene_rows`].
        folder (`Path`):
            Where the videos go, as lossless mp4.
        size (tuple of 2 `int`):
            Height and width in pixels.
        num_frames (`int`):
            Of the video that is asked for.
        supersample (`int`, *optional*, defaults to `3`):
            Of rendered rooms; frames of a few dozen pixels want 5.
        ground_truth (`bool`, *optional*, defaults to `False`):
            Whether rows keep [`GROUND_TRUTH`].

    Returns:
        [`~datasets.Dataset`]; `context` and `video` are `Video(decode=False)`, whose cells are `{"bytes": None,
        "path": ...}`.

    Raises:
        ValueError: a finished row is of another size or length; names the row.
    """
    completed = []
    for row in rows:
        if row.get(CONTEXT) is None:
            one = _rendered(row, folder, size, num_frames, supersample, ground_truth)
        else:
            one = _finished(row, folder, size, num_frames)
        completed.append({name: one[name] for name in one if ground_truth or name not in GROUND_TRUTH})
    return scene_dataset(completed)


def task_row(task: SceneTask, folder: Path, *, ground_truth: bool = False) -> dict[str, Any]:
    """A task as a finished row: its videos become files in `folder`, which are called by what is in them.

    Args:
        task ([`SceneTask`]): A rendered one, or one out of a recording (`scenes/curation.py`).
        folder (`Path`): Where the files go.
        ground_truth (`bool`, *optional*, defaults to `False`): Whether the row keeps [`GROUND_TRUTH`].
    """
    columns = task.columns()
    if not ground_truth:
        columns = {name: value for name, value in columns.items() if name not in GROUND_TRUTH}
    return {
        name: _stored(value, folder) if isinstance(value, np.ndarray) else value for name, value in columns.items()
    }


def scene_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Finished rows as a dataset that knows which of its columns are videos."""
    from datasets import Dataset, Video

    dataset = Dataset.from_list([dict(row) for row in rows])
    for name in (CONTEXT, VIDEO):
        if name in dataset.column_names:
            dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def _stored(video: Video, folder: Path) -> dict[str, Any]:
    digest = hashlib.sha256(repr(video.shape).encode() + np.ascontiguousarray(video).tobytes()).hexdigest()
    return _cell(write_video(folder / f"{digest[:20]}.mp4", video, fps=FPS, crf=0))


def _cell(path: Path) -> dict[str, Any]:
    return {"bytes": None, "path": str(path)}


def _rendered(
    row: Mapping[str, Any], folder: Path, size: tuple[int, int], num_frames: int, supersample: int, ground_truth: bool
) -> dict[str, Any]:
    from spatialalign_trl.tiny_world.rooms.tasks import render_row

    asked = json.dumps([dict(row), size, num_frames, supersample], sort_keys=True)
    file = folder / f"task-{hashlib.sha256(asked.encode()).hexdigest()[:20]}.json"
    if file.is_file():
        there = read_json(file)
        there |= {name: _cell(folder / value) for name, value in there.items() if name in (CONTEXT, VIDEO)}
        complete = VIDEO in there or not ground_truth
        if complete and all(Path(there[name]["path"]).is_file() for name in (CONTEXT, VIDEO) if name in there):
            return there
    task = render_row(row, size, num_frames, supersample=supersample)
    made = task_row(task, folder, ground_truth=ground_truth)
    names = {name: Path(made[name]["path"]).name for name in (CONTEXT, VIDEO) if name in made}
    write_json(file, made | names)
    return made


def _finished(row: Mapping[str, Any], folder: Path, size: tuple[int, int], num_frames: int) -> dict[str, Any]:
    name = row.get("prompt_id") or row["task_id"]
    done = {**row, "prompt_id": name}
    lengths = {VIDEO: num_frames}
    for column in (CONTEXT, VIDEO):
        if row.get(column) is None:
            continue
        content = video_bytes(row[column], f"row {name!r}, column {column!r}")
        shape = read_video(content).shape
        if shape[1:3] != size or shape[0] != lengths.get(column, shape[0]):
            raise ValueError(
                f"row {name!r}: {column} has {shape[0]} frames of {shape[1]}x{shape[2]}, but the model samples "
                f"{num_frames} frames of {size[0]}x{size[1]} (height x width): sample at that size, or curate the "
                "recordings again (scene_curation.Curation)."
            )
        path = folder / f"{hashlib.sha256(content).hexdigest()[:20]}.mp4"
        done[column] = _cell(path if path.is_file() else write_atomic(path, content))
    poses = row.get("camera_poses")
    if poses is not None and len(poses) != num_frames:
        raise ValueError(f"row {name!r}: camera_poses has {len(poses)} poses for a video of {num_frames} frames")
    return done
