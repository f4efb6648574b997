"""Check how a recipe was launched, quieten the libraries that it uses, and end it cleanly after Ctrl-C."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import PurePath

from spatialalign_trl.safe_text import printable_lines


@contextmanager
def launched(message: str | None = None) -> Iterator[None]:
    """
    Run a recipe: check how it was launched, quieten the libraries, and handle Ctrl-C.

    Ctrl-C ends the process with exit code 130 and a line that says how to continue, without a traceback.

    Args:
        message (`str`, *optional*):
            The line that is printed after Ctrl-C. Defaults to the message of the `KeyboardInterrupt`.

    Raises:
        SystemExit: With code 130, after Ctrl-C.
    """
    check_launch()
    quiet_libraries()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(printable_lines(message or interrupt), file=sys.stderr)
        raise SystemExit(130) from None


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars (loading weights, writing parquet files), so that only the job's show."""
    import datasets
    import diffusers
    import transformers

    datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def check_launch() -> None:
    """
    Warn if several processes were requested and only one runs.

    `accelerate launch --cpu --num_processes 2` silently starts one process. On Linux, the launcher's arguments can be
    read from the parent process's command line.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    requested = _requested_processes(_parent_command())
    if requested > 1:
        warnings.warn(
            f"accelerate was asked for {requested} processes and started one. On CPUs use `accelerate launch "
            f"--multi_gpu --num_processes {requested} ... --use_cpu`, or `torchrun --nproc_per_node {requested} ...`.",
            stacklevel=2,
        )


def _parent_command() -> list[str]:
    """Read the parent process's command line; empty where it cannot be read."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except OSError:  # There is no /proc outside Linux.
        return []


def _requested_processes(command: list[str]) -> int:
    """Return the value of `--num_processes` in a command line of `accelerate launch`; 1 for any other command."""
    launchers = [index for index, word in enumerate(command) if _is_accelerate(word)]
    arguments = command[launchers[0] + 1 :] if launchers else []
    for word, following in pairwise([*arguments, ""]):
        if word.endswith(".py"):  # The rest are the script's own arguments.
            break
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or following
            return int(value) if value.isdigit() else 1
    return 1


def _is_accelerate(word: str) -> bool:
    """Recognise `accelerate`, `accelerate-launch`, and the launcher's module as `python -m` names or resolves it."""
    is_module = word.startswith("accelerate.") or word.endswith(("accelerate/commands/launch.py", "accelerate_cli.py"))
    return is_module or PurePath(word).name in ("accelerate", "accelerate-launch")
