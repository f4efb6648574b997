"""Run LTX-Video (arXiv 2501.00103) through diffusers' `LTXPipeline`: the 2B checkpoints 0.9 and 0.9.1."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from torch import Tensor, nn

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings

# The default of both the pipeline's call and its `encode_prompt`. Longer prompts are cut.
_MAX_SEQUENCE_LENGTH = 128

_NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"

# From 0.9.1 on, the VAE takes the last denoising step itself. The values are from diffusers' documentation.
_DECODE_TIMESTEP = 0.05
_DECODE_NOISE_SCALE = 0.025


class LTXVideoModel(VideoModel):
    """
    LTX-Video. Its tokens are latent pixels of a VAE with stride 8x32x32, and their positions are in seconds.

    Positions depend on the frame rate, so the frame rate belongs to the model and not to a sample: training and
    sampling use the same. The scheduler's shift depends on the number of tokens; `flow_shift` in the sampling settings
    sets a fixed shift instead.

    Sizes: `(num_frames - 1)` divisible by 8, height and width by 32.

    Args:
        pipeline (`DiffusionPipeline`):
            An `LTXPipeline`.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        frame_rate (`float`, *optional*):
            Frames per second. Defaults to that of the model's default settings (25).
        kwargs:
            As in [`VideoModel`].
    """

    family: ClassVar[str] = "ltx"
    pipeline_class: ClassVar[str] = "LTXPipeline"
    # Where the prompt enters, as in SpatialAlign for Wan: its projection, keys and values of the cross-attention.
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
        self._decodes_last_step = pipeline.vae is not None and bool(pipeline.vae.config.timestep_conditioning)
        self.frame_rate = float(self.default_settings().fps if frame_rate is None else frame_rate)

    def _family_settings(self) -> SamplingSettings:
        # The defaults of the pipeline's call: steps, guidance, frames and frame rate of the authors' release.
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
        """k of the pipeline's scheduler, at the default size if it depends on the size (see [`shift_at`])."""
        settings = self.default_settings()
        return self.shift_at(settings.num_frames, settings.height, settings.width)

    def shift_at(self, num_frames: int, height: int, width: int) -> float:
        """
        Return k in `sigma = k * u / (1 + (k - 1) * u)` for a size.

        It does not include the stretch to the last noise level that the scheduler may apply afterwards
        (`shift_terminal`).

        Args:
            num_frames (`int`):
                Number of frames.
            height, width (`int`):
                Size in pixels.
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
        # The transformer's patches are single latent pixels. The pipeline itself requires 32, whatever the VAE is.
        time, space = self._vae_strides()
        return time, math.lcm(32, space), math.lcm(32, space)

    # Encoders

    @property
    def max_sequence_length(self) -> int:
        """Number of tokens of a prompt's embedding, including the padding."""
        return min(_MAX_SEQUENCE_LENGTH, self.pipeline.tokenizer.model_max_length)

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return self.pipeline._normalize_latents(
            self._posterior_mode(pixels), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        ).float()

    def _decode_to_pixels(self, latents: Tensor) -> Tensor:
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
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        network = self.transformer if transformer is None else transformer
        dtype = self.dtype
        time, space = self._vae_strides()
        frames, rows, columns = noisy.shape[2:]
        tokens = network(
            hidden_states=LTXPipeline._pack_latents(noisy.to(dtype)),
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, dtype),
            # The timestep stays fp32 for a bf16 transformer, which embeds it in fp32 before casting.
            timestep=sigma.float() * self.num_train_timesteps,
            encoder_attention_mask=conditioning["prompt_attention_mask"].to(noisy.device),
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=(time / self.frame_rate, space, space),
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(tokens, frames, rows, columns)

    def plain_call(self, settings: SamplingSettings) -> dict[str, Any]:
        """See [`VideoModel.plain_call`]."""
        decoding = {}
        if self._decodes_last_step:
            decoding = {"decode_timestep": _DECODE_TIMESTEP, "decode_noise_scale": _DECODE_NOISE_SCALE}
        own = {"frame_rate": self.frame_rate, "max_sequence_length": self.max_sequence_length}
        return super().plain_call(settings) | own | decoding

    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        if settings.fps != self.frame_rate:
            raise ValueError(
                f"fps={settings.fps}: this model was loaded with a frame rate of {self.frame_rate}, on which its "
                f"positions depend in training as well. Load it with frame_rate={settings.fps:g} (model_init_kwargs "
                "in a recipe), or leave fps out."
            )
        tokens = self.pipeline(
            latents=LTXPipeline._pack_latents(noise),
            **self._embeddings(conditioning, negative),
            **self._call_settings(settings),
            frame_rate=self.frame_rate,
            guidance_scale=settings.guidance_scale,
            max_sequence_length=self.max_sequence_length,
        )[0]
        return LTXPipeline._unpack_latents(tokens, *noise.shape[2:])


def _decoding_noise(latents: Tensor) -> Tensor:
    """Return the same noise for every video, so that a video does not depend on the rest of its batch."""
    noise = torch.randn(latents.shape[1:], generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32)
    return noise.to(latents).expand_as(latents)
