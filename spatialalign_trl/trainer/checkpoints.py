"""Find the checkpoint that a stopped run can be resumed from, and refuse a damaged or a non-finite one."""

from __future__ import annotations

import re
import time
import warnings
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from spatialalign_trl.files import damaged_files, is_intact, read_json, write_checksums, write_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.models.lora_files import PEFT_FILE
from spatialalign_trl.trainer.finiteness import first_non_finite

STATE_FILE = "trainer_state.json"
TRAINING_STATE = ("optimizer.pt", "scheduler.pt", STATE_FILE)
"""Files of a checkpoint without which a training cannot continue as it was."""
NON_FINITE_FILE = "non_finite.json"
"""File of a checkpoint whose weights gave a loss or a gradient that is not finite; says at which step and pair."""

_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_REPLACED = "replaced"
_CLOCK_SECONDS = 2.0
"""Coarsest resolution of a file system's times of change."""


def last_whole_checkpoint(folder: Path, world_size: int = 1, needed: tuple[str, ...] = ()) -> str | None:
    """
    Return the newest checkpoint that is complete and undamaged. Warns of every newer one, with what is wrong with it.

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
    refused: list[str] = []
    found: Path | None = None
    for path in checkpoints_of(folder):
        problem = _missing_file(path, world_size, needed) or damage_of(path)
        if problem is None:
            found = path
            break
        refused.append(f"{path.name} ({problem})")
    if refused:
        start = f"continuing from {found.name}" if found is not None else "there is no other: starting from step 0"
        warnings.warn(
            f"{folder}: cannot continue from {', '.join(refused)}; {start}. The folders are left as they are.",
            stacklevel=2,
        )
    return None if found is None else str(found)


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints in a trainer's `output_dir`, whole or not, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def set_checkpoints_aside(folder: Path) -> Path | None:
    """
    Move all checkpoints of a trainer's `output_dir` to `replaced-N` in it, so that the training starts from step 0.

    Args:
        folder (`Path`):
            The trainer's `output_dir`.

    Returns:
        `Path`: the folder that they are in now; `None` if there are none.
    """
    checkpoints = checkpoints_of(folder)
    if not checkpoints:
        return None
    number = 1
    while (folder / f"{_REPLACED}-{number}").exists():
        number += 1
    target = folder / f"{_REPLACED}-{number}"
    target.mkdir()
    for path in checkpoints:
        path.rename(target / path.name)
    return target


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


def record_checksums(checkpoint: Path) -> None:
    """Write the checksums of all files that this process has saved in a checkpoint; called when it is complete."""
    # The random state of another process may still be being written.
    names = [path.name for path in checkpoint.iterdir() if path.is_file() and not _is_random_state_of_other(path)]
    write_checksums(checkpoint, names)


def _is_random_state_of_other(path: Path) -> bool:
    return path.match("rng_state_*.pth") and path.name != "rng_state_0.pth"


def _missing_file(path: Path, world_size: int, needed: tuple[str, ...]) -> str | None:
    """Return what a checkpoint lacks to be resumed from, or `None`."""
    for name in (*TRAINING_STATE, PEFT_FILE, LORA_FILE, *needed):
        if not (path / name).is_file():
            return f"{name} is missing"
    states = len(list(path.glob("rng_state*.pth")))
    return None if states >= world_size else f"it has the random states of {states} of {world_size} processes"


def damage_of(checkpoint: Path) -> str | None:
    """
    Return what is wrong with the files that a checkpoint has, or `None` if they are sound.

    Compares them with the checksums that were written with the checkpoint. Files without one (of earlier versions, or
    of other processes) must be readable: torch's files are archives with a checksum of each part.

    Args:
        checkpoint (`Path`):
            The folder of the checkpoint.
    """
    files = {path: path.stat() for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    newest = max((stat.st_mtime for stat in files.values()), default=0.0)
    if newest > time.time() - _CLOCK_SECONDS:  # a second change could have the same time
        return next(_problems(checkpoint), None)
    # A resume looks for a checkpoint and then loads it; nothing is read twice that has not changed.
    return _damage_of(checkpoint, tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in files.items()))


@lru_cache(maxsize=64)
def _damage_of(checkpoint: Path, files: tuple[tuple[Path, int, int], ...]) -> str | None:
    return next(_problems(checkpoint), None)


def _problems(checkpoint: Path) -> Iterator[str]:
    if (checkpoint / NON_FINITE_FILE).exists():
        yield f"its weights gave numbers that are not finite ({NON_FINITE_FILE})"
    for name, problem in damaged_files(checkpoint).items():
        yield f"{name} {problem}"
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
        try:
            with zipfile.ZipFile(path) as archive:
                is_damaged = archive.testzip() is not None
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
            is_damaged = True
        if is_damaged:
            yield f"{path.name} is not a whole file of torch"
    for path in sorted(checkpoint.rglob("*.safetensors")):
        try:
            content = path.read_bytes()
            weights = load(content)  # fails if the file was cut off
        except (OSError, SafetensorError):
            yield f"{path.relative_to(checkpoint)} is damaged"
            continue
        if not is_intact(content):
            yield f"{path.relative_to(checkpoint)} is damaged"
        elif first_non_finite(weights) is not None:
            yield f"{path.relative_to(checkpoint)} has weights that are not finite"
    if (checkpoint / STATE_FILE).is_file():
        try:
            state = read_json(checkpoint / STATE_FILE)
        except ValueError:
            yield f"{STATE_FILE} is not JSON"
            return
        step = state.get("global_step") if isinstance(state, dict) else None
        match = _CHECKPOINT.match(checkpoint.name)
        if not isinstance(step, int) or (match is not None and step != int(match[1])):
            yield f"{STATE_FILE} has global_step {step!r}"


def refuse_damaged(checkpoint: Path) -> None:
    """
    Refuse to resume from a damaged checkpoint.

    Args:
        checkpoint (`Path`):
            The folder of the checkpoint.

    Raises:
        ValueError: names the file, and the newest sound checkpoint beside it.
    """
    problem = damage_of(checkpoint)
    if problem is None:
        return
    others = [path for path in checkpoints_of(checkpoint.parent) if path != checkpoint and damage_of(path) is None]
    remedy = f"Resume from {others[0]}." if others else "There is no other checkpoint beside it: train from step 0."
    raise ValueError(f"{checkpoint} is damaged: {problem}. {remedy}")
