"""
HunyuanVideo (arXiv 2412.03603) and HunyuanVideo 1.5 (arXiv 2511.18870) through diffusers' pipelines. Flow matching.

HunyuanVideo is distilled from guidance: the scale w is an input of the transformer ("embedded guidance", 1000 * w) and
there is no second, unconditional pass. Rollouts come from the model at their `guidance_scale`, so training tells the
transformer the same w: the policy that is aligned is the one that is sampled. Fine-tuning on real videos uses w = 1
elsewhere, because there the target is the data's velocity; here policy and reference are compared at one w.

HunyuanVideo 1.5 is a plain model under classifier-free guidance, or, when distilled, under none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers import HunyuanVideo15Pipeline as _HunyuanVideo15Pipeline
from diffusers.loaders import HunyuanVideoLoraLoaderMixin

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings


class _HunyuanModel(VideoModel):
    """What both have in common: a causal VAE with a scaling factor, two text encoders, dual-stream attention."""

    encoder_names: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "text_encoder_2")
    # The prompt has a stream of its own, with its own keys and values: they are what cross-attention's are in Wan.
    # The single-stream blocks of HunyuanVideo share theirs with the video and stay as they are.
    default_lora_targets: ClassVar[tuple[str, ...]] = (
        "context_embedder.proj_in",
        "attn.add_k_proj",
        "attn.add_v_proj",
    )

    def _size_multiples(self) -> tuple[int, int, int]:
        config = self.pipeline.transformer.config
        time, space = self._vae_strides()
        return time * config.patch_size_t, space * config.patch_size, space * config.patch_size

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self._posterior_mode(pixels) * self.pipeline.vae.config.scaling_factor).float()

    def _decode_to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        return vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]


class HunyuanVideoModel(_HunyuanModel):
    """
    HunyuanVideo (13B): Llama and CLIP embeddings, embedded guidance.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16. The authors' own: 129 frames of 720x1280 or
    544x960.

    Args:
        pipeline, name_or_path, kwargs:
            See [`VideoModel`].
        embedded_guidance (`float`, *optional*):
            w that the transformer is told in training; by default the `guidance_scale` of the sampling settings, once
            the loop has told them ([`~VideoModel.train_as_sampled`]), and until then that of the default ones (6). A
            training on a dataset alone cannot know at which scale its videos were sampled: set it there, where that
            was another. Ignored by a transformer without guidance embedding.
    """

    family: ClassVar[str] = "hunyuan_video"
    pipeline_class: ClassVar[str] = "HunyuanVideoPipeline"
    options: ClassVar[tuple[str, ...]] = ("embedded_guidance",)

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name_or_path: str | None = None,
        *,
        embedded_guidance: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pipeline, name_or_path, **kwargs)
        self._guidance_was_given = embedded_guidance is not None
        default = self.default_settings().guidance_scale
        self._embed_guidance(default if embedded_guidance is None else embedded_guidance)

    def train_as_sampled(self, settings: SamplingSettings) -> None:
        """See [`VideoModel.train_as_sampled`]: the guidance scale of the samples is the one in training."""
        if not self.embeds_guidance:
            return
        if self._guidance_was_given and self.embedded_guidance != settings.guidance_scale:
            raise ValueError(
                f"embedded_guidance is {self.embedded_guidance}, but videos are sampled with guidance_scale "
                f"{settings.guidance_scale}: training would align the transformer at another scale than the one it "
                "is sampled at. Leave embedded_guidance out, which takes guidance_scale, or make them equal."
            )
        self._embed_guidance(settings.guidance_scale)

    def _embed_guidance(self, scale: float) -> None:
        self.embedded_guidance = float(scale)
        if self.embedded_guidance != self.default_settings().guidance_scale:
            self.computation["embedded_guidance"] = self.embedded_guidance
        else:
            self.computation.pop("embedded_guidance", None)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the transformer takes the guidance scale as an input, as the published checkpoint does."""
        return bool(self.pipeline.transformer.config.guidance_embeds)

    def _family_settings(self) -> SamplingSettings:
        # The authors' repository; the flow shift (7) is in the pipeline's scheduler.
        return SamplingSettings(
            num_frames=129, height=720, width=1280, num_inference_steps=50, guidance_scale=6.0, fps=24.0
        )

    def uses_negative_prompt(self, settings: SamplingSettings) -> bool:
        return not self.embeds_guidance and super().uses_negative_prompt(settings)

    def _encode_prompt(self, prompt: str) -> Conditioning:
        # With the pipeline's own prompt template, whose tokens are cut off again, and its length of 256.
        embeds, pooled, mask = self.pipeline.encode_prompt(prompt=[prompt], device=self.device)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}

    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        network = self.transformer if transformer is None else transformer
        guidance = None
        if self.embeds_guidance:
            # In the transformer's type before the factor, as the pipeline does: bf16 makes 6016 of 6000.
            guidance = noisy.new_full((len(noisy),), self.embedded_guidance, dtype=self.dtype) * 1000.0
        return network(
            hidden_states=noisy.to(self.dtype),
            timestep=sigma.float() * self.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, self.dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"].to(noisy.device, self.dtype),
            pooled_projections=conditioning["pooled_prompt_embeds"].to(noisy.device, self.dtype),
            guidance=guidance,
            return_dict=False,
        )[0]

    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        return self.pipeline(
            latents=noise,
            **self._embeddings(conditioning, negative_conditioning, self.dtype),
            **self._call_settings(settings),
            guidance_scale=settings.guidance_scale,
            true_cfg_scale=1.0 if negative_conditioning is None else settings.guidance_scale,
        )[0]


