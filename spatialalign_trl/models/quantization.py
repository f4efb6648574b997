"""Quantise the frozen base, and refuse what needs bitsandbytes where it is not installed."""

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


def quantization_config(name: str, dtype: torch.dtype | None = None) -> PipelineQuantizationConfig:
    """
    diffusers' configuration of a quantised base (QLoRA): the linear layers of the transformer, or of both experts, and
    of the text encoder. The LoRA stays in fp32, and the reference is the quantised base.

    Args:
        name (`str`):
            One of `QUANTIZATIONS`.
        dtype (`torch.dtype`, *optional*):
            In which 4-bit layers compute; bfloat16 by default.

    Raises:
        ValueError: an unknown name, or no CUDA GPU.
        ImportError: bitsandbytes is missing.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantization={name!r}. {near_miss(name, QUANTIZATIONS)}")
    if not torch.cuda.is_available():
        raise ValueError(f"quantization={name!r} needs a CUDA GPU, and there is none here. Leave it out.")
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


def for_pipeline(config: PipelineQuantizationConfig, index: Mapping[str, Any]) -> PipelineQuantizationConfig:
    """
    A quantisation for the components that a pipeline has; diffusers warns about those that it has not.

    Args:
        config (`PipelineQuantizationConfig`):
            It is not changed.
        index (`dict`):
            The pipeline's `model_index.json`.
    """
    if not config.components_to_quantize:
        return config
    config = copy.copy(config)
    config.components_to_quantize = [name for name in config.components_to_quantize if (index.get(name) or [None])[0]]
    return config


def describe_quantization(config: PipelineQuantizationConfig) -> dict[str, Any]:
    """What a quantisation is made of, as JSON can hold it: the backend and its options, or those of each component."""
    if config.quant_mapping is not None:
        return {name: str(one) for name, one in config.quant_mapping.items()}
    options = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in config.quant_kwargs.items()
    }
    return {"backend": config.quant_backend, **options, "components": config.components_to_quantize}


def require_bitsandbytes(setting: str) -> None:
    """
    Args:
        setting (`str`):
            What asks for it, for the message.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{setting} needs bitsandbytes, which is not installed: pip install 'spatialalign-trl[bitsandbytes]'"
        )


def check_optimizer(optim: str) -> None:
    """
    Refuse an 8-bit or paged optimizer that cannot be made here; transformers would say so after all rollouts.

    Args:
        optim (`str`):
            As `TrainingArguments.optim` names it, such as `adamw_8bit`.

    Raises:
        ImportError: bitsandbytes is missing.
    """
    if "8bit" in optim or "bnb" in optim or optim.startswith("paged_"):
        require_bitsandbytes(f"optim={optim!r}")
