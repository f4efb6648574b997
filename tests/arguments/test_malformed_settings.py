"""Every field of every recipe, with malformed values: one line that names the field, or a value that makes sense."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatialalign_trl.arguments.evaluation import EvaluationArguments
from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments, SceneRewardArguments
from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.models.ranges import FINITE, numeric_fields
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.tiny_world.vae_training import VAEArguments
from spatialalign_trl.trainer import DiffusionDPOConfig, SpatialAlignConfig
from spatialalign_trl.trainer.context_sft_config import ContextSFTConfig
from spatialalign_trl.trainer.training_arguments import TRAINING_RANGES

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = (OnlineSpatialAlignConfig, ContextSFTConfig, SpatialAlignConfig, DiffusionDPOConfig)
ARGUMENTS = (
    ModelArguments,
    PromptArguments,
    RewardArguments,
    SceneArguments,
    SceneRewardArguments,
    EvaluationArguments,
)
JOBS = (
    (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments),
    (SceneArguments, SceneRewardArguments, ContextSFTConfig, ModelArguments),
    (EvaluationArguments,),
)
VALUES: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, 0, 1e308, 10**400, -(10**30), 4.5, "", " ", "four", "nan", "false", "a\0b",
    "\ud800", "../../etc/passwd", "é\u200b", [], [None], [[1]], {}, {"a": 1}, True, None, b"bytes", object(), {1, 2},
    (), 1j,
)  # fmt: skip
TEXTS = (
    ".nan", ".inf", "-1", "0", "1e308", "9" * 30, "4.5", '""', "four", "null", "[]", "{}", "{a: 1}", "[1, [2]]",
    "'a\\0b'", '"a\\0b"', "../../etc/passwd", '"\\ud800"', "true", "!!int 3", "&a [*a]", "x" * 5000, "[a, b",
)  # fmt: skip


RECIPES_WITH_ARGUMENTS = (
    "video4spatial_sft", "compare_methods", "pretrain_tiny", "pretrain_tiny_rooms", "loop_from_parts",
)  # fmt: skip


def recipe_dataclasses() -> list[type]:
    """Return the classes of arguments that recipes define themselves."""
    found: list[type] = [VAEArguments]
    sys.path.insert(0, str(ROOT / "recipes"))  # as when one is launched: recipes import each other
    try:
        for name in (
            "video4spatial_sft",
            "compare_methods",
            "pretrain_tiny",
            "pretrain_tiny_rooms",
            "loop_from_parts",
        ):
            spec = importlib.util.spec_from_file_location(f"fields_of_{name}", ROOT / "recipes" / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
            classes = [kind for kind in vars(module).values() if isinstance(kind, type)]
            found += [
                kind for kind in classes if dataclasses.is_dataclass(kind) and kind.__name__.endswith("Arguments")
            ]
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(
    "kind", [*CONFIGS, *ARGUMENTS, SamplingSettings, *recipe_dataclasses()], ids=lambda k: k.__name__
)
def test_every_numeric_field_has_a_range(kind):
    assert [name for name, limits in numeric_fields(kind).items() if not (limits or TRAINING_RANGES.get(name))] == []


def base_of(kind: type, folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "use_cpu": True} if kind in CONFIGS else {}


def is_sane(instance: Any) -> bool:
    """Whether all numbers are finite and in their ranges, and all texts can be written to a file."""
    for name, limits in numeric_fields(type(instance)).items():
        value = getattr(instance, name)
        numbers = value if isinstance(value, list) else [value]
        if not all(number is None or number in (limits or TRAINING_RANGES.get(name, FINITE)) for number in numbers):
            return False
    texts = [getattr(instance, one.name) for one in dataclasses.fields(instance)]
    return all("\0" not in text and text.isprintable() for text in texts if type(text) is str and "\u200b" not in text)


@pytest.mark.parametrize("kind", [*CONFIGS[:2], *ARGUMENTS], ids=lambda kind: kind.__name__)
def test_a_malformed_value_is_refused_by_name_or_makes_sense(kind, tmp_path):
    wrong = []
    base = base_of(kind, tmp_path)
    for one in dataclasses.fields(kind):
        for value in VALUES if one.init else ():
            try:
                instance = kind(**{**base, one.name: value})
            except ValueError as error:
                if one.name not in str(error) or "\n" in str(error) or len(str(error)) > 1000:
                    wrong.append(f"{one.name}={value!r}: {error}")
                continue
            except Exception as error:
                wrong.append(f"{one.name}={value!r}: {type(error).__name__}: {error}")
                continue
            if not is_sane(instance):
                wrong.append(f"{one.name}={value!r} was accepted")
    assert not wrong, f"{len(wrong)} values:\n" + "\n".join(wrong[:40])


FIELDS = [
    (job, one.name) for job in JOBS for kind in job for one in dataclasses.fields(kind) if one.init
]  # a YAML that sets one of them


@given(st.sampled_from(FIELDS), st.sampled_from(TEXTS))
@settings(max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_malformed_line_of_a_yaml_is_refused_by_name_or_makes_sense(tmp_path_factory, capfd, field, text):
    job, name = field
    path = tmp_path_factory.mktemp("yaml") / "mine.yaml"
    lines = {"output_dir": str(path.parent), "use_cpu": "true", name: text}
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    capfd.readouterr()
    try:
        parsed = parse_recipe(job, None, ["--config", str(path)])
    except SystemExit as stop:
        err = capfd.readouterr().err
        message = next(line for line in err.splitlines() if ": error: " in line)
        assert stop.code == 2 and len(message) < 1500
        assert name in message or str(path) in message  # a line that is no YAML is named by its number
        return
    assert all(is_sane(group) for group in parsed)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (OnlineSpatialAlignConfig, "max_steps", 0),
        (OnlineSpatialAlignConfig, "gradient_accumulation_steps", -1),
        (OnlineSpatialAlignConfig, "gradient_accumulation_steps", 0),
        (OnlineSpatialAlignConfig, "per_device_train_batch_size", 0),
        (OnlineSpatialAlignConfig, "learning_rate", 0),
        (OnlineSpatialAlignConfig, "learning_rate", math.nan),
        (OnlineSpatialAlignConfig, "pairs_per_prompt", 0),
        (OnlineSpatialAlignConfig, "reward_weights", [0]),
        (OnlineSpatialAlignConfig, "seed", -1),
        (OnlineSpatialAlignConfig, "fp16", True),
        (OnlineSpatialAlignConfig, "lr_scheduler_type", "cosine_with_min_lr"),
        (PromptArguments, "max_eval_prompts", -1),
        (ModelArguments, "lora_alpha", 0),
        (ModelArguments, "lora_r", 0),
        (ModelArguments, "lora_target_modules", []),
        (RewardArguments, "trust_remote_code", "false"),
        (EvaluationArguments, "trust_remote_code", "false"),
    ],
)
def test_what_would_teach_nothing_or_fail_late_is_refused_by_name(kind, name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"\b{name}="):
        kind(**{**base_of(kind, tmp_path), name: value})


def test_a_token_is_not_shown(tmp_path):
    with pytest.raises(ValueError, match=r"hub_token=\.\.\.: must be a text") as refused:
        OnlineSpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True, hub_token=["hf_secret"])
    assert "secret" not in str(refused.value)


def test_whole_numbers_and_numpy_numbers_become_plain_ones(tmp_path):
    import numpy as np

    args = OnlineSpatialAlignConfig(
        output_dir=str(tmp_path), use_cpu=True, num_generations=np.int64(6), max_steps=8.0, beta=np.float32(0.5)
    )
    assert [type(value) for value in (args.num_generations, args.max_steps, args.beta)] == [int, int, float]
    assert (args.num_generations, args.max_steps, args.beta) == (6, 8, 0.5)
