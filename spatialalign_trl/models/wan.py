"""Wan 2.1 and 2.2 text-to-video (arXiv 2503.20314) through diffusers' `WanPipeline`. The tiny model is one, too."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings

# The transformer attends to all of these positions (padding is zeros, and there is no mask), so embeddings of another
# length are another input. `WanPipeline.encode_prompt` defaults to 226 and its call to 512: always pass the length.
_MAX_SEQUENCE_LENGTH = 512

_NEGATIVE_PROMPT = (
    "blurry, low resolution, compression artifacts, noise, flicker, overexposed, washed-out colors, dull gray "
    "picture, frozen image, no motion, jittery motion, distorted shapes, melting objects, extra limbs, malformed "
    "animals, duplicated subject, cluttered background, cartoon, painting, subtitles, text, watermark, logo"
)

EXPERTS: dict[str, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
"""Expert of Wan 2.2 A14B -> the pipeline's component. High noise decides the layout, low noise the detail."""

# Training draws sigmas from closed intervals, and the boundary itself belongs to the high-noise expert.
_BELOW_THE_BOUNDARY = 1e-6


class WanVideoModel(VideoModel):
    """
    Wan 2.1 (1.3B, 14B), Wan 2.2 TI2V-5B without an image (`expand_timesteps`: a timestep for every token), and Wan 2.2
    A14B (two experts: `transformer` denoises at sigmas of at least `boundary_ratio`, `transformer_2` below).

    Of two experts one is trained a run, on its side of the boundary; the other one is loaded when something is first
    sampled, and is on the GPU only while it denoises. A LoRA belongs to one expert: load it into the same one again.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16 (VAE stride 4x8x8, patches of 1x2x2), by 32 for
    TI2V-5B (VAE stride 4x16x16).

    Args:
        pipeline (`DiffusionPipeline`):
            A `WanPipeline`.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        expert (`"high_noise"` or `"low_noise"`, *optional*):
            Which expert of two is trained; `"high_noise"` by default, because the layout of the scene is settled
            there.
        kwargs:
            As in [`VideoModel`].

    Raises:
        ValueError: for an unknown expert, or for one of a pipeline that has a single transformer.
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
    options: ClassVar[tuple[str, ...]] = ("expert",)

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name_or_path: str | None = None,
        *,
        expert: str | None = None,
        **kwargs: Any,
    ) -> None:
        name = name_or_path or str(pipeline.config.get("_name_or_path") or "") or "this pipeline"
        self.trained_component = _trained_component(dict(pipeline.config), expert, name)
        super().__init__(pipeline, name_or_path, **kwargs)

    @classmethod
    def _check_index(cls, index: dict, name: str) -> None:
        boundary = index.get("boundary_ratio")
        missing = [part for part in EXPERTS.values() if (index.get(part) or [None])[0] is None]
        if boundary is None and missing == ["transformer_2"] or boundary is not None and not missing:
            return
        raise ValueError(
            f"{name!r} has boundary_ratio {boundary} and no {' and no '.join(missing) or 'missing transformer'}; this "
            "adapter runs pipelines with one transformer and no boundary (Wan 2.1, Wan 2.2 TI2V-5B), or with two and "
            "a boundary between them (Wan 2.2 A14B)."
        )

    @classmethod
    def _loaded_later(cls, index: dict, options: dict[str, Any]) -> tuple[str, ...]:
        trained = _trained_component(index, options.get("expert"), "this pipeline")
        return () if index.get("boundary_ratio") is None else _others(trained)

    # Two experts

    @property
    def boundary(self) -> float | None:
        """Sigma from which on the high-noise expert denoises; `None` with one transformer."""
        return self.pipeline.config.boundary_ratio

    @property
    def sigma_range(self) -> tuple[float, float]:
        if self.boundary is None:
            return super().sigma_range
        if self.trained_component == EXPERTS["high_noise"]:
            return self.boundary, 1.0
        return 0.0, self.boundary - _BELOW_THE_BOUNDARY

    @property
    def has_two_guidance_scales(self) -> bool:
        return self.boundary is not None

    @property
    def lora_load_options(self) -> Mapping[str, Any]:
        return {"load_into_transformer_2": True} if self.trained_component == EXPERTS["low_noise"] else {}

    def load_lora(self, source: str | os.PathLike) -> None:
        """See [`VideoModel.load_lora`]; the LoRA goes into the expert that is trained."""
        absent = self.pipeline.transformer is None
        if absent:  # diffusers looks at `transformer` even when it loads into `transformer_2`
            self.pipeline.transformer = self.base_transformer
        try:
            super().load_lora(source)
        finally:
            if absent:
                self.pipeline.transformer = None

    def _load_other_expert(self) -> None:
        for component in _others(self.trained_component):
            if getattr(self.pipeline, component) is not None:
                continue
            if not self._source:
                raise RuntimeError(f"{component} is needed to sample, and this pipeline was built without it.")
            try:
                expert = self._load_components({component: self.dtype})[component]
            except OSError as error:
                raise OSError(
                    f"{component} of {self.name_or_path!r} is needed to sample, and it could not be loaded: {error}"
                ) from error
            setattr(self.pipeline, component, expert.eval())

    @contextmanager
    def _experts_take_turns(self) -> Iterator[None]:
        """While the block runs, only the expert that denoises is on the device; after it, only the trained one."""
        self._load_other_expert()
        trained, device = self.base_transformer, self.device
        (other,) = (getattr(self.pipeline, component) for component in _others(self.trained_component))
        hooks = [
            one.register_forward_pre_hook(functools.partial(_take_turn, partner=partner, device=device))
            for one, partner in ((trained, other), (other, trained))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            other.to("cpu")
            trained.to(device)

    def _family_settings(self) -> SamplingSettings:
        common = {"negative_prompt": _NEGATIVE_PROMPT}
        if self.boundary is not None:  # the authors' wan_t2v_A14B.py
            common |= {"num_frames": 81, "fps": 16.0, "height": 720, "width": 1280, "num_inference_steps": 40}
            return SamplingSettings(guidance_scale=4.0, guidance_scale_2=3.0, flow_shift=12.0, **common)
        if self.pipeline.config.expand_timesteps:  # the authors' wan_ti2v_5B.py
            common |= {"num_frames": 121, "fps": 24.0, "height": 704, "width": 1280, "num_inference_steps": 50}
            return SamplingSettings(guidance_scale=5.0, flow_shift=5.0, **common)
        # SpatialAlign's sampling settings (its section on the implementation and the released code), which are the
        # ones of Wan 2.1's authors at 480p.
        common |= {"num_frames": 81, "fps": 16.0, "height": 480, "width": 832, "num_inference_steps": 50}
        return SamplingSettings(guidance_scale=5.0, flow_shift=5.0, **common)

    # Sizes

    def _size_multiples(self) -> tuple[int, int, int]:
        _, patch_height, patch_width = self.base_transformer.config.patch_size
        time, space = self._vae_strides()
        # The pipeline itself also asks for 16, whatever the VAE is.
        return time, math.lcm(16, space * patch_height), math.lcm(16, space * patch_width)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        super().check_size(num_frames, height, width)
        longest = self.base_transformer.config.rope_max_seq_len
        tokens = self._tokens(self.latent_shape(num_frames, height, width)[1:])
        if max(tokens) > longest:
            raise ValueError(
                f"{num_frames} frames of {width}x{height} are {tokens} tokens along time, height and width, and this "
                f"transformer has positions for {longest}; make the video shorter or smaller."
            )

    def _tokens(self, latent_size: tuple[int, ...]) -> list[int]:
        patch = self.base_transformer.config.patch_size
        return [length // size for length, size in zip(latent_size, patch, strict=True)]

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
        latents = self._posterior_mode(pixels)
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
        # Stays fp32 under a bf16 transformer: it embeds the timestep in fp32 before it casts.
        timestep = sigma.float() * self.num_train_timesteps
        if self.pipeline.config.expand_timesteps:  # without an image to start from, all tokens have the same one
            timestep = timestep[:, None].expand(-1, math.prod(self._tokens(noisy.shape[2:])))
        return network(
            hidden_states=noisy.to(self.dtype),
            timestep=timestep,
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
        with nullcontext() if self.boundary is None else self._experts_take_turns():
            return self.pipeline(
                latents=noise,
                **self._embeddings(conditioning, negative_conditioning),
                **self._call_settings(settings),
                guidance_scale=settings.guidance_scale,
                guidance_scale_2=settings.guidance_scale_2,
                max_sequence_length=self.max_sequence_length,
            )[0]


def _trained_component(index: dict, expert: str | None, name: str) -> str:
    if index.get("boundary_ratio") is None:
        if expert is not None:
            raise ValueError(
                f"expert is {expert!r}, but {name!r} has one transformer; experts are what Wan 2.2 A14B has."
            )
        return "transformer"
    expert = expert or "high_noise"
    if expert not in EXPERTS:
        raise ValueError(f"there is no expert {expert!r}. {near_miss(expert, EXPERTS)}")
    return EXPERTS[expert]


def _others(component: str) -> tuple[str, ...]:
    return tuple(one for one in EXPERTS.values() if one != component)


def _take_turn(module: torch.nn.Module, args: tuple, *, partner: torch.nn.Module, device: torch.device) -> None:
    if module.device != device:
        partner.to("cpu")
        module.to(device)
