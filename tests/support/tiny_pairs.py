"""Make tiny preference pairs and trainers on a random Wan pipeline; they take seconds on one CPU core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import save
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, wan_pipeline

from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.trainer import SpatialAlignConfig, SpatialAlignTrainer
from spatialalign_trl.video import encode_video

LATENT_SHAPE = (4, 3, 2, 4)
NOISE_SEEDS = {"chosen": [3, 2**62, 5, 6, 11, 12, 13, 14], "rejected": [7, 8, 9, 10, 15, 16, 17, 18]}
PROMPTS = ["a fox is on the left of a stump", "the meadow", "a stump jumps to the right"]


def wan_model(**kwargs: Any) -> WanVideoModel:
    """Make a random model, the same at every call."""
    return WanVideoModel(wan_pipeline(**kwargs), "tiny-random-wan")


def latent_pairs(count: int = 8, seed: int = 0, shape: tuple[int, ...] = LATENT_SHAPE) -> datasets.Dataset:
    """Make pairs that contain latents."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list] = {"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(count)]}
    for column in ("chosen_latents", "rejected_latents"):
        rows[column] = [save({"latents": torch.randn(shape, generator=generator)}) for _ in range(count)]
    features = {"prompt": datasets.Value("string")}
    features |= {column: datasets.Value("binary") for column in ("chosen_latents", "rejected_latents")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def random_mp4(seed: int, num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """Encode random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return encode_video(pixels, fps=8, crf=0)


def video_pairs(count: int = 3, seed: int = 0, **size: int) -> datasets.Dataset:
    """Make pairs of mp4 bytes, in `Video` columns like those of `preferences.to_dataset`."""
    rows: dict[str, list] = {"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(count)]}
    for offset, column in enumerate(("chosen", "rejected")):
        videos = [random_mp4(seed + 2 * i + offset, **size) for i in range(count)]
        rows[column] = [{"bytes": video, "path": f"{i}.mp4"} for i, video in enumerate(videos)]
    features = {"prompt": datasets.Value("string")}
    features |= {column: datasets.Video(decode=False) for column in ("chosen", "rejected")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def spatialalign_config(output_dir: Path | str, **overrides: Any) -> SpatialAlignConfig:
    """Make settings with which a few steps visibly change the LoRA."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return SpatialAlignConfig(output_dir=str(output_dir), **{**options, **overrides})


def spatialalign_trainer(output_dir: Path | str, **overrides: Any) -> SpatialAlignTrainer:
    """Make a trainer on [`latent_pairs`]; overrides are arguments of the trainer or fields of its config."""
    arguments: dict[str, Any] = {}
    for name in ("model", "train_dataset", "eval_dataset", "peft_config", "callbacks"):
        if name in overrides:
            arguments[name] = overrides.pop(name)
    arguments.setdefault("model", wan_model())
    arguments.setdefault("train_dataset", latent_pairs())
    return SpatialAlignTrainer(args=spatialalign_config(output_dir, **overrides), **arguments)


def moved(trainer: SpatialAlignTrainer) -> SpatialAlignTrainer:
    """Make the policy different from the reference, so that there are errors to compare."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(0.05)
    return trainer


def with_noise_seeds(dataset: datasets.Dataset, first: int = 0) -> datasets.Dataset:
    """Add the seeds of the noise that the videos of up to eight pairs were sampled from."""
    for side, seeds in NOISE_SEEDS.items():
        dataset = dataset.add_column(f"{side}_noise_seed", [first + seed for seed in seeds[: len(dataset)]])
    return dataset


def lora_of(trainer: SpatialAlignTrainer) -> dict[str, torch.Tensor]:
    """Copy the weights of a trainer's LoRA."""
    return {name: value.detach().clone() for name, value in trainer.video_model.lora_state_dict().items()}


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    """Compare two state dicts, by default bit for bit."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def logged(trainer: SpatialAlignTrainer, name: str) -> list[float]:
    """Return the logged values of a metric."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