class HunyuanVideo15Pipeline(_HunyuanVideo15Pipeline, HunyuanVideoLoraLoaderMixin):
    """
    diffusers' pipeline with `load_lora_weights`, which HunyuanVideo's has and this one was not given.

    A LoRA saved here loads into diffusers' own class with `pipe.transformer.load_lora_adapter(folder,
    weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)`.
    """


class HunyuanVideo15Model(_HunyuanModel):
    """
    HunyuanVideo 1.5 (8.3B) text-to-video: Qwen2.5-VL embeddings, ByT5 embeddings of quoted text.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16. The authors' own: 121 frames of about 480x848 or
    720x1280, a checkpoint each.
    """

    family: ClassVar[str] = "hunyuan_video_15"
    pipeline_class: ClassVar[str] = "HunyuanVideo15Pipeline"

    def __init__(self, pipeline: DiffusionPipeline, name_or_path: str | None = None, **kwargs: Any) -> None:
        name_or_path = name_or_path or pipeline.config.get("_name_or_path")
        super().__init__(HunyuanVideo15Pipeline(**pipeline.components), name_or_path, **kwargs)
        own, crop = self.pipeline, self.pipeline.prompt_template_encode_start_idx
        own.tokenizer_max_length = min(own.tokenizer_max_length, own.tokenizer.model_max_length - crop)
        own.tokenizer_2_max_length = min(own.tokenizer_2_max_length, own.tokenizer_2.model_max_length)

    def _latent_channels(self) -> int:
        return self.pipeline.num_channels_latents

    def _family_settings(self) -> SamplingSettings:
        # The authors' repository. Guidance (6, or 1 when distilled) and flow shift (5 for 480p, 9 for 720p) differ
        # between the checkpoints and are in their guider and scheduler.
        pipeline = self.pipeline
        columns, rows = pipeline.default_aspect_ratio
        height, width = pipeline.video_processor.calculate_default_height_width(rows, columns, pipeline.target_size)
        return SamplingSettings(
            num_frames=121,
            height=height,
            width=width,
            num_inference_steps=50,
            guidance_scale=pipeline.guider.config.guidance_scale,
            fps=24.0,
        )

    # diffusers 0.42: the attention mask of this VAE fits one video, and raises for more.

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(HunyuanVideo15Model, self)._encode_pixels(one) for one in pixels.split(1)])

    def _decode_to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(HunyuanVideo15Model, self)._decode_to_pixels(one) for one in latents.split(1)])

    def _encode_prompt(self, prompt: str) -> Conditioning:
        names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
        encoded = self.pipeline.encode_prompt(prompt=[prompt], device=self.device, dtype=self.dtype)
        return dict(zip(names, encoded, strict=True))

    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        network = self.transformer if transformer is None else transformer
        pipeline, text = self.pipeline, {name: t.to(noisy.device, self.dtype) for name, t in conditioning.items()}
        latents = noisy.to(self.dtype)
        # An image to start from goes in beside the latents and as tokens; all zeros say that there is none.
        no_image = pipeline.prepare_cond_latents_and_mask(latents, self.dtype, noisy.device)
        no_tokens = latents.new_zeros(len(latents), pipeline.vision_num_semantic_tokens, pipeline.vision_states_dim)
        with self._fp32_timesteps():
            return network(
                hidden_states=torch.cat([latents, *no_image], dim=1),
                timestep=sigma.float() * self.num_train_timesteps,
                encoder_hidden_states=text["prompt_embeds"],
                encoder_attention_mask=text["prompt_embeds_mask"],
                encoder_hidden_states_2=text["prompt_embeds_2"],
                encoder_attention_mask_2=text["prompt_embeds_mask_2"],
                image_embeds=no_tokens,
                return_dict=False,
            )[0]

    @contextmanager
    def _fp32_timesteps(self) -> Iterator[None]:
        # This transformer embeds timesteps in their own type, so those of bf16 weights would have to be bf16, which
        # holds 294 of 1000. (Sampling through the pipeline does round them: its grid of 50 is coarse enough.)
        embedder = self.base_transformer.time_embed.timestep_embedder
        handle = embedder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(self.dtype), *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _scheduler_for(self, settings: SamplingSettings) -> Iterator[None]:
        """The scheduler, and the guider beside it, for these settings."""
        own = self.pipeline.guider
        wanted = {"guidance_scale": settings.guidance_scale, "enabled": self.uses_negative_prompt(settings)}
        if any(own.config.get(name) != value for name, value in wanted.items()):
            self.pipeline.guider = own.new(**wanted)
        try:
            with super()._scheduler_for(settings):
                yield
        finally:
            self.pipeline.guider = own

    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        return self.pipeline(
            latents=noise,
            **self._embeddings(conditioning, negative_conditioning, self.dtype),
            **self._call_settings(settings),
        )[0]
