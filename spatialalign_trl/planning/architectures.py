"""Describe a model by its configuration files alone: which classes its components are, and how large.

The checkpoints that the recipes train are listed here, as their repositories publish them, so that a plan needs
neither weights nor a network. Any other model is described by the `config.json` files of its folder or repository.

Sources: the model cards' `config.json`, and diffusers' conversion scripts (`scripts/convert_*_to_diffusers.py`). What
is not listed is the default of the class in diffusers or transformers, which the published files repeat.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.files import read_json
from spatialalign_trl.models.loading import ADAPTERS
from spatialalign_trl.models.sources import optional_file, read_model_index, resolve_source
from spatialalign_trl.models.tiny import EMBEDDED_MODELS

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel

LAYER_SETTINGS = ("num_layers", "num_single_layers")
"""Settings of a transformer that count equal blocks. Costs are linear in each of them."""


@dataclass(frozen=True)
class Component:
    """
    One network of a pipeline, or its scheduler.

    Args:
        class_name (`str`):
            `"library:class"`, such as `"diffusers:WanTransformer3DModel"`.
        config (`dict`, *optional*):
            The settings in which it differs from the class's defaults.
    """

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """
    A pipeline without weights.

    Args:
        name (`str`):
            The name that users know it by.
        pipeline_class (`str`):
            As in `model_index.json`.
        components (`dict[str, Component]`):
            Its networks and its scheduler, by their names in the pipeline.
        settings (`dict`, *optional*):
            Plain settings of the pipeline, such as `expand_timesteps`.
        prompt_tokens (`dict[str, int]`, *optional*):
            Longest prompt of every tokenizer, by its name in the pipeline.
        folder (`str`, *optional*):
            The local folder that the configurations were read from.
    """

    name: str
    pipeline_class: str
    components: Mapping[str, Component]
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)
    folder: str | None = None

    def layers(self, defaults: Mapping[str, int]) -> dict[str, int]:
        """Return the number of blocks of the transformer, by setting; `defaults` are those of its class."""
        return dict(defaults) | {
            name: int(self.components["transformer"].config[name])
            for name in defaults
            if name in self.components["transformer"].config
        }

    def with_layers(self, layers: Mapping[str, int]) -> Architecture:
        """Return the same architecture with another number of blocks in its transformer."""
        transformer = self.components["transformer"]
        smaller = replace(transformer, config={**transformer.config, **layers})
        return replace(self, components={**self.components, "transformer": smaller})


_UMT5_XXL = Component(
    "transformers:UMT5EncoderModel",
    {"vocab_size": 256_384, "d_model": 4096, "d_ff": 10_240, "num_layers": 24, "num_heads": 64, "d_kv": 64}
    | {"feed_forward_proj": "gated-gelu"},
)
_T5_XXL = Component(
    "transformers:T5EncoderModel",
    {"vocab_size": 32_128, "d_model": 4096, "d_ff": 10_240, "num_layers": 24, "num_heads": 64, "d_kv": 64}
    | {"feed_forward_proj": "gated-gelu"},
)
_LLAMA_8B = Component(
    "transformers:LlamaModel",
    {"vocab_size": 128_320, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
)
_CLIP_L = Component(
    "transformers:CLIPTextModel",
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"projection_dim": 768},
)
_QWEN_25_7B = Component(
    "transformers:Qwen2_5_VLTextModel",
    {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4},
)
_BYT5_SMALL = Component(
    "transformers:T5EncoderModel",
    {"vocab_size": 1510, "d_model": 1472, "d_ff": 3584, "num_layers": 12, "num_heads": 6, "d_kv": 64}
    | {"feed_forward_proj": "gated-gelu"},
)

_UNIPC = Component(
    "diffusers:UniPCMultistepScheduler",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
)
_COGVIDEOX_DDIM = Component(
    "diffusers:CogVideoXDDIMScheduler",
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0}
    | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"},
)


def _wan(name: str, transformer: dict[str, Any], vae: dict[str, Any] | None = None, **settings: Any) -> Architecture:
    components = {
        "transformer": Component("diffusers:WanTransformer3DModel", transformer),
        "vae": Component("diffusers:AutoencoderKLWan", vae or {}),
        "text_encoder": _UMT5_XXL,
        "scheduler": _UNIPC,
    }
    return Architecture(name, "WanPipeline", components, settings, {"tokenizer": 512})


def _cogvideox(name: str, transformer: dict[str, Any], scaling_factor: float) -> Architecture:
    components = {
        "transformer": Component("diffusers:CogVideoXTransformer3DModel", transformer),
        "vae": Component("diffusers:AutoencoderKLCogVideoX", {"scaling_factor": scaling_factor}),
        "text_encoder": _T5_XXL,
        "scheduler": _COGVIDEOX_DDIM,
    }
    return Architecture(name, "CogVideoXPipeline", components, {}, {"tokenizer": 226})


def _hunyuan_15(name: str, target_size: int, shift: float) -> Architecture:
    components = {
        "transformer": Component(
            "diffusers:HunyuanVideo15Transformer3DModel", {"target_size": target_size, "task_type": "t2v"}
        ),
        "vae": Component("diffusers:AutoencoderKLHunyuanVideo15"),
        "text_encoder": _QWEN_25_7B,
        "text_encoder_2": _BYT5_SMALL,
        "scheduler": Component("diffusers:FlowMatchEulerDiscreteScheduler", {"shift": shift}),
        "guider": Component("diffusers:ClassifierFreeGuidance", {"guidance_scale": 6.0}),
    }
    return Architecture(name, "HunyuanVideo15Pipeline", components, {}, {"tokenizer": 1108, "tokenizer_2": 256})


_WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13_824, "num_layers": 40}
_WAN_22_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,  # the values change no cost
    "latents_std": [1.0] * 48,
}

_KNOWN = (
    _wan(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
    ),
    _wan("Wan-AI/Wan2.1-T2V-14B-Diffusers", _WAN_14B),
    _wan("Wan-AI/Wan2.2-T2V-A14B-Diffusers", _WAN_14B, boundary_ratio=0.875),
    _wan(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        {"num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14_336, "num_layers": 30}
        | {"in_channels": 48, "out_channels": 48},
        _WAN_22_VAE,
        expand_timesteps=True,
    ),
    Architecture(
        "Lightricks/LTX-Video",
        "LTXPipeline",
        {
            "transformer": Component("diffusers:LTXVideoTransformer3DModel"),
            "vae": Component("diffusers:AutoencoderKLLTXVideo"),
            "text_encoder": _T5_XXL,
            "scheduler": Component(
                "diffusers:FlowMatchEulerDiscreteScheduler",
                {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
                | {"base_image_seq_len": 1024, "max_image_seq_len": 4096},
            ),
        },
        {},
        {"tokenizer": 128},
    ),
    _cogvideox("THUDM/CogVideoX-2b", {}, 1.15258426),
    _cogvideox(
        "THUDM/CogVideoX-5b",
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        0.7,
    ),
    Architecture(
        "hunyuanvideo-community/HunyuanVideo",
        "HunyuanVideoPipeline",
        {
            "transformer": Component("diffusers:HunyuanVideoTransformer3DModel"),
            "vae": Component("diffusers:AutoencoderKLHunyuanVideo"),
            "text_encoder": _LLAMA_8B,
            "text_encoder_2": _CLIP_L,
            "scheduler": Component("diffusers:FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
        },
        {},
        {"tokenizer": 351, "tokenizer_2": 77},
    ),
    _hunyuan_15("hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v", 640, 5.0),
    _hunyuan_15("hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v", 960, 9.0),
)
PUBLISHED: dict[str, Architecture] = {architecture.name: architecture for architecture in _KNOWN}
"""Hub id -> the published architecture."""
PUBLISHED |= {
    name.replace("THUDM/", "zai-org/"): replace(PUBLISHED[name], name=name.replace("THUDM/", "zai-org/"))
    for name in ("THUDM/CogVideoX-2b", "THUDM/CogVideoX-5b")
}


def published_architecture(name: str) -> Architecture:
    """
    Return the architecture of a checkpoint without a network: a listed one, an embedded model, or a local folder.

    Raises:
        ValueError: if it is none of these.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name in EMBEDDED_MODELS or os.path.isdir(os.path.expanduser(name)):
        return read_architecture(name)
    raise ValueError(
        f"model_name_or_path={name!r}: its architecture is not among those that this library knows without a network. "
        f"{near_miss(name, PUBLISHED)} Pass --model with a folder or a Hub id whose config.json files can be read."
    )


