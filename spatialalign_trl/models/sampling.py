"""Sample latents through the pipeline's own call, from a noise that depends only on the sample's seed."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.usage import LoraUsage, NoiseArgument

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def shift_name(scheduler_config: dict[str, Any]) -> str:
    """
    Return the key of a scheduler's flow shift: `shift` in diffusers' Euler scheduler, `flow_shift` in the others.

    Args:
        scheduler_config (`dict`):
            The scheduler's configuration.

    Raises:
        ValueError: if it is not a flow-matching scheduler.
    """
    for name in ("flow_shift", "shift"):
        if scheduler_config.get(name) is not None:
            return name
    raise ValueError(
        f"the scheduler {scheduler_config.get('_class_name', '')} has no flow shift. Use a flow-matching scheduler "
        "(FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with use_flow_sigmas=True)."
    )


def generator_from_noise(noise: Tensor, byteorder: Literal["little", "big"]) -> torch.Generator:
    """
    Seed a generator with a sample's first noise, so that further noise depends only on the sample's seed.

    Args:
        noise (`torch.Tensor` of shape (channels, frames, height, width)):
            The noise of one sample, from [`~SamplingMixin.initial_noise`].
        byteorder (`"little"` or `"big"`):
            How the hash is read as a number. Families differ, and their samples must stay what they are.

    Returns:
        `torch.Generator`: on the CPU.
    """
    digest = hashlib.sha256(noise.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], byteorder) >> 1)


class SamplingMixin:
    """Sampling of latents. A family implements the call of its pipeline."""

    has_two_guidance_scales: bool = False
    noise_argument: NoiseArgument = "generator"
    """How a plain call of the pipeline gets the noise of [`~SamplingMixin.initial_noise`]."""

    pipeline: DiffusionPipeline
    transformer: nn.Module
    computation: dict[str, Any]

    @property
    def flow_shift(self) -> float:
        """k in `sigma = k * u / (1 + (k - 1) * u)`, the shift of the pipeline's scheduler."""
        config = self.pipeline.scheduler.config
        return float(config[shift_name(config)])

    def uses_negative_prompt(self, settings: SamplingSettings) -> bool:
        """
        Return whether sampling has an unconditional branch. It has none without guidance, nor if the guidance scale is
        an input of the transformer.
        """
        return settings.guidance_scale > 1.0

    def initial_noise(self, seeds: Sequence[int], settings: SamplingSettings) -> Tensor:
        """
        Draw the noise that sampling starts from.

        Every seed has its own generator on the CPU, so that a sample's noise depends neither on the rest of its batch
        nor on the device.

        Args:
            seeds (`list[int]`):
                One noise seed per sample.
            settings ([`SamplingSettings`]):
                The size of the videos.

        Returns:
            `torch.Tensor` of shape (batch, channels, frames, height, width), fp32, on the CPU.
        """
        shape = self.latent_shape(settings.num_frames, settings.height, settings.width)
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        return torch.stack([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators])

    def sample(
        self,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        seeds: Sequence[int],
        settings: SamplingSettings,
    ) -> Tensor:
        """
        Sample latents through the pipeline's own call.

        Args:
            conditioning (`dict[str, torch.Tensor]`):
                Embedded prompts, one per sample.
            negative_conditioning (`dict[str, torch.Tensor]`, *optional*):
                The embedded negative prompt, either once or once per sample. Required if `guidance_scale > 1`, and
                ignored otherwise.
            seeds (`list[int]`):
                One noise seed per sample.
            settings ([`SamplingSettings`]):
                How to sample.

        Returns:
            `torch.Tensor` of shape (batch, channels, frames, height, width): normalised latents, fp32.

        Raises:
            ValueError: if the size is not legal, the numbers of prompts and seeds differ, or guidance has no negative
                prompt.
        """
        # 1. Check that the settings fit the model and the prompts
        self.check_size(settings.num_frames, settings.height, settings.width)
        for name, tensor in conditioning.items():
            if len(tensor) != len(seeds):
                raise ValueError(
                    f"{name} holds {len(tensor)} prompts, but there are {len(seeds)} seeds. Pass one seed per prompt."
                )
        if settings.guidance_scale_2 is not None and not self.has_two_guidance_scales:
            raise ValueError(
                f"guidance_scale_2={settings.guidance_scale_2}: {self.name_or_path or 'this model'} has only one "
                "guidance scale. Leave it out."
            )

        # 2. Bring the negative prompt to the size of the batch
        if not self.uses_negative_prompt(settings):
            negative_conditioning = None
        elif negative_conditioning is None:
            raise ValueError(
                f"guidance_scale={settings.guidance_scale}: needs the negative prompt. Pass "
                "negative_conditioning=model.encode_prompts([settings.negative_prompt])."
            )
        else:
            negative_conditioning = {
                name: tensor.expand(len(seeds), *tensor.shape[1:]) for name, tensor in negative_conditioning.items()
            }

        # 3. Run the pipeline
        noise = self.initial_noise(seeds, settings)
        with torch.no_grad(), self._evaluation_mode(), self._scheduler_for(settings):
            latents = self._run_pipeline(noise, conditioning, negative_conditioning, settings)
        return latents.float()

    @abstractmethod
    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        """Call the pipeline with the given noise and embeddings, and return its latents."""

    def _embeddings(
        self, conditioning: Conditioning, negative: Conditioning | None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """Return the embeddings under the argument names of the pipeline's call, cast to `dtype` if it is given."""
        renamed = {f"negative_{name}": tensor for name, tensor in (negative or {}).items()}
        return {name: tensor.to(self.device, dtype) for name, tensor in (conditioning | renamed).items()}

    def _call_settings(self, settings: SamplingSettings) -> dict[str, Any]:
        """Return the arguments that the calls of all pipelines share."""
        return {
            "num_frames": settings.num_frames,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.num_inference_steps,
            "output_type": "latent",
            "return_dict": False,
        }

    # Sampling without this library (see `models/usage.py`)

    def plain_call(self, settings: SamplingSettings) -> dict[str, Any]:
        """
        Return the arguments with which the pipeline's own call samples as [`~SamplingMixin.sample`] does, apart from
        the prompt and the noise.

        Args:
            settings ([`SamplingSettings`]):
                How to sample.
        """
        negative = {"negative_prompt": settings.negative_prompt} if self.uses_negative_prompt(settings) else {}
        return negative | {
            "num_frames": settings.num_frames,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
        }

    def scheduler_changes(self, settings: SamplingSettings) -> dict[str, Any]:
        """Return the settings of the scheduler in which sampling differs from the pipeline's scheduler."""
        changes = {} if settings.flow_shift is None else self._shifted(settings.flow_shift)
        config = self.pipeline.scheduler.config
        return changes if any(config.get(name) != value for name, value in changes.items()) else {}

    def guider_changes(self, settings: SamplingSettings) -> dict[str, Any]:
        """Return the settings in which sampling differs from the pipeline's guider, if it has one."""
        return {}

    def lora_usage(
        self, settings: SamplingSettings, *, prompt: str, noise_seed: int, drawn_by_run: str = ""
    ) -> LoraUsage:
        """
        Describe how a LoRA of this model is used so that it samples as the run does.

        Args:
            settings ([`SamplingSettings`]):
                The run's sampling settings.
            prompt (`str`):
                A prompt, if possible of the evaluation.
            noise_seed (`int`):
                Seed of the noise.
            drawn_by_run (`str`, *optional*):
                What the run drew from this prompt and noise, such as `"the run's video of this prompt, seed 0"`.
        """
        context = self.computation.get("context")
        if context is not None:  # under the names that `load_video_model` takes
            own = ("guidance", "rays")
            context = {name if name in own else f"context_{name}": value for name, value in context.items()}
            call = {name: value for name, value in settings.to_dict().items() if name != "fps"}
        else:
            call = self.plain_call(settings)
        return LoraUsage(
            model=self.name_or_path,
            revision=self.revision,
            dtype=str(self.dtype).removeprefix("torch."),
            prompt=prompt,
            noise_seed=noise_seed,
            drawn_by_run=drawn_by_run,
            call=call,
            fps=settings.fps,
            scheduler=self.scheduler_changes(settings),
            guider=self.guider_changes(settings),
            noise=self.noise_argument,
            latent_shape=list(self.latent_shape(settings.num_frames, settings.height, settings.width)),
            load_options=dict(self.lora_load_options),
            loads_into_transformer=self.lora_loads_into_transformer,
            quantization=str(self.computation.get("quantization") or ""),
            context=context,
            columns=list(self.conditioning_columns),
        )

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        # A fresh PeftModel is in training mode, so LoRA dropout would be active while sampling.
        was_training = self.transformer.training
        self.transformer.eval()
        try:
            yield
        finally:
            self.transformer.train(was_training)

    def _shifted(self, flow_shift: float) -> dict[str, Any]:
        """Return the scheduler settings for a flow shift."""
        return {shift_name(self.pipeline.scheduler.config): flow_shift}

    @contextmanager
    def _scheduler_for(self, settings: SamplingSettings) -> Iterator[None]:
        """Replace the scheduler for the length of the block if the settings have another flow shift."""
        scheduler = self.pipeline.scheduler
        changes = self.scheduler_changes(settings)
        if changes:
            self.pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)
        try:
            yield
        finally:
            self.pipeline.scheduler = scheduler
