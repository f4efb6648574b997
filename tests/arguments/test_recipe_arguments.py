"""The recipes' arguments: YAML files, flags that override them, and errors that name the mistake."""

from __future__ import annotations

import csv
import os
import pickle
import re
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from tiny_pairs import wan_model
from tiny_pipelines import saved_wan

from spatialalign_trl.arguments import prompts as prompt_arguments
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments, SceneRewardArguments
from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.lora_keys import export_lora
from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.prompts import DSR_TYPES, build_prompt
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config

TYPES = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)


@pytest.fixture
def config(tmp_path):
    """Writes a YAML and gives back its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(f"output_dir: {tmp_path}/run\nuse_cpu: true\n{text}\n")
        return str(path)

    return write


def parse(*arguments: str, default: str | None = None):
    return parse_recipe(TYPES, default, list(arguments))


def refusal(capsys, *arguments: str, default: str | None = None) -> str:
    """The message with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(*arguments, default=default)
    assert stop.value.code == 2
    return capsys.readouterr().err


# Sources and their order


def test_flags_win_over_the_yaml_and_the_yaml_over_the_defaults(config):
    path = config("num_generations: 7\nbeta: 2.0\nlora_r: 4\ntrain_prompts: dsr_prompts")
    prompts, _, args, model = parse("--config", path, "--beta", "3.0", "--lora_alpha", "8")
    assert (args.num_generations, args.beta, args.margin_clip) == (7, 3.0, 5.0)
    assert (model.lora_r, model.lora_alpha) == (4, 8)
    assert prompts.train_prompts == "dsr_prompts" and prompts.eval_prompts is None


def test_config_may_be_given_with_an_equals_sign_and_anywhere(config):
    path = config("num_generations: 7")
    for arguments in (("--beta", "3", "--config", path), ("--beta=3", f"--config={path}")):
        _, _, args, _ = parse(*arguments)
        assert (args.num_generations, args.beta) == (7, 3.0)


def test_the_default_config_is_used_unless_another_is_named(config):
    default, other = config("num_generations: 7", "default.yaml"), config("beta: 2.0", "other.yaml")
    assert parse(default=default)[2].num_generations == 7
    _, _, args, _ = parse("--config", other, default=default)
    assert (args.num_generations, args.beta) == (5, 2.0)
    _, _, args, _ = parse(f"--config={other}", default=default)
    assert (args.num_generations, args.beta) == (5, 2.0)
    assert parse("--num_generations", "9", default=default)[2].num_generations == 9


def test_the_command_line_is_read_when_no_arguments_are_given(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--config", config("beta: 2.0"), "--lora_r=3"])
    _, _, args, model = parse_recipe(TYPES)
    assert (args.beta, model.lora_r) == (2.0, 3)


# Values


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("learning_rate: 2e-4", "learning_rate", 2e-4),  # YAML reads it as text
        ("fps: 8", "fps", 8.0),
        ("pairs_per_prompt: null", "pairs_per_prompt", None),
        ("reward_weights: [1, 2]", "reward_weights", [1.0, 2.0]),
        ("quality_guards: frames", "quality_guards", ["frames"]),
        ("quality_guards: [frames, tiny_world]", "quality_guards", ["frames", "tiny_world"]),
        ("shared_noise: yes", "shared_noise", True),
        ("model_init_kwargs: {torch_dtype: bfloat16}", "model_init_kwargs", {"torch_dtype": "bfloat16"}),
    ],
)
def test_yaml_values_take_the_fields_type(config, line, field, value):
    found = getattr(parse("--config", config(line))[2], field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("num_generations: 4.5", "--num_generations.*invalid int value: '4.5'"),
        ("num_generations: four", "--num_generations.*invalid int value: 'four'"),
        ("pair_strategy: treshold", "--pair_strategy.*invalid choice: 'treshold'.*best_vs_worst"),
        ("shared_noise: perhaps", "--shared_noise.*perhaps"),
        ("reward_weights: [1, much]", "--reward_weights.*'much'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(config, capsys, line, message):
    assert re.search(message, refusal(capsys, "--config", config(line)))


# Mistakes


def test_an_unknown_yaml_key_names_the_file_and_the_near_miss(config, capsys):
    path = config("num_generatons: 7")
    err = refusal(capsys, "--config", path)
    assert f"{path}: unknown key 'num_generatons'. Did you mean 'num_generations'?" in err
    err = refusal(capsys, default=path)
    assert "Did you mean 'num_generations'?" in err


def test_an_unknown_flag_names_the_near_miss(config, capsys):
    path = config("")
    for flag in ("--num_generatons", "--num-generatons", "--num_generatons=3"):
        err = refusal(capsys, "--config", path, flag, "3")
        assert f"unknown argument {flag!r}. Did you mean 'num_generations'?" in err
    assert "See --help" in refusal(capsys, "--config", path, "--xyzzy")
    assert len(err.splitlines()) == 1  # not pages of usage


def test_flags_are_not_abbreviated(config, capsys):
    """A flag that is cut short today may be another flag's beginning tomorrow."""
    assert "unknown argument '--num_generation'" in refusal(capsys, "--config", config(""), "--num_generation", "3")


def test_env_is_a_key(config, monkeypatch):
    monkeypatch.setenv("SPATIALALIGN_TEST", "before")
    parse("--config", config("env: {SPATIALALIGN_TEST: after}"))
    assert os.environ["SPATIALALIGN_TEST"] == "after"


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "found nothing"), ("# only a comment\n", "found nothing"), ("- a\n- b\n", "found ['a', 'b']")],
)
def test_a_yaml_that_is_no_mapping_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    err = refusal(capsys, "--config", str(path))
    assert str(path) in err and message in err


