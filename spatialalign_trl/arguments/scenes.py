"""Command-line arguments that name the scene tasks to train and to evaluate on, and the code that loads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from spatialalign_trl.arguments.prompts import PromptArguments, prompt_source
from spatialalign_trl.models.ranges import Range
from spatialalign_trl.scenes.rows import GROUND_TRUTH, VIDEO, complete_rows, load_scene_rows
from spatialalign_trl.video import Video, read_video

if TYPE_CHECKING:
    from datasets import Dataset

    from spatialalign_trl.models.settings import SamplingSettings

SCENES_FOLDER = "scenes"
"""Folder of the recordings inside a run's `output_dir`, used unless `scenes_dir` names another."""


@dataclass
class SceneArguments(PromptArguments):
    """
    Arguments that name the scene tasks to train and to evaluate on. Each row is a task: an instruction and a recording
    of the scene.
    """

    train_prompts: str = field(
        default="video4spatial_navigation",
        metadata={
            "help": "Scene tasks to sample and train on: a folder under datasets/, a path, a Hub id, or a file. It "
            "holds rooms to render, or finished rows with a video in the column context (scenes/rows.py)."
        },
    )
    scenes_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the tasks' recordings as mp4, rendered at the model's size. Several runs may share it, "
            "and all processes must be able to read it. None: scenes/ in output_dir."
        },
    )
    supersample: Annotated[int, Range(at_least=1, at_most=64)] = field(
        default=3,
        metadata={
            "help": "Rendered rooms take this many rays per pixel, squared. Frames of a few dozen pixels need 5."
        },
    )

    def load_set(self, source: str, split: str, limit: int | None) -> Dataset:
        """Load the first tasks of one split as they were published; see [`PromptArguments.load_set`]."""
        return load_scene_rows(prompt_source(source), split, limit)

    def at_size(
        self, rows: tuple[Dataset, Dataset], settings: SamplingSettings, folder: Path
    ) -> tuple[Dataset, Dataset]:
        """
        Add the recordings to the tasks, rendered at the size of the videos. The answers are left out.

        Args:
            rows (`tuple[Dataset, Dataset]`):
                Training and evaluation tasks from [`~PromptArguments.load`].
            settings ([`~spatialalign_trl.models.settings.SamplingSettings`]):
                The size of the videos.
            folder (`Path`):
                The run's folder. Recordings go to `scenes_dir`, or else to its subfolder `scenes`.
        """
        train, evaluation = rows
        return self._complete(train, settings, folder, ground_truth=False), self.held_out(evaluation, settings, folder)

    def held_out(self, rows: Dataset, settings: SamplingSettings, folder: Path) -> Dataset:
        """
        Add the recordings to the tasks of one split, and render the answers without adding them to the rows.

        Args:
            rows (`Dataset`):
                The tasks of one split, as published.
            settings, folder:
                As in [`~SceneArguments.at_size`].
        """
        complete = self.with_answers(rows, settings, folder)
        return complete.remove_columns([name for name in GROUND_TRUTH if name in complete.column_names])

    def answers(self, rows: Dataset, settings: SamplingSettings, folder: Path) -> dict[str, Video]:
        """
        Read the ground-truth videos of one split.

        Args:
            rows, settings, folder:
                As in [`~SceneArguments.held_out`].

        Returns:
            `dict[str, np.ndarray]`: Prompt id -> ground-truth video, for the tasks that have one.
        """
        complete = self.with_answers(rows, settings, folder)
        if VIDEO not in complete.column_names:
            return {}
        return {row["prompt_id"]: read_video(row[VIDEO]["path"]) for row in complete if row[VIDEO] is not None}

    def with_answers(self, rows: Dataset, settings: SamplingSettings, folder: Path) -> Dataset:
        """
        Add the recordings and the answers to the tasks of one split: the column `video` and, for grounding, `boxes`.

        Args:
            rows, settings, folder:
                As in [`~SceneArguments.held_out`].
        """
        return self._complete(rows, settings, folder, ground_truth=True)

    def _complete(self, rows: Dataset, settings: SamplingSettings, folder: Path, *, ground_truth: bool) -> Dataset:
        from spatialalign_trl.tiny_world.rooms.tasks import render_row

        return complete_rows(
            rows,
            Path(self.scenes_dir or folder / SCENES_FOLDER),
            (settings.height, settings.width),
            settings.num_frames,
            render=render_row,
            supersample=self.supersample,
            ground_truth=ground_truth,
        )
