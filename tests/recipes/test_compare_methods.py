"""Check the runs that the comparison plans: each method changes what its name says, all take as many steps."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from fresh_process import PROGRAMS
from safetensors.torch import load_file

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.files import read_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.config import OnlineSpatialAlignConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MAIN_JOB = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(RECIPES))  # as when it is launched: it imports the main job
    spec = importlib.util.spec_from_file_location("recipe_compare_methods", RECIPES / "compare_methods.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(RECIPES))


@pytest.fixture
def planned(recipe, monkeypatch, tmp_path):
    """Plan the runs of the default configuration without running them: method -> (loop's, LoRA's arguments)."""

    class Loop:
        def train(self) -> None: ...

    def build_loop(prompts: Any, rewards: Any, args: Any, model: Any) -> Loop:
        built.append((args, model))
        return Loop()

    built: list[tuple[Any, Any]] = []
    monkeypatch.setattr(recipe, "build_loop", build_loop)
    prompts, rewards, args, model = parse_recipe(MAIN_JOB, recipe.DEFAULT_CONFIG, ["--use_cpu", "true"])
    for name, overrides in recipe.METHODS.items():
        recipe.run_method(overrides, 1, tmp_path / name / "seed1", prompts, rewards, args, model)
    return dict(zip(recipe.METHODS, built, strict=True)) | {"as configured": (args, model)}


def test_every_method_takes_the_same_number_of_steps(planned):
    assert {args.max_steps * args.num_rounds for args, _ in planned.values()} == {240}
    assert planned["one_round"][0].max_steps == 240


def test_a_method_changes_what_it_says_and_nothing_else(planned, recipe):
    configured, lora = planned["as configured"]
    tuned, tuned_lora = planned["tuned"]
    per_run = {"output_dir", "samples_dir", "seed", "data_seed", "contact_sheet_prompts"}
    differing = {
        field.name
        for field in dataclasses.fields(configured)
        if getattr(tuned, field.name) != getattr(configured, field.name)
    }
    assert differing <= per_run and tuned_lora == lora
    paper, paper_lora = planned["paper"]
    assert (paper.learning_rate, paper.zeroth_order_weight, paper.score_threshold) == (1e-4, 0.5, 0.7)
    assert (paper.shared_noise, paper.min_sigma, paper_lora.lora_r) == (False, 0.0, 16)
    assert planned["dpo"][0].zeroth_order_weight == 0 and planned["sft"][0].loss_type == "sft"
    assert not planned["rounds_fresh"][0].pool_rounds and planned["rounds_refreshed"][0].refresh_reference


def test_methods_share_samples_and_not_folders(planned, recipe):
    built = [planned[name][0] for name in recipe.METHODS]
    assert len({args.samples_dir for args in built}) == 1
    assert len({args.output_dir for args in built}) == len(built)
    assert {(args.seed, args.data_seed) for args in built} == {(1, 1)}


def test_variants_are_read_and_a_wrong_field_is_named(recipe):
    methods = recipe.parse_variants(["hot:learning_rate=4e-3,max_steps=60,shared_noise=false"])
    assert methods == {"hot": ({"learning_rate": 4e-3, "max_steps": 60, "shared_noise": False}, {})}
    with pytest.raises(ValueError, match="unknown field 'learning_rat'. Did you mean 'learning_rate'"):
        recipe.parse_variants(["hot:learning_rat=4e-3"])


@pytest.mark.parametrize(("configured", "wanted"), [("false", True), ("true", False)])
def test_a_variant_with_another_precision_computes_in_it(recipe, tmp_path, configured, wanted):
    """The configuration of the first method has decided on the precision of the process already."""
    _, _, args, model = parse_recipe(MAIN_JOB, recipe.DEFAULT_CONFIG, ["--use_cpu", "true", f"--bf16={configured}"])
    (variant,) = recipe.parse_variants([f"other:bf16={str(wanted).lower()}"]).values()
    for overrides, bf16 in ((({}, {}), not wanted), (variant, wanted), (({}, {}), not wanted)):
        own, _ = recipe.method_arguments(overrides, 0, tmp_path / "other" / "seed0", args, model)
        assert (own.bf16, own.fp16, own.mixed_precision) == (bf16, False, "bf16" if bf16 else "no")
    assert args.bf16 is (not wanted), "the configuration itself is unchanged"


def test_a_wrong_value_of_the_last_method_is_refused_before_the_first_one_runs(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "build_loop", lambda *arguments: pytest.fail("a method runs"))
    line = ["--use_cpu", "true", "--output_dir", str(tmp_path)]
    _, _, args, model = parse_recipe(MAIN_JOB, recipe.DEFAULT_CONFIG, line)
    for change in ("learning_rate=-1", "fp16=true", "gradient_accumulation_steps=0"):
        compare = recipe.CompareArguments(methods=["tuned"], seeds=[0], variants=[f"wrong:{change}"])
        with pytest.raises(ValueError, match=f"method 'wrong': .*{change.partition('=')[0]}"):
            recipe.main(compare, PromptArguments(), RewardArguments(), args, model)


@pytest.mark.slow
def test_methods_of_different_precisions_run_after_each_other_into_one_table(recipe, tmp_path):
    line = [
        "--use_cpu", "true", "--output_dir", str(tmp_path), "--max_train_prompts", "2", "--max_eval_prompts", "2",
        "--evaluation_seeds", "1", "--num_generations", "2", "--num_inference_steps", "2", "--max_steps", "2",
        "--warmup_steps", "0", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1",
        "--pair_strategy", "best_vs_worst", "--min_pair_gap", "0", "--invalid_score", "0", "--report_megabytes", "0",
        "--contact_sheet_prompts", "0", "--quality_guards", "frames", "--disable_tqdm", "true",
        "--reward_funcs", f"{PROGRAMS / 'brightness_reward.py'}:brightness", "--reward_options", "{}",
    ]  # fmt: skip
    prompts, rewards, args, model = parse_recipe(MAIN_JOB, recipe.DEFAULT_CONFIG, line)
    compare = recipe.CompareArguments(methods=["one_round"], seeds=[0], variants=["half:bf16=true,num_rounds=1"])
    comparison = recipe.main(compare, prompts, rewards, args, model)
    assert list(comparison) == ["base", "one_round", "half"]
    recorded = [read_json(tmp_path / name / "seed0" / "run.json")["bf16"] for name in ("one_round", "half")]
    assert recorded == [False, True]
    full, half = (load_file(tmp_path / name / "seed0" / LORA_FILE) for name in ("one_round", "half"))
    assert any((full[name] != half[name]).any() for name in full), "both were trained in one precision"
    assert "| half |" in (tmp_path / "comparison.md").read_text()


def test_an_unknown_method_is_named_before_anything_runs(recipe):
    with pytest.raises(ValueError, match="unknown method 'tunde'. Did you mean 'tuned'"):
        compare = recipe.CompareArguments(methods=["tunde"])
        recipe.main(compare, PromptArguments(), RewardArguments(), None, ModelArguments())
