"""Check, before the first video, that a run's training can be built and has something to teach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from spatialalign_trl.models.quantization import check_optimizer
from spatialalign_trl.online.forecast import announce_long_run
from spatialalign_trl.online.rounds import ROUND_FILE, RunParts
from spatialalign_trl.preferences import Pair, to_dataset
from spatialalign_trl.rollout.store import Sample
from spatialalign_trl.trainer.rehearsal import check_trackers, rehearse
from spatialalign_trl.trainer.spatialalign_trainer import SpatialAlignTrainer
from spatialalign_trl.trainer.training_arguments import check_warmup

if TYPE_CHECKING:
    import datasets
    from peft import LoraConfig

    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.rewards.runner import RewardRunner


def check_without_model(args: OnlineSpatialAlignConfig, runner: RewardRunner, num_prompts: int) -> None:
    """
    Check what needs no model: packages, weights of the rewards, and the number of steps.

    Args:
        args ([`OnlineSpatialAlignConfig`]):
            The run's settings.
        runner ([`RewardRunner`]):
            The rewards.
        num_prompts (`int`):
            Number of training prompts.

    Raises:
        ValueError: if no reward has a weight, no batch could be filled, or the training ends during its warm-up.
        ImportError: if the optimizer's or a tracker's package is not installed.
    """
    check_optimizer(getattr(args.optim, "value", args.optim))
    check_trackers(args)
    weights = runner.combination.weights
    if not any(weights.values()):
        raise ValueError(
            f"reward_weights: no reward counts ({', '.join(f'{name} has weight 0' for name in weights)}), so no video "
            "can win. A reward with a gate has weight 0 by default: give it one in reward_weights."
        )
    pairs = num_prompts * _max_pairs(args)
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and pairs < batch:
        raise ValueError(
            f"dataloader_drop_last=True: a round has at most {pairs} pairs, less than a batch of {batch}, so "
            "nothing would be trained. Leave dataloader_drop_last out, or lower per_device_train_batch_size."
        )
    if args.max_steps <= 0:
        batches = math.ceil(pairs / batch)
        check_warmup(args, math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps)))


def rehearse_training(run: RunParts, peft_config: LoraConfig | None, num_eval_prompts: int = 0) -> None:
    """
    Build the trainer of the first round on two pairs that stand in for the real ones; see [`rehearse`].

    A run whose rounds are all finished trains nothing, so nothing is rehearsed. A long one gets a forecast.

    Args:
        run ([`RunParts`]):
            The run.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The new LoRA; `None` if the model carries one, or the trainer's default is used.
        num_eval_prompts (`int`, *optional*, defaults to 0):
            Number of evaluation prompts, for the forecast of a long run.

    Raises:
        ValueError, ImportError: if the trainer cannot be built, or a step fails.
    """
    rounds = range(1, run.args.num_rounds + 1)
    if not run.train_rows or all((run.round_folder(number) / ROUND_FILE).exists() for number in rounds):
        return
    run.model.reload_encoders()
    rehearse(SpatialAlignTrainer, run.model, run.args.for_round(run.round_folder(1)), stand_in_pairs(run), peft_config)
    if run.accelerator.is_main_process:
        announce_long_run(run, peft_config, num_eval_prompts)


def stand_in_pairs(run: RunParts, count: int = 2) -> datasets.Dataset:
    """Return pairs of the first prompt in the form of a round's, with noise for latents and no videos."""
    settings = run.settings
    shape = run.model.latent_shape(settings.num_frames, settings.height, settings.width)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    row = run.train_rows[0]

    def sample(number: int, reward: float) -> Sample:
        return Sample(
            f"{number:020x}", str(row["prompt_id"]), row, number, settings.to_dict(), "stand-in", reward=reward
        )

    pairs = [Pair(sample(2 * k, 1.0), sample(2 * k + 1, 0.0)) for k in range(count)]
    return to_dataset(pairs, lambda _: b"no video", lambda _: save({"latents": noise}))


def _max_pairs(args: OnlineSpatialAlignConfig) -> int:
    """Return the largest number of pairs of a prompt in the first round."""
    possible = args.num_generations * (args.num_generations - 1) // 2
    return possible if args.pairs_per_prompt is None else min(possible, args.pairs_per_prompt)
