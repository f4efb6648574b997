"""Continue a recording of a scene with Wan: clean context frames and noisy targets go through one transformer.

Source: Video4Spatial (arXiv 2512.03040). It has no public code. "Our reading" marks what the paper leaves open:

- *Context.* The context latents, at diffusion time 0, precede the noisy target latents in time. Both go through the
  same transformer, and every token has its own timestep. (Our reading: each context frame is encoded alone, as a video
  of one frame, so that frames that are not neighbours never share a latent.)
- *Positions.* Context frames keep the time gaps of the recording ([`context.context_positions`]).
- *Instructions.* The prompt, and a camera trajectory. (Our reading: Pluecker rays through the patches, with the four
  frames of a latent frame as channels, go through a linear map that starts at zero and are added to the patch
  embeddings of the targets. Poses are relative to the camera of the context's last frame. The network does not see the
  poses of the context, as in the paper, unless `context_cameras` is set.)
- *Guidance.* `v = v(null, z) + w*(v(g, x) - v(null, z))`, with instruction g and context x, against no instruction and
  a context z of pure noise. (Our reading: the noise has diffusion time 1, at which a context carries no information.
  The null instruction is the negative prompt and no camera.)
- *Auxiliary box* of object grounding: [`context.draw_boxes`]. It is part of the training videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import write_atomic
from spatialalign_trl.models.context import (
    FOURIER_CHANNELS,
    RAY_CHANNELS,
    fourier_rays,
    latent_cameras,
    pluecker_rays,
)
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
from spatialalign_trl.models.sampling import generator_from_noise
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.models.sources import optional_file
from spatialalign_trl.models.wan import WanVideoModel

CONTEXT_MODULES_FILE = "context_modules.safetensors"
"""Optional file of a pipeline folder with the weights of the modules that the context adds, if trained in full."""

Guidance = Literal["joint", "instruction"]
Rays = Literal["pluecker", "fourier"]
_RAYS = {"pluecker": (RAY_CHANNELS, pluecker_rays), "fourier": (FOURIER_CHANNELS, fourier_rays)}
"""How rays are described to the network -> numbers per ray, function of the cameras."""


@dataclass
class _Call:
    """What the transformer's hooks need to know about the current call."""

    context_frames: int = 0
    positions: Tensor | None = None
    rays: Tensor | None = None


