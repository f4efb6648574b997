"""Teach a text-to-video model where things go, from its own samples: the main job.

It samples videos for the training prompts, scores them with a reward (DSR-Score), pairs winners with losers, trains a
LoRA with zeroth-order regularised Diffusion-DPO, and evaluates before and after on held-out prompts with fixed seeds.
`recipes/loop_from_parts.py` shows the same algorithm in one file, from top to bottom. This recipe launches the
library's loop, with several rounds and processes, checkpoints, cards and a page.

    accelerate launch recipes/spatialalign.py                                                  # a laptop, minutes
    accelerate launch recipes/spatialalign.py --config recipes/configs/wan2.1_t2v_1.3b.yaml    # the paper, GPUs

Without `--config` it runs `recipes/configs/tiny.yaml`: the embedded model of the tiny world. Flags override the YAML.
Running the same command again continues an interrupted run; every finished video, score, pair and checkpoint is kept.

Simplified: pairs are drawn once per round (the paper draws a pair at every visit of a prompt; `pairs_per_prompt` > 1
has the same effect), and every round samples from the current policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spatialalign_trl.arguments.launch import launched
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import describe_recipe, parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.online.config import OnlineSpatialAlignConfig

if TYPE_CHECKING:
    from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
    from spatialalign_trl.trainer.model_card import Recipe

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tiny.yaml"


def build_loop(
    prompt_arguments: PromptArguments,
    reward_arguments: RewardArguments,
    args: OnlineSpatialAlignConfig,
    model_arguments: ModelArguments,
) -> OnlineSpatialAlignTrainer:
    """Build the loop that the arguments describe, without running it."""
    from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer

    rows = prompt_arguments.load()
    model = model_arguments.load(**(args.model_init_kwargs or {}))
    settings = args.sampling_settings(model.default_settings())
    with args.main_process_first(local=False, desc="preparing prompts"):
        train_prompts, eval_prompts = prompt_arguments.at_size(rows, settings, Path(args.output_dir))
    return OnlineSpatialAlignTrainer(
        model=model,
        reward_funcs=reward_arguments.load_rewards(),
        args=args,
        train_dataset=train_prompts,
        eval_dataset=eval_prompts,
        peft_config=model_arguments.lora_config(model),
    )


def main(
    prompt_arguments: PromptArguments,
    reward_arguments: RewardArguments,
    args: OnlineSpatialAlignConfig,
    model_arguments: ModelArguments,
    recipe: Recipe | None = None,
) -> dict[str, object]:
    loop = build_loop(prompt_arguments, reward_arguments, args, model_arguments)
    loop.recipe = recipe
    return loop.train()


if __name__ == "__main__":
    with launched():
        kinds = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
        parsed = parse_recipe(kinds, DEFAULT_CONFIG)
        main(*parsed, recipe=describe_recipe(parsed, DEFAULT_CONFIG))
