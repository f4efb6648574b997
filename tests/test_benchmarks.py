"""The benchmarks still run; what they measure is not asked here."""

import os
import re
import subprocess
import sys

import pytest


def output(repo_root, script: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, str(repo_root / "benchmarks" / script), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dsr_geometry(repo_root):
    printed = output(repo_root, "dsr_geometry.py", "--videos", "2", "5", "--frames", "30", "--turns", "2")
    assert re.findall(r"(\d+) videos: one by one / batched +\d+\.\d\d \[", printed) == ["2", "5"]


@pytest.mark.slow
def test_trainer_step(repo_root):
    size = ["--pairs", "1", "--latent_size", "1", "2", "2", "--layers", "1", "--heads", "1", "--turns", "2"]
    printed = output(repo_root, "trainer_step.py", *size)
    for measure in ("separate_forward / batched", "checkpointing / without", "reference's share of a step"):
        assert re.search(rf"{measure} +\d+\.\d\d   \[", printed), printed
    kept = float(re.search(r"activations kept +(\d+\.\d\d)", printed)[1])
    assert 0 < kept < 1  # a switch that is not switched gives 1.00
    share = float(re.search(r"share of a step +(\d+\.\d\d)", printed)[1])
    assert 0 < share < 1


def test_every_benchmark_opens_with_its_launch_line(repo_root):
    for script in ("dsr_geometry.py", "trainer_step.py"):
        assert f"    python benchmarks/{script}\n" in (repo_root / "benchmarks" / script).read_text().split('"""')[1]
