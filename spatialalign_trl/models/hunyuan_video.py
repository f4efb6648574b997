"""
Run HunyuanVideo (arXiv 2412.03603) and HunyuanVideo 1.5 (arXiv 2511.18870) through diffusers' pipelines.

Both are flow-matching models.

HunyuanVideo is distilled from guidance: the scale w is an input of the transformer ("embedded guidance", 1000 * w),
and there is no second, unconditional pass. Rollouts are sampled at their `guidance_scale`, so training passes the same
w to the transformer: the policy that is aligned is the policy that is sampled. Other trainers fine-tune on real videos
with w = 1, because their target is the velocity of the data. Here policy and reference are compared at the same w.

HunyuanVideo 1.5 is a plain model with classifier-free guidance, or, if distilled, without guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers import HunyuanVideo15Pipeline as _HunyuanVideo15Pipeline
from diffusers.loaders import HunyuanVideoLoraLoaderMixin
from torch import Tensor, nn

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.usage import NoiseArgument


class _HunyuanModel(VideoModel):
    """Common parts of both models: a causal VAE with a scaling factor, two text encoders, dual-stream attention."""

    encoder_names: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "text_encoder_2")
    # In dual-stream blocks the prompt has its own keys and values, the counterpart of the cross-attention's in Wan.
    # Single-stream blocks (HunyuanVideo only) share theirs with the video and are not trained.
    default_lora_targets: ClassVar[tuple[str, ...]] = (
        "context_embedder.proj_in",
        "attn.add_k_proj",
        "attn.add_v_proj",
    )

    def _lora_converter(self) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return type(self.pipeline).lora_state_dict  # the original layers for queries, keys and values are one

    def _size_multiples(self) -> tuple[int, int, int]:
        config = self.pipeline.transformer.config
        time, space = self._vae_strides()
        return time * config.patch_size_t, space * config.patch_size, space * config.patch_size

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return (self._posterior_mode(pixels) * self.pipeline.vae.config.scaling_factor).float()

    def _decode_to_pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]


class HunyuanVideoModel(_HunyuanModel):
    """
    HunyuanVideo (13B), with Llama and CLIP embeddings and embedded guidance.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16. The authors use 129 frames of 720x1280 or
    544x960.

    Args:
        pipeline, name_or_path, kwargs:
            See [`VideoModel`].
        embedded_guidance (`float`, *optional*):
            The scale w that the transformer gets in training. Defaults to the `guidance_scale` of the sampling
            settings in an online run ([`~VideoModel.train_as_sampled`]), and to that of the default settings (6)
            otherwise. When training on a dataset alone, set it if its videos were sampled at another scale, which the
            trainer cannot know. A transformer without guidance embedding ignores it.
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
        """Train at the guidance scale of the samples. See [`VideoModel.train_as_sampled`]."""
        if not self.embeds_guidance:
            return
        if self._guidance_was_given and self.embedded_guidance != settings.guidance_scale:
            raise ValueError(
                f"embedded_guidance={self.embedded_guidance}: videos are sampled with guidance_scale "
                f"{settings.guidance_scale}, so training would align the transformer at another scale than the one it "
                "is sampled at. Leave embedded_guidance out, so that it takes guidance_scale, or make them equal."
            )
        self._embed_guidance(settings.guidance_scale)

    def _embed_guidance(self, scale: float) -> None:
        """Set the scale for training, and note it in `computation` if it is not the default."""
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
        # From the authors' repository. The flow shift (7) is in the pipeline's scheduler.
        return SamplingSettings(
            num_frames=129, height=720, width=1280, num_inference_steps=50, guidance_scale=6.0, fps=24.0
        )

    def uses_negative_prompt(self, settings: SamplingSettings) -> bool:
        return not self.embeds_guidance and super().uses_negative_prompt(settings)

    def plain_call(self, settings: SamplingSettings) -> dict[str, Any]:
        """See [`VideoModel.plain_call`]."""
        guided = {"true_cfg_scale": settings.guidance_scale} if self.uses_negative_prompt(settings) else {}
        return super().plain_call(settings) | guided

    def _encode_prompt(self, prompt: str) -> Conditioning:
        # The defaults: the pipeline's prompt template (it cuts the template's tokens off again) and a length of 256.
        embeds, pooled, mask = self.pipeline.encode_prompt(prompt=[prompt], device=self.device)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}

    def predict(
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        network = self.transformer if transformer is None else transformer
        dtype = self.dtype
        guidance = None
        if self.embeds_guidance:
            # Cast before multiplying, as the pipeline does: bf16 rounds 6000 to 6016.
            guidance = noisy.new_full((len(noisy),), self.embedded_guidance, dtype=dtype) * 1000.0
        return network(
            hidden_states=noisy.to(dtype),
            timestep=sigma.float() * self.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"].to(noisy.device, dtype),
            pooled_projections=conditioning["pooled_prompt_embeds"].to(noisy.device, dtype),
            guidance=guidance,
            return_dict=False,
        )[0]

    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        return self.pipeline(
            latents=noise,
            **self._embeddings(conditioning, negative, self.dtype),
            **self._call_settings(settings),
            guidance_scale=settings.guidance_scale,
            true_cfg_scale=1.0 if negative is None else settings.guidance_scale,
        )[0]


class HunyuanVideo15Pipeline(_HunyuanVideo15Pipeline, HunyuanVideoLoraLoaderMixin):
    """
    diffusers' pipeline with `load_lora_weights`, which its HunyuanVideo pipeline has but this one lacks.

    To load a LoRA saved here into diffusers' own class, call `pipe.transformer.load_lora_adapter(folder,
    weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)`.
    """


class HunyuanVideo15Model(_HunyuanModel):
    """
    HunyuanVideo 1.5 (8.3B) text-to-video, with Qwen2.5-VL embeddings and ByT5 embeddings of quoted text.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16. The authors use 121 frames of about 480x848 or
    720x1280, with one checkpoint for each.

    Args:
        pipeline (`DiffusionPipeline`):
            A `HunyuanVideo15Pipeline` of diffusers.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        kwargs:
            As in [`VideoModel`].
    """

    family: ClassVar[str] = "hunyuan_video_15"
    pipeline_class: ClassVar[str] = "HunyuanVideo15Pipeline"
    noise_argument: ClassVar[NoiseArgument] = "latents"  # the pipeline draws noise in the transformer's type
    lora_loads_into_transformer: ClassVar[bool] = True  # diffusers' own class has no `load_lora_weights`

    def __init__(self, pipeline: DiffusionPipeline, name_or_path: str | None = None, **kwargs: Any) -> None:
        name_or_path = name_or_path or pipeline.config.get("_name_or_path")
        super().__init__(HunyuanVideo15Pipeline(**pipeline.components), name_or_path, **kwargs)
        # The pipeline has fixed lengths; small tokenizers allow fewer tokens.
        wrapped, template_tokens = self.pipeline, self.pipeline.prompt_template_encode_start_idx
        wrapped.tokenizer_max_length = min(
            wrapped.tokenizer_max_length, wrapped.tokenizer.model_max_length - template_tokens
        )
        wrapped.tokenizer_2_max_length = min(wrapped.tokenizer_2_max_length, wrapped.tokenizer_2.model_max_length)

    def _latent_channels(self) -> int:
        return self.pipeline.num_channels_latents

    def _family_settings(self) -> SamplingSettings:
        # From the authors' repository. Guidance (6, or 1 if distilled) and flow shift (5 for 480p, 9 for 720p) differ
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

    # One video at a time: in diffusers 0.42 the attention mask of this VAE raises for larger batches.

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        encode_one = super()._encode_pixels
        return torch.cat([encode_one(video) for video in pixels.split(1)])

    def _decode_to_pixels(self, latents: Tensor) -> Tensor:
        decode_one = super()._decode_to_pixels
        return torch.cat([decode_one(video) for video in latents.split(1)])

    def _encode_prompt(self, prompt: str) -> Conditioning:
        names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
        encoded = self.pipeline.encode_prompt(prompt=[prompt], device=self.device, dtype=self.dtype)
        return dict(zip(names, encoded, strict=True))

    def predict(
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        network = self.transformer if transformer is None else transformer
        pipeline, dtype = self.pipeline, self.dtype
        text = {name: tensor.to(noisy.device, dtype) for name, tensor in conditioning.items()}
        latents = noisy.to(dtype)
        # A start image would enter as extra latent channels and as tokens. All zeros mean that there is none.
        no_image = pipeline.prepare_cond_latents_and_mask(latents, dtype, noisy.device)
        no_tokens = latents.new_zeros(len(latents), pipeline.vision_num_semantic_tokens, pipeline.vision_states_dim)
        with self._fp32_timesteps(dtype):
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
    def _fp32_timesteps(self, dtype: torch.dtype) -> Iterator[None]:
        """Let the transformer take fp32 timesteps: cast their sinusoidal embedding, not the timesteps, to its type."""
        # This transformer computes the embedding in the type of the timesteps and feeds it to its weights. With bf16
        # weights the timesteps would have to be bf16, which can represent only 294 of 1000. (Sampling through the
        # pipeline does round them, but its grid of 50 is coarse enough.)
        embedder = self.base_transformer.time_embed.timestep_embedder
        handle = embedder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    def plain_call(self, settings: SamplingSettings) -> dict[str, Any]:
        """See [`VideoModel.plain_call`]. The guidance scale belongs to the guider."""
        return {name: value for name, value in super().plain_call(settings).items() if name != "guidance_scale"}

    def guider_changes(self, settings: SamplingSettings) -> dict[str, Any]:
        """See [`VideoModel.guider_changes`]."""
        changes = {"guidance_scale": settings.guidance_scale, "enabled": self.uses_negative_prompt(settings)}
        config = self.pipeline.guider.config
        return changes if any(config.get(name) != value for name, value in changes.items()) else {}

    @contextmanager
    def _scheduler_for(self, settings: SamplingSettings) -> Iterator[None]:
        """Replace the guider as well as the scheduler for the length of the block, if the settings differ from it."""
        guider = self.pipeline.guider
        changes = self.guider_changes(settings)
        if changes:
            self.pipeline.guider = guider.new(**changes)
        try:
            with super()._scheduler_for(settings):
                yield
        finally:
            self.pipeline.guider = guider

    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        return self.pipeline(
            latents=noise,
            **self._embeddings(conditioning, negative, self.dtype),
            **self._call_settings(settings),
        )[0]
