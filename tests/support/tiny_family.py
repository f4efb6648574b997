"""What the contract test has to be told of a family of video models: how to build a tiny random pipeline of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from spatialalign_trl.models import VideoModel


def as_it_is(model: VideoModel, latents: torch.Tensor) -> torch.Tensor:
    return latents


def flow_sigma(model: VideoModel, timestep: torch.Tensor) -> torch.Tensor:
    return timestep / model.num_train_timesteps


def whole(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states


def load_lora_weights(pipe: DiffusionPipeline, folder: Path, **options: Any) -> None:
    pipe.load_lora_weights(folder, **options)


@dataclass(frozen=True)
class TinyFamily:
    """
    A family in the contract test.

    Args:
        name (`str`):
            The test's id.
        build (`Callable[[], DiffusionPipeline]`):
            Builds the pipeline: real classes, random weights, the same at every call, and a scheduler of the kind that
            the published checkpoints have.
        size (`tuple[int, int, int]`):
            Legal (frames, height, width), as small as the family allows; no two equal where that is possible.
        illegal_sizes (`dict[tuple[int, int, int], str]`):
            Sizes that have to be refused -> regular expression for the message, with the nearest legal values.
        options (`dict`, *optional*):
            For `load_video_model`.
        settings (`dict`, *optional*):
            For `SamplingSettings`, beside the size.
        call (`dict`, *optional*):
            For the plain call of the pipeline with a prompt, beside what all pipelines take; `None` leaves out what
            this one does not take.
        pack (`Callable`, *optional*):
            `(model, latents of shape (batch, channels, frames, height, width)) -> latents` as the pipeline's call and
            its transformer hold them.
        sigma_of (`Callable`, *optional*):
            `(model, timestep) -> sigma`, the noise level at which training asks the transformer for this timestep.
        latents_of (`Callable`, *optional*):
            The latents in the transformer's `hidden_states`, where it takes more beside them.
        load_lora (`Callable`, *optional*):
            `(pipeline, folder, **options)`: how a user without this library loads the LoRA.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    size: tuple[int, int, int]
    illegal_sizes: Mapping[tuple[int, int, int], str]
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    pack: Callable[[VideoModel, torch.Tensor], torch.Tensor] = as_it_is
    sigma_of: Callable[[VideoModel, torch.Tensor], torch.Tensor] = flow_sigma
    latents_of: Callable[[torch.Tensor], torch.Tensor] = whole
    load_lora: Callable[..., None] = load_lora_weights
