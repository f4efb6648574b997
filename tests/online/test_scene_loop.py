"""The loop carries context recordings from its prompts through all stages, and its preferences train offline."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_pairs import spatialalign_config
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan
from tiny_scenes import scene_row

from spatialalign_trl.files import read_json
from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.context_rows import LATENTS
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.scenes.rows import scene_dataset
from spatialalign_trl.trainer import SpatialAlignTrainer
from spatialalign_trl.trainer.lora import default_lora_config
from spatialalign_trl.video import write_video


def rows(folder: Path, first: int, count: int) -> Dataset:
    """Return scenes that differ only in their contexts, which have two lengths."""
    scenes = []
    for k in range(first, first + count):
        row = scene_row(k, frames=3 + k % 2, prompt="Find the green plant.")
        file = write_video(folder / f"{k}.mp4", row["context"], fps=8, crf=0)
        scenes.append({"prompt_id": f"scene {k}", **row, "context": {"bytes": None, "path": str(file)}})
    return scene_dataset(scenes)


def brightness(completions, context, log_extra, **columns):
    assert all(Path(cell["path"]).is_file() for cell in context)
    log_extra("brightness_red", [float(video[..., 0].mean()) for video in completions])
    return [float(video.mean()) for video in completions]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


def context_model(pipeline: str):
    return load_video_model(pipeline, variant="context", context_frames=2, device="cpu")


def loop(pipeline: str, folder: Path, train: Dataset, evaluation: Dataset) -> OnlineSpatialAlignTrainer:
    model = context_model(pipeline)
    args = OnlineSpatialAlignConfig(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", num_frames=NUM_FRAMES,
        height=HEIGHT, width=WIDTH, num_inference_steps=2, guidance_scale=2.0, num_generations=2, evaluation_seeds=1,
        max_steps=2, per_device_train_batch_size=2, pair_strategy="best_vs_worst", gradient_checkpointing=False,
        log_samples_steps=2, log_samples_prompts=2, logging_steps=1,
    )  # fmt: skip
    return OnlineSpatialAlignTrainer(model, brightness, args, train, evaluation, default_lora_config(model))


@dataclass
class ContextRun:
    """A run that has ended and lost its recordings, and the names of the tensors that its model was conditioned on."""

    folder: Path
    results: dict
    conditioning_names: list


@pytest.fixture(scope="module")
def context_run(pipeline, tmp_path_factory) -> ContextRun:
    recordings, folder = tmp_path_factory.mktemp("recordings"), tmp_path_factory.mktemp("run")
    run = loop(pipeline, folder, rows(recordings, 0, 2), rows(recordings, 2, 2))
    conditioning_names = []
    predict = run.model.predict
    run.model.predict = lambda *args, **kwargs: conditioning_names.append(args[2].keys()) or predict(*args, **kwargs)
    results = run.train()
    shutil.rmtree(recordings)
    return ContextRun(folder, results, conditioning_names)


def test_every_prediction_is_conditioned_on_the_context(context_run):
    assert all(LATENTS in names for names in context_run.conditioning_names)
    assert context_run.results["aligned"]["num_videos"] == 2


@pytest.mark.parametrize(
    "name", ["report.html", "contact_sheet.png", "rounds/01/policy/samples/step-000002/sheet.png"]
)
def test_a_run_with_contexts_writes_its_page_and_pictures(context_run, name):
    assert (context_run.folder / name).is_file()


def test_the_notes_for_the_page_contain_the_columns_of_the_scenes(context_run):
    clips = read_json(context_run.folder / "report.json")["clips"]
    assert len(clips) == 4 and all({"prompt", "context"} <= clip["row"].keys() for clip in clips)


def test_the_page_shows_the_contexts_and_how_to_load_the_model(context_run):
    page = (context_run.folder / "report.html").read_text()
    assert page.count('"given":[{"name":"context","image":"') == 2
    assert "load_video_model(" in page and "spatialalign evaluate" not in page


def test_the_preferences_train_offline_without_the_recordings(context_run, pipeline, tmp_path):
    preferences = Dataset.from_parquet(str(next((context_run.folder / "preferences").glob("*.parquet"))))
    trainer = SpatialAlignTrainer(
        context_model(pipeline), args=spatialalign_config(tmp_path, max_steps=1), train_dataset=preferences
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert LATENTS in batch["conditioning"] and np.isfinite(trainer.train().training_loss)
    assert torch.isfinite(batch["conditioning"][LATENTS]).all()


def test_a_scene_that_is_trained_and_evaluated_on_is_refused_whatever_its_id(pipeline, tmp_path):
    train = rows(tmp_path, 0, 2)
    renamed = rows(tmp_path, 1, 1).map(lambda row: {"prompt_id": "another id"})
    with pytest.raises(ValueError, match="1 prompts are in the training and in the evaluation set"):
        loop(pipeline, tmp_path / "run", train, renamed)
