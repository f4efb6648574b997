"""Check transformers' training arguments before work starts: their ranges, precision, steps and learning rates.

transformers checks few of them, and some only when a training begins, which here is after all videos are sampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from spatialalign_trl.models.ranges import COUNT, SEED, Range, brief

if TYPE_CHECKING:
    from transformers import TrainingArguments

NOT_NEGATIVE = Range(at_least=0)
SHARE_BELOW_ONE = Range(at_least=0, below=1)
STEPS = Range(at_least=0, note="Below 1 it is a share of all steps.")

TRAINING_RANGES = {
    # how long, and how much at once
    "max_steps": Range(at_least=1, at_most=1_000_000_000, also=-1, note="-1: num_train_epochs decides."),
    "num_train_epochs": Range(above=0, at_most=1_000_000),
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": COUNT,
    # the optimizer and its schedule
    "learning_rate": Range(above=0, note="SpatialAlign uses 1e-4."),
    "warmup_steps": Range(at_least=0, at_most=1_000_000_000, note="Below 1 it is a share of all steps."),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE_BELOW_ONE,
    "adam_beta2": SHARE_BELOW_ONE,
    "adam_epsilon": Range(at_least=0, below=1),
    "max_grad_norm": Range(at_least=0, note="0 switches clipping off."),
    "label_smoothing_factor": SHARE_BELOW_ONE,
    "neftune_noise_alpha": NOT_NEGATIVE,
    # when to log, evaluate and save
    "logging_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": STEPS,
    "eval_delay": NOT_NEGATIVE,
    "save_total_limit": Range(at_least=0, at_most=1_000_000),
    # seeds
    "seed": SEED,
    "data_seed": SEED,
    # processes and memory
    "dataloader_num_workers": Range(at_least=0, at_most=1024),
    "dataloader_prefetch_factor": Range(at_least=1, at_most=1024),
    "torch_empty_cache_steps": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": Range(at_least=1, at_most=100_000_000),
    "local_rank": Range(at_least=0, at_most=1_000_000, also=-1),
}
"""The range of every numeric field of [`~transformers.TrainingArguments`]."""

STRUCTURED = ("accelerator_config", "deepspeed", "fsdp", "fsdp_config", "parallelism_config", "debug")
"""Fields that transformers reads further settings or files from; its errors do not name them."""


@contextmanager
def explain_training_arguments(args: TrainingArguments) -> Iterator[None]:
    """
    Convert errors of transformers' own checks into one line that names the fields that may be wrong.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The arguments that are being checked.

    Raises:
        ValueError: for whatever the block raises.
    """
    set_fields = [name for name in STRUCTURED if getattr(args, name) not in (None, "", [], False)]
    try:
        yield
    except Exception as error:  # JSON and type errors too: whatever these fields contain
        message = " ".join(str(error).split())
        names = {one.name for one in dataclasses.fields(args)}
        if set_fields and not any(name in message for name in names - {"fsdp", "debug"}):
            shown = ", ".join(f"{name}={brief(getattr(args, name))}" for name in set_fields)
            message = f"{shown}: {type(error).__name__}: {message}"
        raise ValueError(message) from error


def check_mappings(args: TrainingArguments, names: Sequence[str]) -> None:
    """Raise a `ValueError` for a text where a mapping belongs, unless it may be the path of a file with one."""
    texts = {name: getattr(args, name) for name in names if name not in STRUCTURED}
    texts = {name: value for name, value in texts.items() if value is not None and not isinstance(value, dict)}
    if texts:  # transformers copies a field with an old name to the new name: both are named
        shown = ", ".join(f"{name}={brief(value)}" for name, value in texts.items())
        raise ValueError(f"{shown}: must be a mapping, such as {{name: value}}, or None.")


def check_mixed_precision(args: TrainingArguments) -> None:
    """Raise a `ValueError` for fp16 on a CPU, which accelerate refuses only when a trainer is built."""
    if args.fp16 and (args.use_cpu or not torch.accelerator.is_available()):
        raise ValueError(
            "fp16=True: mixed precision in fp16 needs a GPU, and this run computes on the CPU. Leave fp16 out, or set "
            "bf16=True."
        )


def check_steps(args: TrainingArguments) -> None:
    """Raise a `ValueError` if the learning rate is still being warmed up when the training ends."""
    if args.max_steps > 0:
        check_warmup(args, args.max_steps)


def check_warmup(args: TrainingArguments, num_steps: int) -> None:
    """
    Check that the warm-up ends before the training does.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The arguments.
        num_steps (`int`):
            The largest number of steps that the training can have.

    Raises:
        ValueError: if the warm-up is longer, so that the learning rate stays far below the one that is set.
    """
    if args.lr_scheduler_type == SchedulerType.CONSTANT or args.get_warmup_steps(num_steps) <= num_steps:
        return
    raise ValueError(
        f"warmup_steps={args.warmup_steps:g} is past the end of the training, which has at most {num_steps} steps: "
        f"the learning rate is never reached. Set warmup_steps to less, such as {num_steps // 10}, or train longer."
    )


def check_schedule(args: TrainingArguments) -> None:
    """
    Build the schedule of the learning rate once, and look at its rates.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The arguments.

    Raises:
        ValueError: if the schedule cannot be built with `lr_scheduler_kwargs`, or its rates are negative, not finite,
            or all 0.
    """
    name, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    shown = f"lr_scheduler_type={getattr(name, 'value', name)!r}, lr_scheduler_kwargs={brief(options)}"
    num_steps = args.max_steps if args.max_steps > 0 else max(1000, 10 * math.ceil(args.warmup_steps))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        schedule = get_scheduler(
            name, optimizer, args.get_warmup_steps(num_steps), num_steps, scheduler_specific_kwargs=options
        )
        if not isinstance(schedule, LambdaLR):  # its rates depend on the losses
            return
        steps = sorted({round(k * (num_steps - 1) / 63) for k in range(64)})
        rates = [args.learning_rate * schedule.lr_lambdas[0](step) for step in steps]
        wrong = [rate for rate in rates if not (isinstance(rate, (int, float)) and 0 <= rate < math.inf)]
    except Exception as error:  # whatever the schedule's function raises for these options
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown}: this schedule cannot be built: {reason}") from error
    if wrong or not max(rates) > 0:
        found = f"has the learning rate {wrong[0]!r}" if wrong else "has the learning rate 0 at every step"
        raise ValueError(f"{shown}: the schedule {found}. Change lr_scheduler_kwargs, or choose another schedule.")
