"""Provide inputs, random videos and random LoRAs for tests of a tiny random Wan."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH

from spatialalign_trl.models import Conditioning, SamplingSettings, WanVideoModel

SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=3, guidance_scale=3.0)
PROMPTS = ["In a meadow, a fox is on the left of a stump", "then the fox jumps to the right of the stump"]


def random_videos(
    count: int = 2, frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH
) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, frames, height, width, 3), dtype=np.uint8))


def inputs(model: WanVideoModel, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """Return noisy latents, sigmas and conditioning for `model.predict`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *model.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    noisy = torch.randn(shape, generator=generator)
    sigma = torch.rand(batch, generator=generator)
    return noisy, sigma, model.encode_prompts(PROMPTS[:batch])


def randomise_lora(network: torch.nn.Module, seed: int = 1) -> None:
    """Give the LoRA random weights that change the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def add_lora(model: WanVideoModel, how: str, r: int = 2, alpha: int = 8, use_rslora: bool = False) -> None:
    """Add a fresh LoRA: `"wrapped and set"`, `"wrapped in place"`, or by diffusers' `"add_adapter"`."""
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=list(model.default_lora_targets), use_rslora=use_rslora, task_type=None
    )
    if how == "wrapped and set":
        model.transformer = get_peft_model(model.transformer, config)
    elif how == "wrapped in place":
        get_peft_model(model.transformer, config)
    else:
        model.transformer.add_adapter(config)
