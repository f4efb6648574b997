"""Turn a dataset of scenes into latents and conditioning on disk: target videos, their contexts, and cameras."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from safetensors import safe_open
from torch.utils.data import Dataset

from spatialalign_trl.models.context import draw_boxes
from spatialalign_trl.models.encoding import content_digest
from spatialalign_trl.trainer.dataset_files import check_video_files
from spatialalign_trl.trainer.latents import LATENTS, EncodingCache, Share, load_tensors, shape_of
from spatialalign_trl.trainer.pair_columns import (
    ExampleColumns,
    check_columns,
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


@dataclass(frozen=True, kw_only=True)
class SceneColumns(ExampleColumns):
    """
    A checked dataset of videos to learn from.

    It has the fields of [`ExampleColumns`]. `rows` has the column `video`, which is the only side, and `boxes` if
    boxes are drawn.
    """

    def where(self, row: int, side: str) -> str:
        """See [`ExampleColumns.where`]."""
        return f"{self.name} row {row}, column {side!r}"

    def video_content(self, row: int, side: str) -> bytes:
        """See [`ExampleColumns.video_content`]; the boxes are part of it."""
        cells = self.rows[row]
        cell, boxes = cells[side], cells.get(BOXES)
        content = content_digest(cell).encode() if is_frames(cell) else video_bytes(cell, self.where(row, side))
        return content if boxes is None else content + json.dumps(boxes).encode()

    def video(self, row: int, side: str) -> Video:
        """Read the video in a cell, and draw its boxes."""
        cells = self.rows[row]
        cell, boxes = cells[side], cells.get(BOXES)
        video = frames_of(cell, self.where(row, side))
        return video if boxes is None else draw_boxes(video, boxes)


class SceneDataset(Dataset):
    """
    Videos as latents, and their conditioning, read from disk when an item is requested.

    An item is `{"latents": (C, F, H, W) fp32, "conditioning": {name: tensor}, "row": its number}`.

    Args:
        columns ([`SceneColumns`]):
            The checked dataset.
        latent_files, condition_files (`list[Path]`):
            The files of every row.
        latent_shape (`tuple[int, ...]`):
            `(C, F, H, W)`, the same for all rows.
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

    @property
    def prompts(self) -> list[str]:
        """The prompt of every row."""
        return self.columns.prompts

    def __getitem__(self, row: int) -> dict[str, Any]:
        files = self.latent_files[row], self.condition_files[row]
        latents, conditioning = (
            load_tensors(file.read_bytes(), f"{self.columns.name} row {row} (cached in {file})") for file in files
        )
        return {"latents": latents[LATENTS].float(), "conditioning": conditioning, "row": torch.tensor(row)}


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
    Check a dataset of scenes, and encode what is not in the cache yet.

    Takes the arguments of [`prepare_pairs`], of which these differ:

    Args:
        dataset (`datasets.Dataset`):
            Columns `prompt`, `video` (the target: `Video` features, paths, mp4 bytes or frames), those that condition
            the model ([`~models.context_rows.SceneRowsMixin`]), and optionally `boxes`: the box of the object in
            every frame of the video, `(x0, y0, x1, y1)` in pixels, or `None`.
        draw (`bool`, *optional*, defaults to `True`):
            Whether `boxes` are drawn into the videos.

    Raises:
        TypeError: if the dataset is not a `datasets.Dataset`.
        ValueError: if a column, a row or a video is wrong; the message names it.
    """
    # 1. Check the columns.
    check_is_dataset(dataset, name)
    remedy = f"Learning from scenes needs the columns prompt and {VIDEO}."
    check_columns(dataset, name, ("prompt", VIDEO), remedy)
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: there is no scene to learn from.")
    conditioning = [column for column in model.conditioning_columns if column in dataset.column_names]
    check_video_files(dataset, [VIDEO, *conditioning], name)
    box_columns = [BOXES] if draw and BOXES in dataset.column_names else []
    columns = SceneColumns(
        name=name,
        prompts=prompts_of(dataset, name),
        rows=undecoded(dataset, [VIDEO, *box_columns]),
        conditions=condition_columns(dataset, model.conditioning_columns),
    )

    # 2. Encode the videos, then what conditions the model.
    model.reload_encoders()
    cache = EncodingCache(Path(cache_dir), model, share or Share(), show_progress)
    cells = [(row, VIDEO) for row in range(len(columns))]
    files = cache.encode_videos(columns, cells)
    shape = check_same_shape(columns, {cell: shape_of(path) for cell, path in files.items()})
    conditions = cache.encode_conditions(columns)
    _check_same_conditions(columns, conditions)
    return SceneDataset(columns, [files[cell] for cell in cells], conditions, shape)


def _check_same_conditions(columns: SceneColumns, files: list[Path]) -> None:
    """Check that all rows have the same conditioning tensors, so that they can be in the same batch."""
    first_shapes: set = set()
    for row, path in enumerate(files):
        with safe_open(path, "pt") as file:
            shapes = {(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
        first_shapes = first_shapes or shapes
        if shapes != first_shapes:
            difference = sorted(first_shapes ^ shapes)
            raise ValueError(
                f"{columns.name} row {row} conditions the model differently from row 0: {difference}. Give all rows "
                "the same columns and the same number of frames (context_frames of the model chooses that many frames "
                "of every context)."
            )
