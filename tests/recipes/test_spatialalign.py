"""Run the main job through its command line, on the embedded model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from diffusers import WanPipeline
from safetensors.torch import load_file

from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.tiny import tiny_model_path

ROOT = Path(__file__).parents[2]
ARTEFACTS = ("results.json", "report.html", "contact_sheet.png", "pytorch_lora_weights.safetensors", "run.json")
LAUNCHER = ["-m", "accelerate.commands.launch"]
SMOKE = ["--config", "recipes/configs/smoke.yaml"]


def command(output_dir: Path, *more: str, launcher: bool = False) -> list[str]:
    """Return the job's command line. The launcher is left out by default, as it takes seconds to import."""
    python = [sys.executable, *(LAUNCHER if launcher else [])]
    return [*python, "recipes/spatialalign.py", *SMOKE, "--output_dir", str(output_dir), "--use_cpu", *more]


def run(output_dir: Path, *more: str, launcher: bool = False) -> subprocess.CompletedProcess:
    line = command(output_dir, *more, launcher=launcher)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)


def kill_at(output_dir: Path, mark: str) -> None:
    """Start the job and kill it as soon as a file matches the pattern."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(output_dir), cwd=ROOT, start_new_session=True, **quiet)
    deadline = time.monotonic() + 300
    while not list(output_dir.glob(mark)):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    done = run(folder, launcher=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.slow
def test_the_smoke_run_leaves_everything_and_prints_the_table(finished):
    folder, printed = finished
    for name in ARTEFACTS:
        assert (folder / name).is_file(), name
    results = json.loads((folder / "results.json").read_text())
    for policy in ("base", "aligned"):
        assert results[policy]["num_videos"] == 12
        assert {"sprite_shape", "distance_to_real", "sharpness"} <= set(results[policy]["quality"])
    assert len(Dataset.from_parquet(str(next((folder / "preferences").glob("*.parquet"))))) >= 4
    for word in ("S@0.7", "base", "aligned", "invalid_rate", "95 % interval", "contact_sheet.png"):
        assert word in printed


@pytest.mark.slow
def test_the_lora_restores_the_policy_bit_for_bit(finished):
    folder, _ = finished
    model = load_video_model("tiny", device="cpu")
    pipe = WanPipeline.from_pretrained(tiny_model_path())
    pipe.load_lora_weights(str(folder))
    model.load_lora(folder / "rounds" / "01" / "policy")
    generator = torch.Generator().manual_seed(0)
    settings = model.default_settings()
    shape = (1, *model.latent_shape(settings.num_frames, settings.height, settings.width))
    noisy, sigma = torch.randn(shape, generator=generator), torch.tensor([0.8])
    conditioning = model.encode_prompts(["a red fox"])
    with torch.no_grad():
        ours = model.predict(noisy, sigma, conditioning)
        assert torch.equal(ours, model.predict(noisy, sigma, conditioning, transformer=pipe.transformer))
        with model.reference():
            assert not torch.equal(ours, model.predict(noisy, sigma, conditioning))


@pytest.mark.slow
def test_a_run_killed_while_scoring_and_while_training_goes_on_and_ends_at_the_same_weights(finished, tmp_path):
    folder, _ = finished
    for mark in ("samples/*.scores.json", "rounds/01/policy/checkpoint-6/trainer_state.json"):
        kill_at(tmp_path, mark)
        assert not (tmp_path / "results.json").exists()
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, resumed = (load_file(run / "pytorch_lora_weights.safetensors") for run in (folder, tmp_path))
    assert expected.keys() == resumed.keys() and all(torch.equal(expected[name], resumed[name]) for name in expected)
    first, second = (json.loads((run / "results.json").read_text()) for run in (folder, tmp_path))
    assert first["aligned"] == second["aligned"]


@pytest.mark.slow
def test_a_typo_ends_before_anything_is_loaded_and_names_the_near_miss(tmp_path):
    done = run(tmp_path / "run", "--zeroth_order_wieght", "1")
    assert done.returncode != 0
    assert "zeroth_order_weight" in done.stderr
    assert not (tmp_path / "run").exists()
