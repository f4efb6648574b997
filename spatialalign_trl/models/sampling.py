"""Sampling through the pipeline's own call, with a noise that depends on nothing but the sample's seed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def shift_name(scheduler_config: dict[str, Any]) -> str:
    """
    What a scheduler calls its flow shift: the Euler one of diffusers says `shift`, the others `flow_shift`.

    Raises:
        ValueError: when it is no flow-matching scheduler.
    """
    for name in ("flow_shift", "shift"):
        if scheduler_config.get(name) is not None:
            return name
    raise ValueError(
        f"the scheduler {scheduler_config.get('_class_name', '')} has no flow shift; use a flow-matching scheduler "
        "(FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with use_flow_sigmas=True)."
    )


class SamplingMixin:
    """Sampling latents; a family fills in the call of its pipeline."""

    has_two_guidance_scales: bool = False

    pipeline: DiffusionPipeline
    transformer: torch.nn.Module

    @property
    def flow_shift(self) -> float:
        """k in `sigma = k * u / (1 + (k - 1) * u)` of the pipeline's scheduler."""
        config = self.pipeline.scheduler.config
        return float(config[shift_name(config)])

    def uses_negative_prompt(self, settings: SamplingSettings) -> bool:
        """Whether sampling has an unconditional branch: not without guidance, nor where a network embeds its scale."""
        return settings.guidance_scale > 1.0

    def initial_noise(self, seeds: Sequence[int], settings: SamplingSettings) -> torch.Tensor:
        """
        The noise that sampling starts from: one generator a seed, on the CPU, so that neither the batch nor the device
        changes it.

        Returns:
            `torch.Tensor` of shape (batch, channels, frames, height, width), fp32, on the CPU.
        """
        shape = self.latent_shape(settings.num_frames, settings.height, settings.width)
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=one, dtype=torch.float32) for one in generators])

    def sample(
        self,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        seeds: Sequence[int],
        settings: SamplingSettings,
    ) -> torch.Tensor:
        """
        Sample latents through the pipeline's own call.

        Args:
            conditioning (`dict[str, torch.Tensor]`):
                Embedded prompts, one a sample.
            negative_conditioning (`dict[str, torch.Tensor]`, *optional*):
                The embedded negative prompt, once or one a sample. Needed, and used, when `guidance_scale > 1`.
            seeds (`list[int]`):
                One noise seed a sample.
            settings ([`SamplingSettings`]):
                How to sample.

        Returns:
            `torch.Tensor` of shape (batch, channels, frames, height, width): normalised latents, fp32.

        Raises:
            ValueError: when the size is not legal, the numbers of prompts and seeds differ, or guidance lacks its
                negative prompt.
        """
        self.check_size(settings.num_frames, settings.height, settings.width)
        for name, tensor in conditioning.items():
            if len(tensor) != len(seeds):
                raise ValueError(
                    f"{name} holds {len(tensor)} prompts, but there are {len(seeds)} seeds; give one each."
                )
        if settings.guidance_scale_2 is not None and not self.has_two_guidance_scales:
            raise ValueError(
                f"guidance_scale_2 is {settings.guidance_scale_2}, but {self.name_or_path or 'this model'} has one "
                "guidance scale; leave it out."
            )
        if not self.uses_negative_prompt(settings):
            negative_conditioning = None
        elif negative_conditioning is None:
            raise ValueError(
                f"guidance_scale is {settings.guidance_scale}, which needs the negative prompt: pass "
                "negative_conditioning=model.encode_prompts([settings.negative_prompt])."
            )
        else:
            negative_conditioning = {
                name: tensor.expand(len(seeds), *tensor.shape[1:]) for name, tensor in negative_conditioning.items()
            }
        noise = self.initial_noise(seeds, settings)
        with torch.no_grad(), self._evaluation_mode(), self._scheduler_for(settings):
            latents = self._run_pipeline(noise, conditioning, negative_conditioning, settings)
        return latents.float()

    @abstractmethod
    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        """Call the pipeline with given noise and embeddings; returns its latents."""

    def _embeddings(
        self,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        dtype: torch.dtype | None = None,
    ) -> Conditioning:
        """The tensors as the pipeline's call takes them, under its names; `dtype`: cast them."""
        negative = {f"negative_{name}": tensor for name, tensor in (negative_conditioning or {}).items()}
        return {name: tensor.to(self.device, dtype) for name, tensor in (conditioning | negative).items()}

    def _call_settings(self, settings: SamplingSettings) -> dict[str, Any]:
        """What every family's call is told in the same words."""
        return {
            "num_frames": settings.num_frames,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.num_inference_steps,
            "output_type": "latent",
            "return_dict": False,
        }

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        # A fresh PeftModel is in training mode, and LoRA dropout would act while sampling.
        was_training = self.transformer.training
        self.transformer.eval()
        try:
            yield
        finally:
            self.transformer.train(was_training)

    def _shifted(self, flow_shift: float) -> dict[str, Any]:
        """What a scheduler's configuration holds that shifts by `flow_shift`."""
        return {shift_name(self.pipeline.scheduler.config): flow_shift}

    @contextmanager
    def _scheduler_for(self, settings: SamplingSettings) -> Iterator[None]:
        own = self.pipeline.scheduler
        wanted = {} if settings.flow_shift is None else self._shifted(settings.flow_shift)
        if any(own.config.get(name) != value for name, value in wanted.items()):
            self.pipeline.scheduler = type(own).from_config(own.config, **wanted)
        try:
            yield
        finally:
            self.pipeline.scheduler = own
