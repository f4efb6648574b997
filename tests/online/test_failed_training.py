"""A round whose training fails, or is killed when it has all but its record, keeps what was paid for and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_loop import loop
from tiny_pipelines import saved_wan

from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.trainer.finiteness import NonFiniteError

# The schedule is constant, because a cosine would make a step too many one with learning rate 0.
SETTINGS = {"lr_scheduler_type": "constant", "save_steps": 1, "logging_steps": 2, "contact_sheet_prompts": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def whole(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    loop(folder, output, **SETTINGS).train()
    return output


def assert_same_lora(first: Path, second: Path) -> None:
    weights = [load_file(path) for path in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_kill_between_the_last_checkpoint_and_the_record_trains_no_further_step(
    folder, tmp_path, whole, monkeypatch
):
    record = json.loads((whole / "rounds" / "01" / "round.json").read_text())
    killed = loop(folder, tmp_path, **SETTINGS)
    monkeypatch.setattr("spatialalign_trl.online.trainer.write_json", lambda *arguments: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        killed.train()
    monkeypatch.undo()
    policy = tmp_path / "rounds" / "01" / "policy"
    (policy / LORA_FILE).unlink()
    assert (policy / "checkpoint-3" / "trainer_state.json").is_file()
    loop(folder, tmp_path, **SETTINGS).train()
    assert json.loads((tmp_path / "rounds" / "01" / "round.json").read_text()) == record
    assert [entry["step"] for entry in record["training"]] == [2]
    assert not (policy / "checkpoint-4").exists()
    assert_same_lora(tmp_path / LORA_FILE, whole / LORA_FILE)


def test_a_training_that_fails_continues_with_a_smaller_rate_from_the_same_pairs(folder, tmp_path, whole):
    failed = loop(folder, tmp_path, learning_rate=1e30, ema_decay=0.5, **SETTINGS)
    with pytest.raises(NonFiniteError, match=r"after 1 of 3 steps, .* smaller learning_rate than 1e\+30"):
        failed.train()
    round_folder = tmp_path / "rounds" / "01"
    assert not (round_folder / "round.json").exists() and not list(round_folder.rglob(LORA_FILE))
    samples = sorted(path.name for path in (tmp_path / "samples").rglob("*") if path.is_file())
    assert samples  # every video of the round and of the base's evaluation, with its scores
    pairs = Dataset.from_parquet(str(round_folder / "preferences" / "train-00000-of-00001.parquet"))
    again: OnlineSpatialAlignTrainer = loop(folder, tmp_path, **SETTINGS)
    logs = again._train_policy(pairs, round_folder / "policy", is_first=True)
    assert [entry["learning_rate"] for entry in logs] == [0.01]
    assert_same_lora(round_folder / "policy" / LORA_FILE, whole / "rounds" / "01" / "policy" / LORA_FILE)
    assert sorted(path.name for path in (tmp_path / "samples").rglob("*") if path.is_file()) == samples


def test_checkpoints_that_no_run_can_continue_from_are_refused_before_anything_is_sampled(folder, tmp_path):
    with pytest.raises(ValueError, match="save_only_model=True writes checkpoints without the optimizer"):
        loop(folder, tmp_path, save_only_model=True)
    assert not (tmp_path / "samples").exists()
