"""Which checkpoint a run can go on from, after it was killed at any moment."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from spatialalign_trl.files import read_json
from spatialalign_trl.models.lora import LORA_FILE

_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


def last_whole_checkpoint(folder: Path, world_size: int = 1, needed: tuple[str, ...] = ()) -> str | None:
    """
    The newest checkpoint that was written to its end. Trainer writes a checkpoint's files one after the other into its
    final folder, so that a process killed meanwhile leaves a part of one, which cannot be resumed from.

    Args:
        folder (`Path`):
            The trainer's `output_dir`.
        world_size (`int`, *optional*, defaults to `1`):
            Processes of the run, each of which leaves its random state.
        needed (`tuple[str, ...]`, *optional*):
            Further files that callbacks write after Trainer is done.

    Returns:
        `str`: its path; `None` when there is none.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))]
    for _, path in sorted(found, reverse=True):
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
                with safe_open(path / name, "pt"):
                    pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True
