"""
CogVideoX text-to-video (arXiv 2408.06072) through diffusers' `CogVideoXPipeline`: 2B, 5B and 1.5 5B.

It is no flow model: a DDPM schedule noises the latents and the transformer predicts v (arXiv 2202.00512), with
a = alphas_cumprod[t] of the pipeline's scheduler, its SNR shift and its zero terminal SNR included:

    x_t = sqrt(a) * x0 + sqrt(1 - a) * eps        v = sqrt(a) * eps - sqrt(1 - a) * x0

A trainer's sigma in (0, 1] names a timestep, t = ceil(1000 * sigma) - 1, and nothing else: without a shift (the
default here) t is uniform on 0..999, which is how the model was trained.

What SpatialAlign's loss means here. Its score(y) = MSE_ref(y) - MSE_theta(y) is then a difference of errors of v. At
given x_t the errors of v, of the noise and of the clean latents are one error in three units,

    |dv|^2 = |d eps|^2 / a = |d x0|^2 / (1 - a) = |d eps|^2 + |d x0|^2,

so the v error is the one that stays finite and keeps its meaning at both ends: at t = 999 the SNR is 0, the noise is
known exactly, and v = -x0. Weighing it uniformly over t is this model's own training objective, as weighing the
velocity's error uniformly is a flow model's; the preference loss and the anchor to the reference are the same
functions, unchanged. At equal SNR a flow model's u = eps - x0 has du = (sqrt(a) + sqrt(1 - a)) * dv, so margins at the
same beta are 1 (at both ends) to 2 times (at a = 1/2) smaller here: still the linear zone of the log-sigmoid.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings

# A sigma that lies on the grid of 1000 must find its own timestep, whatever fp32 made of k / 1000.
_GRID_TOLERANCE = 1e-3


class CogVideoXVideoModel(VideoModel):
    """
    CogVideoX 2B (sinusoidal positions), 5B and 1.5 5B (rotary positions): joint attention over prompt and video.

    Sizes: `(num_frames - 1)` divisible by 8, height and width by 16. The VAE's time stride is 4, but it decodes two
    latent frames at a time, and only from an odd number of them as many frames as were encoded. Other sizes than the
    checkpoint's own (49 frames of 480x720; 81 frames of 768x1360 for 1.5) run, but it was not trained on them.
    """

    family: ClassVar[str] = "cogvideox"
    pipeline_class: ClassVar[str] = "CogVideoXPipeline"
    # Prompt and video share one attention, so there are no keys of the prompt alone: what SpatialAlign trains in Wan
    # (the text embedding, keys and values of the cross-attention) is here the text projection and all keys and values.
    default_lora_targets: ClassVar[tuple[str, ...]] = ("patch_embed.text_proj", "attn1.to_k", "attn1.to_v")

    def __init__(self, pipeline: DiffusionPipeline, name_or_path: str | None = None, **kwargs: Any) -> None:
        super().__init__(pipeline, name_or_path, **kwargs)
        predicted = pipeline.scheduler.config.get("prediction_type")
        if predicted != "v_prediction":
            raise ValueError(
                f"the scheduler of {self.name_or_path or 'this pipeline'} has prediction_type {predicted!r}, and "
                "CogVideoX predicts v; set prediction_type='v_prediction' in its scheduler_config.json."
            )

    @property
    def _config(self) -> Any:
        return self.pipeline.transformer.config

    def _family_settings(self) -> SamplingSettings:
        # The model cards': 49 frames of 480x720 at 8 fps, and for 1.5 81 frames of 768x1360 at 16 fps.
        newer = self._config.patch_size_t is not None
        return SamplingSettings(
            num_frames=81 if newer else 49,
            height=768 if newer else 480,
            width=1360 if newer else 720,
            num_inference_steps=50,
            guidance_scale=6.0,
            fps=16.0 if newer else 8.0,
        )

    # Sizes

    def _size_multiples(self) -> tuple[int, int, int]:
        time, space = self._vae_strides()
        return 2 * time, space * self._config.patch_size, space * self._config.patch_size

    def _padding(self, latent_frames: int) -> int:
        """CogVideoX 1.5 takes latent frames in pairs; the pipeline pads them in front and drops the padding again."""
        return -latent_frames % (self._config.patch_size_t or 1)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        channels, frames, rows, columns = super().latent_shape(num_frames, height, width)
        return channels, frames + self._padding(frames), rows, columns

    def _unpadded(self, latents: torch.Tensor) -> torch.Tensor:
        # Legal videos have an odd number of latent frames, so an even number says that there is one of padding.
        padding = 0 if self._config.patch_size_t is None else 1 - latents.shape[2] % 2
        return latents[:, :, padding:]

    def _pixel_shape(self, latents: torch.Tensor) -> tuple[int, int, int]:
        return super()._pixel_shape(self._unpadded(latents))

    # Encoders

    def _encode_prompt(self, prompt: str) -> Conditioning:
        # Padding is attended to as well (there is no mask), and the positions of 2B are for exactly this length.
        embeds, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self._config.max_text_seq_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = self._posterior_mode(pixels) * self.pipeline.vae.config.scaling_factor
        padding = latents[:, :, :1].expand(-1, -1, self._padding(latents.shape[2]), -1, -1)
        return torch.cat([padding, latents], dim=2).float()

    def _decode_to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = self._unpadded(latents).to(vae.device, vae.dtype)
        return vae.decode(1 / vae.config.scaling_factor * latents, return_dict=False)[0]

    # The schedule

    @property
    def flow_shift(self) -> float:
        """1: there is no flow shift. The scheduler's own `snr_shift_scale` is part of its alphas."""
        return 1.0

    def timesteps(self, sigma: torch.Tensor) -> torch.Tensor:
        """
        The timesteps that noise levels stand for: `ceil(N * sigma) - 1`, so that 1/N, ..., 1 are 0, ..., N - 1.

        Args:
            sigma (`torch.Tensor` of shape (batch,)):
                Noise levels in (0, 1]; 0 is taken for the first timestep, since the schedule has no noiseless one.

        Returns:
            `torch.Tensor` of shape (batch,), int64.
        """
        count = self.pipeline.scheduler.config.num_train_timesteps
        return ((sigma.double() * count - _GRID_TOLERANCE).ceil().long() - 1).clamp(0, count - 1)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`x_t = sqrt(a_t) * x0 + sqrt(1 - a_t) * noise`, in fp32; arguments as in [`VideoModel.add_noise`]."""
        return self.pipeline.scheduler.add_noise(x0.float(), noise.float(), self.timesteps(sigma))

    def target(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """`v = sqrt(a_t) * noise - sqrt(1 - a_t) * x0`, in fp32; arguments as in [`VideoModel.add_noise`]."""
        return self.pipeline.scheduler.get_velocity(x0.float(), noise.float(), self.timesteps(sigma))

    # Transformer

    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        network = self.transformer if transformer is None else transformer
        velocity = network(
            hidden_states=noisy.transpose(1, 2).to(self.dtype),  # frames before channels
            timestep=self.timesteps(sigma),
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, self.dtype),
            image_rotary_emb=self._rotary_embeddings(noisy),
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2)

    def _rotary_embeddings(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self._config.use_rotary_positional_embeddings:
            return None
        _, _, frames, height, width = latents.shape
        space = self.pipeline.vae_scale_factor_spatial
        return self.pipeline._prepare_rotary_positional_embeddings(
            height * space, width * space, frames, latents.device
        )

    def _shifted(self, flow_shift: float) -> dict[str, Any]:
        if flow_shift != self.flow_shift:
            raise ValueError(
                f"flow_shift is {flow_shift}, and CogVideoX is no flow model: leave it at None for sampling. Its "
                "scheduler's snr_shift_scale does that work and belongs to the weights."
            )
        return {}

    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        latents = self.pipeline(
            latents=noise.transpose(1, 2).to(self.device, self.dtype),
            **self._embeddings(conditioning, negative_conditioning, self.dtype),
            **self._call_settings(settings),
            guidance_scale=settings.guidance_scale,
            generator=[_step_generator(one) for one in noise],
        )[0]
        return latents.transpose(1, 2)


def _step_generator(noise: torch.Tensor) -> torch.Generator:
    """
    Where a sample's noise after the first comes from (CogVideoXDPMScheduler adds some at every step): made of its
    first noise, hence of its seed alone.
    """
    digest = hashlib.sha256(noise.contiguous().numpy().tobytes()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
