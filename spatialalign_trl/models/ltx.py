"""LTX-Video text-to-video (arXiv 2501.00103) through diffusers' `LTXPipeline`: the 2B checkpoints 0.9 and 0.9.1."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings

# The pipeline's default, in its call and in its `encode_prompt` alike; longer prompts are cut.
_MAX_SEQUENCE_LENGTH = 128

_NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"

# VAEs from 0.9.1 on take the last step of denoising themselves. Values of diffusers' documentation of LTX-Video.
_DECODE_TIMESTEP = 0.05
_DECODE_NOISE_SCALE = 0.025


class LTXVideoModel(VideoModel):
    """
    LTX-Video: tokens are latent pixels of a VAE of stride 8x32x32, at positions in seconds.

    Positions depend on the frame rate, so it belongs to the model and not to a sample: training and sampling use one.
    Its scheduler shifts by the number of tokens; `flow_shift` in the sampling settings sets a fixed shift instead.

    Sizes: `(num_frames - 1)` divisible by 8, height and width by 32.

    Args:
        pipeline (`DiffusionPipeline`):
            An `LTXPipeline`.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        frame_rate (`float`, *optional*):
            Frames per second; by default those of the model's default settings (25).
        kwargs:
            As in [`VideoModel`].
    """

    family: ClassVar[str] = "ltx"
    pipeline_class: ClassVar[str] = "LTXPipeline"
    # Where the prompt enters, as SpatialAlign does in Wan: its projection, and the cross-attention's keys and values.
    default_lora_targets: ClassVar[tuple[str, ...]] = (
        "caption_projection.linear_1",
        "caption_projection.linear_2",
        "attn2.to_k",
        "attn2.to_v",
    )
    options: ClassVar[tuple[str, ...]] = ("frame_rate",)

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name_or_path: str | None = None,
        *,
        frame_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._given_frame_rate = frame_rate
        super().__init__(pipeline, name_or_path, **kwargs)
        self.frame_rate = float(self.default_settings().fps if frame_rate is None else frame_rate)

    def _family_settings(self) -> SamplingSettings:
        # The call's own defaults: steps, guidance, frames and frame rate of the authors' release.
        return SamplingSettings(
            num_frames=161,
            height=512,
            width=704,
            num_inference_steps=50,
            guidance_scale=3.0,
            negative_prompt=_NEGATIVE_PROMPT,
            fps=25.0 if self._given_frame_rate is None else self._given_frame_rate,
        )

    # Noise levels

    @property
    def flow_shift(self) -> float:
        """k of the pipeline's scheduler, at the default size where it depends on the size ([`shift_at`])."""
        settings = self.default_settings()
        return self.shift_at(settings.num_frames, settings.height, settings.width)

    def shift_at(self, num_frames: int, height: int, width: int) -> float:
        """
        k in `sigma = k * u / (1 + (k - 1) * u)` at a size, without the stretch to the last noise level that the
        scheduler may apply after it (`shift_terminal`).
        """
        config = self.pipeline.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        _, frames, rows, columns = self.latent_shape(num_frames, height, width)
        return math.exp(
            calculate_shift(
                frames * rows * columns,
                config.base_image_seq_len,
                config.max_image_seq_len,
                config.base_shift,
                config.max_shift,
            )
        )

    def _shifted(self, flow_shift: float) -> dict[str, Any]:
        return {"shift": flow_shift, "use_dynamic_shifting": False}

    # Sizes

    def _vae_strides(self) -> tuple[int, int]:
        return self.pipeline.vae_temporal_compression_ratio, self.pipeline.vae_spatial_compression_ratio

    def _size_multiples(self) -> tuple[int, int, int]:
        # The transformer's patches are single latent pixels. The pipeline itself also asks for 32, whatever the VAE.
        time, space = self._vae_strides()
        return time, math.lcm(32, space), math.lcm(32, space)

    # Encoders

    @property
    def max_sequence_length(self) -> int:
        """Tokens of a prompt's embedding, padding included."""
        return min(_MAX_SEQUENCE_LENGTH, self.pipeline.tokenizer.model_max_length)

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        return self.pipeline._normalize_latents(
            self._posterior_mode(pixels), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        ).float()

    def _decode_to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = self.pipeline._denormalize_latents(
            latents.to(vae.device, vae.dtype), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        timestep = None
        if vae.config.timestep_conditioning:
            timestep = torch.full((len(latents),), _DECODE_TIMESTEP, device=latents.device, dtype=latents.dtype)
            latents = (1 - _DECODE_NOISE_SCALE) * latents + _DECODE_NOISE_SCALE * _decoding_noise(latents)
        return vae.decode(latents, timestep, return_dict=False)[0]

    # Transformer

    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        network = self.transformer if transformer is None else transformer
        time, space = self._vae_strides()
        frames, rows, columns = noisy.shape[2:]
        tokens = network(
            hidden_states=LTXPipeline._pack_latents(noisy.to(self.dtype)),
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, self.dtype),
            # Stays fp32 under a bf16 transformer: it embeds the timestep in fp32 before it casts.
            timestep=sigma.float() * self.num_train_timesteps,
            encoder_attention_mask=conditioning["prompt_attention_mask"].to(noisy.device),
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=(time / self.frame_rate, space, space),
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(tokens, frames, rows, columns)

    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        if settings.fps != self.frame_rate:
            raise ValueError(
                f"fps is {settings.fps}, but this model was told a frame rate of {self.frame_rate}, on which its "
                f"positions depend in training as well. Load it with frame_rate={settings.fps:g} "
                "(model_init_kwargs in a recipe), or leave fps out."
            )
        tokens = self.pipeline(
            latents=LTXPipeline._pack_latents(noise),
            **self._embeddings(conditioning, negative_conditioning),
            **self._call_settings(settings),
            frame_rate=self.frame_rate,
            guidance_scale=settings.guidance_scale,
            max_sequence_length=self.max_sequence_length,
        )[0]
        return LTXPipeline._unpack_latents(tokens, *noise.shape[2:])


def _decoding_noise(latents: torch.Tensor) -> torch.Tensor:
    """The same noise for every video, so that one latent decodes to one video, whatever is decoded with it."""
    noise = torch.randn(latents.shape[1:], generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32)
    return noise.to(latents).expand_as(latents)