def read_architecture(name_or_path: str, revision: str | None = None) -> Architecture:
    """
    Read an architecture from the configuration files of a folder or of a repository on the Hub; weights are not read.

    Args:
        name_or_path (`str`):
            The name of an embedded model, a folder or a Hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: see [`models.sources.read_model_index`].
        ValueError: if it is no pipeline that an adapter runs, or a component has no configuration file.
    """
    source = resolve_source(name_or_path)
    index = read_model_index(source, revision)
    pipeline_class = str(index.get("_class_name"))
    if pipeline_class not in ADAPTERS:
        raise ValueError(
            f"{name_or_path!r} is a pipeline of class {pipeline_class!r}, and no adapter runs it. "
            f"{near_miss(pipeline_class, ADAPTERS)}"
        )
    components, tokens = {}, {}
    for name, value in index.items():
        if not isinstance(value, list) or value[0] is None or name == "transformer_2":
            continue
        library, class_name = value
        if name.startswith("tokenizer"):
            tokens[name] = _prompt_tokens(source, name, revision)
            continue
        file = _config_file(name)
        path = optional_file(source, f"{name}/{file}", revision)
        if path is None:
            raise ValueError(f"{name_or_path!r} has no {name}/{file}, so the size of its {class_name} is not known.")
        config = {key: setting for key, setting in read_json(path).items() if not key.startswith("_")}
        components[name] = Component(f"{library}:{class_name}", config)
    settings = {
        name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)
    }
    folder = source if os.path.isdir(source) else None
    return Architecture(str(name_or_path), pipeline_class, components, settings, tokens, folder)


