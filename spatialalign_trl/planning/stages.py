"""Trace the stages of a run through the product's own code: adapters, LoRA, the trainer's loss, the optimizer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.quantization import QUANTIZATIONS
from spatialalign_trl.planning.architectures import Architecture
from spatialalign_trl.planning.fake_model import (
    block_counts,
    build_component,
    build_model,
    bytes_of,
    fake_conditioning,
    tensors_of,
)
from spatialalign_trl.planning.quantized import QuantizedLinear
from spatialalign_trl.planning.tracing import Cost, extrapolate, fake_tensors, measure
from spatialalign_trl.trainer.draws import Draws
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config
from spatialalign_trl.trainer.losses import Pair
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig
from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer

if TYPE_CHECKING:
    from peft import LoraConfig

    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.models.settings import SamplingSettings

GUIDED_IN_ONE_BATCH = ("ltx", "cogvideox")
"""Families whose pipelines predict with and without the prompt in one batch of twice the size."""


@dataclass(frozen=True)
class ModelSetup:
    """
    How the model of a run is loaded, and the size of its videos.

    Args:
        num_frames, height, width (`int`):
            Size of the videos.
        dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`):
            Type of the transformer and of the text encoders.
        quantization (`str`, *optional*):
            One of `models.quantization.QUANTIZATIONS`.
        options (`dict`, *optional*):
            Options of the adapter, such as `expert`.
        make_lora (callable, *optional*):
            Returns the LoRA's configuration for a model; by default the paper's.
    """

    num_frames: int
    height: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    quantization: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    make_lora: Callable[[VideoModel], LoraConfig | None] = default_lora_config


def default_settings(architecture: Architecture, options: Mapping[str, Any] | None = None) -> SamplingSettings:
    """Return the settings with which a model's authors sample; `options` are those of its adapter."""
    with fake_tensors():
        layers = dict.fromkeys(block_counts(architecture), 1)
        return build_model(architecture, torch.bfloat16, layers=layers, options=options).default_settings()


class StageTracer:
    """
    Traces the stages of a run. Every trace is made once and takes seconds; none needs weights.

    Args:
        architecture ([`Architecture`]):
            The model.
        setup ([`ModelSetup`]):
            How it is loaded, and the size of its videos.

    Raises:
        ValueError: if the size is not legal for the model (the message names the nearest legal values), or it has no
            such option or LoRA target.
    """

    def __init__(self, architecture: Architecture, setup: ModelSetup) -> None:
        self.architecture, self.setup = architecture, setup
        self.layers = block_counts(architecture)
        with fake_tensors():
            model = self._build(dict.fromkeys(self.layers, 1))
            model.check_size(setup.num_frames, setup.height, setup.width)
            self.family = model.family
            self.latent_shape = model.latent_shape(setup.num_frames, setup.height, setup.width)
            self.size_multiples = model._size_multiples()
            self.uses_negative_prompt = model.uses_negative_prompt
            vae, transformer = model.pipeline.vae, model.base_transformer
            self.can_tile = hasattr(vae, "enable_tiling")
            self.can_checkpoint = bool(getattr(transformer, "_supports_gradient_checkpointing", False))
            self._vae_bytes = bytes_of(vae)

    def _build(self, layers: Mapping[str, int] | None = None) -> VideoModel:
        setup = self.setup
        quantization = setup.quantization
        return build_model(
            self.architecture, setup.dtype, layers=layers, quantization=quantization, options=setup.options
        )

    # What is loaded

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """Bytes of the networks of the pipeline, by component; of two experts only one is on the device."""
        found = {"transformer": self._transformer.memory, "vae": float(self._vae_bytes)}
        with fake_tensors():
            for name, component in self.architecture.components.items():
                if name.startswith("text_encoder"):
                    quantization = self.setup.quantization if name == "text_encoder" else None
                    found[name] = float(bytes_of(build_component(component, self.setup.dtype, quantization)))
        return found

    @functools.cached_property
    def parameters(self) -> int:
        """Number of weights of the transformer."""
        return round(self._transformer.flops)

    @functools.cached_property
    def lora_parameters(self) -> int:
        """Number of weights of the LoRA."""

        def count(layers: dict[str, int]) -> Cost:
            with fake_tensors():
                model = self._build(layers)
                network = attach_lora(model, self.setup.make_lora(model))
                return Cost(0, sum(weight.numel() for weight in network.parameters() if weight.requires_grad))

        return round(extrapolate(self.layers, count).flops)

    @functools.cached_property
    def _transformer(self) -> Cost:
        """The transformer's bytes and, in the place of FLOPs, its number of weights."""

        def count(layers: dict[str, int]) -> Cost:
            with fake_tensors():
                network = build_component(
                    self.architecture.with_layers(layers).components["transformer"],
                    self.setup.dtype,
                    self.setup.quantization,
                )
                packed = [module for module in network.modules() if isinstance(module, QuantizedLinear)]
                parameters = sum(weight.numel() for weight in network.parameters())
                parameters += sum(m.in_features * m.out_features - m.weight.numel() for m in packed)
                return Cost(bytes_of(network), parameters)

        return extrapolate(self.layers, count)

    # The stages, in the order of a run. Memory is above the weights that are loaded.

    @functools.cache  # noqa: B019 - a tracer lives as long as its plan
    def embed_prompt(self) -> Cost:
        """Run the text encoders on one prompt of the greatest length."""
        total = Cost(0, 0)
        for name, component in self.architecture.components.items():
            if not name.startswith("text_encoder"):
                continue
            tokens = self.architecture.prompt_tokens[name.replace("text_encoder", "tokenizer")]
            with fake_tensors(), torch.no_grad():
                network = build_component(component, self.setup.dtype)
                ids = torch.ones(1, tokens, dtype=torch.int64)
                code = functools.partial(network, input_ids=ids, attention_mask=torch.ones_like(ids))
                cost = measure(code, lambda network=network: tensors_of(network))
            total = Cost(max(total.memory, cost.memory), total.flops + cost.flops)
        return total

    @functools.cache  # noqa: B019
    def predict(self, batch: int = 1, with_lora: bool = False) -> Cost:
        """Predict once without gradients, as every step of the sampler does."""

        def cost(layers: dict[str, int]) -> Cost:
            with fake_tensors(), torch.no_grad():
                model = self._build(layers)
                if with_lora:
                    attach_lora(model, self.setup.make_lora(model))
                model.transformer.eval()
                noisy, sigma = torch.empty(batch, *self.latent_shape), torch.empty(batch)
                conditioning = fake_conditioning(model, batch)
                return measure(
                    lambda: model.predict(noisy, sigma, conditioning),
                    lambda: tensors_of(model.base_transformer),
                )

        return extrapolate(self.layers, cost)

    @functools.cache  # noqa: B019
    def decode(self, batch: int = 1, tiling: bool = False) -> Cost:
        """Decode latents to pixels."""
        return self._run_vae(lambda model, latents, pixels: model._decode_to_pixels(latents), batch, tiling)

    @functools.cache  # noqa: B019
    def encode(self, batch: int = 1, tiling: bool = False) -> Cost:
        """Encode pixels to latents."""
        return self._run_vae(lambda model, latents, pixels: model._encode_pixels(pixels), batch, tiling)

    def _run_vae(self, code: Callable[[VideoModel, Tensor, Tensor], Tensor], batch: int, tiling: bool) -> Cost:
        setup = self.setup
        with fake_tensors(), torch.no_grad():
            model = self._build(dict.fromkeys(self.layers, 1))
            model.save_vae_memory(tiling=tiling)
            latents = torch.empty(batch, *self.latent_shape)
            pixels = torch.empty(batch, 3, setup.num_frames, setup.height, setup.width)
            return measure(lambda: code(model, latents, pixels), lambda: tensors_of(model.pipeline.vae))

    def training_step(self, args: SpatialAlignConfig, **changes: Any) -> Cost:
        """
        Trace an optimizer step on one batch: reference, policy, loss, gradients and AdamW.

        Args:
            args ([`SpatialAlignConfig`]):
                The settings of the training.
            changes (`Any`):
                Settings to replace, such as `separate_forward=True`.
        """
        args = copy.copy(args)
        for name, value in changes.items():
            setattr(args, name, value)
        return self._training_step(tuple(getattr(args, name) for name in _STEP_SETTINGS), _Once(args))

    @functools.cache  # noqa: B019
    def _training_step(self, key: tuple[object, ...], arguments: _Once) -> Cost:
        args = arguments.value

        def cost(layers: dict[str, int]) -> Cost:
            with fake_tensors():
                model = self._build(layers)
                model.pipeline.vae = None  # the trainer releases the encoders
                step = optimizer_step(model, args, self.latent_shape, self.setup.make_lora(model))
                base = [tensor for tensor in tensors_of(model.base_transformer) if not tensor.requires_grad]
                return measure(step, lambda: base, repeat=2)

        return extrapolate(self.layers, cost)


_STEP_SETTINGS = ("gradient_checkpointing", "separate_forward", "precompute_reference", "per_device_train_batch_size")
_STEP_SETTINGS += ("num_noise_draws", "bf16", "loss_type", "winner_safe_mu")


@dataclass(frozen=True)
class _Once:
    """An argument that is not part of a cache's key."""

    value: Any = field(compare=False)


class _TracedTrainer(SpatialAlignTrainer):
    """The trainer's loss without its data, processes and files."""

    def __init__(self, model: VideoModel, args: SpatialAlignConfig, network: torch.nn.Module) -> None:
        self.video_model, self.args, self.model = model, args, network

    def _unwrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        return model

    def _draw(self, inputs: dict[str, Any]) -> Draws:
        latents = inputs["chosen"].repeat_interleave(self.args.num_noise_draws, 0)
        sigma = torch.full((len(latents),), 0.8, device=latents.device)
        return Draws(sigma, Pair(torch.randn_like(latents), torch.randn_like(latents)), [])

    def _reference_predictions(self, model: Any, noisy: Pair, *args: Any) -> Pair:
        if self.args.precompute_reference:
            return Pair(*(video.to(torch.bfloat16) for video in noisy))
        return super()._reference_predictions(model, noisy, *args)


def optimizer_step(
    model: VideoModel, args: SpatialAlignConfig, latent_shape: tuple[int, ...], lora: LoraConfig | None = None
) -> Callable[[], None]:
    """
    Attach a LoRA, and return a function that makes one optimizer step of the trainer, on random latents.

    Args:
        model ([`VideoModel`]):
            The model, with or without weights, on the device to compute on.
        args ([`SpatialAlignConfig`]):
            The settings of the training.
        latent_shape (`tuple[int, ...]`):
            Shape of the latents of one video.
        lora (`LoraConfig`, *optional*):
            The LoRA; by default the paper's.
    """
    network, device = attach_lora(model, lora), model.device
    trainer = _TracedTrainer(model, args, network)
    trainer._set_gradient_checkpointing(copy.copy(args))
    network.train()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, foreach=False)
    batch = args.per_device_train_batch_size
    inputs = {
        "chosen": torch.randn(batch, *latent_shape, device=device),
        "rejected": torch.randn(batch, *latent_shape, device=device),
        "conditioning": {name: value.to(device) for name, value in fake_conditioning(model, batch).items()},
        "row": torch.zeros(batch, dtype=torch.int64),
    }

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bool(args.bf16)):
            losses, _ = trainer._example_losses(network, inputs)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def check_quantization(name: str | None) -> None:
    """
    Check the name of a quantisation; a plan needs neither a GPU nor the package.

    Raises:
        ValueError: if it is unknown.
    """
    if name is not None and name not in QUANTIZATIONS:
        raise ValueError(f"quantization={name!r}: unknown. {near_miss(name, QUANTIZATIONS)}")