def test_a_broken_a_missing_and_a_forgotten_yaml_are_named(tmp_path, capsys, config):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2\nb: 3")
    assert f"{broken} is not valid YAML" in refusal(capsys, "--config", str(broken))
    missing = tmp_path / "missing.yaml"
    for arguments in (("--config", str(missing)), (f"--config={missing}",)):
        assert f"{missing}: there is no such file" in refusal(capsys, *arguments)
    assert "--config needs the path" in refusal(capsys, "--beta", "2", "--config")
    path = config("")
    assert "more than once" in refusal(capsys, "--config", path, "--config", path)


# Prompts


@pytest.fixture
def prompt_file(tmp_path) -> Path:
    """Six prompts in the columns of the authors' evaluation files."""
    path = tmp_path / "prompts.csv"
    names = ["type", "prompt_id", "scene", "initial_SR", "final_SR", "animal", "object", "prompt"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for k, dsr_type in enumerate(DSR_TYPES):
            words = {"scene": "In a meadow", "animal": "fox", "object": "stump", "verb": "jumps"}
            writer.writerow(build_prompt(**words, type=dsr_type, prompt_id=f"file{k}").to_row())
    return path


def test_prompts_come_from_a_bundled_folder_a_path_or_a_file(repo_root, prompt_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    named = PromptArguments(train_prompts="tiny_world_prompts", max_train_prompts=8, eval_split="validation").load()
    folder = str(repo_root / "datasets" / "tiny_world_prompts")
    by_path = PromptArguments(train_prompts=folder, max_train_prompts=8, eval_split="validation").load()
    assert [split.to_list() for split in named] == [split.to_list() for split in by_path]
    assert len(named[0]) == 8 and len(named[1]) > 8
    train, evaluation = PromptArguments(
        train_prompts="tiny_world_prompts", eval_prompts=str(prompt_file), max_eval_prompts=4
    ).load()
    assert evaluation["prompt_id"] == ["file0", "file1", "file2", "file3"] and evaluation["animal"][0] == "fox"
    assert len(train) > 100


def test_a_limit_beyond_the_set_takes_all_of_it(prompt_file):
    train, evaluation = PromptArguments(str(prompt_file), max_train_prompts=100, max_eval_prompts=2).load()
    assert len(train) == 6 and len(evaluation) == 2


def test_a_folder_in_the_working_directory_is_not_mistaken_for_a_bundled_one(monkeypatch, tmp_path, prompt_file):
    """Only names of bundled sets are looked up there: `.` and `..` mean what they mean everywhere."""
    opened = []
    monkeypatch.setattr("spatialalign_trl.prompts.load_prompts", lambda source, split: opened.append(source) or [1])
    for source in (".", "..", "tiny_world_prompts", "owner/name", "elsewhere"):
        prompt_arguments.load_prompt_set(source, "train", None)
    bundled = str(prompt_arguments.DATASETS / "tiny_world_prompts")
    assert opened == [".", "..", bundled, "owner/name", "elsewhere"]


# The model


@pytest.fixture(scope="module")
def model() -> WanVideoModel:
    return wan_model()


def targets(model: WanVideoModel, *arguments: str) -> set[str]:
    found = parse_recipe((ModelArguments,), None, list(arguments))[0].lora_config(model).target_modules
    assert isinstance(found, (list, set))  # PEFT takes a string for a regular expression over full names
    return set(found)


def test_one_lora_target_stays_a_list(model, config):
    assert targets(model, "--lora_target_modules", "attn2.to_k") == {"attn2.to_k"}
    assert targets(model, "--lora_target_modules", "attn2.to_k", "attn2.to_v") == {"attn2.to_k", "attn2.to_v"}
    for text in ("lora_target_modules: attn2.to_k", "lora_target_modules: [attn2.to_k]"):
        _, _, _, arguments = parse("--config", config(text))
        assert arguments.lora_target_modules == ["attn2.to_k"]


def test_the_default_targets_are_the_papers_and_all_linear_is_more(model, config):
    paper = targets(model)
    assert paper == set(model.default_lora_targets)
    more = targets(model, "--lora_target_modules", "all-linear")
    assert paper < more and {"attn1.to_q", "ffn.net.2"} <= more
    arguments = parse("--config", config("lora_target_modules: all-linear"))[3]
    assert set(arguments.lora_config(model).target_modules) == more


def test_rank_and_alpha_reach_the_lora(model):
    lora = ModelArguments(lora_r=4, lora_alpha=32).lora_config(model)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (4, 32, 0.0)


def test_cpu_threads_are_set_and_checked_before_the_model_loads(monkeypatch):
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(
        "spatialalign_trl.models.load_video_model", lambda name, **settings: MagicMock(threads=list(threads))
    )
    assert ModelArguments("some/model").load().threads == []
    assert ModelArguments("some/model", cpu_threads=3).load().threads == [3]
    with pytest.raises(ValueError, match=r"cpu_threads=0: must be in \[1, "):
        ModelArguments("some/model", cpu_threads=0).load()


def test_dtype_and_revision_reach_the_model_and_an_unknown_dtype_does_not(monkeypatch):
    asked = {}

    def load_video_model(name: str, **settings: object) -> MagicMock:
        asked.update(settings, name=name)
        return MagicMock()

    monkeypatch.setattr("spatialalign_trl.models.load_video_model", load_video_model)
    ModelArguments("some/model", model_revision="v1", dtype="bfloat16").load()
    assert asked == {"name": "some/model", "torch_dtype": torch.bfloat16, "revision": "v1"}
    ModelArguments("some/model").load()
    assert asked["torch_dtype"] is None
    with pytest.raises(ValueError, match=r"dtype='bfloat'. Did you mean 'bfloat16'\?"):
        ModelArguments(dtype="bfloat").load()


# What a reward is made with


def test_a_reward_takes_its_options_from_the_yaml_and_from_a_flag(config):
    reward = config("reward_options:\n  dsr_score:\n    min_frames: 7")
    (from_yaml,) = parse("--config", reward)[1].load_rewards()
    flag = '{"dsr_score": {"min_frames": 5}}'
    (from_flag,) = parse("--config", reward, "--reward_options", flag)[1].load_rewards()
    assert (from_yaml.min_frames, from_flag.min_frames) == (7, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [('{"dsr_scor": {}}', "'dsr_score'"), ("{min_frames", "not valid YAML"), ('{"dsr_score": 3}', "expected")],
)
def test_options_that_no_reward_can_take_are_refused(config, capsys, options, message):
    assert message in refusal(capsys, "--config", config(""), "--reward_options", options)


def test_scene_recipes_have_their_own_default_reward():
    assert parse_recipe((SceneRewardArguments,), None, [])[0].reward_funcs == ["scene_navigation"]
    assert parse_recipe((RewardArguments,), None, [])[0].reward_funcs == ["dsr_score"]


# A LoRA to go on from


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, Path]:
    """A pipeline folder, and a LoRA for it with r 4 and alpha 8."""
    folder = tmp_path_factory.mktemp("trained")
    saved_wan(folder / "model")
    model = load_video_model(str(folder / "model"), device="cpu")
    network = attach_lora(model, default_lora_config(model, r=4, alpha=8))
    for name, parameter in network.named_parameters():
        if ".lora_B" in name:
            parameter.data.fill_(0.01)
    model.save_lora(folder / "lora")
    return str(folder / "model"), folder / "lora"


@pytest.mark.parametrize("lora_format", ["diffusers", "comfyui", "original"])
def test_a_lora_to_go_on_from_is_loaded_and_keeps_its_shape(trained, tmp_path, lora_format):
    folder, lora = trained
    path = str(export_lora(lora, tmp_path / "lora.safetensors", lora_format))
    arguments = ModelArguments(model_name_or_path=folder, lora_path=path)
    model = arguments.load()
    assert arguments.lora_config(model) is None
    network = attach_lora(model, arguments.lora_config(model))
    config = network.active_peft_config
    assert config.r == 4 and config.lora_alpha / config.r == (2 if lora_format == "diffusers" else 1)
    weights = [value for name, value in model.lora_state_dict().items() if ".lora_B" in name]
    assert weights and all(torch.all(value == (0.01 if lora_format == "diffusers" else 0.02)) for value in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 8}, "lora_r=8, but the LoRA at lora_path=.* has 4 and keeps it.*merged"),
        ({"lora_alpha": 4}, "lora_alpha=4, but"),
        ({"lora_target_modules": ["all-linear"]}, "has its own targets"),
        ({"lora_path": "pickle.safetensors"}, "pickle.safetensors is not a whole safetensors file, but a pickle"),
        ({"lora_path": "half.safetensors"}, "not a whole safetensors file"),
        ({"lora_path": "nowhere/at/all"}, "there is no LoRA file or folder"),
    ],
)
def test_a_lora_that_cannot_be_gone_on_from_is_refused(trained, tmp_path, monkeypatch, options, message):
    folder, lora = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({}, protocol=4))
    (tmp_path / "half.safetensors").write_bytes(b"half")
    arguments = ModelArguments(**{"model_name_or_path": folder, "lora_path": str(lora), **options})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        arguments.load()


def test_an_adapter_merged_into_the_base_is_refused(trained):
    folder, lora = trained
    model = ModelArguments(model_name_or_path=folder, lora_path=str(lora)).load()
    model.pipeline.fuse_lora()
    with pytest.raises(ValueError, match="merged into the base's weights.*--lora_path"):
        attach_lora(model)
