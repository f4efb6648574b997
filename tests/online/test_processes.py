"""Two processes of the loop sample, score, pair, train and evaluate what a single process does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import loop_processes
import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import saved_wan


def launch(folder: str, output: Path, processes: int, batch: int) -> list[dict]:
    """Run the loop and return the report of every process."""
    output.mkdir()
    if processes == 1:
        loop_processes.main(folder, output, batch)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        command = [*torchrun, loop_processes.__file__, folder, str(output), str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-8000:]
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_roll_out_score_pair_train_and_evaluate_as_one(tmp_path):
    folder = saved_wan(tmp_path / "model")
    first, second = launch(folder, tmp_path / "2", 2, batch=1)
    (single,) = launch(folder, tmp_path / "1", 1, batch=2)
    assert first["world"] == second["world"] == 2  # some launchers quietly start a single process
    assert first == second
    # Every video has its own noise, so it does not matter which process samples it. The reward hashes the pixels.
    assert first["base"] == single["base"]
    assert first["rounds"][0]["rollouts"] == single["rounds"][0]["rollouts"]
    assert first["rounds"][0]["preferences"] == single["rounds"][0]["preferences"]
    loras = [load_file(tmp_path / name / "run" / "pytorch_lora_weights.safetensors") for name in ("1", "2")]
    for name, value in loras[0].items():
        torch.testing.assert_close(value, loras[1][name], rtol=0, atol=1e-6)
