"""Two equal runs give equal files, byte for byte, so that a difference between two folders means something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import loop_processes
import pytest
from tiny_pipelines import saved_wan

HOLDER = ".holder"
"""Names the process that works, or worked last, in the folder: the one thing that is about this start alone."""
CACHE = "rounds/01/preferences/_cache/"
"""The datasets library's own copy of the parquet file beside it, under a name made of the file's time of change."""


def run(folder: str, place: Path, hash_seed: int) -> dict[str, bytes]:
    """Run the loop in a fresh process, whose sets have an order of their own, and return the content of all files."""
    place.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, loop_processes.__file__, folder, ".", "2"]
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-8000:]
    files = [path for path in (place / "run").rglob("*") if path.is_file()]
    return {path.relative_to(place / "run").as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_two_equal_runs_give_equal_files(tmp_path):
    folder = saved_wan(tmp_path / "model")
    first, second = (
        {name: content for name, content in run(folder, tmp_path / name, seed).items() if not name.startswith(CACHE)}
        for name, seed in (("a", 1), ("b", 2))
    )
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {HOLDER}
    kinds = {name.rpartition(".")[2] for name in first}
    assert kinds >= {"safetensors", "json", "mp4", "parquet", "png", "html", "md", "pt", "pth"}
