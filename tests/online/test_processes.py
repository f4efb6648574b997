"""The whole loop on two gloo processes: what it evaluates, pairs and trains is what one process does."""

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
    two = launch(folder, tmp_path / "2", 2, batch=1)
    (one,) = launch(folder, tmp_path / "1", 1, batch=2)
    assert [seen["world"] for seen in two] == [2, 2]  # some launchers quietly start a single process
    assert two[0] == two[1]
    # Every video has its own noise, so that who samples it does not matter; the reward hashes the pixels.
    assert two[0]["base"] == one["base"]
    assert two[0]["rounds"][0]["rollouts"] == one["rounds"][0]["rollouts"]
    assert two[0]["rounds"][0]["preferences"] == one["rounds"][0]["preferences"]
    loras = [load_file(tmp_path / name / "run" / "pytorch_lora_weights.safetensors") for name in ("1", "2")]
    for name, value in loras[0].items():
        torch.testing.assert_close(value, loras[1][name], rtol=0, atol=1e-6)
