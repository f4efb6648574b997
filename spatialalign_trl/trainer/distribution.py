"""Refuse, before any work starts, the ways of distributing a run over processes that cannot work here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments


def refuse_unsupported_distribution(args: TrainingArguments, *, samples: bool = False) -> None:
    """
    Refuse `torch.nn.DataParallel`, DeepSpeed ZeRO-3, and sampling with a transformer that FSDP has split.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Their number of GPUs per process and their settings of DeepSpeed and FSDP are checked.
        samples (`bool`, *optional*, defaults to `False`):
            Whether the same processes also sample videos, as the online loop does.

    Raises:
        ValueError: if the run is distributed in one of these ways.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, and transformers would use torch.nn.DataParallel, which "
            "copies the network at every step and cannot switch its adapters off for the reference. Start one process "
            "per GPU (`accelerate launch --multi_gpu ...`), or make a single GPU visible (`CUDA_VISIBLE_DEVICES=0`)."
        )
    if zero_stage(args) == 3:
        raise ValueError(
            "DeepSpeed ZeRO-3 is not supported: it replaces the network's weights by empty tensors between forwards, "
            "so the reference (the same network with its adapters off) and the LoRA's state dict would be read from "
            "empty tensors. It also needs reentrant checkpointing, which diffusers' models do not use. Use ZeRO-2 "
            "(recipes/configs/accelerate/deepspeed_zero2.yaml), or FSDP2 (fsdp2.yaml) for a base that does not fit."
        )
    if samples and uses_fsdp(args):
        raise ValueError(
            "FSDP cannot be used where the same processes also sample: every forward of a split network needs all "
            "processes, but each process samples different videos. Use recipes/configs/accelerate/ddp.yaml, or train "
            "offline on the run's preferences with SpatialAlignTrainer (docs/training.md)."
        )


def zero_stage(args: TrainingArguments) -> int | None:
    """Return DeepSpeed's ZeRO stage, from the arguments or from `accelerate launch`; `None` without DeepSpeed."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return int(plugin.zero_stage)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    return None


def uses_fsdp(args: TrainingArguments) -> bool:
    """Return whether the arguments or `accelerate launch` ask for FSDP; on CPUs accelerate uses DDP instead."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    return (bool(getattr(args, "fsdp", None)) or launched) and not args.use_cpu
