"""The algorithm written out: it runs through its command line, and its LoRA is one that diffusers loads."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

from spatialalign_trl.models import tiny_model_path

ROOT = Path(__file__).parents[2]
SMOKE = [
    "--train_prompts", "9", "--eval_prompts", "2", "--num_inference_steps", "6", "--score_threshold", "0.5",
    "--steps", "3", "--batch_size", "4",
]  # fmt: skip
MAX_LINES = 120


def run(output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "recipes/loop_from_parts.py", *SMOKE, "--output_dir", str(output_dir), *flags]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert "pairs from 36 videos" in done.stdout and "S@0.7 on 2 held-out prompts" in done.stdout
    return folder


def test_it_trains_a_lora_that_diffusers_loads(output_dir):
    results = json.loads((output_dir / "results.json").read_text())
    assert set(results) == {"base", "aligned", "loss", "pairs"} and results["pairs"] > 0
    assert results["loss"] < math.log(2)
    weights = load_file(output_dir / "pytorch_lora_weights.safetensors")
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)
    pipe = WanPipeline.from_pretrained(tiny_model_path())
    pipe.load_lora_weights(str(output_dir))
    assert pipe.get_active_adapters()


def test_the_first_step_has_the_loss_ln_2(output_dir):
    """The samples are found in the store, so this costs a training step and an evaluation."""
    assert run(output_dir, "--steps", "1").returncode == 0
    results = json.loads((output_dir / "results.json").read_text())
    assert results["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_losses_weights_reach_the_loss(output_dir):
    loras = []
    for weight in ("0", "5"):
        assert run(output_dir, "--zeroth_order_weight", weight).returncode == 0
        loras.append(load_file(output_dir / "pytorch_lora_weights.safetensors"))
    assert any(not torch.equal(value, loras[1][name]) for name, value in loras[0].items())


def test_it_stays_short_enough_to_read():
    assert len((ROOT / "recipes" / "loop_from_parts.py").read_text().splitlines()) <= MAX_LINES
