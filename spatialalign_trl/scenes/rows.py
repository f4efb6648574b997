"""Convert scene tasks to dataset rows: recordings as video files, everything else as text and numbers.

A published set contains either tasks in rooms (`datasets/video4spatial_*`: text and numbers, from which videos of any
size are rendered) or finished rows with a video in the column `context`. Real recordings become finished rows through
`scenes/curation.py` and [`task_row`]. Both kinds end up with the same columns: see [`SceneTask.columns`].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialalign_trl.files import confined, read_json, write_atomic, write_json
from spatialalign_trl.prompts.rows import read_rows
from spatialalign_trl.scenes.tasks import SceneTask
from spatialalign_trl.text_files import cell_text
from spatialalign_trl.video import (
    Video,
    check_video_file,
    frames_of,
    is_video_cell,
    video_bytes,
    with_undecoded_videos,
    write_video,
)

if TYPE_CHECKING:
    from datasets import Dataset

CONTEXT, VIDEO, BOXES = "context", "video", "boxes"
GROUND_TRUTH = (VIDEO, BOXES)
"""Columns with the right answer. They are for training and comparison only; the model never samples from them."""

FPS = 8.0
"""Frame rate of the files, for people who watch them. The model reads frames."""


def load_scene_rows(source: str | Path | Dataset, split: str = "train", limit: int | None = None) -> Dataset:
    """
    Load a set of scene tasks as it is published.

    Args:
        source (`str`, `Path` or [`~datasets.Dataset`]):
            A dataset folder, a Hub id, a `.jsonl` file or a dataset, as in
            [`~spatialalign_trl.prompts.load_prompts`].
        split (`str`, *optional*, defaults to `"train"`):
            The split of a folder or of a Hub dataset.
        limit (`int`, *optional*):
            Largest number of rows to load, from the first. By default all.

    Returns:
        [`~datasets.Dataset`]: the set's own columns, with undecoded videos.

    Raises:
        FileNotFoundError: if the file or folder does not exist.
        ValueError: if the set is empty, or a row is not a task, or names a video file outside of the set's folder (for
            a file, the folder that it is in). The message names the source and the row.
    """
    from datasets import Dataset

    rows: list[dict[str, Any]] = []
    place_of_id: dict[str, str] = {}
    source = with_undecoded_videos(source) if isinstance(source, Dataset) else source
    roots = None if isinstance(source, Dataset) else _roots(source)  # a Dataset's paths are the caller's own
    for place, row in read_rows(source, split):
        if len(rows) == limit:
            break
        earlier = place_of_id.setdefault(_checked_id(row, place), place)
        if earlier != place:
            raise ValueError(f"{place}: its id was already used at {earlier}, but ids must be unique")
        rows.append(dict(row) if roots is None else _confined_row(row, roots, place))
    if not rows:
        raise ValueError(f"{source} contains no scene tasks")
    return Dataset.from_list(rows)


def _roots(source: str | Path) -> list[Path]:
    """Return the folders that the videos of a set may lie in: its own, or the cache of its repository on the Hub."""
    path = Path(source)
    if path.exists():
        return [path if path.is_dir() else path.parent]
    import datasets.config
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=str(source), repo_type="dataset")
    return [repo, Path(datasets.config.DOWNLOADED_DATASETS_PATH), Path(datasets.config.EXTRACTED_DATASETS_PATH)]


def _confined_row(row: Mapping[str, Any], roots: Sequence[Path], place: str) -> dict[str, Any]:
    """Return the row with the resolved paths of its video files, all of which must lie in one of the folders."""
    checked = dict(row)
    for name, value in row.items():
        if is_video_cell(value) and not value["bytes"]:
            path = value["path"]
        else:
            path = value if name in (CONTEXT, VIDEO) else None
        if not isinstance(path, (str, PurePath)):
            continue
        file = _file_inside(path, roots)
        if file is None:
            folders = " or ".join(map(str, roots))
            raise ValueError(
                f"{place}: the column {name!r} names {str(path)!r}, which is not a file in {folders}. The rows of a "
                "set may only name files of that set. Move the video there, or put its content under 'bytes'."
            )
        checked[name] = _cell(file)
    return checked


def _file_inside(path: str | PurePath, roots: Sequence[Path]) -> Path | None:
    """Return the file that a path names, relative to a root or to the working directory, if it is in a root."""
    for root in roots:
        for candidate in (path, Path.cwd() / path):
            try:
                file = confined(candidate, root)
            except ValueError:
                continue
            if file.is_file():
                return file
    return None


def _checked_id(row: Mapping[str, Any], place: str) -> str:
    """Return the id of a row, after checking that it is a scene task."""
    name = row.get("prompt_id") or row.get("task_id")
    if not isinstance(name, str) or not cell_text(name):
        raise ValueError(f"{place}: a scene task needs an id in the column 'task_id' or 'prompt_id', got {name!r}")
    if not isinstance(row.get("prompt"), str) or not cell_text(row["prompt"]):
        raise ValueError(f"{place}: column 'prompt': expected a text, got {row.get('prompt')!r}")
    if row.get(CONTEXT) is None and row.get("room_seed") is None:
        raise ValueError(
            f"{place}: a scene task needs a recording (the column 'context') or a room to render one from "
            f"('room_seed'), but this row has {', '.join(sorted(row))}"
        )
    return name


def complete_rows(
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    size: tuple[int, int],
    num_frames: int,
    *,
    render: Callable[..., SceneTask] | None = None,
    supersample: int = 3,
    ground_truth: bool = False,
) -> Dataset:
    """
    Complete the rows of a published set, so that a model can sample them at one size.

    Rendered videos are cached in `folder` under the row and the size, so that a resumed run renders nothing again. Use
    another folder after a change of the renderer itself.

    Args:
        rows (iterable of `dict`):
            The rows, from [`load_scene_rows`].
        folder (`Path`):
            The folder that receives the videos, as lossless mp4 files.
        size (tuple of 2 `int`):
            Height and width in pixels.
        num_frames (`int`):
            Number of frames of the video to sample.
        render (`Callable`, *optional*):
            Renderer of rows without a recording, `render(row, size, num_frames, supersample=...) -> SceneTask`, such
            as [`~spatialalign_trl.tiny_world.rooms.tasks.render_row`]. By default such rows are refused.
        supersample (`int`, *optional*, defaults to `3`):
            Rays per pixel of rendered rooms, squared. Frames of a few dozen pixels need 5.
        ground_truth (`bool`, *optional*, defaults to `False`):
            Whether the rows keep the columns [`GROUND_TRUTH`].

    Returns:
        [`~datasets.Dataset`]: the rows. `context` and `video` are `Video(decode=False)`, with cells `{"bytes": None,
        "path": ...}`.

    Raises:
        ValueError: if a finished row has another size or length, or a row needs rendering and there is no `render`.
            The message names the row.
    """
    completed = []
    for row in rows:
        if row.get(CONTEXT) is not None:
            complete = _finished(row, folder, size, num_frames)
        elif render is not None:
            complete = _rendered(row, folder, size, num_frames, render, supersample, ground_truth)
        else:
            raise ValueError(
                f"row {row.get('prompt_id') or row.get('task_id')!r}: has no recording (the column {CONTEXT!r}) and "
                "must be rendered. Pass render=spatialalign_trl.tiny_world.rooms.tasks.render_row for the rooms of "
                "datasets/video4spatial_*, or rows with recordings."
            )
        completed.append({name: complete[name] for name in complete if ground_truth or name not in GROUND_TRUTH})
    return scene_dataset(completed)


def task_row(task: SceneTask, folder: Path, *, ground_truth: bool = False) -> dict[str, Any]:
    """
    Convert a task to a finished row. Its videos become files in `folder`, named by a hash of their content.

    Args:
        task ([`SceneTask`]):
            The task, rendered or cut out of a recording (`scenes/curation.py`).
        folder (`Path`):
            The folder that receives the video files.
        ground_truth (`bool`, *optional*, defaults to `False`):
            Whether the row keeps the columns [`GROUND_TRUTH`].

    Returns:
        `dict[str, Any]`: the row, with cells of undecoded videos.
    """
    columns = task.columns()
    if not ground_truth:
        columns = {name: value for name, value in columns.items() if name not in GROUND_TRUTH}
    return {
        name: _stored(value, folder) if isinstance(value, np.ndarray) else value for name, value in columns.items()
    }


def scene_dataset(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """
    Make a dataset of finished rows, with the type `Video(decode=False)` for the columns `context` and `video`.

    Args:
        rows (sequence of `Mapping`):
            The rows, from [`task_row`].

    Returns:
        [`~datasets.Dataset`]: the dataset.
    """
    from datasets import Dataset, Video

    dataset = Dataset.from_list([dict(row) for row in rows])
    for name in (CONTEXT, VIDEO):
        if name in dataset.column_names:
            dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def _stored(video: Video, folder: Path) -> dict[str, Any]:
    """Write a video to a file named by its content, and return its cell."""
    digest = hashlib.sha256(repr(video.shape).encode() + np.ascontiguousarray(video).tobytes()).hexdigest()
    return _cell(write_video(folder / f"{digest[:20]}.mp4", video, fps=FPS, crf=0))


def _cell(path: Path) -> dict[str, Any]:
    """Return the cell of an undecoded video."""
    return {"bytes": None, "path": str(path)}


def _rendered(
    row: Mapping[str, Any],
    folder: Path,
    size: tuple[int, int],
    num_frames: int,
    render: Callable[..., SceneTask],
    supersample: int,
    ground_truth: bool,
) -> dict[str, Any]:
    """Render a row, or return it from the cache in `folder` if all files that it needs are there."""
    key = json.dumps([dict(row), size, num_frames, supersample], sort_keys=True)
    file = folder / f"task-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    if file.is_file():
        cached = read_json(file)
        # Only the file's name counts, so that a cached row cannot name files outside of the folder.
        cached |= {
            name: _cell(folder / PurePath(value).name) for name, value in cached.items() if name in (CONTEXT, VIDEO)
        }
        has_columns = VIDEO in cached or not ground_truth
        if has_columns and all(Path(cached[name]["path"]).is_file() for name in (CONTEXT, VIDEO) if name in cached):
            return cached
    task = render(row, size, num_frames, supersample=supersample)
    rendered = task_row(task, folder, ground_truth=ground_truth)
    # The cache stores bare file names, so that the folder can be moved.
    file_names = {name: Path(rendered[name]["path"]).name for name in (CONTEXT, VIDEO) if name in rendered}
    write_json(file, rendered | file_names)
    return rendered


def _finished(row: Mapping[str, Any], folder: Path, size: tuple[int, int], num_frames: int) -> dict[str, Any]:
    """Check the size and length of a finished row, and copy its videos to files in `folder`, also those of columns
    that no model reads: a published row contains them."""
    name = row.get("prompt_id") or row["task_id"]
    finished = {**row, "prompt_id": name}
    lengths = {VIDEO: num_frames}  # a context may have any length
    for column, value in row.items():
        place = f"row {name!r}, column {column!r}"
        if column in (CONTEXT, VIDEO) and value is not None:
            content = video_bytes(value, place)
            shape = frames_of(content, place).shape
            if shape[1:3] != size or shape[0] != lengths.get(column, shape[0]):
                raise ValueError(
                    f"row {name!r}: {column} has {shape[0]} frames of {shape[1]}x{shape[2]}, but the model samples "
                    f"{num_frames} frames of {size[0]}x{size[1]} (height x width). Sample at the recording's size, or "
                    "curate the recordings again (scenes.Curation)."
                )
        elif is_video_cell(value) and (value["bytes"] or value["path"]):
            content = check_video_file(video_bytes(value, place), place)
        else:
            continue
        path = folder / f"{hashlib.sha256(content).hexdigest()[:20]}.mp4"
        finished[column] = _cell(path if path.is_file() else write_atomic(path, content))
    poses = row.get("camera_poses")
    if poses is not None and len(poses) != num_frames:
        raise ValueError(f"row {name!r}: camera_poses has {len(poses)} poses for a video of {num_frames} frames")
    return finished
