"""Wan 2.1 text-to-video (arXiv 2503.20314) through diffusers' `WanPipeline`. The embedded tiny model is one too."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from .base import VideoModel
from .encoding import Conditioning
from .settings import SamplingSettings

# The transformer attends to all of these positions (padding is zeros, and there is no mask), so embeddings of another
# length are another input. `WanPipeline.encode_prompt` defaults to 226 and its call to 512: always pass the length.
_MAX_SEQUENCE_LENGTH = 512

_NEGATIVE_PROMPT = (
    "blurry, low resolution, compression artifacts, noise, flicker, overexposed, washed-out colors, dull gray "
    "picture, frozen image, no motion, jittery motion, distorted shapes, melting objects, extra limbs, malformed "
    "animals, duplicated subject, cluttered background, cartoon, painting, subtitles, text, watermark, logo"
)


class WanVideoModel(VideoModel):
    """
    Wan 2.1 and pipelines of its kind: one transformer, one timestep a video.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16 (VAE stride 4x8x8, patches of 1x2x2).
    """

    family: ClassVar[str] = "wan"
    pipeline_class: ClassVar[str] = "WanPipeline"
    # SpatialAlign (arXiv 2602.22745) names them text_embedding.0/.2 and cross_attn.k/.v, as the original Wan code
    # does.
    default_lora_targets: ClassVar[tuple[str, ...]] = (
        "condition_embedder.text_embedder.linear_1",
        "condition_embedder.text_embedder.linear_2",
        "attn2.to_k",
        "attn2.to_v",
    )

    def __init__(self, pipeline: DiffusionPipeline, name_or_path: str | None = None, **kwargs: Any) -> None:
        name = name_or_path or str(pipeline.config.get("_name_or_path") or "") or "this pipeline"
        self._check_index(dict(pipeline.config), name)
        super().__init__(pipeline, name_or_path, **kwargs)

    @classmethod
    def _check_index(cls, index: dict, name: str) -> None:
        second = index.get("transformer_2")
        if (second is not None and second[0] is not None) or index.get("boundary_ratio") is not None:
            variant = "two transformers, one for high and one for low noise (transformer_2), as Wan 2.2 A14B"
        elif index.get("expand_timesteps"):
            variant = "a timestep for every token (expand_timesteps), as Wan 2.2 5B"
        else:
            return
        raise ValueError(
            f"{name!r} comes with {variant} does, and this adapter runs Wan 2.1 pipelines (one transformer, one "
            "timestep a "
            "video). Use such a model, for example Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        )

    def _family_settings(self) -> SamplingSettings:
        # The paper's sampling settings (its section on the implementation and the released code).
        return SamplingSettings(
            num_frames=81,
            height=480,
            width=832,
            num_inference_steps=50,
            guidance_scale=5.0,
            flow_shift=5.0,
            negative_prompt=_NEGATIVE_PROMPT,
            fps=16.0,
        )

    # Sizes

    def _strides(self) -> tuple[int, int, int]:
        """Multiples of (num_frames - 1), height and width."""
        pipeline = self.pipeline
        _, patch_height, patch_width = pipeline.transformer.config.patch_size
        space = pipeline.vae_scale_factor_spatial
        # The pipeline itself also asks for 16, whatever the VAE is.
        return (
            pipeline.vae_scale_factor_temporal,
            math.lcm(16, space * patch_height),
            math.lcm(16, space * patch_width),
        )

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        frame_stride, height_stride, width_stride = self._strides()
        sizes = {
            "num_frames": (num_frames, frame_stride, 1),
            "height": (height, height_stride, 0),
            "width": (width, width_stride, 0),
        }
        for name, (value, stride, offset) in sizes.items():
            if value >= 1 and value % stride == offset % stride:
                continue
            below = (value - offset) // stride * stride + offset
            near = [str(legal) for legal in (below, below + stride) if legal >= 1]
            rule = f"a multiple of {stride}" + (" plus 1" if offset else "")
            raise ValueError(
                f"{name} is {value}, but {self.name_or_path or 'this model'} makes videos with {name} {rule}; "
                f"use {' or '.join(near or [str(stride + offset)])}."
            )
        longest = self.pipeline.transformer.config.rope_max_seq_len
        _, frames, rows, columns = self.latent_shape(num_frames, height, width)
        patch = self.pipeline.transformer.config.patch_size
        tokens = [length // size for length, size in zip((frames, rows, columns), patch, strict=True)]
        if max(tokens) > longest:
            raise ValueError(
                f"{num_frames} frames of {width}x{height} are {tokens} tokens along time, height and width, and this "
                f"transformer has positions for {longest}; make the video shorter or smaller."
            )

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        pipeline = self.pipeline
        return (
            pipeline.transformer.config.in_channels,
            (num_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
            height // pipeline.vae_scale_factor_spatial,
            width // pipeline.vae_scale_factor_spatial,
        )

    def _pixel_shape(self, latents: torch.Tensor) -> tuple[int, int, int]:
        _, _, frames, height, width = latents.shape
        space = self.pipeline.vae_scale_factor_spatial
        return (frames - 1) * self.pipeline.vae_scale_factor_temporal + 1, height * space, width * space

    # Encoders

    @property
    def max_sequence_length(self) -> int:
        """Tokens of a prompt's embedding, padding included."""
        return min(_MAX_SEQUENCE_LENGTH, self.pipeline.tokenizer.model_max_length)

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.pipeline.vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(like.device, like.dtype)
        # The pipeline keeps 1 / std; so do we, because z / (1 / std) and z * std differ in the last bit.
        return mean, 1.0 / torch.tensor(config.latents_std).view(shape).to(like.device, like.dtype)

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        mean, inverse_std = self._latent_statistics(latents)
        return ((latents - mean) * inverse_std).float()

    def _decode_to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        mean, inverse_std = self._latent_statistics(latents)
        return vae.decode(latents / inverse_std + mean, return_dict=False)[0]

    # Transformer

    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        network = self.transformer if transformer is None else transformer
        return network(
            hidden_states=noisy.to(self.dtype),
            # Stays fp32 under a bf16 transformer: it embeds the timestep in fp32 before it casts.
            timestep=sigma.float() * self.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, self.dtype),
            return_dict=False,
        )[0]

    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        negative = negative_conditioning
        return self.pipeline(
            latents=noise,
            prompt_embeds=conditioning["prompt_embeds"].to(self.device),
            negative_prompt_embeds=None if negative is None else negative["prompt_embeds"].to(self.device),
            num_frames=settings.num_frames,
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            max_sequence_length=self.max_sequence_length,
            output_type="latent",
            return_dict=False,
        )[0]
