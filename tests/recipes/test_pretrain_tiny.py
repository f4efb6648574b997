"""The pretraining recipe with a few steps per stage: it resumes, and it exports a pipeline."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

from spatialalign_trl.models import load_video_model

ROOT = Path(__file__).parents[2]
STEPS = {"vae_steps": "3 2 2", "decoder_steps": "2", "denoiser_steps": "4", "num_clips": "32"}
SIZES = {"vae_batch_size": "2", "denoiser_batch_size": "4", "save_steps": "2", "threads": "1"}


def command(folder: Path, **settings: str) -> list[str]:
    flags = {"output_dir": str(folder), **STEPS, **SIZES, **settings}
    words = [word for name, value in flags.items() for word in (f"--{name}", *value.split())]
    return [sys.executable, "recipes/pretrain_tiny.py", *words]


def run(folder: Path, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, **settings), cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_all_stages_end_in_a_pipeline_that_samples(tmp_path, residual):
    process = run(
        tmp_path, vae_residual=str(residual).lower(), vae_channels="20" if residual else "16", latent_channels="12"
    )
    assert process.returncode == 0, process.stderr[-3000:]
    model = load_video_model(str(tmp_path / "pipeline"), device="cpu")
    assert isinstance(model.pipeline, WanPipeline)
    settings = model.default_settings()
    latents = model.sample(model.encode_prompts(["a red fox"]), model.encode_prompts([""]), [0], settings)
    (video,) = model.decode_latents(latents)
    assert video.shape == (17, 32, 48, 3)


@pytest.mark.slow
def test_a_killed_stage_resumes_to_the_same_weights(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    small = {"vae_residual": "false", "vae_channels": "16"}
    settings = {"stages": "vae", "vae_steps": "60 5 5", "save_steps": "10", **small}
    assert run(whole, **settings).returncode == 0
    discard_output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(parts, **settings), cwd=ROOT, **discard_output)
    deadline = time.monotonic() + 300
    while not (parts / "vae.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert int(load_file(parts / "vae.safetensors")["done"]) < 70
    assert run(parts, **settings).returncode == 0
    checkpoint = load_file(parts / "vae.safetensors")
    assert int(checkpoint["done"]) == 70
    for name, value in load_file(whole / "vae.safetensors").items():
        assert torch.equal(value, checkpoint[name]), name


def test_an_unknown_stage_is_named(tmp_path):
    process = run(tmp_path, stages="vea")
    assert process.returncode != 0 and "stages=['vea']: unknown" in process.stderr and "denoiser" in process.stderr
