"""Run Wan 2.1 and 2.2 text-to-video (arXiv 2503.20314) through diffusers' `WanPipeline`; so are the tiny models."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings

# The transformer attends to all of these positions (padding is zeros, and there is no mask), so the length is part of
# the input. `WanPipeline.encode_prompt` defaults to 226 and the pipeline's call to 512: always pass the length.
_MAX_SEQUENCE_LENGTH = 512

_NEGATIVE_PROMPT = (
    "blurry, low resolution, compression artifacts, noise, flicker, overexposed, washed-out colors, dull gray "
    "picture, frozen image, no motion, jittery motion, distorted shapes, melting objects, extra limbs, malformed "
    "animals, duplicated subject, cluttered background, cartoon, painting, subtitles, text, watermark, logo"
)

EXPERTS: dict[str, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
"""Expert of Wan 2.2 A14B -> component of the pipeline. High noise decides the layout, low noise the details."""

# Training draws sigmas from closed intervals, but the boundary itself belongs to the high-noise expert alone.
_BOUNDARY_MARGIN = 1e-6


class WanVideoModel(VideoModel):
    """
    Wan 2.1 and Wan 2.2 as text-to-video models.

    - Wan 2.1 (1.3B, 14B).
    - Wan 2.2 TI2V-5B, without an image. It takes one timestep per token (`expand_timesteps`).
    - Wan 2.2 A14B, which has two experts: `transformer` denoises at sigmas of at least `boundary_ratio`,
      `transformer_2` below. A run trains one of them, on its side of the boundary. The other one is loaded at the
      first sampling and is on the GPU only while it denoises. A LoRA belongs to one expert: load it into the same one.

    Sizes: `(num_frames - 1)` divisible by 4, height and width by 16 (VAE stride 4x8x8, patches of 1x2x2), by 32 for
    TI2V-5B (VAE stride 4x16x16).

    Args:
        pipeline (`DiffusionPipeline`):
            A `WanPipeline`.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        expert (`"high_noise"` or `"low_noise"`, *optional*):
            Which of two experts is trained. Defaults to `"high_noise"`, which decides the layout of the scene.
        kwargs:
            As in [`VideoModel`].

    Raises:
        ValueError: if the expert is unknown, or the pipeline has only one transformer.
    """

    family: ClassVar[str] = "wan"
    pipeline_class: ClassVar[str] = "WanPipeline"
    # SpatialAlign's targets. The paper (arXiv 2602.22745) calls them text_embedding.0/.2 and cross_attn.k/.v, as the
    # original Wan code does.
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
        missing = [component for component in EXPERTS.values() if (index.get(component) or [None])[0] is None]
        if boundary is None and missing == ["transformer_2"] or boundary is not None and not missing:
            return
        raise ValueError(
            f"{name!r} has boundary_ratio {boundary} and no {' and no '.join(missing) or 'missing transformer'}. Use "
            "a pipeline with one transformer and no boundary (Wan 2.1, Wan 2.2 TI2V-5B), or with two and a boundary "
            "between them (Wan 2.2 A14B)."
        )

    @classmethod
    def _loaded_later(cls, index: dict, options: dict[str, Any]) -> tuple[str, ...]:
        trained = _trained_component(index, options.get("expert"), "this pipeline")
        return () if index.get("boundary_ratio") is None else _other_components(trained)

    # Two experts

    @property
    def boundary(self) -> float | None:
        """The sigma from which the high-noise expert denoises. `None` if there is only one transformer."""
        return self.pipeline.config.boundary_ratio

    @property
    def sigma_range(self) -> tuple[float, float]:
        if self.boundary is None:
            return super().sigma_range
        if self.trained_component == EXPERTS["high_noise"]:
            return self.boundary, 1.0
        return 0.0, self.boundary - _BOUNDARY_MARGIN

    @property
    def has_two_guidance_scales(self) -> bool:
        return self.boundary is not None

    @property
    def lora_load_options(self) -> Mapping[str, Any]:
        return {"load_into_transformer_2": True} if self.trained_component == EXPERTS["low_noise"] else {}

    def _load_other_expert(self) -> None:
        for component in _other_components(self.trained_component):
            if getattr(self.pipeline, component) is not None:
                continue
            if not self._source:
                raise RuntimeError(
                    f"{component} is needed to sample, but this pipeline was built in memory without it. Build it "
                    "with both experts, or load the model from a folder or the Hub."
                )
            try:
                expert = self._load_components({component: self.dtype})[component]
            except OSError as error:
                raise OSError(
                    f"{component} of {self.name_or_path!r} is needed to sample, but it could not be loaded: {error}"
                ) from error
            setattr(self.pipeline, component, expert.eval())

    @contextmanager
    def _experts_take_turns(self) -> Iterator[None]:
        """Keep only the expert that denoises on the device; after the block, only the trained one."""
        self._load_other_expert()
        trained, device = self.base_transformer, self.device
        (other,) = (getattr(self.pipeline, component) for component in _other_components(self.trained_component))
        hooks = [
            expert.register_forward_pre_hook(functools.partial(_take_turn, partner=partner, device=device))
            for expert, partner in ((trained, other), (other, trained))
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
        # SpatialAlign's sampling settings (its section on the implementation, and the released code). They are those
        # of Wan 2.1's authors at 480p.
        common |= {"num_frames": 81, "fps": 16.0, "height": 480, "width": 832, "num_inference_steps": 50}
        return SamplingSettings(guidance_scale=5.0, flow_shift=5.0, **common)

    # Sizes

    def _size_multiples(self) -> tuple[int, int, int]:
        _, patch_height, patch_width = self.base_transformer.config.patch_size
        time, space = self._vae_strides()
        # The pipeline itself requires multiples of 16, whatever the VAE is.
        return time, math.lcm(16, space * patch_height), math.lcm(16, space * patch_width)

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        super().check_size(num_frames, height, width)
        longest = self.base_transformer.config.rope_max_seq_len
        tokens = self._tokens(self.latent_shape(num_frames, height, width)[1:])
        if max(tokens) > longest:
            raise ValueError(
                f"{num_frames} frames of {width}x{height} are {tokens} tokens along time, height and width, but this "
                f"transformer has positions for {longest}. Make the video shorter or smaller."
            )

    def _tokens(self, latent_size: tuple[int, ...]) -> list[int]:
        patch = self.base_transformer.config.patch_size
        return [length // size for length, size in zip(latent_size, patch, strict=True)]

    # Encoders

    @property
    def max_sequence_length(self) -> int:
        """Number of tokens of a prompt's embedding, including the padding."""
        return min(_MAX_SEQUENCE_LENGTH, self.pipeline.tokenizer.model_max_length)

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt_embeds": embeds}

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(like.device, like.dtype)
        # 1 / std, as in the pipeline: z / (1 / std) and z * std differ in the last bit.
        return mean, 1.0 / torch.tensor(config.latents_std).view(shape).to(like.device, like.dtype)

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        latents = self._posterior_mode(pixels)
        mean, inverse_std = self._latent_statistics(latents)
        return ((latents - mean) * inverse_std).float()

    def _decode_to_pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        mean, inverse_std = self._latent_statistics(latents)
        return vae.decode(latents / inverse_std + mean, return_dict=False)[0]

    # Transformer

    def predict(
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        # The timestep stays fp32 for a bf16 transformer, which embeds it in fp32 before casting.
        timestep = sigma.float() * self.num_train_timesteps
        if self.pipeline.config.expand_timesteps:  # without a start image, all tokens have the same timestep
            timestep = timestep[:, None].expand(-1, math.prod(self._tokens(noisy.shape[2:])))
        return self._call_transformer(transformer, noisy, timestep, conditioning)

    def _call_transformer(
        self, transformer: nn.Module | None, latents: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Call the transformer on latents (batch, channels, frames, height, width), cast to its type."""
        network = self.transformer if transformer is None else transformer
        dtype = self.dtype
        return network(
            hidden_states=latents.to(dtype),
            timestep=timestep,
            encoder_hidden_states=conditioning["prompt_embeds"].to(latents.device, dtype),
            return_dict=False,
        )[0]

    def plain_call(self, settings: SamplingSettings) -> dict[str, Any]:
        """See [`VideoModel.plain_call`]. The call's own default of `max_sequence_length` can be another length."""
        second = {} if settings.guidance_scale_2 is None else {"guidance_scale_2": settings.guidance_scale_2}
        return super().plain_call(settings) | second | {"max_sequence_length": self.max_sequence_length}

    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        with nullcontext() if self.boundary is None else self._experts_take_turns():
            return self.pipeline(
                latents=noise,
                **self._embeddings(conditioning, negative),
                **self._call_settings(settings),
                guidance_scale=settings.guidance_scale,
                guidance_scale_2=settings.guidance_scale_2,
                max_sequence_length=self.max_sequence_length,
            )[0]


def _trained_component(index: dict, expert: str | None, name: str) -> str:
    """Return the component that is trained: the given expert's, or the only transformer."""
    if index.get("boundary_ratio") is None:
        if expert is not None:
            raise ValueError(
                f"expert={expert!r}: {name!r} has only one transformer, and no experts. Leave expert out, or use Wan "
                "2.2 A14B."
            )
        return "transformer"
    expert = expert or "high_noise"
    if expert not in EXPERTS:
        raise ValueError(f"there is no expert {expert!r}. {near_miss(expert, EXPERTS)}")
    return EXPERTS[expert]


def _other_components(trained: str) -> tuple[str, ...]:
    return tuple(component for component in EXPERTS.values() if component != trained)


def _take_turn(module: nn.Module, args: tuple, *, partner: nn.Module, device: torch.device) -> None:
    """Move an expert to the device before its forward pass, and its partner to the CPU."""
    if module.device != device:
        partner.to("cpu")
        module.to(device)
