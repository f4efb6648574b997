"""Run the main job with a Hub: check what the command line pushes, and run the card's quick start unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import describe_recipe, parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.models.tiny import tiny_model_path
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.video import encode_video

ROOT = Path(__file__).parents[2]
REPO = "tester/smoke-lora"
TYPES = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
SMALL = ["--max_steps", "4", "--save_steps", "2", "--max_train_prompts", "6", "--max_eval_prompts", "3"]


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def finished(hub, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    push = ["--push_to_hub", "--hub_model_id", REPO, "--hub_always_push", "--hub_token", hub.token]
    line = ["recipes/spatialalign.py", "--config=recipes/configs/smoke.yaml", "--output_dir", str(folder / "run")]
    done = subprocess.run(
        [sys.executable, *line, "--use_cpu", *SMALL, *push],
        cwd=ROOT, env=hub.environment(folder / "home", token=None), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "run", done.stdout + done.stderr


@pytest.mark.slow
def test_everything_is_there_and_the_token_is_nowhere(finished, hub):
    folder, printed = finished
    files = hub.files("model", REPO)
    wanted = {"pytorch_lora_weights.safetensors", "README.md", "results.json", "recipe.yaml", "videos/1_aligned.mp4"}
    assert wanted <= set(files)
    messages = [commit.message for commit in hub.repo("model", REPO).branches["main"]]
    assert messages[1:3] == [f"Round 1: Training in progress, step {step}" for step in (2, 4)]
    assert messages[-1] == "End of training"
    token = hub.token.encode()
    assert hub.token not in printed
    assert all(
        token not in data for commit in hub.repo("model", REPO).branches["main"] for data in commit.files.values()
    )
    assert all(token not in file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_the_cards_recipe_runs_the_same_job_again(finished, hub, tmp_path):
    files = hub.files("model", REPO)
    card = ModelCard(files["README.md"].decode())
    assert "accelerate launch recipes/spatialalign.py --config recipes/configs/smoke.yaml" in card.text
    assert "--max_steps 4" in card.text and "--hub_token ..." in card.text
    assert files["recipe.yaml"].decode() in card.text
    (tmp_path / "recipe.yaml").write_bytes(files["recipe.yaml"])
    line = ["--config", "recipes/configs/smoke.yaml", "--output_dir", str(finished[0]), "--use_cpu", *SMALL]
    again = parse_recipe(TYPES, arguments=["--config", str(tmp_path / "recipe.yaml"), "--push_to_hub", "false"])
    for first, second in zip(parse_recipe(TYPES, arguments=line), again, strict=True):
        differing = {k for k, v in vars(first).items() if vars(second)[k] != v}
        assert not differing - {"hub_model_id", "hub_always_push", "accelerator_config", "distributed_state"}


@pytest.mark.slow
def test_the_quick_start_runs_in_a_fresh_process_and_gives_the_same_video(finished, hub, tmp_path):
    text = hub.files("model", REPO)["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert f'load_lora_weights("{REPO}")' in code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=hub.environment(tmp_path / "home"), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pipe = WanPipeline.from_pretrained(tiny_model_path(), torch_dtype=torch.float32)
    pipe.load_lora_weights(str(finished[0]))
    call = dict(re.findall(r"^    (\w+)=([\d.]+),$", code, re.M))
    settings = {name: float(value) if "." in value else int(value) for name, value in call.items()}
    prompt = re.search(r'^    "(.*)",$', code, re.M)[1]
    video = pipe(prompt, **settings, generator=torch.Generator().manual_seed(0)).frames[0]
    fps = int(re.search(r"fps=(\d+)", code)[1])
    assert (tmp_path / "video.mp4").read_bytes() == encode_video((video * 255).round().astype("uint8"), fps)


def test_the_command_and_its_settings_are_described_without_tokens(tmp_path):
    (tmp_path / "mine.yaml").write_text("max_steps: 7\nhub_token: hf_inTheYaml\nreward_funcs: [dsr_score]\n")
    line = [
        "--config",
        str(tmp_path / "mine.yaml"),
        "--output_dir",
        "runs/x",
        "--hub_token=hf_onTheLine",
        "--seed",
        "3",
    ]
    recipe = describe_recipe(parse_recipe(TYPES, arguments=[*line, "--use_cpu"]), arguments=[*line, "--use_cpu"])
    assert "hf_" not in recipe.command + recipe.settings
    assert recipe.command.endswith("--output_dir runs/x --hub_token ... --seed 3 --use_cpu")
    assert recipe.settings.splitlines()[0] == "max_steps: 7"
    for line in ("seed: 3", "output_dir: runs/x", "use_cpu: true", "- dsr_score"):
        assert line in recipe.settings.splitlines()
