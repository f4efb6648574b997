"""Test that a continued training makes the steps, and logs the numbers, of an uninterrupted one, or is refused."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import assert_same_weights, latent_pairs, logged, lora_of, spatialalign_trainer
from transformers import TrainerCallback

from spatialalign_trl.files import CHECKSUM_FILE
from spatialalign_trl.trainer.callbacks import SaveOnInterrupt
from spatialalign_trl.trainer.checkpoints import last_whole_checkpoint
from spatialalign_trl.trainer.resuming import LOG_STATE_FILE, LogState, refuse_save_only_model

# 4 batches in an epoch, so that no number of steps below is a whole number of epochs.
STEPS: dict[str, Any] = {"train_dataset": latent_pairs(7), "max_steps": 5, "save_strategy": "steps", "save_steps": 1}


class StopAt(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class CtrlC(StopAt):
    """Sends this process the signal of Ctrl-C, in the middle of a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Do not end the training here."""


def step_logs(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted training that logs after steps 3 and 5."""
    trainer = spatialalign_trainer(tmp_path_factory.mktemp("whole"), logging_steps=3, **STEPS)
    trainer.train()
    assert [entry["step"] for entry in step_logs(trainer)] == [3]
    return trainer


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_logs_after_a_resume_are_those_of_an_uninterrupted_training(tmp_path: Path, whole: Any, stop: int) -> None:
    spatialalign_trainer(tmp_path, logging_steps=3, callbacks=[StopAt(stop)], **STEPS).train()
    resumed = spatialalign_trainer(tmp_path, logging_steps=3, **STEPS)
    output = resumed.train(resume_from_checkpoint=True)
    assert step_logs(resumed) == step_logs(whole)
    final, expected = resumed.state.log_history[-1], whole.state.log_history[-1]
    times = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
    assert {k: v for k, v in final.items() if k not in times} == {k: v for k, v in expected.items() if k not in times}
    assert final["train_loss"] == output.training_loss == output.metrics["train_loss"]
    assert_same_weights(lora_of(resumed), lora_of(whole))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_training_that_has_all_its_steps_makes_none(tmp_path: Path, schedule: str) -> None:
    options = {**STEPS, "lr_scheduler_type": schedule}
    first = spatialalign_trainer(tmp_path, **options)
    output = first.train()
    again = spatialalign_trainer(tmp_path, **options)
    batches = []
    again._example_losses = lambda *arguments: batches.append(arguments)
    repeated = again.train(resume_from_checkpoint=True)
    assert not batches and again.state.global_step == 5 == repeated.global_step
    assert repeated.training_loss == output.training_loss > 0
    assert step_logs(again) == step_logs(first)
    assert_same_weights(lora_of(again), lora_of(first))
    assert not (tmp_path / "checkpoint-6").exists()


def test_the_state_of_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Also the metrics of a user's own loss, which need not be defined for every example."""
    state = LogState(3, [0.1, 1 / 3], 2.5, {"own": [math.nan, math.inf, -math.inf, 0.1 + 0.2]})
    state.write(tmp_path)
    found = LogState.read(tmp_path, world_size=2)
    assert repr(found) == repr(state)  # NaN is not equal to itself
    assert LogState.read(tmp_path, world_size=1) is None
    for damaged in ("{}", "[]", '{"last_logged_step": 1, "losses": [], "logged_loss": 0, "metrics": 3}', "{"):
        (tmp_path / LOG_STATE_FILE).write_text(damaged)
        with pytest.raises(ValueError, match=LOG_STATE_FILE):
            LogState.read(tmp_path, world_size=1)


