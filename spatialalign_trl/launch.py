"""Was the job started as its user meant?"""

from __future__ import annotations

import os
import warnings


def check_launch() -> None:
    """Warns when several processes were asked for and one runs.

    `accelerate launch --cpu --num_processes 2` starts one process without a word. The launcher leaves its arguments in
    the parent's command line, where they can be read on Linux.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    asked = _processes_asked_for(_parent_command())
    if asked > 1:
        warnings.warn(
            f"accelerate was asked for {asked} processes and started one. On CPUs use `accelerate launch --multi_gpu "
            f"--num_processes {asked} ... --use_cpu`, or `torchrun --nproc_per_node {asked} ...`.",
            stacklevel=2,
        )


def _parent_command() -> list[str]:
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except OSError:  # not Linux: nothing to read, nothing to say
        return []


def _processes_asked_for(command: list[str]) -> int:
    if not any("accelerate" in word for word in command):
        return 1
    for index, word in enumerate(command):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (command[index + 1] if index + 1 < len(command) else "")
            return int(value) if value.isdigit() else 1
    return 1
