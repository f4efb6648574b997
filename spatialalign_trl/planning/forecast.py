"""Forecast a run: peak memory, FLOPs and hours of every stage, and its disk, as a dataclass that JSON can store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from spatialalign_trl.models.encoding import vae_batch_size
from spatialalign_trl.planning.cards import GIB, Card
from spatialalign_trl.planning.stages import GUIDED_IN_ONE_BATCH, StageTracer
from spatialalign_trl.planning.tracing import Cost
from spatialalign_trl.planning.workload import Workload

PETA = 1e15
FP32_SHARE = 0.5
"""Speed of the VAE's fp32 convolutions, which run in TF32, relative to bf16 matrix products."""


@dataclass(frozen=True)
class RunSettings:
    """
    The settings of a run that decide what its stages cost.

    Args:
        trainer (`SpatialAlignConfig`):
            The settings of the training.
        sampler_steps (`int`):
            Denoising steps of a video.
        guided (`bool`):
            Whether every step also predicts without the prompt.
        rollout_batch (`int`):
            Videos that are sampled at once.
        offload_encoders, vae_tiling (`bool`):
            As in `ModelArguments`.
    """

    trainer: Any
    sampler_steps: int
    guided: bool
    rollout_batch: int
    offload_encoders: bool = False
    vae_tiling: bool = False


@dataclass(frozen=True)
class Stage:
    """
    What a stage takes on one device.

    Args:
        name (`str`):
            The stage.
        weights (`float`):
            GiB of the networks that are loaded.
        memory (`float`):
            GiB at the peak, the weights included.
        pflop (`float`):
            10^15 operations for one `unit`.
        unit (`str`):
            What is counted: prompt, video or batch.
        count (`float`):
            How many of them the run has, on all devices together; 0 for what only a comparison shows.
        hours (`float`, *optional*):
            On all devices at once; `None` without a rate, or where the time is not forecast.
        fits (`bool`, *optional*):
            Whether the card can hold it; `None` without a card, or for what the run does not do.
        note (`str`, *optional*):
            What the numbers leave out.
        speed (`float`, *optional*, defaults to `1.0`):
            Its operations per second, relative to bf16 matrix products.
    """

    name: str
    weights: float
    memory: float
    pflop: float
    unit: str
    count: float
    hours: float | None = None
    fits: bool | None = None
    note: str = ""
    speed: float = 1.0

    @property
    def work(self) -> float:
        """The bf16 operations, in 10^15, that take as long as one unit."""
        return self.pflop / self.speed


