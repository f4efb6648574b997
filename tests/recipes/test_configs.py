"""Check that every configuration parses and begins with its launch line, and that the paper's has its numbers."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import huggingface_hub
import pytest

from spatialalign_trl.arguments.evaluation import EvaluationArguments
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments, SceneRewardArguments
from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.trainer.context_sft_config import ContextSFTConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
MAIN_JOB = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)


def recipe(path: Path):
    """Import a recipe's module as launching it would."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def launch_line(path: Path) -> list[str]:
    return shlex.split(path.read_text().splitlines()[0].removeprefix("#"))


def test_every_configuration_is_documented():
    names = {path.stem for path in CONFIGS}
    assert {"tiny", "smoke", "wan2.1_t2v_1.3b"} <= names
    pages = ("README.md", "docs/evaluation.md", "docs/video4spatial.md")
    documented = "".join((ROOT / page).read_text() for page in pages)
    assert [name for name in sorted(names - {"smoke"}) if f"{name}.yaml" not in documented] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_opens_with_its_launch_line_and_parses(path, tmp_path):
    assert path.read_text().startswith(("# accelerate launch ", "# python recipes/"))
    words = launch_line(path)
    script = next(word for word in words if word.endswith(".py"))
    assert (ROOT / script).is_file()
    assert words[words.index("--config") + 1] == str(path.relative_to(ROOT))
    arguments = ["--config", str(path), "--output_dir", str(tmp_path)]
    if script == "recipes/pretrain_tiny.py":
        pretraining = recipe(ROOT / script)
        (args,) = parse_recipe((pretraining.PretrainTinyArguments,), None, arguments)
        assert set(args.stages) <= set(pretraining.STAGES)
    arguments += ["--use_cpu", "true"]
    if script == "recipes/evaluate.py":
        (args,) = parse_recipe((EvaluationArguments,), None, arguments)
        assert args.model and bool(args.prompts) != bool(args.tasks) and args.output_dir == str(tmp_path)
    if script == "recipes/spatialalign.py":
        prompts, rewards, args, _ = parse_recipe(MAIN_JOB, None, arguments)
        train, evaluation = prompts.load()
        assert len(train) and len(evaluation) and not set(train["prompt"]) & set(evaluation["prompt"])
        RewardRunner(rewards.reward_funcs).check_columns(train.column_names)
        assert args.output_dir == str(tmp_path)
    if Path(script).stem in ("video4spatial_sft", "video4spatial_navigation", "video4spatial_grounding"):
        check_scenes(ROOT / script, arguments)


def check_scenes(script: Path, arguments: list[str]) -> None:
    """Check that a scene configuration's splits share no task, and that its rows have its rewards' columns."""
    sys.path.insert(0, str(script.parent))
    job = recipe(script)
    sys.path.remove(str(script.parent))
    is_loop = script.stem != "video4spatial_sft"
    kinds = (OnlineSpatialAlignConfig,) if is_loop else (ContextSFTConfig, job.HeldOutArguments)
    kinds = (SceneArguments, SceneRewardArguments, *kinds, ModelArguments)
    scenes, rewards, *_, model = parse_recipe(kinds, None, arguments)
    assert model.variant == "context"
    train, evaluation = scenes.load()
    assert not set(train["task_id"]) & set(evaluation["task_id"])
    asked = "object" if "grounding" in scenes.train_prompts else "camera_poses"
    columns = [
        "prompt_id",
        "prompt",
        "context",
        "context_indices",
        "context_poses",
        "intrinsics",
        "room_seed",
        "style",
    ]
    RewardRunner(rewards.load_rewards()).check_columns([*columns, asked])


def test_the_main_jobs_default_is_tiny(tmp_path):
    main_job = recipe(ROOT / "recipes" / "spatialalign.py")
    assert main_job.DEFAULT_CONFIG == ROOT / "recipes" / "configs" / "tiny.yaml"
    _, _, args, model = parse_recipe(MAIN_JOB, main_job.DEFAULT_CONFIG, ["--use_cpu", "true"])
    assert model.model_name_or_path == "tiny" and "tiny_world" in args.quality_guards


@pytest.fixture(scope="module")
def paper():
    path = ROOT / "recipes" / "configs" / "wan2.1_t2v_1.3b.yaml"
    # The CPU, so that the configuration parses on any machine
    return parse_recipe(MAIN_JOB, None, ["--config", str(path), "--use_cpu", "true"])


def test_the_papers_recipe_is_the_papers(paper):
    """SpatialAlign (arXiv 2602.22745), training details and released code."""
    _, _, args, model = paper
    assert model.model_name_or_path == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" and model.dtype == "bfloat16"
    assert (model.lora_r, model.lora_alpha, model.lora_target_modules) == (16, 16, None)
    assert WanVideoModel.default_lora_targets == (
        "condition_embedder.text_embedder.linear_1",
        "condition_embedder.text_embedder.linear_2",
        "attn2.to_k",
        "attn2.to_v",
    )
    expected = {
        # sampling
        "num_generations": 10, "num_frames": 81, "height": 480, "width": 832, "num_inference_steps": 50,
        "guidance_scale": 5.0, "sampling_flow_shift": 5.0, "fps": 16.0, "num_rounds": 1,
        # pairs
        "pair_strategy": "threshold", "score_threshold": 0.7, "min_pair_gap": 0.0,
        # loss
        "loss_type": "sigmoid", "beta": 1.0, "margin_clip": 5.0, "zeroth_order_weight": 0.5, "shared_noise": False,
        "flow_shift": 5.0, "timestep_sampling": "uniform_shifted", "num_train_timesteps": 1000, "min_sigma": 0.0,
        "max_sigma": 1.0,
        # optimisation
        "max_steps": 3000, "warmup_steps": 300, "learning_rate": 1e-4, "weight_decay": 0.01, "evaluation_seeds": 5,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.lr_scheduler_type == "cosine" and args.optim.value.startswith("adamw")
    assert args.save_steps and 2400 % args.save_steps == 0  # the authors released step 2400
    text = (ROOT / "recipes" / "configs" / "wan2.1_t2v_1.3b.yaml").read_text()
    assert "\ngradient_checkpointing: true\n" in text and "\nbf16: true\n" in text


def test_the_papers_recipe_trains_48_pairs_a_step(paper):
    words = launch_line(ROOT / "recipes" / "configs" / "wan2.1_t2v_1.3b.yaml")
    processes = int(words[words.index("--num_processes") + 1])
    _, _, args, _ = paper
    assert processes * args.per_device_train_batch_size * args.gradient_accumulation_steps == 48


def test_the_papers_prompts_are_refused_by_a_tracker_that_cannot_see_them(paper):
    """The check comes before sampling: DSR-Score's default tracker only knows the tiny world."""
    train, _ = paper[0].load()
    runner = RewardRunner("dsr_score")
    with pytest.raises(ValueError, match="The reward 'dsr_score' cannot score these prompts: .*not in the tiny world"):
        runner.check_prompts(list(train))


def test_the_papers_recipe_judges_with_grounded_sam_and_says_at_once_where_it_is_missing(paper, monkeypatch, tmp_path):
    prompts, rewards, _, _ = paper
    train, _ = prompts.load()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    runner = RewardRunner(rewards.load_rewards())
    with pytest.raises(OSError, match="IDEA-Research/grounding-dino-tiny"):
        runner.check_prompts(list(train))
