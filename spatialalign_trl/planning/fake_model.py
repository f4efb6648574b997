"""Build a pipeline without weights, on fake tensors, behind the adapter that the product runs it with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.models.loading import ADAPTERS
from spatialalign_trl.models.wan import EXPERTS
from spatialalign_trl.planning.architectures import LAYER_SETTINGS, Architecture, Component
from spatialalign_trl.planning.quantized import quantize_linears


class _Tokenizer(SimpleNamespace):
    """Stands in for a tokenizer, of which a plan needs only the longest prompt."""


def block_counts(architecture: Architecture) -> dict[str, int]:
    """Return how many equal blocks the transformer has, by the setting that counts them."""
    cls = component_class(architecture.components["transformer"])
    parameters = inspect.signature(cls.__init__).parameters
    return architecture.layers({name: parameters[name].default for name in LAYER_SETTINGS if name in parameters})


def component_class(component: Component) -> type:
    """Return the class of a component, from diffusers or transformers."""
    library, _, name = component.class_name.partition(":")
    return getattr(import_module(library), name)


def build_component(component: Component, dtype: torch.dtype, quantization: str | None = None) -> Any:
    """
    Build a component as loading leaves it: frozen, in `dtype`, with the layers in fp32 that its class keeps there.

    Args:
        component ([`Component`]):
            What to build. Inside of [`tracing.fake_tensors`] it takes no memory.
        dtype (`torch.dtype`):
            The type of its weights.
        quantization (`str`, *optional*):
            One of `models.quantization.QUANTIZATIONS`, for its linear layers.
    """
    cls = component_class(component)
    if component.class_name.startswith("transformers:"):
        network = cls(cls.config_class(**component.config))
    else:
        accepted = inspect.signature(cls.__init__).parameters
        settings = {name: value for name, value in component.config.items() if name in accepted}
        if not issubclass(cls, nn.Module):  # a scheduler computes with the values of its few tensors
            with _disable_current_modes():
                return cls(**settings)
        network = cls(**settings)
    # transformers' classes keep layers in fp32 only beside fp16, unless they say that they must
    strict = "_keep_in_fp32_modules_strict" if component.class_name.startswith("transformers:") else ""
    kept = set(getattr(cls, strict or "_keep_in_fp32_modules", None) or ())
    originals = list(network.parameters())  # kept, so that no two of them have one address
    casts: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for prefix, module in network.named_modules():
        stays = kept & set(prefix.split("."))
        for name, weight in module._parameters.items():
            if weight is not None:
                target = torch.float32 if stays or name in kept else dtype
                if id(weight) not in casts:
                    casts[id(weight)] = nn.Parameter(weight.detach().to(target), requires_grad=False)
                module._parameters[name] = casts[id(weight)]
    del originals
    if quantization is not None:
        quantize_linears(network, quantization, dtype, kept)
    return network.eval()


def build_model(
    architecture: Architecture,
    dtype: torch.dtype,
    *,
    layers: Mapping[str, int] | None = None,
    quantization: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> VideoModel:
    """
    Build a model without weights and without its text encoders, inside of [`tracing.fake_tensors`].

    Args:
        architecture ([`Architecture`]):
            What it is made of.
        dtype (`torch.dtype`):
            The type of the transformer. The VAE is in fp32, as in every adapter.
        layers (`dict[str, int]`, *optional*):
            Another number of blocks of the transformer.
        quantization (`str`, *optional*):
            The quantisation of the transformer.
        options (`dict`, *optional*):
            Options of the adapter, such as `expert`.

    Returns:
        [`VideoModel`]: the family's adapter.

    Raises:
        ValueError: if the adapter refuses the options.
    """
    module, name = ADAPTERS[architecture.pipeline_class].split(":")
    adapter: type[VideoModel] = getattr(import_module(module), name)
    options = dict(options or {})
    adapter._check_options(options)
    architecture = architecture if layers is None else architecture.with_layers(layers)
    parts = architecture.components
    # Of two experts of one size, only the trained one is built.
    trained = EXPERTS.get(str(options.get("expert")), "transformer")
    components: dict[str, Any] = {
        "transformer": None,
        trained: build_component(parts["transformer"], dtype, quantization),
        "scheduler": build_component(parts["scheduler"], dtype),
        "vae": build_component(parts["vae"], torch.float32),
    }
    if "guider" in parts:
        components["guider"] = build_component(parts["guider"], dtype)
    tokenizers = {name: _Tokenizer(model_max_length=length) for name, length in architecture.prompt_tokens.items()}
    encoders = {name: None for name in parts if name.startswith("text_encoder")}
    pipeline_class = getattr(diffusers, architecture.pipeline_class)
    pipeline = pipeline_class(**components, **tokenizers, **encoders, **architecture.settings)
    # The source is a folder or no place at all, so that the adapter does not look for settings on the Hub.
    return adapter(
        pipeline, f"{architecture.name} ({adapter.family})", source=architecture.folder or "no source", **options
    )


def prompt_shapes(model: VideoModel) -> dict[str, tuple[int, ...]]:
    """
    Return the shapes, without the batch, of what one prompt of the greatest length conditions the transformer with.

    Raises:
        ValueError: for a family that this function does not know.
    """
    config = model.base_transformer.config
    if model.family == "wan":
        return {"prompt_embeds": (model.max_sequence_length, config.text_dim)}
    if model.family == "ltx":
        tokens = model.max_sequence_length
        return {"prompt_embeds": (tokens, config.caption_channels), "prompt_attention_mask": (tokens,)}
    if model.family == "cogvideox":
        return {"prompt_embeds": (config.max_text_seq_length, config.text_embed_dim)}
    if model.family == "hunyuan_video":
        tokens = 256
        return {
            "prompt_embeds": (tokens, config.text_embed_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
            "prompt_attention_mask": (tokens,),
        }
    if model.family == "hunyuan_video_15":
        first, second = model.pipeline.tokenizer_max_length, model.pipeline.tokenizer_2_max_length
        return {
            "prompt_embeds": (first, config.text_embed_dim),
            "prompt_embeds_mask": (first,),
            "prompt_embeds_2": (second, config.text_embed_2_dim),
            "prompt_embeds_mask_2": (second,),
        }
    raise ValueError(
        f"{model.name_or_path}: what a {model.family} model gets of a prompt is not known to the planner."
    )


def fake_conditioning(model: VideoModel, batch: int) -> Conditioning:
    """Return the conditioning of a batch of prompts of the greatest length."""
    return {
        name: torch.ones(batch, *shape, dtype=torch.int64 if "mask" in name else model.dtype)
        for name, shape in prompt_shapes(model).items()
    }


def tensors_of(network: nn.Module | None) -> list[torch.Tensor]:
    """Return a network's weights and buffers."""
    return [] if network is None else [*network.parameters(), *network.buffers()]


def bytes_of(network: nn.Module | None) -> int:
    """Return the bytes of a network's weights and buffers; tied ones count once."""
    storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors_of(network))}
    return sum(storage.nbytes() for storage in storages.values())
