"""Self-improvement of text-to-video models with geometric rewards, in TRL's shape.

Public names are resolved on first use, so that `import spatialalign_trl` stays fast and does not import torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "prompts": ["DSRPrompt", "PromptGrammarError", "build_prompt", "load_prompts", "parse_prompt"],
        "models.settings": ["SamplingSettings"],
        "models.base": ["VideoModel"],
        "models.loading": ["load_video_model"],
        "rollout.store": ["SampleStore"],
        "rollout.sampler": ["roll_out"],
        "rewards.runner": ["RewardRunner", "load_reward"],
        "preferences": ["make_pairs"],
        "trainer.diffusion_dpo_config": ["DiffusionDPOConfig"],
        "trainer.diffusion_dpo_trainer": ["DiffusionDPOTrainer"],
        "trainer.spatialalign_config": ["SpatialAlignConfig"],
        "trainer.spatialalign_trainer": ["SpatialAlignTrainer"],
        "trainer.context_sft_config": ["ContextSFTConfig"],
        "trainer.context_sft_trainer": ["ContextSFTTrainer"],
        "online.config": ["OnlineSpatialAlignConfig"],
        "online.trainer": ["OnlineSpatialAlignTrainer"],
    },
)
