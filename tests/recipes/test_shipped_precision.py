"""Run what the recipes ship, in its own precision and with its own checkpointing, on tiny models of each family.

Only sizes, counts and rewards (which need checkpoints) are replaced.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_cogvideox_hunyuan
import tiny_ltx
import tiny_pipelines
import torch
import yaml
from safetensors.torch import load_file
from tiny_family import TinyFamily

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.files import read_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.config import OnlineSpatialAlignConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes" / "configs"
MAIN_JOB = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
FAMILIES = {
    family.name: family for family in (*tiny_pipelines.FAMILIES, *tiny_ltx.FAMILIES, *tiny_cogvideox_hunyuan.FAMILIES)
}
FAMILY_OF_CONFIG = {
    "wan2.1_t2v_1.3b": "wan_unipc",
    "wan2.1_t2v_1.3b_24gb": "wan_unipc",
    "wan2.1_t2v_14b": "wan_unipc",
    "wan2.2_t2v_a14b": "wan22_a14b_high_noise",
    "wan2.2_ti2v_5b": "wan22_ti2v_5b",
    "cogvideox_2b": "cogvideox-2b",
    "cogvideox_5b": "cogvideox-5b",
    "ltx_video_2b": "ltx",
    "hunyuan_video": "hunyuan-video",
    "hunyuan_video_1.5_480p": "hunyuan-video-1.5",
}
REWARD = """
def rank(prompts, completions, **columns):
    \"\"\"From 0 for the darkest video of a prompt to 1 for its brightest: every prompt has winners and losers.\"\"\"
    scores = []
    for prompt, video in zip(prompts, completions):
        company = sorted(other.mean() for name, other in zip(prompts, completions) if name == prompt)
        scores.append(company.index(video.mean()) / max(len(company) - 1, 1))
    return scores
"""
COUNTS = [
    "--num_inference_steps", "2", "--max_train_prompts", "2", "--max_eval_prompts", "2", "--evaluation_seeds", "1",
    "--max_steps", "2", "--warmup_steps", "1", "--logging_steps", "1", "--save_steps", "1", "--use_cpu", "true",
    "--disable_tqdm", "true",
]  # fmt: skip


def arguments(config: str, folder: Path, family: TinyFamily) -> list[str]:
    """Return a recipe's arguments: its YAML, on a tiny model in `folder`, whose size and counts are replaced."""
    (folder / "judge.py").write_text(REWARD)
    num_frames, height, width = map(str, family.size)
    size = ["--num_frames", num_frames, "--height", height, "--width", width]
    model = ["--model_name_or_path", str(folder / "model")]
    rewards = ["--reward_funcs", f"{folder / 'judge.py'}:rank", "--reward_options", "{}"]
    return ["--config", str(CONFIGS / f"{config}.yaml"), *model, *rewards, *size, *COUNTS]


def check_run(folder: Path, settings: dict) -> None:
    """Check that a run computed as the YAML says, and taught something finite."""
    assert settings["bf16"] is True and settings["fp16"] is False
    weights = load_file(folder / LORA_FILE)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())
    assert any("lora_B" in name and tensor.any() for name, tensor in weights.items())


def test_every_yaml_that_switches_bf16_on_is_run():
    shipped = {path.stem for path in CONFIGS.glob("*.yaml") if yaml.safe_load(path.read_text()).get("bf16") is True}
    scenes = {name for name in shipped if name.startswith("video4spatial")}
    assert shipped - scenes == set(FAMILY_OF_CONFIG)
    assert scenes == {f"video4spatial_{task}_wan2.1_1.3b" for task in ("sft", "navigation", "grounding")}


def test_no_test_switches_bf16_off_that_a_yaml_switches_on():
    switch = re.compile(r"--bf16[\"',= ]+(false|False|0|no)|\bbf16: *false|no-bf16")
    tests = [file for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__)]
    found = [f"{file.name}: {match[0]}" for file in tests for match in switch.finditer(file.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(set(FAMILY_OF_CONFIG) - {"wan2.1_t2v_1.3b"}))
def test_a_familys_yaml_runs_as_shipped(config, tmp_path, monkeypatch):
    family = FAMILIES[FAMILY_OF_CONFIG[config]]
    family.build().save_pretrained(tmp_path / "model")
    line = [*arguments(config, tmp_path, family), "--num_generations", "3", "--output_dir", str(tmp_path / "run")]
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    loop = importlib.import_module("spatialalign").build_loop(*parse_recipe(MAIN_JOB, None, line))
    network, computed = loop.model.base_transformer, set()

    def record(module, inputs):
        if torch.is_grad_enabled():
            precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            computed.add((precision, network.is_gradient_checkpointing))

    network.register_forward_pre_hook(record)
    loop.train()
    assert computed == {(torch.bfloat16, True)}
    settings = read_json(tmp_path / "run" / "run.json")
    check_run(tmp_path / "run", settings)
    assert settings["dtype"] == "bfloat16"


@pytest.mark.slow
def test_the_papers_yaml_runs_as_shipped_through_its_command_line(tmp_path):
    family = FAMILIES["wan_unipc"]
    family.build().save_pretrained(tmp_path / "model")
    line = arguments("wan2.1_t2v_1.3b", tmp_path, family)
    command = [sys.executable, "-m", "accelerate.commands.launch", "recipes/spatialalign.py", *line]
    command += ["--num_generations", "3", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = read_json(tmp_path / "run" / "run.json")
    check_run(tmp_path / "run", settings)
    assert settings["dtype"] == "bfloat16" and settings["gradient_accumulation_steps"] == 6
    assert read_json(tmp_path / "run" / "results.json")["aligned"]["num_videos"] == 2


@pytest.mark.slow
def test_the_yamls_of_scenes_run_as_shipped_one_after_the_other(tmp_path, monkeypatch):
    """Navigation and grounding continue the LoRA of the supervised stage, as their YAMLs say."""
    family = FAMILIES["wan_context"]
    family.build().save_pretrained(tmp_path / "model")
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    for task in ("sft", "navigation", "grounding"):
        config, folder = f"video4spatial_{task}_wan2.1_1.3b", tmp_path / task
        line = arguments(config, tmp_path, family)
        line += ["--supersample", "1", "--scenes_dir", str(tmp_path / "scenes"), "--output_dir", str(folder)]
        if task != "sft":
            line += ["--lora_path", str(tmp_path / "sft"), "--num_generations", "3"]
        monkeypatch.setattr(sys, "argv", [f"video4spatial_{task}.py", *line])
        module = importlib.import_module(f"video4spatial_{task}")
        module.launch(module.DEFAULT_CONFIG)
        check_run(folder, read_json(folder / ("training_args.json" if task == "sft" else "run.json")))
        assert (folder / "scene_metrics.json").is_file()
