"""Describe a family of video models to the contract test, including how to build a tiny random pipeline of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from spatialalign_trl.models import VideoModel


def unchanged(model: VideoModel, latents: torch.Tensor) -> torch.Tensor:
    return latents


def flow_sigma(model: VideoModel, timestep: torch.Tensor) -> torch.Tensor:
    return timestep / model.num_train_timesteps


def all_channels(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states


def load_lora_weights(pipe: DiffusionPipeline, folder: Path, **options: Any) -> None:
    pipe.load_lora_weights(folder, **options)


@dataclass(frozen=True)
class TinyFamily:
    """
    A family in the contract test.

    Args:
        name (`str`):
            The id of the test.
        build (`Callable[[], DiffusionPipeline]`):
            Builds the pipeline, of real classes, with the same random weights at every call, and with a scheduler
            like that of the published checkpoints.
        size (`tuple[int, int, int]`):
            Legal (frames, height, width), as small as the family allows, and all different if possible.
        illegal_sizes (`dict[tuple[int, int, int], str]`):
            Size that must be refused -> regular expression for the message, with the nearest legal values.
        options (`dict`, *optional*):
            Options for `load_video_model`.
        settings (`dict`, *optional*):
            Arguments for `SamplingSettings` in addition to the size.
        call (`dict`, *optional*):
            Arguments for the plain call of the pipeline with a prompt, in addition to those that all pipelines take.
            `None` leaves out an argument that this pipeline does not take.
        pack (`Callable`, *optional*):
            `(model, latents of shape (batch, channels, frames, height, width)) -> latents` in the layout of the
            pipeline's call and its transformer.
        sigma_of (`Callable`, *optional*):
            `(model, timestep) -> sigma`, the noise level at which training calls the transformer with this timestep.
        latents_of (`Callable`, *optional*):
            `hidden_states -> latents`, for a transformer that takes further channels with the latents.
        load_lora (`Callable`, *optional*):
            `(pipeline, folder, **options)`: loads the LoRA as a user without this library would.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    size: tuple[int, int, int]
    illegal_sizes: Mapping[tuple[int, int, int], str]
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    pack: Callable[[VideoModel, torch.Tensor], torch.Tensor] = unchanged
    sigma_of: Callable[[VideoModel, torch.Tensor], torch.Tensor] = flow_sigma
    latents_of: Callable[[torch.Tensor], torch.Tensor] = all_channels
    load_lora: Callable[..., None] = load_lora_weights
