"""
Run CogVideoX (arXiv 2408.06072) through diffusers' `CogVideoXPipeline`: 2B, 5B and 1.5 5B.

It is not a flow model: a DDPM schedule noises the latents, and the transformer predicts v (arXiv 2202.00512). Here
a = alphas_cumprod[t] of the pipeline's scheduler, including its SNR shift and its zero terminal SNR:

    x_t = sqrt(a) * x0 + sqrt(1 - a) * eps        v = sqrt(a) * eps - sqrt(1 - a) * x0

A trainer's sigma in (0, 1] only selects a timestep, t = ceil(1000 * sigma) - 1. Without a shift (the default here)
t is uniform on 0..999, as in the model's own training.

Meaning of SpatialAlign's loss for this model: score(y) = MSE_ref(y) - MSE_theta(y) is a difference of errors of v. For
a given x_t, the errors of v, of the noise and of the clean latents are one error in three units,

    |dv|^2 = |d eps|^2 / a = |d x0|^2 / (1 - a) = |d eps|^2 + |d x0|^2,

and only the error of v stays finite and meaningful at both ends: at t = 999 the SNR is 0, the noise is known exactly,
and v = -x0. This model's own training objective weights the error of v uniformly over t, as a flow model's weights the
error of the velocity. The preference loss and the anchor to the reference are the same functions, unchanged. At equal
SNR a flow model's u = eps - x0 has du = (sqrt(a) + sqrt(1 - a)) * dv. So for the same beta, margins are smaller here
by a factor of 1 (at both ends) to 2 (at a = 1/2), which is still in the linear range of the log-sigmoid.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.sampling import generator_from_noise
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.usage import NoiseArgument

# A sigma on the grid of 1000 must select its own timestep in spite of the rounding of k / 1000 to fp32.
_GRID_TOLERANCE = 1e-3


class CogVideoXVideoModel(VideoModel):
    """
    CogVideoX 2B (sinusoidal positions), 5B and 1.5 5B (rotary positions), with joint attention over prompt and video.

    Sizes: `(num_frames - 1)` divisible by 8, height and width by 16. The VAE's time stride is 4, but it decodes two
    latent frames at a time and restores the number of encoded frames only from an odd number of latent frames. Sizes
    other than the checkpoint's (49 frames of 480x720; 81 frames of 768x1360 for 1.5) run, but it was not trained on
    them.

    Args:
        pipeline (`DiffusionPipeline`):
            A `CogVideoXPipeline`.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        kwargs:
            As in [`VideoModel`].

    Raises:
        ValueError: if the scheduler's prediction type is not `v_prediction`.
    """

    family: ClassVar[str] = "cogvideox"
    pipeline_class: ClassVar[str] = "CogVideoXPipeline"
    # Prompt and video share one attention, so no keys belong to the prompt alone. The counterpart of what SpatialAlign
    # trains in Wan (text embedding, keys and values of the cross-attention) is the text projection and all keys and
    # values.
    default_lora_targets: ClassVar[tuple[str, ...]] = ("patch_embed.text_proj", "attn1.to_k", "attn1.to_v")

    noise_argument: ClassVar[NoiseArgument] = "latents_frames_first"

    def __init__(self, pipeline: DiffusionPipeline, name_or_path: str | None = None, **kwargs: Any) -> None:
        super().__init__(pipeline, name_or_path, **kwargs)
        prediction_type = pipeline.scheduler.config.get("prediction_type")
        if prediction_type != "v_prediction":
            raise ValueError(
                f"prediction_type={prediction_type!r} in the scheduler of {self.name_or_path or 'this pipeline'}: "
                "CogVideoX predicts v. Set prediction_type='v_prediction' in its scheduler_config.json."
            )

    @property
    def _config(self) -> Any:
        return self.pipeline.transformer.config

    def _family_settings(self) -> SamplingSettings:
        # From the model cards: 49 frames of 480x720 at 8 fps, and 81 frames of 768x1360 at 16 fps for 1.5.
        is_version_15 = self._config.patch_size_t is not None
        return SamplingSettings(
            num_frames=81 if is_version_15 else 49,
            height=768 if is_version_15 else 480,
            width=1360 if is_version_15 else 720,
            num_inference_steps=50,
            guidance_scale=6.0,
            fps=16.0 if is_version_15 else 8.0,
        )

    # Sizes

    def _size_multiples(self) -> tuple[int, int, int]:
        time, space = self._vae_strides()
        return 2 * time, space * self._config.patch_size, space * self._config.patch_size

    def _padding(self, latent_frames: int) -> int:
        """Return how many latent frames the pipeline puts in front: CogVideoX 1.5 takes latent frames in pairs."""
        return -latent_frames % (self._config.patch_size_t or 1)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        channels, frames, rows, columns = super().latent_shape(num_frames, height, width)
        return channels, frames + self._padding(frames), rows, columns

    def _unpadded(self, latents: Tensor) -> Tensor:
        # Legal videos have an odd number of latent frames, so an even number means that one of them is padding.
        padding = 0 if self._config.patch_size_t is None else 1 - latents.shape[2] % 2
        return latents[:, :, padding:]

    def _pixel_shape(self, latents: Tensor) -> tuple[int, int, int]:
        return super()._pixel_shape(self._unpadded(latents))

    # Encoders

    def _encode_prompt(self, prompt: str) -> Conditioning:
        # The transformer attends to the padding too (there is no mask), and 2B has positions for exactly this length.
        embeds, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self._config.max_text_seq_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        latents = self._posterior_mode(pixels) * self.pipeline.vae.config.scaling_factor
        padding = latents[:, :, :1].expand(-1, -1, self._padding(latents.shape[2]), -1, -1)
        return torch.cat([padding, latents], dim=2).float()

    def _decode_to_pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = self._unpadded(latents).to(vae.device, vae.dtype)
        return vae.decode(1 / vae.config.scaling_factor * latents, return_dict=False)[0]

    # The schedule

    @property
    def flow_shift(self) -> float:
        """Always 1, because there is no flow shift. The scheduler's `snr_shift_scale` is part of its alphas."""
        return 1.0

    def timesteps(self, sigma: Tensor) -> Tensor:
        """
        Return the timesteps of noise levels: `ceil(N * sigma) - 1`, so that 1/N, ..., 1 give 0, ..., N - 1.

        Args:
            sigma (`torch.Tensor` of shape (batch,)):
                Noise levels in (0, 1]. 0 gives the first timestep, since the schedule has none without noise.

        Returns:
            `torch.Tensor` of shape (batch,), int64.
        """
        count = self.pipeline.scheduler.config.num_train_timesteps
        return ((sigma.double() * count - _GRID_TOLERANCE).ceil().long() - 1).clamp(0, count - 1)

    def add_noise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """
        Return `x_t = sqrt(a_t) * x0 + sqrt(1 - a_t) * noise`, in fp32. For the arguments see [`VideoModel.add_noise`].
        """
        return self.pipeline.scheduler.add_noise(x0.float(), noise.float(), self.timesteps(sigma))

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """
        Return `v = sqrt(a_t) * noise - sqrt(1 - a_t) * x0`, in fp32. For the arguments see [`VideoModel.add_noise`].
        """
        return self.pipeline.scheduler.get_velocity(x0.float(), noise.float(), self.timesteps(sigma))

    # Transformer

    def predict(
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        network = self.transformer if transformer is None else transformer
        dtype = self.dtype
        velocity = network(
            hidden_states=noisy.transpose(1, 2).to(dtype),  # frames before channels
            timestep=self.timesteps(sigma),
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, dtype),
            image_rotary_emb=self._rotary_embeddings(noisy),
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2)

    def _rotary_embeddings(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
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
                f"flow_shift={flow_shift}: CogVideoX is not a flow model. Leave it at None for sampling: the "
                "scheduler's snr_shift_scale has the same purpose and belongs to the weights."
            )
        return {}

    def plain_call(self, settings: SamplingSettings) -> dict[str, Any]:
        """See [`VideoModel.plain_call`]."""
        return super().plain_call(settings) | {"max_sequence_length": self._config.max_text_seq_length}

    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        dtype = self.dtype
        latents = self.pipeline(
            latents=noise.transpose(1, 2).to(self.device, dtype),
            **self._embeddings(conditioning, negative, dtype),
            **self._call_settings(settings),
            guidance_scale=settings.guidance_scale,
            # CogVideoXDPMScheduler adds noise at every step.
            generator=[generator_from_noise(sample_noise, "little") for sample_noise in noise],
        )[0]
        return latents.transpose(1, 2)
