"""The benchmarks run and print their ratios. The values are not tested."""

import json
import os
import re
import subprocess
import sys

import pytest


def output(repo_root, script: str, *flags: str) -> str:
    process = subprocess.run(
        [sys.executable, str(repo_root / "benchmarks" / script), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_dsr_geometry(repo_root):
    printed = output(repo_root, "dsr_geometry.py", "--videos", "2", "5", "--frames", "30", "--turns", "2")
    assert re.findall(r"(\d+) videos: one by one / batched +\d+\.\d\d \[", printed) == ["2", "5"]


def test_perception_geometry(repo_root):
    size = ["--parts", "geometry", "--videos", "7", "--frames", "30", "--turns", "2"]
    printed = output(repo_root, "perception.py", *size)
    assert "7 videos of 30 frames" in printed
    for source in ("FrameBoxes", "one array"):
        for name in ("NumPy per frame", "floats per frame"):
            assert re.search(rf"{source} +{name} +/ library +\d+\.\d\d \[", printed), printed


@pytest.mark.slow
def test_perception_tracking(repo_root):
    size = ["--clip_frames", "5", "--clip_size", "32", "48", "--batch_size", "2", "--turns", "2"]
    printed = output(repo_root, "perception.py", "--parts", "tracking", *size)
    assert "agree to a tenth of a pixel: 5 of 5" in printed, printed
    assert "largest difference of followed boxes: 0.0 pixels" in printed, printed
    # The detector gets two frames per call. The library encodes the prompt frame once, plain once per session.
    passes = re.findall(r"(\w+'s \w+ encoder): calls, plain / library +[\d.]+ \((\d+) / (\d+)\)", printed)
    assert sorted(passes) == [
        ("detector's image encoder", "5", "3"),
        ("detector's text encoder", "5", "3"),
        ("follower's image encoder", "6", "5"),
    ]
    for measure in ("time", "peak memory"):
        assert re.search(rf"{measure}, plain / library +\d+\.\d\d", printed), printed


@pytest.mark.slow
def test_trainer_step(repo_root):
    size = ["--pairs", "1", "--latent_size", "1", "2", "2", "--layers", "1", "--heads", "1", "--turns", "2"]
    printed = output(repo_root, "trainer_step.py", *size)
    for measure in ("separate_forward / batched", "checkpointing / without", "reference's share of a step"):
        assert re.search(rf"{measure} +\d+\.\d\d \[", printed), printed
    kept = float(re.search(r"activations kept +(\d+\.\d\d)", printed)[1])
    assert 0 < kept < 1  # 1.00 would mean that checkpointing was not switched on
    share = float(re.search(r"share of a step +(\d+\.\d\d)", printed)[1])
    assert 0 < share < 1


SMALL_WAN = ["--latent_size", "1", "2", "2", "--layers", "1", "--heads", "1", "--head_dim", "12", "--ffn_dim", "8"]


@pytest.mark.slow
def test_training(repo_root):
    printed = output(repo_root, "training.py", *SMALL_WAN, "--pairs", "1", "--steps", "2", "--turns", "1")
    for way in ("trainer", "precomputed"):
        assert f"losses of 3 steps agree, plain and {way}" in printed
        assert re.search(rf"peak without weights, {way} / plain +\d+\.\d\d \(", printed), printed
    for measure in ("time, trainer / plain", "time, precomputed / plain", "trainer - bare, ms per step"):
        assert re.search(rf"{measure} +-?\d+\.\d\d \[", printed), printed
    # One network and its adapter, compared with two networks.
    share = float(re.search(r"resident weights, trainer / plain +(\d\.\d+)", printed)[1])
    assert 0.5 < share < 0.7


def test_rollout(repo_root):
    printed = output(repo_root, "rollout.py", "--prompts", "1", "--seeds", "2", "--turns", "1")
    assert "2 videos (1 prompts x 2 seeds)" in printed
    assert re.search(r"videos agree: \d+\.\d+% of values are equal, others differ by [01] at most", printed), printed
    assert re.search(r"time, plain / library +\d+\.\d\d \[", printed), printed


@pytest.mark.slow
def test_processes(repo_root):
    work = ["--prompts", "2", "--seeds", "1", "--pairs", "2", "--steps", "2", "--turns", "1"]
    printed = output(repo_root, "processes.py", *SMALL_WAN, *work)
    assert "the same 2 samples; losses differ by" in printed
    for part in ("rollouts", "a training step"):
        assert re.search(rf"{part}, 1 process / 2 +\d+\.\d\d \[", printed), printed
    for moment in ("before", "after"):
        assert re.search(rf"{moment}: \d+ cores, of which \d+\.\d\d idle", printed), printed


@pytest.mark.slow
def test_gpu_on_a_cpu(repo_root, tmp_path):
    file = tmp_path / "rows.json"
    printed = output(repo_root, "gpu.py", "--tiny", "--json", str(file))
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    for name in ("one prediction of the sampler", "VAE decode", "VAE decode, tiled", "step, checkpointing"):
        assert rows[name]["seconds"] > 0 and rows[name]["forecast_peak"] > 0, printed
    for name in ("step, no checkpointing", "step of plain_step.py, copied reference", "step, attention _native_flash"):
        assert rows[name]["failure"] == "", printed
    # Rows fail on their own: kernels of GPUs are not here, and the rows after them are.
    assert "computes on CUDA GPUs" in rows["step, attention _native_cudnn"]["failure"]
    assert rows["the loop of smoke.yaml, as a process"]["failure"] == "", printed


def test_every_benchmark_has_its_launch_line_in_its_docstring(repo_root):
    scripts = (
        "dsr_geometry.py",
        "gpu.py",
        "perception.py",
        "processes.py",
        "rollout.py",
        "trainer_step.py",
        "training.py",
    )
    for script in (*scripts, "training.py"):
        assert f"    python benchmarks/{script}\n" in (repo_root / "benchmarks" / script).read_text().split('"""')[1]
