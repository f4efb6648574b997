"""A loop on a tiny random pipeline, with a reward that any video has."""

import hashlib
from pathlib import Path

import numpy as np
from datasets import Dataset
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH

from spatialalign_trl.models import load_video_model
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.prompts import DSR_TYPES, build_prompt

WORDS = {"scene": "In a meadow", "animal": "fox", "object": "stump", "verb": "jumps"}


def prompts(prefix: str, attribute: str, count: int = 3) -> Dataset:
    rows = [
        build_prompt(**WORDS, type=DSR_TYPES[k], attribute=attribute, prompt_id=f"{prefix}{k}").to_row()
        for k in range(count)
    ]
    return Dataset.from_list(rows)


def luck(prompts, completions, **kwargs):
    """A number in [0, 1) that depends on the pixels alone."""
    return [int.from_bytes(hashlib.sha256(np.ascontiguousarray(v)).digest()[:4], "big") / 2**32 for v in completions]


def config(output_dir: Path, **overrides) -> OnlineSpatialAlignConfig:
    settings = {
        "num_generations": 4,
        "num_frames": NUM_FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "fps": 8,
        "video_crf": 0,
        "pair_strategy": "best_vs_worst",
        "pairs_per_prompt": 2,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "evaluation_seeds": 2,
        "disable_tqdm": True,
    }
    return OnlineSpatialAlignConfig(output_dir=str(output_dir), use_cpu=True, **{**settings, **overrides})


def loop(folder: str, output_dir: Path, reward=luck, **overrides) -> OnlineSpatialAlignTrainer:
    return OnlineSpatialAlignTrainer(
        model=load_video_model(folder, device="cpu"),
        reward_funcs=reward,
        args=config(output_dir, **overrides),
        train_dataset=prompts("train", "red"),
        eval_dataset=prompts("eval", "blue"),
    )
