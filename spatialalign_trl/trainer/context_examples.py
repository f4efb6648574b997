"""From a dataset of scenes to latents and conditioning on disk: the videos to learn from, their contexts, cameras."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from safetensors import safe_open
from torch.utils.data import Dataset

from spatialalign_trl.models.context import draw_boxes
from spatialalign_trl.models.encoding import content_digest
from spatialalign_trl.trainer.latents import LATENTS, EncodingCache, Share, load_tensors, shape_of
from spatialalign_trl.trainer.pair_columns import (
    check_is_dataset,
    check_same_shape,
    condition_columns,
    prompts_of,
    undecoded,
)
from spatialalign_trl.video import Video, frames_of, is_frames, video_bytes

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel

VIDEO = "video"
BOXES = "boxes"


@dataclass(frozen=True)
class SceneColumns:
    """
    A checked dataset of videos to learn from.

    Args:
        name (`str`):
            What errors call it.
        prompts (`list[str]`):
            One a row.
        rows (`datasets.Dataset`):
            The column `video`, undecoded, and `boxes` where boxes are drawn.
        conditions (`datasets.Dataset`, *optional*):
            What conditions the model beside the prompt, undecoded.
    """

    name: str
    prompts: list[str]
    rows: datasets.Dataset
    conditions: datasets.Dataset | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def condition(self, row: int) -> dict[str, Any]:
        """All that conditions the model in a row."""
        return {"prompt": self.prompts[row], **(self.conditions[row] if self.conditions is not None else {})}

    def where(self, row: int, column: str) -> str:
        """How errors name a cell."""
        return f"{self.name} row {row}, column {column!r}"

    def video_content(self, row: int, column: str) -> bytes:
        """Bytes that name the video in a row, with what is drawn into it."""
        cells = self.rows[row]
        cell, boxes = cells[column], cells.get(BOXES)
        content = content_digest(cell).encode() if is_frames(cell) else video_bytes(cell, self.where(row, column))
        return content if boxes is None else content + json.dumps(boxes).encode()

    def video(self, row: int, column: str) -> Video:
        """The video in a row, with its boxes drawn."""
        cells = self.rows[row]
        cell, boxes = cells[column], cells.get(BOXES)
        video = frames_of(cell, self.where(row, column))
        return video if boxes is None else draw_boxes(video, boxes)


class SceneDataset(Dataset):
    """
    Videos as latents and their conditioning, read when asked for.

    An item is `{"latents": (C, F, H, W) fp32, "conditioning": {name: tensor}}`.

    Args:
        columns ([`SceneColumns`]):
            The checked dataset.
        latent_files, condition_files (`list[Path]`):
            One a row.
        latent_shape (`tuple[int, ...]`):
            `(C, F, H, W)`, the same for all.
    """

    def __init__(
        self,
        columns: SceneColumns,
        latent_files: list[Path],
        condition_files: list[Path],
        latent_shape: tuple[int, ...],
    ) -> None:
        self.columns = columns
        self.latent_files = latent_files
        self.condition_files = condition_files
        self.latent_shape = latent_shape

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, row: int) -> dict[str, Any]:
        files = self.latent_files[row], self.condition_files[row]
        latents, conditioning = (
            load_tensors(file.read_bytes(), f"{self.columns.name} row {row} (cached in {file})") for file in files
        )
        return {"latents": latents[LATENTS].float(), "conditioning": conditioning}


def prepare_scenes(
    dataset: datasets.Dataset,
    model: "VideoModel",
    cache_dir: str | os.PathLike,
    *,
    draw: bool = True,
    name: str = "train_dataset",
    share: Share | None = None,
    show_progress: bool = True,
) -> SceneDataset:
    """
    Checks a dataset of scenes and encodes what the cache does not hold yet.

    Args:
        dataset (`datasets.Dataset`):
            Columns `prompt`, `video` (to learn from: `Video` features, paths, mp4 bytes or frames), those that
            condition the model ([`~models.context_rows.SceneRowsMixin`]), and optionally `boxes`: the target in every
            frame of the video, `(x0, y0, x1, y1)` in pixels, or `None`.
        model ([`VideoModel`]):
            Its encoders are loaded again if they were released; they are not released here.
        cache_dir (`str` or `os.PathLike`):
            Where the encoded files go; visible to all processes.
        draw (`bool`, *optional*, defaults to `True`):
            Whether `boxes` are drawn.
        name (`str`, *optional*, defaults to `"train_dataset"`):
            What errors call the dataset.
        share ([`Share`], *optional*):
            The processes among which the work is dealt; `None`: there is one.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the first process shows progress bars.

    Raises:
        ValueError: a column, a row or a video is wrong; the message names it.
    """
    check_is_dataset(dataset, name)
    missing = [column for column in ("prompt", VIDEO) if column not in dataset.column_names]
    if missing or len(dataset) == 0:
        problem = f"has no column {', '.join(map(repr, missing))}" if missing else "is empty"
        raise ValueError(f"{name} {problem}; to learn from scenes takes the columns prompt and {VIDEO}.")
    drawn = [BOXES] if draw and BOXES in dataset.column_names else []
    columns = SceneColumns(
        name,
        prompts_of(dataset, name),
        undecoded(dataset, [VIDEO, *drawn]),
        condition_columns(dataset, model.conditioning_columns),
    )
    model.reload_encoders()
    cache = EncodingCache(Path(cache_dir), model, share or Share(), show_progress)
    cells = [(row, VIDEO) for row in range(len(columns))]
    files = cache.encode_videos(columns, cells)
    shape = check_same_shape(columns, {cell: shape_of(path) for cell, path in files.items()})
    conditions = cache.encode_conditions(columns)
    _check_same_conditions(columns, conditions)
    return SceneDataset(columns, [files[cell] for cell in cells], conditions, shape)


def _check_same_conditions(columns: SceneColumns, files: list[Path]) -> None:
    """Rows of one batch have to have the same tensors."""
    first: set = set()
    for row, path in enumerate(files):
        with safe_open(path, "pt") as file:
            kind = {(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
        first = first or kind
        if kind != first:
            odd = sorted(first ^ kind)
            raise ValueError(
                f"{columns.name} row {row} conditions the model otherwise than row 0: {odd}. Give all rows the same "
                "columns and as many frames (context_frames of the model chooses so many of every context)."
            )
