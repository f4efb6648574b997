"""Which scene tasks a recipe samples, and which rewards judge: command-line arguments, and what they load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spatialalign_trl.arguments.prompts import PromptArguments, prompt_source
from spatialalign_trl.scenes.rows import GROUND_TRUTH, VIDEO, complete_rows, load_scene_rows
from spatialalign_trl.video import Video, read_video

if TYPE_CHECKING:
    from datasets import Dataset

    from spatialalign_trl.models.settings import SamplingSettings

SCENES_FOLDER = "scenes"
"""In a run's `output_dir`, unless `scenes_dir` says otherwise."""


@dataclass
class SceneArguments(PromptArguments):
    """Which scene tasks are trained and evaluated on, and who judges. A prompt is a task here: words, and a recording
    of the scene."""

    train_prompts: str = field(
        default="video4spatial_navigation",
        metadata={
            "help": "Scene tasks to sample and train on: a folder under datasets/, a path, a Hub id, or a file; of "
            "rooms to render, or of finished rows whose column context is a video (scenes/rows.py)."
        },
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["scene_navigation"],
        metadata={"help": "Rewards, as of recipes/spatialalign.py: scene_navigation, object_grounding, or your own."},
    )
    scenes_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the tasks' recordings as mp4, rendered at the model's size; several runs may share it, "
            "and all processes must see it. None: scenes/ in output_dir."
        },
    )
    supersample: int = field(
        default=3, metadata={"help": "Rays a pixel of rendered rooms, squared; frames of a few dozen pixels want 5."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.supersample < 1:
            raise ValueError(f"supersample={self.supersample}: must be at least 1")

    def load_set(self, source: str, split: str, limit: int | None) -> Dataset:
        """The first `limit` tasks of one split, as published."""
        return load_scene_rows(prompt_source(source), split, limit)

    def at_size(
        self, rows: tuple[Dataset, Dataset], settings: SamplingSettings, folder: Path
    ) -> tuple[Dataset, Dataset]:
        """The tasks with their recordings at the size of these settings, and without their answers."""
        train, evaluation = rows
        return self._complete(train, settings, folder, ground_truth=False), self.held_out(evaluation, settings, folder)

    def held_out(self, rows: Dataset, settings: SamplingSettings, folder: Path) -> Dataset:
        """As [`~SceneArguments.at_size`] of one split whose answers will be asked for, too, and are made with it."""
        known = self.with_answers(rows, settings, folder)
        return known.remove_columns([name for name in GROUND_TRUTH if name in known.column_names])

    def answers(self, rows: Dataset, settings: SamplingSettings, folder: Path) -> dict[str, Video]:
        """Prompt id -> the right answer, of the tasks of one split that have one."""
        known = self.with_answers(rows, settings, folder)
        if VIDEO not in known.column_names:
            return {}
        return {row["prompt_id"]: read_video(row[VIDEO]["path"]) for row in known if row[VIDEO] is not None}

    def with_answers(self, rows: Dataset, settings: SamplingSettings, folder: Path) -> Dataset:
        """As [`~SceneArguments.at_size`] of one split, with the columns `video` and, for grounding, `boxes`."""
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
