"""Check that accelerate reads each launch configuration as intended, and that its first line is a launch line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from diffusers import WanTransformer3DModel

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "configs" / "accelerate"
TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "multi_node": DistributedType.MULTI_GPU,
}


def test_the_configurations_are_those_listed_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_it(name):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.distributed_type == TYPES[name] and config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "bf16" and not config.use_cpu
    words = shlex.split(path.read_text().splitlines()[0].removeprefix("#"))
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("--config_file") + 1] == str(path.relative_to(ROOT))
    recipe = [word for word in words if word.startswith("recipes/") and word.endswith(".py")]
    assert all((ROOT / word).is_file() for word in recipe)


def test_fsdp_splits_the_blocks_and_saves_the_whole():
    options = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    assert options["fsdp_version"] == 2 and options["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert options["fsdp_transformer_layer_cls_to_wrap"] in WanTransformer3DModel._no_split_modules


def test_deepspeed_stays_at_the_stage_that_is_supported():
    assert load_config_from_file(str(FOLDER / "deepspeed_zero2.yaml")).deepspeed_config["zero_stage"] == 2


def test_the_multi_node_configuration_names_the_main_machine():
    config = load_config_from_file(str(FOLDER / "multi_node.yaml"))
    assert config.num_machines == 2 and config.main_process_ip and config.main_process_port
