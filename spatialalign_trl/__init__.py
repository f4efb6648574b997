"""Self-improvement of text-to-video models with geometric rewards, in TRL's shape.

Public names are resolved when they are first used, so that `import spatialalign_trl` stays quick and needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that holds it.
_PUBLIC_NAMES = {
    "DSRPrompt": "prompts",
    "PromptGrammarError": "prompts",
    "build_prompt": "prompts",
    "load_prompts": "prompts",
    "parse_prompt": "prompts",
    "SamplingSettings": "models.settings",
    "VideoModel": "models.base",
    "load_video_model": "models",
    "SampleStore": "rollout.store",
    "roll_out": "rollout.sampler",
    "RewardRunner": "rewards",
    "load_reward": "rewards",
    "make_pairs": "preferences",
    "DiffusionDPOConfig": "trainer.diffusion_dpo_config",
    "DiffusionDPOTrainer": "trainer.diffusion_dpo_trainer",
    "SpatialAlignConfig": "trainer.spatialalign_config",
    "SpatialAlignTrainer": "trainer.spatialalign_trainer",
    "OnlineSpatialAlignConfig": "self_improvement_config",
    "OnlineSpatialAlignTrainer": "self_improvement",
}

__all__ = ["__version__", *_PUBLIC_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
