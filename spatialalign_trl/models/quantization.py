"""Quantise the frozen base, and refuse settings that need bitsandbytes where it is not installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from spatialalign_trl.errors import near_miss

if TYPE_CHECKING:
    from diffusers import PipelineQuantizationConfig


QUANTIZATIONS = ("bitsandbytes_8bit", "bitsandbytes_4bit")
"""Names of the quantisations, as diffusers' pipelines call their backends."""


def quantization_config(name: str, dtype: torch.dtype | None = None) -> PipelineQuantizationConfig:
    """
    Build diffusers' configuration of a quantised base (QLoRA).

    It quantises the linear layers of the transformer (of both experts, if there are two) and of the text encoder. The
    LoRA stays in fp32, and the reference is the quantised base.

    Args:
        name (`str`):
            One of `QUANTIZATIONS`.
        dtype (`torch.dtype`, *optional*):
            The type in which 4-bit layers compute. Defaults to bfloat16.

    Returns:
        `PipelineQuantizationConfig`: for the `from_pretrained` of a pipeline or of a [`VideoModel`].

    Raises:
        ValueError: if the name is unknown, or there is no CUDA GPU.
        ImportError: if bitsandbytes is not installed.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantization={name!r}: unknown. {near_miss(name, QUANTIZATIONS)}")
    if not torch.cuda.is_available():
        raise ValueError(f"quantization={name!r}: needs a CUDA GPU, and this machine has none. Leave it out.")
    require_bitsandbytes(f"quantization={name!r}")
    from diffusers import PipelineQuantizationConfig

    options: dict[str, Any] = {"load_in_8bit": True}
    if name == "bitsandbytes_4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype or torch.bfloat16,
        }
    return PipelineQuantizationConfig(
        quant_backend=name,
        quant_kwargs=options,
        components_to_quantize=["transformer", "transformer_2", "text_encoder"],
    )


def select_components(config: PipelineQuantizationConfig, index: Mapping[str, Any]) -> PipelineQuantizationConfig:
    """
    Restrict a quantisation to the components that a pipeline has, because diffusers warns about any others.

    Args:
        config (`PipelineQuantizationConfig`):
            The quantisation; it is not changed.
        index (`dict`):
            The pipeline's `model_index.json`.

    Returns:
        `PipelineQuantizationConfig`: a copy, or `config` itself if it names no components.
    """
    if not config.components_to_quantize:
        return config
    config = copy.copy(config)
    config.components_to_quantize = [name for name in config.components_to_quantize if (index.get(name) or [None])[0]]
    return config


def describe_quantization(config: PipelineQuantizationConfig) -> dict[str, Any]:
    """
    Describe a quantisation in values that JSON can store, so that two runs can be compared.

    Args:
        config (`PipelineQuantizationConfig`):
            The quantisation.

    Returns:
        `dict`: the backend, its options and the components; or component -> its configuration as text, if every
        component has its own.
    """
    if config.quant_mapping is not None:
        return {component: str(options) for component, options in config.quant_mapping.items()}
    options = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in config.quant_kwargs.items()
    }
    return {"backend": config.quant_backend, **options, "components": config.components_to_quantize}


def require_bitsandbytes(setting: str) -> None:
    """
    Check that bitsandbytes is installed.

    Args:
        setting (`str`):
            The setting that needs it, as the message shows it, such as `"optim='adamw_8bit'"`.

    Raises:
        ImportError: if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{setting}: needs bitsandbytes, which is not installed. "
            "Install it with pip install 'spatialalign-trl[bitsandbytes]'."
        )


def check_optimizer(optim: str) -> None:
    """
    Refuse an 8-bit or paged optimizer that cannot be created here. transformers would notice only after all rollouts.

    Args:
        optim (`str`):
            As `TrainingArguments.optim` names it, such as `adamw_8bit`.

    Raises:
        ImportError: if bitsandbytes is not installed.
    """
    if "8bit" in optim or "bnb" in optim or optim.startswith("paged_"):
        require_bitsandbytes(f"optim={optim!r}")
