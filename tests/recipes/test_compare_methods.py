"""Check the runs that the comparison plans: each method changes what its name says, all take as many steps."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
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


def test_an_unknown_method_is_named_before_anything_runs(recipe):
    with pytest.raises(ValueError, match="unknown method 'tunde'. Did you mean 'tuned'"):
        compare = recipe.CompareArguments(methods=["tunde"])
        recipe.main(compare, PromptArguments(), RewardArguments(), None, ModelArguments())
