"""Was the job started as its user meant?"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import PurePath


@contextmanager
def launched(told: str | None = None) -> Iterator[None]:
    """
    A recipe's process: looks at how it was started, and ends after Ctrl-C with code 130 and a line that says how to go
    on, where a traceback adds nothing.

    Args:
        told (`str`, *optional*): The line; by default the interrupt's own.
    """
    check_launch()
    quiet_libraries()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(told or interrupt, file=sys.stderr)
        raise SystemExit(130) from None


def quiet_libraries() -> None:
    """Leaves the terminal to the job's own progress bars: no bars for loading weights or writing parquet files."""
    import datasets
    import diffusers
    import transformers

    datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


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
    """What follows `--num_processes` in the command line of `accelerate launch`; 1 for any other."""
    launchers = [index for index, word in enumerate(command) if _is_accelerate(word)]
    arguments = command[launchers[0] + 1 :] if launchers else []
    for word, following in pairwise([*arguments, ""]):
        if word.endswith(".py"):  # what follows are the script's own arguments
            break
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or following
            return int(value) if value.isdigit() else 1
    return 1


def _is_accelerate(word: str) -> bool:
    """The command `accelerate` or `accelerate-launch`, or its module as `python -m` is given or turns it into."""
    is_module = word.startswith("accelerate.") or word.endswith(("accelerate/commands/launch.py", "accelerate_cli.py"))
    return is_module or PurePath(word).name in ("accelerate", "accelerate-launch")
