"""Choose the default device, and release cached accelerator memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def default_device() -> torch.device:
    """Return this process's GPU, or the CPU if there is none."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Every rank of a launch sees all GPUs of its machine, so the current device is not enough.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def release_memory() -> None:
    """Release memory that is cached on the accelerator and no longer used."""
    import torch
    from accelerate.utils.memory import clear_device_cache

    if torch.accelerator.is_available():
        clear_device_cache(garbage_collection=True)
