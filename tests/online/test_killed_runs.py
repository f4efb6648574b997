"""A run that is killed at any moment and started again ends at the weights of an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import saved_wan

from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.trainer.checkpoints import last_whole_checkpoint

PROGRAM = Path(__file__).parents[1] / "support" / "killed_runs.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_a_run_killed_at_random_moments_ends_at_the_same_weights(tmp_path):
    folder = saved_wan(tmp_path / "model")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), folder, str(tmp_path), "3"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "report.json").read_text())["kills"] >= 1
    for name in (LORA_FILE, f"ema/{LORA_FILE}"):
        whole, killed = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole), name
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed")]
    assert results[0]["aligned"] == results[1]["aligned"] and results[0]["base"] == results[1]["base"]


def checkpoint(folder: Path, step: int) -> Path:
    """Write a checkpoint with the files of Trainer that are checked."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in (LORA_FILE, "adapter_model.safetensors"):
        save_file({"x": torch.zeros(1)}, path / name)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_bytes(b"x")
    (path / "trainer_state.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("lost", "cut"),
    [
        ("optimizer.pt", None),
        ("rng_state.pth", None),
        # torch's own files are written before the last one, so their contents need no check
        *(
            (name, cut)
            for name in ("trainer_state.json", LORA_FILE, "adapter_model.safetensors")
            for cut in (None, b"{")
        ),
    ],
)
def test_an_incomplete_checkpoint_is_skipped(tmp_path, lost, cut):
    whole, broken = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert last_whole_checkpoint(tmp_path) == str(broken)
    if cut is None:
        (broken / lost).unlink()
    else:
        (broken / lost).write_bytes(cut)
    assert last_whole_checkpoint(tmp_path) == str(whole)


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None


def test_a_checkpoint_needs_the_random_state_of_every_process(tmp_path):
    path = checkpoint(tmp_path, 1)
    assert last_whole_checkpoint(tmp_path, world_size=2) is None
    for rank in (0, 1):
        (path / f"rng_state_{rank}.pth").write_bytes(b"x")
    assert last_whole_checkpoint(tmp_path, world_size=2) == str(path)


def test_a_checkpoint_needs_the_files_of_every_callback(tmp_path):
    checkpoint(tmp_path, 1)
    assert last_whole_checkpoint(tmp_path, needed=("ema/x.safetensors",)) is None