def architecture_of(model: VideoModel) -> Architecture:
    """
    Return the architecture of a loaded model.

    Args:
        model ([`VideoModel`]):
            The model, with its encoders.
    """
    pipeline, trained = model.pipeline, model.trained_component
    components, tokens, settings = {}, {}, {}
    for name, part in pipeline.components.items():
        if name.startswith("tokenizer"):
            tokens[name] = min(int(getattr(part, "model_max_length", 512)), 1 << 20)
        elif hasattr(part, "config") and (name == trained or not name.startswith("transformer")):
            config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
            library = type(part).__module__.partition(".")[0]
            components["transformer" if name == trained else name] = Component(
                f"{library}:{type(part).__name__}", config
            )
    for name in ("boundary_ratio", "expand_timesteps"):
        if name in pipeline.config:
            settings[name] = pipeline.config[name]
    return Architecture(model.name_or_path, model.pipeline_class, components, settings, tokens)


def _config_file(component: str) -> str:
    return {"scheduler": "scheduler_config.json", "guider": "guider_config.json"}.get(component, "config.json")


def _prompt_tokens(source: str, name: str, revision: str | None) -> int:
    """Return the longest prompt of a tokenizer; T5's files give no bound in some repositories, which means 512."""
    path = optional_file(source, f"{name}/tokenizer_config.json", revision)
    length = None if path is None else read_json(path).get("model_max_length")
    return min(int(length or 512), 1 << 20)
