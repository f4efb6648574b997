"""Say what a run takes before it starts: count what its settings ask for, and forecast a long run."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from spatialalign_trl.planning.architectures import architecture_of
from spatialalign_trl.planning.cards import ACHIEVED, CARDS
from spatialalign_trl.planning.forecast import Forecast, RunSettings, forecast
from spatialalign_trl.planning.stages import ModelSetup, StageTracer
from spatialalign_trl.planning.text import as_text
from spatialalign_trl.planning.workload import VIDEO_BITS_PER_PIXEL, Workload
from spatialalign_trl.safe_text import terminal_text

if TYPE_CHECKING:
    from peft import LoraConfig

    from spatialalign_trl.models.settings import SamplingSettings
    from spatialalign_trl.online.config import OnlineSpatialAlignConfig
    from spatialalign_trl.online.rounds import RunParts

LONG_RUN = 1.0
"""Hours from which a run gets a forecast."""


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


def announce_long_run(run: RunParts, peft_config: LoraConfig | None, num_eval_prompts: int) -> None:
    """
    Print the forecast of a run that takes more than an hour, and let its progress bars show the time left.

    A forecast that fails does not stop a run: a line says why there is none.

    Args:
        run ([`RunParts`]): The run, before its first video.
        peft_config ([`~peft.LoraConfig`], *optional*): The LoRA; `None`: the model's default.
        num_eval_prompts (`int`): Number of evaluation prompts.
    """
    tflops = device_tflops(run.model.device)
    if _rough_hours(run, tflops) < LONG_RUN / 4:
        return
    try:
        with torch.random.fork_rng(devices=[]):
            plan = forecast_of(run, tflops, peft_config, num_eval_prompts)
    except Exception as error:  # whatever a model of somebody else does on tensors without values
        reason = " ".join(str(error).split())[:300]
        run.console.print(terminal_text(f"no forecast of this run: {reason}"), soft_wrap=True)
        return
    if plan.hours is None or plan.hours < LONG_RUN:
        return
    run.console.print(*map(terminal_text, as_text(plan).splitlines()), sep="\n", soft_wrap=True)
    if not any(run.store.samples()):
        run.pace.start(plan)


def forecast_of(run: RunParts, tflops: float, peft_config: LoraConfig | None, num_eval_prompts: int) -> Forecast:
    """
    Forecast a run whose model is loaded.

    Args:
        run ([`RunParts`]): The run.
        tflops (`float`): The rate of a device, in 10^12 operations per second.
        peft_config ([`~peft.LoraConfig`], *optional*): The LoRA; `None`: the model's default.
        num_eval_prompts (`int`): Number of evaluation prompts.
    """
    model, settings, args = run.model, run.settings, run.args
    quantization = model.computation.get("quantization") or {}
    setup = ModelSetup(
        settings.num_frames,
        settings.height,
        settings.width,
        model.dtype,
        quantization.get("backend"),
        make_lora=lambda _: peft_config,
    )
    tracer = StageTracer(architecture_of(model), setup)
    workload = workload_of(args, tracer, len(run.train_rows), num_eval_prompts, run.accelerator.num_processes)
    tiled = bool(model.computation.get("vae_tiling"))
    saving = {"offload_encoders": model.offload_encoders, "vae_tiling": tiled}
    return forecast(tracer, run_settings_of(args, tracer, settings, **saving), workload, None, tflops)


def device_tflops(device: torch.device) -> float:
    """
    Return the rate that a plan assumes for a device, in 10^12 operations per second.

    Args:
        device (`torch.device`):
            A GPU, whose rate is a share of its data sheet's (of an A100's if it is not listed), or the CPU, whose rate
            is measured with a small product.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).upper().replace(" ", "")
        listed = [card.tflops for known, card in CARDS.items() if known in name and card.tflops]
        return ACHIEVED * (max(listed) if listed else CARDS["A100"].tflops)
    matrix = torch.ones(256, 256)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return ACHIEVED * 2 * 256**3 / min(seconds) / 1e12


def _rough_hours(run: RunParts, tflops: float) -> float:
    """Estimate the hours of sampling without tracing: every position of the latents goes through all weights."""
    settings, args = run.settings, run.args
    positions = math.prod(run.model.latent_shape(settings.num_frames, settings.height, settings.width)[1:])
    weights = sum(weight.numel() for weight in run.model.base_transformer.parameters())
    predictions = settings.num_inference_steps * (2 if run.model.uses_negative_prompt(settings) else 1)
    videos = len(run.train_rows) * args.num_generations * args.num_rounds
    pairs = max(args.max_steps, 0) * args.gradient_accumulation_steps * args.per_device_train_batch_size
    forwards = videos * predictions / run.accelerator.num_processes + 10 * pairs * args.num_rounds
    return 2 * weights * positions * forwards / (tflops * 1e12) / 3600
