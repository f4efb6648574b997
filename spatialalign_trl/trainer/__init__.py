"""Train a LoRA on preferences, or on videos alone.

`latents` encodes a dataset and caches the result, `lora` attaches the adapter, `flow_matching` and `draws` draw noise
levels and noise, `losses` computes the losses from pairs of tensors, and the trainers combine them on TRL's base
trainer. Names are resolved lazily: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "diffusion_dpo_config": ["DiffusionDPOConfig"],
        "diffusion_dpo_trainer": ["DiffusionDPOTrainer"],
        "spatialalign_config": ["SpatialAlignConfig"],
        "spatialalign_trainer": ["SpatialAlignTrainer"],
        "context_sft_config": ["ContextSFTConfig"],
        "context_sft_trainer": ["ContextSFTTrainer"],
        "lora": ["default_lora_config"],
    },
)

if TYPE_CHECKING:
    from spatialalign_trl.trainer.context_sft_config import ContextSFTConfig as ContextSFTConfig
    from spatialalign_trl.trainer.context_sft_trainer import ContextSFTTrainer as ContextSFTTrainer
    from spatialalign_trl.trainer.diffusion_dpo_config import DiffusionDPOConfig as DiffusionDPOConfig
    from spatialalign_trl.trainer.diffusion_dpo_trainer import DiffusionDPOTrainer as DiffusionDPOTrainer
    from spatialalign_trl.trainer.lora import default_lora_config as default_lora_config
    from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig as SpatialAlignConfig
    from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer as SpatialAlignTrainer
