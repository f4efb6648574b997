"""Settings files: values are read like flags, and what is no settings file ends in one line with file and remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import describe_recipe, parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.online.config import OnlineSpatialAlignConfig

KINDS = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "configs" / "tiny.yaml"


def write(folder: Path, content: str | bytes, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def parse(*words: str, default: Path | None = None):
    return parse_recipe(KINDS, default, list(words))


def from_yaml(folder: Path, text: str):
    return parse("--config", write(folder, f"output_dir: {folder}/run\nuse_cpu: true\n{text}\n"))


def refusal(capsys, *words: str, default: Path | None = None) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*words, default=default)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and len(err) < 1200
    return err


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("2e-2", 0.02), ("1_000.5", 1000.5), ("0.5", 0.5)])
def test_a_number_is_the_same_at_the_top_inside_a_mapping_and_on_the_command_line(tmp_path, text, value):
    here = ["--output_dir", str(tmp_path), "--use_cpu"]
    inside = f"lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {{min_lr: {text}}}\nlearning_rate: 2000"
    assert from_yaml(tmp_path, f"learning_rate: {text}")[2].learning_rate == value
    assert from_yaml(tmp_path, f"reward_weights: [{text}]")[2].reward_weights == [value]
    assert from_yaml(tmp_path, inside)[2].lr_scheduler_kwargs == {"min_lr": value}
    assert from_yaml(tmp_path, f"reward_gates: '{{motion: {text}}}'")[2].reward_gates == {"motion": value}
    assert parse(*here, "--learning_rate", text)[2].learning_rate == value
    assert parse(*here, "--reward_gates", f"{{motion: {text}}}")[2].reward_gates == {"motion": value}


def test_whole_numbers_may_have_underscores_everywhere(tmp_path):
    assert from_yaml(tmp_path, "max_steps: 1_000")[2].max_steps == 1000
    options = from_yaml(tmp_path, "reward_options: {dsr_score: {min_frames: 1_000}}")[1].reward_options
    assert options == {"dsr_score": {"min_frames": 1000}}
    assert parse("--output_dir", str(tmp_path), "--use_cpu", "--max_steps", "1_000")[2].max_steps == 1000


@pytest.mark.parametrize("text", ["012345", "1.10", "1e5", "2024-01-01", "no", "1:30", "0x10"])
def test_a_text_stays_as_it_is_written(tmp_path, text):
    assert from_yaml(tmp_path, f"model_revision: {text}")[3].model_revision == text


def test_words_that_yaml_takes_for_booleans_are_read_by_their_field(tmp_path):
    _, _, args, _ = from_yaml(tmp_path, "save_strategy: no\nshared_noise: on\npool_rounds: off\nrun_name: on")
    assert args.save_strategy == "no" and args.shared_noise is True and args.pool_rounds is False
    assert args.run_name == "on"


def test_null_is_none_where_that_is_allowed_and_refused_elsewhere(tmp_path, capsys):
    _, _, args, model = from_yaml(tmp_path, "pairs_per_prompt: null\nlora_target_modules: ~\nmargin_clip:")
    assert args.pairs_per_prompt is None and model.lora_target_modules is None and args.margin_clip is None
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--lora_target_modules", "None", "--margin_clip", "none"]
    _, _, args, model = parse(*words)
    assert model.lora_target_modules is None and args.margin_clip is None
    err = refusal(capsys, "--config", write(tmp_path, "use_cpu: true\nquality_guards: null\n"))
    assert "mine.yaml, line 2: quality_guards may not be null" in err and "['frames']" in err


def aliases(levels: int) -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for k in range(levels):
        before, name = chr(97 + k), chr(98 + k)
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("beta: 1\nbeta: 2\n", "the key 'beta' appears twice, in lines 1 and 2"),
        ("reward_gates: {a: 1, a: 2}\n", "the key 'a' appears twice"),
        (aliases(20), "aliases"),
        ("a: &a [*a]\n", "an alias (*name) inside of what it stands for"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("beta: 1".encode("utf-16"), "UTF-16. Save it in UTF-8"),
        ("seed: 1\nnegative_prompt: café".encode("latin-1"), "line 2, key 'negative_prompt': byte 0xe9 is not UTF-8"),
        (bytes(range(256)), "is a binary file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a binary file"),
        ("beta: 1\n---\nbeta: 2\n", "not valid YAML"),
        ("beta: !!python/object/apply:os.system ['true']\n", "tag '!!python/object/apply:os.system' is not allowed"),
        ("beta: !!float two\n", "two"),
        ("beta:\t- 1", "not valid YAML"),
        ("? [beta]\n: 1\n", "a key must be a name"),
        ("#" * 2_000_000, "larger than"),
        ("env: [1]\n", "env: expected a mapping"),
        ("env: {'A=B': 1}\n", "cannot be a variable"),
        ("beta: {a: 1}\n", "beta is a mapping, but this setting takes none"),
        ("reward_weights: [1, [2]]\n", "reward_weights has null, a list or a mapping inside of the list"),
        ("beta: .nan\n", "beta=nan: must be above 0"),
        ("learning_rate: .inf\n", "learning_rate=inf: must be above 0"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused_in_one_line(tmp_path, capsys, content, message):
    path = write(tmp_path, content)
    err = refusal(capsys, "--config", path, "--use_cpu")
    assert path in err and message in err


def test_a_folder_is_not_a_file(tmp_path, capsys):
    assert "is a folder" in refusal(capsys, "--config", str(tmp_path))


def test_anchors_and_merge_keys_work(tmp_path):
    text = (
        "reward_options: {dsr_score: &a {min_frames: 7}}\nlr_scheduler_kwargs: {<<: *a}\nlr_scheduler_type: constant"
    )
    assert from_yaml(tmp_path, text)[2].lr_scheduler_kwargs == {"min_frames": 7}


def test_utf8_with_a_mark_is_read(tmp_path):
    args = parse("--config", write(tmp_path, "﻿negative_prompt: 猫\nuse_cpu: true\n"))[2]
    assert args.negative_prompt == "猫"


def test_the_environment_takes_the_numbers_that_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALALIGN_TEST", "before")
    from_yaml(tmp_path, "env: {SPATIALALIGN_TEST: 7}")
    assert os.environ["SPATIALALIGN_TEST"] == "7"


def test_a_mistake_in_a_file_is_told_from_one_in_a_flag(tmp_path, capsys):
    path = write(tmp_path, "use_cpu: true\nmax_steps: 0\n")
    assert f"{path}: max_steps=0: must be in [1, 1_000_000_000], or -1." in refusal(capsys, "--config", path)
    assert ": error: max_steps=0" in refusal(capsys, "--config", path, "--max_steps", "0")


# A default file's value is nobody's wish


def test_a_lora_to_continue_replaces_the_default_files_lora_but_not_the_users(tmp_path):
    lora = ["--lora_path", "runs/tiny", "--use_cpu"]
    assert parse(default=TINY)[3].lora_target_modules == ["all-linear"]
    parsed = parse(*lora, default=TINY)
    assert parsed[3].lora_path == "runs/tiny" and parsed[3].lora_target_modules is None
    assert "lora_target_modules" not in describe_recipe(parsed, TINY, lora).settings
    assert parse(*lora, "--lora_target_modules", "attn2.to_k", default=TINY)[3].lora_target_modules == ["attn2.to_k"]
    assert parse(*lora, "--config", str(TINY))[3].lora_target_modules == ["all-linear"]


def test_a_described_recipe_gives_the_same_settings_again(tmp_path):
    path = write(tmp_path, f"output_dir: {tmp_path}\nuse_cpu: true\nmodel_revision: 012345\nlearning_rate: 1e-5\n")
    words = ["--config", path, "--reward_gates", "{motion: 2e-2}"]
    first = parse(*words)
    described = write(tmp_path, describe_recipe(first, arguments=words).settings, "again.yaml")
    again = parse("--config", described)
    assert again[3].model_revision == "012345" and again[2].reward_gates == {"motion": 0.02}
    assert again[2].learning_rate == 1e-5