class WanContextVideoModel(SceneRowsMixin, WanVideoModel):
    """
    Wan 2.1 or Wan 2.2 TI2V-5B, conditioned on a recording of a scene and on a camera trajectory as well as the prompt.

    Without context and cameras it equals [`WanVideoModel`] bit for bit. With cameras it does so until it is trained.

    Training changes a LoRA. The linear map of the rays belongs to it, with an adapter of full rank, so one file of
    [`~VideoModel.save_lora`] holds everything, and the model without adapters ([`~VideoModel.reference`]) is the base.
    After a supervised stage, the reference of preference training should be the model of that stage: `load_lora`, then
    `set_reference_to_policy()`. A checkpoint trained in full keeps the map in `context_modules.safetensors` next to
    its `model_index.json` ([`~WanContextVideoModel.save_context_modules`]); its reference is that checkpoint.

    [`SceneRowsMixin`] lists the columns and conditioning tensors.

    Args:
        pipeline (`DiffusionPipeline`):
            A `WanPipeline` with one transformer.
        name_or_path (`str`, *optional*):
            As in [`VideoModel`].
        context_frames (`int`, *optional*):
            Number of context frames to use ([`context.choose_context_frames`]). `None`: all, and then all contexts of
            a batch must have the same number. It may be larger than in training.
        context_layout (`"non_contiguous"`, `"contiguous"` or `"none"`, *optional*, defaults to `"non_contiguous"`):
            Time indices of the context. The other two are the paper's ablations; `"none"` leaves the context out.
        guidance (`"joint"` or `"instruction"`, *optional*, defaults to `"joint"`):
            `"instruction"` keeps the context in both branches, as in the paper's ablation:
            `v = v(null, x) + w*(v(g, x) - v(null, x))`.
        context_cameras (`bool`, *optional*, defaults to `False`):
            Whether the network sees the poses of the context as well.
        rays (`"pluecker"` or `"fourier"`, *optional*):
            How rays are described to the network: [`context.pluecker_rays`] or [`context.fourier_rays`]. `None`: as in
            the checkpoint's `context_modules.safetensors`, and `"pluecker"` without that file.
        kwargs:
            As in [`VideoModel`].

    Raises:
        ValueError: if an option has an unknown value, or the pipeline has two experts.
    """

    # In addition to where the text enters: the attention between frames, the only part that reads the context.
    default_lora_targets: ClassVar[tuple[str, ...]] = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_k", "attn2.to_v", "camera_projection",
    )  # fmt: skip
    options: ClassVar[tuple[str, ...]] = ("context_frames", "context_layout", "guidance", "context_cameras", "rays")

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name_or_path: str | None = None,
        *,
        context_frames: int | None = None,
        context_layout: ContextLayout = "non_contiguous",
        guidance: Guidance = "joint",
        context_cameras: bool = False,
        rays: Rays | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value, choices in (
            ("context_layout", context_layout, get_args(ContextLayout)),
            ("guidance", guidance, get_args(Guidance)),
            ("rays", rays or "pluecker", get_args(Rays)),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: unknown. {near_miss(str(value), choices)}")
        if context_frames is not None and context_frames < 1:
            raise ValueError(f"context_frames={context_frames}: must be at least 1, or None for all frames.")
        super().__init__(pipeline, name_or_path, **kwargs)
        self._check_index(dict(pipeline.config), self.name_or_path or "this pipeline")
        self.context_frames = context_frames
        self.context_layout = context_layout
        self.guidance = guidance
        self.context_cameras = context_cameras
        # Training and sampling depend on these, so runs with different layouts must not be confused.
        self.computation["context"] = {**self._row_options(), "guidance": guidance}
        self._call = _Call()
        self._add_modules(rays)
        if rays is not None:  # otherwise the checkpoint decides
            self.computation["context"]["rays"] = rays

    @classmethod
    def _check_index(cls, index: dict, name: str) -> None:
        if index.get("boundary_ratio") is not None:
            raise ValueError(
                f"{name!r} has two experts, but a context needs a model with one transformer. Use Wan 2.1 or Wan 2.2 "
                "TI2V-5B."
            )
        super()._check_index(index, name)

    # The transformer's new parts

    @property
    def lora_full_rank(self) -> Mapping[str, int]:
        """The map of the rays has few inputs: an adapter whose rank is their number can represent any map."""
        return {"camera_projection": self.base_transformer.camera_projection.in_features}

    def _add_modules(self, rays: Rays | None) -> None:
        """Add the map of the rays to the transformer, and the hooks that add positions and rays."""
        # 1. The rays of the checkpoint and their map, if it was trained in full
        network, weight = self.base_transformer, None
        file = optional_file(self._source, CONTEXT_MODULES_FILE, self.revision)
        if file is not None:
            with safe_open(file, "pt") as modules:
                weight = modules.get_tensor("camera_projection.weight")
                trained = (modules.metadata() or {}).get("rays", "pluecker")
            if rays not in (None, trained):
                raise ValueError(f"rays={rays!r}: {file} was trained with {trained!r}. Leave rays out.")
            rays = trained
        self.rays: Rays = rays or "pluecker"
        if self.rays not in _RAYS:
            raise ValueError(f"{file} has rays {self.rays!r}. This version knows {', '.join(_RAYS)}.")

        # 2. The map, zero without such a file
        channels, _ = _RAYS[self.rays]
        inner = network.patch_embedding.out_channels
        projection = torch.nn.Linear(channels * self._frames_per_latent, inner, bias=False)
        torch.nn.init.zeros_(projection.weight)
        if weight is not None:
            projection.load_state_dict({"weight": weight})
        network.camera_projection = projection.to(self.device, self.dtype).requires_grad_(False)
        network.rope.register_forward_pre_hook(self._only_targets)
        network.rope.register_forward_hook(self._add_context_positions)
        network.patch_embedding.register_forward_hook(self._add_rays)

    @property
    def sees_cameras(self) -> bool:
        """Whether cameras have an effect or can learn one: their map is not zero, or it has an adapter."""
        projection = self.base_transformer.camera_projection
        return not isinstance(projection, torch.nn.Linear) or bool(projection.weight.any())

    def save_context_modules(self, directory: str | Path) -> Path:
        """
        Save the modules that the context adds to the transformer, if they were trained in full.

        Args:
            directory (`str` or `Path`):
                The pipeline's folder, which contains `model_index.json`.

        Returns:
            `Path`: the file.
        """
        weight = self.base_transformer.camera_projection.weight.detach().cpu().contiguous()
        modules = save({"camera_projection.weight": weight}, None if self.rays == "pluecker" else {"rays": self.rays})
        return write_atomic(Path(directory) / CONTEXT_MODULES_FILE, modules)

    def _only_targets(self, module: nn.Module, args: tuple) -> tuple:
        """Compute the transformer's own positions for the targets alone."""
        return (args[0][:, :, self._call.context_frames :],)

    def _add_context_positions(
        self, module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...] | None:
        """Prepend the context's rotations, `exp(i p theta^(-2j/d))` at any real position p, to the targets'."""
        positions = self._call.positions
        if positions is None:
            return None
        batch, frames = positions.shape
        targets = args[0].shape[2]  # patches are one latent frame long
        # The same angles as diffusers': float64, theta 10000.
        exponents = torch.arange(0, module.t_dim, 2, dtype=torch.float64, device=positions.device) / module.t_dim
        angles = positions.double()[..., None] * (1.0 / 10000.0**exponents)
        tables = []
        for table, function in zip(output, (torch.cos, torch.sin), strict=True):
            space = table.unflatten(1, (targets, -1))[:, :1, :, :, module.t_dim :]
            time = function(angles).repeat_interleave(2, dim=-1).to(table)[:, :, None, None]
            shape = batch, frames, space.shape[2], 1
            context = torch.cat([time.expand(*shape, -1), space.expand(*shape, -1)], dim=-1)
            tables.append(torch.cat([context.flatten(1, 2), table.expand(batch, -1, -1, -1)], dim=1))
        return tuple(tables)

    def _add_rays(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Add the embedded rays of the current call to the patch embeddings."""
        rays, projection = self._call.rays, self.base_transformer.camera_projection
        if rays is None and not torch.is_grad_enabled():
            return None
        if rays is None:  # run the map on zeros: DDP waits for a gradient of every weight
            rays = output.new_zeros(1, 1, 1, 1, projection.in_features)
        # An adapter in float32 returns float32, but the blocks expect the type of the patches.
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
        self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, transformer: nn.Module | None = None
    ) -> Tensor:
        """Return the prediction for the target frames alone. See [`VideoModel.predict`]."""
        context = conditioning.get(LATENTS)
        frames = 0 if context is None else context.shape[2]
        call = _Call(frames, rays=self._rays(noisy, conditioning, frames))
        if context is None:
            with self._calling(call):
                return super().predict(noisy, sigma, conditioning, transformer)
        if context.shape[3:] != noisy.shape[3:]:
            raise ValueError(
                f"the context's latents have height and width {tuple(context.shape[3:])}, but the video's have "
                f"{tuple(noisy.shape[3:])}. Bring both to one size."
            )

        # Every token has a timestep: that of its context frame (0 if clean), or that of the targets.
        call.positions = conditioning[POSITIONS].to(noisy.device)
        sigmas = torch.cat(
            [conditioning[SIGMA].to(noisy.device).float(), sigma.float()[:, None].expand(-1, noisy.shape[2])], dim=1
        )
        _, rows, columns = self._tokens(noisy.shape[2:])
        timesteps = (sigmas * self.num_train_timesteps).repeat_interleave(rows * columns, dim=1)
        latents = torch.cat([context.to(noisy), noisy], dim=2)
        with self._calling(call):
            return self._call_transformer(transformer, latents, timesteps, conditioning)[:, :, frames:]

    def _rays(self, noisy: Tensor, conditioning: Conditioning, context_frames: int) -> Tensor | None:
        """Return rays `(batch, latent frames, rows, columns, channels)`, context first; `None` without cameras."""
        cameras, context_cameras = conditioning.get(CAMERAS), conditioning.get(CONTEXT_CAMERAS)
        frames, rows, columns = self._tokens(noisy.shape[2:])
        num_frames = (frames - 1) * self._frames_per_latent + 1
        if not context_frames:
            context_cameras = None
        if cameras is None and context_cameras is None:
            return None
        if cameras is None:  # the path is not known in advance, but the cameras of the recording are
            cameras = context_cameras.new_zeros(len(noisy), num_frames, context_cameras.shape[-1])
        if cameras.shape[1] != num_frames:
            raise ValueError(
                f"camera_poses has {cameras.shape[1]} poses, but the video has {num_frames} frames. Pass one pose per "
                "frame."
            )
        stacked = latent_cameras(cameras.to(noisy.device), self._frames_per_latent)
        if context_frames:
            if context_cameras is None:
                context_cameras = stacked.new_zeros(len(stacked), context_frames, stacked.shape[-1])
            repeated = context_cameras.to(stacked)[:, :, None].expand(-1, -1, stacked.shape[2], -1)
            stacked = torch.cat([repeated, stacked], dim=1)
        _, rays = _RAYS[self.rays]
        return rays(stacked, rows, columns).permute(0, 1, 3, 4, 2, 5).flatten(4)

    # Sampling

    def _run_pipeline(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        if LATENTS not in conditioning and CAMERAS not in conditioning:
            return super()._run_pipeline(noise, conditioning, negative, settings)
        return self._denoise(noise, conditioning, negative, settings)

    def _denoise(
        self, noise: Tensor, conditioning: Conditioning, negative: Conditioning | None, settings: SamplingSettings
    ) -> Tensor:
        """Run the pipeline's denoising loop, with the guidance described in the module's docstring."""
        conditioning = {name: tensor.to(self.device) for name, tensor in conditioning.items()}
        null = None if negative is None else self._null_branch(noise, conditioning, negative)
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

    def _null_branch(self, noise: Tensor, conditioning: Conditioning, negative: Conditioning) -> Conditioning:
        """Return the conditioning without instruction and, for joint guidance, with noise as context."""
        all_rows = torch.ones(len(noise), dtype=torch.bool, device=self.device)
        null_context = None
        if LATENTS in conditioning:
            shape = conditioning[LATENTS].shape[1:]
            generators = [generator_from_noise(sample_noise, "big") for sample_noise in noise]
            null_context = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return self.nulled(
            conditioning,
            negative,
            null_context,
            instruction=all_rows,
            context=all_rows if self.guidance == "joint" else ~all_rows,
        )
