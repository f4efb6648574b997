"""Find the checkpoint that a killed run can be resumed from."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from spatialalign_trl.files import read_json
from spatialalign_trl.models.lora import LORA_FILE

_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


def last_whole_checkpoint(folder: Path, world_size: int = 1, needed: tuple[str, ...] = ()) -> str | None:
    """
    Return the newest checkpoint that is complete.

    Trainer writes the files of a checkpoint one by one into its final folder, so a process that is killed while it
    saves leaves an incomplete checkpoint, which cannot be resumed from.

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


def _is_whole(path: Path, world_size: int, needed: tuple[str, ...]) -> bool:
    if not all((path / name).is_file() for name in ("optimizer.pt", "scheduler.pt", *needed)):
        return False
    if len(list(path.glob("rng_state*.pth"))) < world_size:
        return False
    try:
        read_json(path / "trainer_state.json")  # Trainer writes it last
        for name in (LORA_FILE, "adapter_model.safetensors", *needed):
            if name.endswith(".safetensors"):
                with safe_open(path / name, "pt"):  # fails if the file was cut off
                    pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True
