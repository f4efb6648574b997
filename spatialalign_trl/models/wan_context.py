"""Wan that continues a recording of a scene: clean context frames and noisy targets in one transformer.

Source: Video4Spatial (arXiv 2512.03040). It has no public code; what here is our reading of it says so:

- *Context.* Its latents, at diffusion time 0, are put before the noisy target latents in time, and both go through the
  same transformer, every token with its own timestep. (Ours: each context frame is encoded alone, as a video of one
  frame, so that frames which are not neighbours never share a latent.)
- *Positions.* Context frames keep the gaps in time of the recording ([`context.context_positions`]).
- *Instructions.* The prompt, and a trajectory of cameras. (Ours: Pluecker rays through the patches, the four frames of
  a latent frame side by side, through a linear map that begins as zero, added to the patch embeddings of the targets;
  poses count from the camera of the context's last frame. The network sees no pose of the context, unless
  `context_cameras` asks for it, which the paper does without.)
- *Guidance.* `v = v(null, z) + w*(v(g, x) - v(null, z))`: instruction g and context x against no instruction and a
  context z of pure noise. (Ours: the noise has diffusion time 1, at which a context says nothing; the null instruction
  is the negative prompt and no camera.)
- *Auxiliary box* of object grounding: [`context.draw_boxes`]; it is part of the videos that are learned from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.context import RAY_CHANNELS, latent_cameras, pluecker_rays
from spatialalign_trl.models.context_rows import (
    CAMERAS,
    CONTEXT_CAMERAS,
    LATENTS,
    POSITIONS,
    SIGMA,
    ContextLayout,
    SceneRowsMixin,
)
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.sources import optional_file
from spatialalign_trl.models.wan import WanVideoModel

CONTEXT_MODULES_FILE = "context_modules.safetensors"
"""A pipeline folder may hold the weights of the modules that the context adds, where they were trained in full."""

Guidance = Literal["joint", "instruction"]


@dataclass
class _Call:
    """What the transformer's hooks need to know of the call that is running."""

    context_frames: int = 0
    positions: torch.Tensor | None = None
    rays: torch.Tensor | None = None


