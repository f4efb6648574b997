"""Find the checkpoint that a run can be resumed from after it was killed, or after its numbers became infinite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.trainer.finiteness import first_non_finite

NON_FINITE_FILE = "non_finite.json"
"""File of a checkpoint whose weights gave a loss or a gradient that is not finite; says at which step and pair."""

_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


def last_whole_checkpoint(folder: Path, world_size: int = 1, needed: tuple[str, ...] = ()) -> str | None:
    """
    Return the newest checkpoint that is complete, and whose weights a training can continue from.

    Trainer writes the files of a checkpoint one by one into its final folder, so a process that is killed while it
    saves leaves an incomplete checkpoint, which cannot be resumed from. Neither can one whose weights are not finite,
    or gave a loss that is not finite ([`mark_non_finite`]): the same step would fail again, whatever the learning
    rate.

    Args:
        folder (`Path`):
            The trainer's `output_dir`.
        world_size (`int`, *optional*, defaults to `1`):
            Number of processes of the run, each of which saves its random state.
        needed (`tuple[str, ...]`, *optional*):
            Paths, in the checkpoint, of further files that callbacks write after Trainer has finished.

    Returns:
        `str`: the path of the checkpoint; `None` if there is no complete one.
    """
    checkpoints = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))
    ]
    for _, path in sorted(checkpoints, reverse=True):
        if _is_whole(path, world_size, needed):
            return str(path)
    return None


def mark_non_finite(checkpoint: Path, reason: dict[str, Any]) -> bool:
    """
    Mark a checkpoint from which the training cannot continue; its files are kept.

    Args:
        checkpoint (`Path`):
            Its folder.
        reason (`dict[str, Any]`):
            What was not finite, at which step and example; written to [`NON_FINITE_FILE`].

    Returns:
        `bool`: whether there is such a checkpoint.
    """
    if not checkpoint.is_dir():
        return False
    write_json(checkpoint / NON_FINITE_FILE, reason)
    return True


def _is_whole(path: Path, world_size: int, needed: tuple[str, ...]) -> bool:
    if not all((path / name).is_file() for name in ("optimizer.pt", "scheduler.pt", *needed)):
        return False
    if (path / NON_FINITE_FILE).exists():
        return False
    if len(list(path.glob("rng_state*.pth"))) < world_size:
        return False
    try:
        read_json(path / "trainer_state.json")  # Trainer writes it last
        for name in (LORA_FILE, "adapter_model.safetensors", *needed):
            if name.endswith(".safetensors"):
                weights = load_file(path / name)  # fails if the file was cut off
                if first_non_finite(weights) is not None:
                    return False
    except (OSError, ValueError, SafetensorError):
        return False
    return True
