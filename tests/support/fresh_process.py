"""Run the programs of `tests/support/programs/` in fresh Python processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parent / "programs"


def program_command(name: str, *arguments: object) -> list[str]:
    """Return the command that starts a program, such as `dsr_grades.py`, with these arguments."""
    return [sys.executable, str(PROGRAMS / name), *map(str, arguments)]


def run_program(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """
    Run a program to its end and return what it printed.

    Args:
        name: the program's file name.
        arguments: its command-line arguments.
        options: for `subprocess.run`, such as `env` or `cwd`.

    Raises:
        AssertionError: if the program fails. The message contains its output.
    """
    done = subprocess.run(program_command(name, *arguments), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    return done
