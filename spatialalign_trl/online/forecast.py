"""Say what a run takes before it starts: the numbers of its stages, for the planner."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spatialalign_trl.planning.forecast import RunSettings
from spatialalign_trl.planning.workload import VIDEO_BITS_PER_PIXEL, Workload

if TYPE_CHECKING:
    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.planning.stages import StageTracer


def workload_of(
    args: OnlineSpatialAlignConfig,
    tracer: StageTracer,
    train_prompts: int,
    eval_prompts: int,
    gpus: int = 1,
    win_rate: float = 0.2,
) -> Workload:
    """
    Count what a run's settings ask for.

    Args:
        args ([`OnlineSpatialAlignConfig`]): The settings.
        tracer ([`StageTracer`]): The model, for the size of its latents.
        train_prompts, eval_prompts (`int`): Number of prompts.
        gpus (`int`, *optional*, defaults to 1): Number of processes.
        win_rate (`float`, *optional*, defaults to 0.2): Assumed share of videos that win.
    """
    setup = tracer.setup
    voxels = setup.num_frames * setup.height * setup.width
    evaluated_rounds = args.num_rounds if args.evaluate_every_round else 1
    stored_draws = (args.num_fixed_draws or 0) if args.precompute_reference else 0
    return Workload(
        train_prompts=train_prompts,
        eval_prompts=eval_prompts,
        generations=args.num_generations,
        rounds=args.num_rounds,
        evaluation_seeds=args.evaluation_seeds,
        evaluations=1 + evaluated_rounds if eval_prompts else 0,
        pair_strategy=args.pair_strategy,
        pairs_per_prompt=args.pairs_per_prompt,
        pools_rounds=args.pool_rounds,
        win_rate=win_rate,
        steps=args.max_steps if args.max_steps > 0 else None,
        epochs=args.num_train_epochs,
        batch=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        gpus=gpus,
        latent_bytes=4.0 * math.prod(tracer.latent_shape),
        video_bytes=voxels * VIDEO_BITS_PER_PIXEL / 8,
        fixed_draws=stored_draws,
    )


def run_settings_of(
    args: OnlineSpatialAlignConfig,
    tracer: StageTracer,
    settings: SamplingSettings,
    *,
    offload_encoders: bool = False,
    vae_tiling: bool = False,
) -> RunSettings:
    """
    Return the settings of a run's stages that decide what they cost.

    Args:
        args ([`OnlineSpatialAlignConfig`]): The settings.
        tracer ([`StageTracer`]): The model.
        settings ([`SamplingSettings`]): How videos are sampled.
        offload_encoders, vae_tiling (`bool`, *optional*): As in `ModelArguments`.
    """
    return RunSettings(
        trainer=args,
        sampler_steps=settings.num_inference_steps,
        guided=tracer.uses_negative_prompt(settings),
        rollout_batch=args.rollout_batch_size,
        offload_encoders=offload_encoders,
        vae_tiling=vae_tiling,
    )
