"""Test saving on Ctrl-C, the average of the LoRA, and early warnings; none of them changes the trained weights."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import assert_same_weights, lora_of, spatialalign_trainer, wan_model
from transformers import TrainerCallback

from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.trainer.callbacks import EarlyWarnings, LoraEMA, SaveOnInterrupt, error_inflation

STEPS = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}


class CtrlC(TrainerCallback):
    """Sends this process the signal of Ctrl-C, in the middle of a step."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, torch.Tensor]:
    trainer = spatialalign_trainer(tmp_path_factory.mktemp("uninterrupted"), gradient_accumulation_steps=2, **STEPS)
    trainer.train()
    return lora_of(trainer)


def test_ctrl_c_saves_a_checkpoint_from_which_the_run_continues_exactly(tmp_path, uninterrupted, capfd):
    before = signal.getsignal(signal.SIGINT)
    callbacks = [SaveOnInterrupt(), CtrlC(step=3)]
    trainer = spatialalign_trainer(tmp_path, gradient_accumulation_steps=2, callbacks=callbacks, **STEPS)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted at step 3; .*checkpoint-3 was written.*resume_from_che"):
        trainer.train()
    assert "finishing the step, then saving" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    resumed = spatialalign_trainer(tmp_path, gradient_accumulation_steps=2, **STEPS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    assert_same_weights(lora_of(resumed), uninterrupted)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    callbacks = [SaveOnInterrupt(), CtrlC(step=3, times=2)]
    trainer = spatialalign_trainer(tmp_path, gradient_accumulation_steps=2, callbacks=callbacks, **STEPS)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 2 and not (tmp_path / "checkpoint-3").exists()


class StopAfterTwoSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = state.global_step >= 2


def average(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "ema" / LORA_FILE)


def test_the_average_follows_its_formula_and_survives_a_resume(tmp_path, uninterrupted):
    trained: list[dict[str, torch.Tensor]] = []

    class RecordWeights(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            trained.append(lora_of(trainer))

    trainer = spatialalign_trainer(tmp_path / "uninterrupted", gradient_accumulation_steps=2, **STEPS)
    expected = lora_of(trainer)
    trainer.add_callback(LoraEMA(trainer.video_model, 0.75))
    trainer.add_callback(RecordWeights())
    trainer.train()
    assert_same_weights(lora_of(trainer), uninterrupted)  # the average does not change the training
    for weights in trained:
        expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in weights.items()}
    found = average(tmp_path / "uninterrupted")
    for name, value in expected.items():
        torch.testing.assert_close(found[f"transformer.{name}"], value, rtol=0, atol=1e-7)

    for callbacks, resume in (([StopAfterTwoSteps()], None), ([], True)):
        cut = spatialalign_trainer(tmp_path / "cut", gradient_accumulation_steps=2, callbacks=callbacks, **STEPS)
        cut.add_callback(LoraEMA(cut.video_model, 0.75))
        cut.train(resume_from_checkpoint=resume)
    assert_same_weights(average(tmp_path / "cut"), found)
    model = wan_model()
    model.load_lora(tmp_path / "cut" / "ema")  # can be loaded like the LoRA

    without = spatialalign_trainer(tmp_path / "without", callbacks=[StopAfterTwoSteps()], **STEPS)
    without.train()
    late = spatialalign_trainer(tmp_path / "without", **STEPS)
    late.add_callback(LoraEMA(late.video_model, 0.75))
    with pytest.raises(FileNotFoundError, match="kept no average"):
        late.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match="must be in"):
        LoraEMA(wan_model(), decay)


def warnings_of(callback: EarlyWarnings, **logs: float) -> list[str]:
    state = SimpleNamespace(is_world_process_zero=True, global_step=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback.on_log(None, state, None, logs={name.replace("__", "/"): value for name, value in logs.items()})
    return [str(warning.message) for warning in caught]


def test_a_training_that_goes_wrong_is_warned_about_once_with_a_remedy():
    healthy = {"mse__chosen": 0.9, "rewards__chosen": 0.1, "mse__rejected": 1.2, "rewards__rejected": -0.2}
    callback = EarlyWarnings()
    assert warnings_of(callback, **healthy, margin_saturation=0.5) == []
    (message,) = warnings_of(callback, **healthy, margin_saturation=0.8)
    assert message.startswith("step 10: 80% of the pairs") and "lower learning_rate or beta" in message
    assert warnings_of(callback, **healthy, margin_saturation=0.9) == []  # once
    (message,) = warnings_of(callback, **{**healthy, "mse__rejected": 5.0, "rewards__rejected": -4.0})
    assert "error on rejected videos is 5.00 times the reference's" in message and "zeroth_order_weight" in message
    (message,) = warnings_of(callback, **{**healthy, "mse__chosen": 1.6, "rewards__chosen": -0.6})
    assert "chosen videos is 1.60 times" in message


def test_inflation_is_a_ratio_of_errors_with_the_same_noise(tmp_path):
    trainer = spatialalign_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert error_inflation(trainer.state.log_history[0], "rejected") == pytest.approx(1.0)  # step 0 is the reference
    assert error_inflation({}, "rejected") is None
