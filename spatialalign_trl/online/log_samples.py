"""Log sample videos, scores and curves of the policy while it trains, as files and in the trackers."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatialalign_trl.evaluation import headline_value
from spatialalign_trl.files import file_name, write_json
from spatialalign_trl.online.trackers import Shown, Table, trackers_of
from spatialalign_trl.report.contact_sheet import ContactSheetRow, contact_sheet, score_style
from spatialalign_trl.report.grades import find_grader, relation_names
from spatialalign_trl.report.score_plots import RelationCurve, plot_curves
from spatialalign_trl.rewards.calling import error_text
from spatialalign_trl.rewards.containment import contained
from spatialalign_trl.rewards.runner import RewardFailure
from spatialalign_trl.rollout.sampler import noise_seed
from spatialalign_trl.video import Video, write_video

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.encoding import Conditioning
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.rewards.runner import RewardRunner

SAMPLES_FOLDER = "samples"


class LogSamples(TrainerCallback):
    """
    Samples and scores a few prompts every so many steps, always with the same seed.

    It writes `samples/step-000100/` to the trainer's folder: a contact sheet, an mp4 per prompt, `scores.json`, and,
    for a reward with a method `grade` (DSR-Score), the curves of the relations. Trackers get the sheet, the videos
    (wandb and trackio), the curves, and the scores as numbers and as a table.

    It does not affect the training: the final weights equal those of a run without this callback bit for bit.

    Args:
        model ([`VideoModel`]):
            The model that is trained. Its encoders are loaded only while it samples.
        rows (list of `dict`):
            Prompts, with the columns that the rewards need.
        runner ([`RewardRunner`]):
            The rewards.
        settings ([`SamplingSettings`]):
            How to sample.
        every (`int`):
            Optimizer steps between two logs; the first is before the first step.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the noise.
    """

    def __init__(
        self,
        model: VideoModel,
        rows: Sequence[Mapping[str, Any]],
        runner: RewardRunner,
        settings: SamplingSettings,
        every: int,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.rows = [dict(row) for row in rows]
        self.runner = runner
        self.settings = settings
        self.every = every
        self.seed = seed
        self.trainer: Trainer | None = None
        self._embedded: tuple[list[Conditioning], Conditioning | None] | None = None  # rows, negative prompt

    def watch(self, trainer: Trainer) -> None:
        """Add this callback to a trainer, and log to its trackers."""
        self.trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._log_samples(args, state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0:
            self._log_samples(args, state, control)

    def _log_samples(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if not state.is_world_process_zero:  # the other processes wait at the next step
            return
        folder = Path(args.output_dir) / SAMPLES_FOLDER / f"step-{state.global_step:06d}"
        with _preserved_random_state():
            videos = self._sample()
            columns = {name: [row[name] for row in self.rows] for name in self.rows[0] if name != "prompt"}
            columns.setdefault("fps", [self.settings.fps] * len(self.rows))
            try:
                output = self.runner([row["prompt"] for row in self.rows], videos, columns)
            except RewardFailure as error:  # a look at the training must not end it; the next scoring would tell
                warnings.warn(f"the samples of step {state.global_step} have no scores: {error}", stacklevel=2)
                return
            first_reward = output.per_reward[self.runner.names[0]]
            rewards = [headline_value(*values) for values in zip(output.rewards, first_reward, strict=True)]
            pictures = self._write(folder, videos, rewards, columns)
            self.runner.release()
        valid = [reward for reward in rewards if reward is not None]
        logs = {"samples/invalid_rate": 1 - len(valid) / len(rewards)}
        if valid:
            logs["samples/reward"] = sum(valid) / len(valid)
        if self.trainer is not None:
            handler = self.trainer.callback_handler
            handler.on_log(args, state, control, logs)
            for tracker in trackers_of(handler.callbacks):
                tracker.show(state.global_step, Shown(pictures, {"samples/scores": self._score_table(rewards)}))

    def _score_table(self, rewards: Sequence[float | None]) -> Table:
        texts = ["INVALID" if reward is None else f"{reward:.3f}" for reward in rewards]
        rows = [[str(row["prompt_id"]), row["prompt"], text] for row, text in zip(self.rows, texts, strict=True)]
        return Table(["prompt_id", "prompt", "score"], rows)

    def _sample(self) -> list[Video]:
        model = self.model
        was_training, had_encoders = model.transformer.training, model.has_encoders
        if not had_encoders:
            model.reload_encoders()
        try:
            if self._embedded is None:
                guided = self.settings.guidance_scale > 1
                negative = model.encode_prompts([self.settings.negative_prompt]) if guided else None
                self._embedded = [model.encode_rows([row]) for row in self.rows], negative
            videos = []
            # One video at a time, because a training leaves little memory.
            for row, conditioning in zip(self.rows, self._embedded[0], strict=True):
                seeds = [noise_seed(self.seed, str(row["prompt_id"]))]
                latents = model.sample(conditioning, self._embedded[1], seeds, self.settings)
                videos.extend(model.decode_latents(latents))
            return videos
        finally:
            model.transformer.train(was_training)
            if not had_encoders:
                model.release_encoders()

    def _write(
        self,
        folder: Path,
        videos: Sequence[Video],
        rewards: Sequence[float | None],
        columns: Mapping[str, Sequence[Any]],
    ) -> dict[str, Path]:
        """Write the files, and return them by the names that trackers show."""
        pictures: dict[str, Path] = {}
        shown = zip(self.rows, videos, rewards, strict=True)
        sheet = [ContactSheetRow(row["prompt"], [("policy", video, reward)]) for row, video, reward in shown]
        pictures["samples"] = contact_sheet(sheet, folder / "sheet.png", **score_style(self.runner.names))
        scores = {}
        for row, video, reward in zip(self.rows, videos, rewards, strict=True):
            name = str(row["prompt_id"])
            pictures[f"samples/{name}"] = file = folder / f"{file_name(name)}.mp4"
            write_video(file, video, fps=self.settings.fps)
            scores[name] = {"prompt": row["prompt"], "reward": reward}
        write_json(folder / "scores.json", scores)
        return pictures | self._draw_curves(folder, videos, columns)

    def _draw_curves(
        self, folder: Path, videos: Sequence[Video], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, Path]:
        grade = find_grader(self.runner.reward_funcs)
        grade_columns = {name: columns[name] for name in ("type", "animal", "object", "attribute") if name in columns}
        if grade is None or not {"type", "animal", "object"} <= set(grade_columns):
            return {}
        try:
            with contained(self.runner.names[0]):
                all_graded = list(zip(self.rows, grade(videos, **grade_columns), strict=True))
        except Exception as error:  # the curves of a reward are not worth a training
            warnings.warn(f"no curves of the samples: {error_text(error)}", stacklevel=2)
            return {}
        pictures = {}
        for row, graded in all_graded:
            result = graded.result
            if not len(result.frame_indices):
                continue
            values = [result.initial_curve, *result.visit_curves, result.final_curve]
            curves = [RelationCurve(*pair) for pair in zip(relation_names(row["type"]), values, strict=True)]
            name = str(row["prompt_id"])
            pictures[f"curves/{name}"] = plot_curves(
                folder / f"{file_name(name)}_curves.png",
                curves,
                result.frame_indices,
                graded.tracks.num_frames,
                title=f"{row['type']}: " + ("INVALID" if result.score is None else f"{result.score:.3f}"),
                note=row["prompt"],
            )
        return pictures


@contextlib.contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore all random states: a reward may draw random numbers, but the order of the pairs must not change."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