class WanContextVideoModel(SceneRowsMixin, WanVideoModel):
    """
    Wan 2.1 or Wan 2.2 TI2V-5B, conditioned on a recording of a scene and on a camera trajectory beside the prompt.

    Without context and cameras it is [`WanVideoModel`], bit for bit; so it is with cameras, until it was trained. What
    is trained is a LoRA; the linear map of the rays is part of it, with an adapter of full rank, so that one file of
    [`~VideoModel.save_lora`] holds everything and adapters off ([`~VideoModel.reference`]) is the base. After a
    supervised stage the reference of preference training should be that stage's model: `load_lora`, then
    `set_reference_to_policy()`. A checkpoint trained in full keeps the map in `context_modules.safetensors` beside its
    `model_index.json` ([`~WanContextVideoModel.save_context_modules`]), and its reference then is that checkpoint.

    Its columns and conditioning tensors are those of [`SceneRowsMixin`].

    Args:
        pipeline (`DiffusionPipeline`):
            A `WanPipeline` with one transformer.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        context_frames (`int`, *optional*):
            How many frames of a context are used ([`context.choose_context_frames`]); `None`: all, and then all
            contexts of a batch need the same number. It may be larger than in training.
        context_layout (`"non_contiguous"`, `"contiguous"` or `"none"`, *optional*, defaults to `"non_contiguous"`):
            Time indices of the context; the others are the paper's ablations, `"none"` leaves the context out.
        guidance (`"joint"` or `"instruction"`, *optional*, defaults to `"joint"`):
            `"instruction"` keeps the context in both branches, the paper's ablation:
            `v = v(null, x) + w*(v(g, x) - v(null, x))`.
        context_cameras (`bool`, *optional*, defaults to `False`):
            Whether the network is told the poses of the context too.
        kwargs:
            As in [`VideoModel`].

    Raises:
        ValueError: for an unknown option, or a pipeline with two experts.
    """

    # Beside the text's way into the network, attention among the frames: nothing else reads the context.
    default_lora_targets: ClassVar[tuple[str, ...]] = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_k", "attn2.to_v", "camera_projection",
    )  # fmt: skip
    options: ClassVar[tuple[str, ...]] = ("context_frames", "context_layout", "guidance", "context_cameras")

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name_or_path: str | None = None,
        *,
        context_frames: int | None = None,
        context_layout: ContextLayout = "non_contiguous",
        guidance: Guidance = "joint",
        context_cameras: bool = False,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (
            ("context_layout", context_layout, ContextLayout),
            ("guidance", guidance, Guidance),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}. {near_miss(str(value), get_args(known))}")
        if context_frames is not None and context_frames < 1:
            raise ValueError(f"context_frames is {context_frames}; it must be at least 1, or None for all.")
        super().__init__(pipeline, name_or_path, **kwargs)
        self._check_index(dict(pipeline.config), self.name_or_path or "this pipeline")
        self.context_frames = context_frames
        self.context_layout = context_layout
        self.guidance = guidance
        self.context_cameras = context_cameras
        # What training and sampling depend on, so that runs of two layouts are not taken for one.
        self.computation["context"] = {**self._row_options(), "guidance": guidance}
        self._call = _Call()
        self._add_modules()

    @classmethod
    def _check_index(cls, index: dict, name: str) -> None:
        if index.get("boundary_ratio") is not None:
            raise ValueError(
                f"{name!r} has two experts, and only one transformer can be told of a context here; use Wan 2.1 or "
                "Wan 2.2 TI2V-5B."
            )
        super()._check_index(index, name)

    # The transformer's new parts

    @property
    def lora_full_rank(self) -> Mapping[str, int]:
        """The map of the rays has few inputs: an adapter of their number is the whole map."""
        return {"camera_projection": self.base_transformer.camera_projection.in_features}

    def _add_modules(self) -> None:
        network = self.base_transformer
        inner = network.patch_embedding.out_channels
        projection = torch.nn.Linear(RAY_CHANNELS * self._frames_per_latent, inner, bias=False)
        torch.nn.init.zeros_(projection.weight)
        file = optional_file(self._source, CONTEXT_MODULES_FILE, self.revision)
        if file is not None:
            projection.load_state_dict({"weight": load_file(file)["camera_projection.weight"]})
        network.camera_projection = projection.to(self.device, self.dtype).requires_grad_(False)
        network.rope.register_forward_pre_hook(self._only_targets)
        network.rope.register_forward_hook(self._add_context_positions)
        network.patch_embedding.register_forward_hook(self._add_rays)

    @property
    def sees_cameras(self) -> bool:
        """Whether cameras have an effect, or can get one: their map is not zero, or carries an adapter."""
        projection = self.base_transformer.camera_projection
        return not isinstance(projection, torch.nn.Linear) or bool(projection.weight.any())

    def save_context_modules(self, directory: str | Path) -> Path:
        """Save what the context adds to the transformer, where it was trained in full, beside `model_index.json`."""
        weight = self.base_transformer.camera_projection.weight.detach().cpu().contiguous()
        return write_atomic(Path(directory) / CONTEXT_MODULES_FILE, save({"camera_projection.weight": weight}))

    def _only_targets(self, module: torch.nn.Module, args: tuple) -> tuple:
        return (args[0][:, :, self._call.context_frames :],)

    def _add_context_positions(
        self, module: torch.nn.Module, args: tuple, output: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, ...] | None:
        """Puts the context's rotations, `exp(i p theta^(-2j/d))` at any real p, before the targets' own."""
        positions = self._call.positions
        if positions is None:
            return None
        batch, frames = positions.shape
        targets = args[0].shape[2]  # patches are one latent frame long
        # The same angles as diffusers': float64, theta 10000.
        exponents = torch.arange(0, module.t_dim, 2, dtype=torch.float64, device=positions.device) / module.t_dim
        angles = positions.double()[..., None] * (1.0 / 10000.0**exponents)
        tables = []
        for table, of in zip(output, (torch.cos, torch.sin), strict=True):
            space = table.unflatten(1, (targets, -1))[:, :1, :, :, module.t_dim :]
            time = of(angles).repeat_interleave(2, dim=-1).to(table)[:, :, None, None]
            shape = batch, frames, space.shape[2], 1
            context = torch.cat([time.expand(*shape, -1), space.expand(*shape, -1)], dim=-1)
            tables.append(torch.cat([context.flatten(1, 2), table.expand(batch, -1, -1, -1)], dim=1))
        return tuple(tables)

    def _add_rays(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        rays, projection = self._call.rays, self.base_transformer.camera_projection
        if rays is None and not torch.is_grad_enabled():
            return None
        if rays is None:  # the map takes part all the same: DDP waits for a gradient of every weight
            rays = output.new_zeros(1, 1, 1, 1, projection.in_features)
        # An adapter in float32 would give float32, and the blocks expect the patches' type.
        added = projection(rays.to(self.dtype)).to(output.dtype)
        return output + added.permute(0, 4, 1, 2, 3)

    @contextmanager
    def _calling(self, call: _Call) -> Iterator[None]:
        self._call = call
        try:
            yield
        finally:
            self._call = _Call()

    # Transformer

    def predict(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        conditioning: Conditioning,
        transformer: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """See [`VideoModel.predict`]; the prediction is that of the targets alone."""
        context = conditioning.get(LATENTS)
        frames = 0 if context is None else context.shape[2]
        call = _Call(frames, rays=self._rays(noisy, conditioning, frames))
        if context is None:
            with self._calling(call):
                return super().predict(noisy, sigma, conditioning, transformer)
        if context.shape[3:] != noisy.shape[3:]:
            raise ValueError(
                f"the context's latents are {tuple(context.shape[3:])} high and wide and the video's "
                f"{tuple(noisy.shape[3:])}; bring both to one size."
            )
        call.positions = conditioning[POSITIONS].to(noisy.device)
        times = torch.cat(
            [conditioning[SIGMA].to(noisy.device).float(), sigma.float()[:, None].expand(-1, noisy.shape[2])], dim=1
        )
        _, rows, columns = self._tokens(noisy.shape[2:])
        network = self.transformer if transformer is None else transformer
        with self._calling(call):
            prediction = network(
                hidden_states=torch.cat([context.to(noisy), noisy], dim=2).to(self.dtype),
                timestep=(times * self.num_train_timesteps).repeat_interleave(rows * columns, dim=1),
                encoder_hidden_states=conditioning["prompt_embeds"].to(noisy.device, self.dtype),
                return_dict=False,
            )[0]
        return prediction[:, :, frames:]

    def _rays(self, noisy: torch.Tensor, conditioning: Conditioning, context_frames: int) -> torch.Tensor | None:
        """`(batch, latent frames, rows, columns, channels)`, context first; `None` where there is no camera."""
        cameras = conditioning.get(CAMERAS)
        if cameras is None:
            return None
        frames, rows, columns = self._tokens(noisy.shape[2:])
        asked, made = cameras.shape[1], (frames - 1) * self._frames_per_latent + 1
        if asked != made:
            raise ValueError(f"camera_poses has {asked} poses, and the video has {made} frames; give one a frame.")
        stacked = latent_cameras(cameras.to(noisy.device), self._frames_per_latent)
        if context_frames:
            of_context = conditioning.get(CONTEXT_CAMERAS)
            if of_context is None:
                of_context = stacked.new_zeros(len(stacked), context_frames, stacked.shape[-1])
            repeated = of_context.to(stacked)[:, :, None].expand(-1, -1, stacked.shape[2], -1)
            stacked = torch.cat([repeated, stacked], dim=1)
        return pluecker_rays(stacked, rows, columns).permute(0, 1, 3, 4, 2, 5).flatten(4)

    # Sampling

    def _run_pipeline(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        if LATENTS not in conditioning and CAMERAS not in conditioning:
            return super()._run_pipeline(noise, conditioning, negative_conditioning, settings)
        return self._denoise(noise, conditioning, negative_conditioning, settings)

    def _denoise(
        self,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative_conditioning: Conditioning | None,
        settings: SamplingSettings,
    ) -> torch.Tensor:
        """The pipeline's own loop, with the guidance of the module's docstring."""
        conditioning = {name: tensor.to(self.device) for name, tensor in conditioning.items()}
        null = None if negative_conditioning is None else self._null_branch(noise, conditioning, negative_conditioning)
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(settings.num_inference_steps, device=self.device)
        scheduler.set_begin_index(0)
        latents = noise.to(self.device)
        for timestep in scheduler.timesteps:
            sigma = (timestep.float() / self.num_train_timesteps).expand(len(latents))
            velocity = self.predict(latents, sigma, conditioning)
            if null is not None:
                unguided = self.predict(latents, sigma, null)
                velocity = unguided + settings.guidance_scale * (velocity - unguided)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    def _null_branch(self, noise: torch.Tensor, conditioning: Conditioning, negative: Conditioning) -> Conditioning:
        everywhere = torch.ones(len(noise), dtype=torch.bool, device=self.device)
        context = conditioning.get(LATENTS)
        null_context = None if context is None else _noise_of(noise, context.shape[1:])
        return self.nulled(
            conditioning,
            negative,
            null_context,
            instruction=everywhere,
            context=everywhere if self.guidance == "joint" else ~everywhere,
        )


def _noise_of(samples: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Noise for a context, from a generator that each sample's own noise seeds: it depends on nothing else."""
    noises = []
    for sample in samples:
        digest = hashlib.sha256(sample.detach().float().cpu().contiguous().numpy().tobytes()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        noises.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(noises)
