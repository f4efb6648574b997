"""The loop on rows with a context: nothing in it knows of scenes, and what it leaves can be trained on elsewhere."""

from __future__ import annotations

import shutil
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
    """Scenes that differ in their contexts alone, of two lengths."""
    made = []
    for k in range(first, first + count):
        row = scene_row(k, frames=3 + k % 2, prompt="Find the green plant.")
        file = write_video(folder / f"{k}.mp4", row["context"], fps=8, crf=0)
        made.append({"prompt_id": f"scene {k}", **row, "context": {"bytes": None, "path": str(file)}})
    return scene_dataset(made)


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


def test_a_run_carries_contexts_and_its_preferences_are_trained_on_offline(pipeline, tmp_path):
    recordings = tmp_path / "recordings"
    run = loop(pipeline, tmp_path / "run", rows(recordings, 0, 2), rows(recordings, 2, 2))
    seen = []
    predict = run.model.predict
    run.model.predict = lambda *args, **kwargs: seen.append(args[2].keys()) or predict(*args, **kwargs)
    results = run.train()
    assert results["aligned"]["num_videos"] == 2
    assert all(LATENTS in names for names in seen)  # sampled, trained and looked at with their contexts
    for name in ("report.html", "contact_sheet.png", "rounds/01/policy/samples/step-000002/sheet.png"):
        assert (tmp_path / "run" / name).is_file()
    clips = read_json(tmp_path / "run" / "report.json")["clips"]
    assert len(clips) == 4 and all({"prompt", "context"} <= clip["row"].keys() for clip in clips)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('"given":[{"name":"context","image":"') == 2
    assert "load_video_model(" in page and "spatialalign evaluate" not in page

    preferences = Dataset.from_parquet(str(next((tmp_path / "run" / "preferences").glob("*.parquet"))))
    shutil.rmtree(recordings)
    model = context_model(pipeline)
    trainer = SpatialAlignTrainer(
        model, args=spatialalign_config(tmp_path / "offline", max_steps=1), train_dataset=preferences
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert LATENTS in batch["conditioning"] and np.isfinite(trainer.train().training_loss)
    assert torch.isfinite(batch["conditioning"][LATENTS]).all()


def test_the_same_words_about_another_scene_are_another_task(pipeline, tmp_path):
    train = rows(tmp_path, 0, 2)
    again = rows(tmp_path, 1, 1).map(lambda row: {"prompt_id": "by another name"})
    with pytest.raises(ValueError, match="1 prompts are in the training and in the evaluation set"):
        loop(pipeline, tmp_path / "run", train, again)