@dataclass(frozen=True)
class Forecast:
    """
    What a run takes.

    Args:
        model, family (`str`):
            The model.
        size (`list[int]`):
            Frames, height and width of the videos.
        legal_sizes (`str`):
            The rule that sizes follow.
        parameters, lora_parameters (`int`):
            Number of weights of the transformer and of the LoRA.
        settings (`dict`):
            The settings that the memory depends on.
        card (`str`, *optional*), usable (`float`, *optional*):
            The card, and the GiB of it that tensors may take.
        gpus (`int`):
            Number of devices.
        tflops (`float`, *optional*):
            Rate at which hours are computed, in 10^12 operations per second and device.
        stages (`list[Stage]`):
            In the order of a run.
        pairs (`float`):
            Expected number of pairs of the largest round, at the assumed win rate.
        win_rate (`float`):
            The assumed share of videos that win.
        visits (`float`):
            How often a pair of the largest round is trained on.
        hours, gpu_hours, cost (`float`, *optional*):
            The whole run, without scoring; the cost at the price given.
        disk (`dict[str, float]`):
            GiB on disk, by what takes them.
        ram (`float`):
            GiB of memory of the main process that the pairs take.
        remedy (`str`, *optional*):
            Flags with which it fits, if it does not as it is; empty if none helps.
        tried (`list[str]`):
            What was tried to make it fit, and with which result.
        process (`dict[str, float]`, *optional*):
            GiB of the process's memory on a machine without a GPU, by what takes them.
    """

    model: str
    family: str
    size: list[int]
    legal_sizes: str
    parameters: int
    lora_parameters: int
    settings: dict[str, Any]
    card: str | None
    usable: float | None
    gpus: int
    tflops: float | None
    stages: list[Stage]
    pairs: float
    win_rate: float
    visits: float
    hours: float | None
    gpu_hours: float | None
    cost: float | None
    disk: dict[str, float]
    ram: float
    remedy: str | None = None
    tried: list[str] = field(default_factory=list)
    process: dict[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool | None:
        """Whether all stages of the run fit the card; `None` without a card."""
        if self.usable is None:
            return None
        return all(stage.fits for stage in self.stages if stage.fits is not None)

    def stage(self, name: str) -> Stage:
        """Return a stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as a dict that JSON can store."""
        return {**dataclasses.asdict(self), "fits": self.fits}


def forecast(
    tracer: StageTracer,
    run: RunSettings,
    workload: Workload,
    card: Card | None = None,
    tflops: float | None = None,
    price: float | None = None,
) -> Forecast:
    """
    Forecast a run.

    Args:
        tracer ([`StageTracer`]):
            The model, loaded as the run loads it.
        run ([`RunSettings`]):
            The settings of the stages.
        workload ([`Workload`]):
            Numbers of videos, pairs and steps.
        card ([`Card`], *optional*):
            The GPU that it must fit.
        tflops (`float`, *optional*):
            The rate that a device is assumed to reach, in 10^12 operations per second; without it there are no hours.
        price (`float`, *optional*):
            Of a device and hour, in any currency.
    """
    usable = None if card is None else card.usable
    stages = [_timed(stage, usable, tflops, workload.gpus) for stage in trace_stages(tracer, run, workload)]
    hours = [stage.hours for stage in stages if stage.count and stage.hours is not None]
    total = None if tflops is None else sum(hours)
    setup, frames, rows = tracer.setup, *tracer.size_multiples[:2]
    return Forecast(
        model=tracer.architecture.name,
        family=tracer.family,
        size=[setup.num_frames, setup.height, setup.width],
        legal_sizes=f"frames: a multiple of {frames} plus 1; height and width: multiples of {rows}",
        parameters=tracer.parameters,
        lora_parameters=tracer.lora_parameters,
        settings=describe_settings(tracer, run),
        card=None if card is None else card.name,
        usable=usable,
        gpus=workload.gpus,
        tflops=tflops,
        stages=stages,
        pairs=workload.most_pairs,
        win_rate=workload.win_rate,
        visits=workload.visits,
        hours=total,
        gpu_hours=None if total is None else total * workload.gpus,
        cost=None if total is None or price is None else total * workload.gpus * price,
        disk=workload.disk(),
        ram=workload.memory(),
    )


def describe_settings(tracer: StageTracer, run: RunSettings) -> dict[str, Any]:
    """Return the settings on which the memory depends, under the names of the arguments."""
    return {
        "dtype": str(tracer.setup.dtype).removeprefix("torch."),
        "bf16": bool(run.trainer.bf16),
        "quantization": tracer.setup.quantization,
        "offload_encoders": run.offload_encoders,
        "vae_tiling": run.vae_tiling,
        "gradient_checkpointing": bool(run.trainer.gradient_checkpointing),
        "separate_forward": run.trainer.separate_forward,
        "rollout_batch_size": run.rollout_batch,
        "per_device_train_batch_size": run.trainer.per_device_train_batch_size,
        "num_inference_steps": run.sampler_steps,
    }


def trace_stages(tracer: StageTracer, run: RunSettings, workload: Workload) -> list[Stage]:
    """Trace every stage of a run."""
    # 1. What is loaded: the text encoders may rest in the CPU's memory while videos are sampled
    weights = {name: size / GIB for name, size in tracer.weights.items()}
    network, everything = weights["transformer"], sum(weights.values())
    sampling = network + weights["vae"] if run.offload_encoders else everything
    lora = tracer.lora_parameters * 4 / GIB

    # 2. Sampling
    videos, evaluated = workload.training_videos, workload.evaluation_videos
    predictions = run.sampler_steps * (2 if run.guided else 1)
    batch = run.rollout_batch * (2 if run.guided and tracer.family in GUIDED_IN_ONE_BATCH else 1)
    size = tracer.setup.num_frames, tracer.setup.height, tracer.setup.width
    together = min(run.rollout_batch, vae_batch_size(*size))
    prompt, predict, decode = tracer.embed_prompt(), tracer.predict(batch), tracer.decode(together, run.vae_tiling)
    adapted, encode = tracer.predict(batch, with_lora=True), tracer.encode(together, run.vae_tiling)
    prompts = workload.train_prompts + workload.eval_prompts
    traced = "the rewards' own networks come on top: neither traced nor timed"

    # 3. Training, after the encoders are released
    checkpointing = bool(run.trainer.gradient_checkpointing)
    steps = {
        on: tracer.training_step(run.trainer, gradient_checkpointing=on) for on in (checkpointing, not checkpointing)
    }
    batches = workload.forwards * workload.gpus

    def stage(name: str, loaded: float, cost: Cost, unit: str, count: float, note: str = "") -> Stage:
        return Stage(name, loaded, loaded + cost.memory / GIB, cost.flops / PETA, unit, count, note=note)

    def denoising(name: str, loaded: float, cost: Cost, count: float) -> Stage:
        return stage(name, loaded, Cost(cost.memory, tracer.predict().flops * predictions), "video", count)

    def vae(name: str, loaded: float, cost: Cost, count: float, note: str = "") -> Stage:
        per_video = stage(name, loaded, Cost(cost.memory, cost.flops / together), "video", count, note)
        return dataclasses.replace(per_video, speed=FP32_SHARE if tracer.setup.dtype != torch.float32 else 1.0)

    return [
        stage("rollout: text encoder", everything, prompt, "prompt", prompts),
        denoising("rollout: denoising", sampling, predict, videos),
        vae("rollout: decode", sampling, decode, videos),
        stage("scoring", everything, Cost(0, 0), "video", videos + evaluated, traced),
        vae("latents", everything, encode, 0, "not run, because rollouts keep their latents"),
        *(
            stage(_step_name(on), network, cost, "batch", batches if on == checkpointing else 0)
            for on, cost in steps.items()
        ),
        denoising("evaluation: denoising", sampling + lora, adapted, evaluated),
        vae("evaluation: decode", sampling + lora, decode, evaluated),
    ]


def _step_name(checkpointing: bool) -> str:
    return f"training step ({'' if checkpointing else 'no '}checkpointing)"


def _timed(stage: Stage, usable: float | None, tflops: float | None, gpus: int) -> Stage:
    """Add hours at a rate, and whether a stage of the run fits."""
    hours = None if tflops is None else stage.work * stage.count * 1e3 / (tflops * gpus) / 3600
    if stage.name == "scoring":
        hours = None
    fits = None if usable is None or not stage.count else stage.memory <= usable
    return dataclasses.replace(stage, hours=hours, fits=fits)
