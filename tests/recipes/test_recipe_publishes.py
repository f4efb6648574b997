"""Check that one command pushes a run's LoRA and preferences to the Hub, and writes the token nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from loopback_hub import TOKEN

ROOT = Path(__file__).parents[2]
LINE = "-m accelerate.commands.launch recipes/spatialalign.py --config recipes/configs/smoke.yaml --use_cpu"
SMALLER = "--max_train_prompts 6 --max_eval_prompts 2 --num_inference_steps 3 --max_steps 2 --save_steps 2"
SMALLER += " --warmup_steps 0"  # the YAML warms up for longer than that
PUSHES = "--push_to_hub --hub_model_id tester/lora --push_preferences_to_hub tester/prefs --push_preferences_every 12"


@pytest.mark.slow
def test_the_command_line_pushes_everything(loopback_client, tmp_path):
    hub, output = loopback_client, tmp_path / "run"
    hub.fail("POST", "/api/datasets/tester/prefs/commit/", 429, times=1, headers={"Retry-After": "1"})
    hub.fail("POST", "/api/datasets/tester/prefs/preupload/", 401, times=1)  # a push of samples that fails for good
    words = f"{LINE} {SMALLER} {PUSHES} --output_dir {output}".split()
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    assert f"spatialalign push-preferences {output} --repo tester/prefs" in printed
    assert "preferences pushed to" in printed

    model = hub.files("model", "tester/lora")
    assert {"pytorch_lora_weights.safetensors", "README.md", "results.json", "report.html"} <= set(model)
    assert model["pytorch_lora_weights.safetensors"] == (output / "pytorch_lora_weights.safetensors").read_bytes()
    assert ModelCard(model["README.md"].decode()).data.datasets == ["tester/prefs"]
    data = hub.files("dataset", "tester/prefs")
    shards = {f"{name}/round-01-00000.parquet" for name in ("preferences", "samples")}
    assert {"README.md", "preview.png", *shards} <= set(data)
    card = DatasetCard(data["README.md"].decode())
    assert "On held-out prompts, before and after" in card.text and "S@0.7" in card.text
    samples = load_dataset("tester/prefs", "samples", split="train")
    pairs = load_dataset("tester/prefs", "preferences", split="train")
    assert len(samples) == 24 and 0 < len(pairs) and samples["policy_revision"][0] == "tiny@base"

    assert TOKEN not in printed
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for kind, pushed in (("model", model), ("dataset", data)):
        files |= {f"on the Hub, {kind}: {name}": content for name, content in pushed.items()}
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    texts = [samples.remove_columns("video"), pairs.remove_columns(["chosen", "rejected"])]  # Parquet is compressed
    assert TOKEN not in str([row for rows in texts for row in rows])
