"""Where a process computes when nobody says, and giving memory back there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def default_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Every rank of a launch sees all GPUs of its machine.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def give_back_memory() -> None:
    """Returns what is reserved on the accelerator and no longer used."""
    import torch
    from accelerate.utils.memory import clear_device_cache

    if torch.accelerator.is_available():
        clear_device_cache(garbage_collection=True)
