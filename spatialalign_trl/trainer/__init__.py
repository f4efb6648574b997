"""Turning preferences into a LoRA.

`flow_matching` draws sigmas and noise, `losses` are pure functions of six tensors, `lora` attaches the adapter,
`latents` caches what the frozen encoders say, and the trainers put them on TRL's base trainer. Names are resolved
lazily: importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_WHERE = {
    "DiffusionDPOConfig": "diffusion_dpo_config",
    "DiffusionDPOTrainer": "diffusion_dpo_trainer",
    "SpatialAlignConfig": "spatialalign_config",
    "SpatialAlignTrainer": "spatialalign_trainer",
    "default_lora_config": "lora",
}

__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from .diffusion_dpo_config import DiffusionDPOConfig as DiffusionDPOConfig
    from .diffusion_dpo_trainer import DiffusionDPOTrainer as DiffusionDPOTrainer
    from .lora import default_lora_config as default_lora_config
    from .spatialalign_config import SpatialAlignConfig as SpatialAlignConfig
    from .spatialalign_trainer import SpatialAlignTrainer as SpatialAlignTrainer


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