def test_a_checkpoint_without_its_log_continues_and_says_so(
    tmp_path: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spatialalign_trainer(tmp_path, logging_steps=3, callbacks=[StopAt(2)], **STEPS).train()
    file = tmp_path / "checkpoint-2" / LOG_STATE_FILE
    state = json.loads(file.read_text())
    assert state["last_logged_step"] == 0 and len(state["losses"]) == 1 and len(state["metrics"]["mse/chosen"]) == 4
    file.unlink()  # as in a checkpoint of an older version, which has no checksums either
    (tmp_path / "checkpoint-2" / CHECKSUM_FILE).unlink()
    resumed = spatialalign_trainer(tmp_path, logging_steps=3, **STEPS)
    with caplog.at_level(logging.WARNING):
        output = resumed.train(resume_from_checkpoint=True)
    assert "log_state.json is missing" in caplog.text and "only the steps after checkpoint-2" in caplog.text
    assert_same_weights(lora_of(resumed), lora_of(whole))
    assert output.training_loss != whole.state.log_history[-1]["train_loss"]  # of steps 3 to 5


@pytest.mark.parametrize(
    "saves",
    [
        {"save_only_model": True},
        {"save_strategy": "no"},
        {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1},
    ],
)
def test_what_ctrl_c_promises_holds_whatever_is_saved_otherwise(tmp_path: Path, saves: dict[str, Any]) -> None:
    options = {**STEPS, **saves, "gradient_accumulation_steps": 2, "eval_dataset": latent_pairs(2, seed=3)}
    uninterrupted = spatialalign_trainer(tmp_path / "whole", **options)
    uninterrupted.train()
    cut = spatialalign_trainer(tmp_path / "cut", callbacks=[SaveOnInterrupt(), CtrlC(step=3)], **options)
    with pytest.raises(KeyboardInterrupt, match="checkpoint-3 was written"):
        cut.train()
    assert last_whole_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-3")
    resumed = spatialalign_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(lora_of(resumed), lora_of(uninterrupted))
    assert step_logs(resumed) == step_logs(uninterrupted)


def test_a_checkpoint_without_the_optimizer_is_not_continued_from(tmp_path: Path) -> None:
    """Trainer would load the weights and the step, and silently start with a new optimizer."""
    options = {**STEPS, "max_steps": 2, "save_only_model": True}
    spatialalign_trainer(tmp_path, **options).train()
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        spatialalign_trainer(tmp_path, **options).train(resume_from_checkpoint=True)
    trainer = spatialalign_trainer(tmp_path, **options)
    with pytest.raises(
        ValueError, match=r"checkpoint-1 cannot be resumed from: optimizer.pt, scheduler.pt is missing"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(ValueError, match="save_only_model=True"):
        refuse_save_only_model(trainer.args)


def test_changed_settings_count_after_a_resume(tmp_path: Path) -> None:
    """A schedule is a function of the step, so that the rates are those of a training with the new settings."""
    old = {**STEPS, "lr_scheduler_type": "cosine", "learning_rate": 1e-2, "weight_decay": 0.1}
    new = {**old, "lr_scheduler_type": "linear", "learning_rate": 1e-3, "max_steps": 4, "weight_decay": 0.0}
    spatialalign_trainer(tmp_path / "run", callbacks=[StopAt(2)], **old).train()
    expected = spatialalign_trainer(tmp_path / "new", **new)
    expected.train()
    resumed = spatialalign_trainer(tmp_path / "run", **new)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert logged(resumed, "learning_rate")[2:] == logged(expected, "learning_rate")[2:]
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.0, 0.0]


def test_a_schedule_that_cannot_follow_changed_settings_is_refused(tmp_path: Path) -> None:
    options = {**STEPS, "lr_scheduler_type": "reduce_lr_on_plateau", "eval_dataset": latent_pairs(2, seed=3)}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    spatialalign_trainer(tmp_path, callbacks=[StopAt(2)], **options).train()
    with pytest.raises(ValueError, match=r"learning_rate 0.01 -> 0.001.*ReduceLROnPlateau"):
        spatialalign_trainer(tmp_path, **options, learning_rate=1e-3).train(resume_from_checkpoint=True)


def test_a_checkpoint_that_is_written_again_keeps_no_old_file(tmp_path: Path) -> None:
    spatialalign_trainer(tmp_path, **STEPS).train()
    (tmp_path / "checkpoint-3" / "from_before").touch()
    again = spatialalign_trainer(tmp_path, **STEPS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not (tmp_path / "checkpoint-3" / "from_before").exists()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
