"""Policies on a command line get their names, and those that cannot work are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from spatialalign_trl.evaluation.policies import Policy, plan_policies


@pytest.fixture
def places(tmp_path):
    name = "transformer.blocks.0.attn2.to_k"
    weights = {f"{name}.lora_A.weight": torch.zeros(2, 4), f"{name}.lora_B.weight": torch.zeros(4, 2)}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "pytorch_lora_weights.safetensors")
    (tmp_path / "clips").mkdir()
    return tmp_path


def test_names_are_given_or_the_last_part_of_the_place(places):
    lora, file, clips = places / "one", places / "two" / "pytorch_lora_weights.safetensors", places / "clips"
    assert plan_policies(["owner/model"], [f"ours={lora}", str(file), "owner/lora"], [str(clips)]) == [
        Policy("base", model="owner/model"),
        Policy("ours", model="owner/model", lora=str(lora)),
        Policy("two", model="owner/model", lora=str(file)),
        Policy("lora", model="owner/model", lora="owner/lora"),
        Policy("clips", folder=str(clips)),
    ]
    assert [policy.name for policy in plan_policies(["owner/model", "small=tiny"], [], [])] == ["model", "small"]


def test_a_path_may_hold_an_equals_sign(places):
    (places / "lr=1").mkdir()
    assert plan_policies([], [], [str(places / "lr=1")])[0] == Policy("lr=1", folder=str(places / "lr=1"))


@pytest.mark.parametrize(
    ("models", "loras", "folders", "message"),
    [
        ([], [], [], "nothing to evaluate"),
        ([], ["one"], [], "1 LoRAs and 0 models"),
        (["a/x", "a/y"], ["one"], [], "a LoRA belongs to one model"),
        (["a/x"], ["x=one", "x=two"], [], "would both be called 'x'; write NAME=PLACE"),
        (["a/x"], ["nowhere/at/all"], [], "no LoRA file or folder 'nowhere/at/all'"),
        (["a/x"], ["runs/tiny-not-yet"], [], "no LoRA file or folder 'runs/tiny-not-yet'; if a training leaves it"),
        (["a/x"], ["clips"], [], "holds no pytorch_lora_weights.safetensors"),
        ([], [], ["nowhere"], "no folder of videos 'nowhere'"),
    ],
)
def test_what_cannot_work_is_refused(places, monkeypatch, models, loras, folders, message):
    monkeypatch.chdir(places)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan_policies(models, loras, folders)


def test_another_programs_lora_is_taken_and_what_is_no_lora_is_refused_by_what_it_is(places):
    names = {"A": torch.zeros(2, 4), "B": torch.zeros(4, 2)}
    save_file({f"blocks.0.cross_attn.k.lora_{s}.weight": t for s, t in names.items()}, places / "wan.safetensors")
    save_file(
        {f"base_model.model.x.lora_{s}.weight": t for s, t in names.items()}, places / "adapter_model.safetensors"
    )
    plan_policies(["a/x"], [str(places / "wan.safetensors"), f"peft={places}"], [])
    save_file({"blocks.0.cross_attn.k.diff_b": torch.zeros(4)}, places / "diff.safetensors")
    with pytest.raises(ValueError, match=f"{places}/diff.safetensors contains no LoRA weights.*diff_b"):
        plan_policies(["a/x"], [str(places / "diff.safetensors")], [])
