"""Test that a training stops at the first number that is not finite, and can be continued from what was sound."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pairs import assert_same_weights, latent_pairs, logged, lora_of, spatialalign_config, spatialalign_trainer
from torch import Tensor
from transformers import TrainerCallback

from spatialalign_trl.files import read_json
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.trainer import SpatialAlignTrainer
from spatialalign_trl.trainer.callbacks import LoraEMA
from spatialalign_trl.trainer.checkpoints import NON_FINITE_FILE, last_whole_checkpoint
from spatialalign_trl.trainer.finiteness import NonFiniteError, first_non_finite

SAVES: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1}
Change = Callable[[SpatialAlignTrainer, Tensor], Tensor]


def nan_loss(trainer: SpatialAlignTrainer, losses: Tensor) -> Tensor:
    return losses * torch.tensor([1.0, math.nan])


def infinite_loss(trainer: SpatialAlignTrainer, losses: Tensor) -> Tensor:
    return losses + torch.tensor([0.0, math.inf])


def nan_gradient(trainer: SpatialAlignTrainer, losses: Tensor) -> Tensor:
    weight = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    return losses + (weight - weight).sum().sqrt()  # the value is 0, and the gradient infinity times 0


def inject(trainer: SpatialAlignTrainer, change: Change, step: int) -> list[list[int]]:
    """Change the losses after a number of steps; returns the list that will hold the rows of the batches changed."""
    original, rows = trainer._example_losses, []

    def changed(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        losses, metrics = original(model, inputs)
        if trainer.state.global_step == step:
            rows.append(inputs["row"].tolist())
            losses = change(trainer, losses)
        return losses, metrics

    trainer._example_losses = changed
    return rows


class KeepWeights(TrainerCallback):
    """Keeps a copy of the LoRA after every step."""

    def __init__(self) -> None:
        self.trainer: SpatialAlignTrainer | None = None
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = lora_of(self.trainer)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Tensor]]:
    """The weights after every step of a training that nothing happens to."""
    callback = KeepWeights()
    trainer = spatialalign_trainer(tmp_path_factory.mktemp("sound"), callbacks=[callback], **SAVES)
    callback.trainer = trainer
    trainer.train()
    return callback.weights


@pytest.mark.parametrize("change", [nan_loss, infinite_loss, nan_gradient])
def test_it_stops_before_the_weights_change_and_continues_with_a_smaller_rate(
    tmp_path: Path, sound: dict[int, dict[str, Tensor]], change: Change
) -> None:
    trainer = spatialalign_trainer(tmp_path, **SAVES)
    rows = inject(trainer, change, step=2)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    message = str(caught.value)
    is_gradient = change is nan_gradient
    assert f"after 2 of 5 steps, the {'gradient' if is_gradient else 'loss'} is not finite" in message
    (first, second) = rows[0]
    assert f"train_dataset row {second} (" in message and (f"train_dataset row {first} (" in message) == is_gradient
    assert trainer.train_dataset.columns.prompts[second] in message
    assert f"{tmp_path / 'checkpoint-1'} is sound" in message and "learning_rate than 0.01" in message
    assert_same_weights(lora_of(trainer), sound[2])  # the optimizer has not seen the gradient
    assert logged(trainer, "loss") and all(map(math.isfinite, logged(trainer, "loss")))
    assert read_json(tmp_path / "checkpoint-2" / NON_FINITE_FILE)["step"] == 2
    assert not (tmp_path / LORA_FILE).exists()

    # The step would fail again from checkpoint-2, so that the next training starts from checkpoint-1.
    again = spatialalign_trainer(tmp_path, **{**SAVES, "learning_rate": 1e-3})
    keep = KeepWeights()
    keep.trainer = again
    again.add_callback(keep)
    again.train(resume_from_checkpoint=True)
    assert logged(again, "learning_rate") == [1e-2, 1e-3, 1e-3, 1e-3, 1e-3]
    for name, before in sound[1].items():  # a step of Adam is in proportion to the learning rate
        step, smaller_step = sound[2][name] - before, keep.weights[2][name] - before
        torch.testing.assert_close(smaller_step, 0.1 * step, rtol=1e-3, atol=1e-7)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert not (tmp_path / "checkpoint-2" / NON_FINITE_FILE).exists()  # it was written anew


@pytest.mark.parametrize("saves", [{"save_strategy": "no"}, SAVES])
@pytest.mark.parametrize("max_steps", [1, 3])
def test_a_rate_that_destroys_the_weights_leaves_nothing_behind(
    tmp_path: Path, saves: dict[str, Any], max_steps: int
) -> None:
    """With one step, no loss has seen the weights before they would be saved."""
    options = {**saves, "max_steps": max_steps}
    with pytest.raises(NonFiniteError, match=rf"after 1 of {max_steps} steps, .* than 1e\+30"):
        spatialalign_trainer(tmp_path / "run", learning_rate=1e30, **options).train()
    assert not list((tmp_path / "run").rglob(LORA_FILE))
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        spatialalign_trainer(tmp_path / "run", **options).train(resume_from_checkpoint=True)
    again = spatialalign_trainer(tmp_path / "run", **options)
    again.train(resume_from_checkpoint=last_whole_checkpoint(tmp_path / "run"))
    clean = spatialalign_trainer(tmp_path / "clean", **options)
    clean.train()
    assert_same_weights(lora_of(again), lora_of(clean))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    trainer = spatialalign_trainer(tmp_path)
    average = LoraEMA(trainer.video_model, 0.9)
    average.on_train_begin(trainer.args, trainer.state, trainer.control)
    weight = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    weight.data.view(-1)[3] = value
    for save in (trainer.save_model, lambda: trainer.save_model(str(tmp_path / "other")), trainer.push_to_hub):
        trainer.hub_model_id = "nobody/nothing"
        with pytest.raises(NonFiniteError, match=r"^the LoRA for .* \(after step 0\): \S*lora_A\S* has values"):
            save()
    average.on_step_end(trainer.args, trainer.state, trainer.control)
    with pytest.raises(NonFiniteError, match="average"):
        average.on_train_end(trainer.args, trainer.state, trainer.control)
    assert not list(tmp_path.rglob("*lora*")) and not list(tmp_path.rglob("adapter*"))


def test_a_checkpoint_of_an_older_version_with_weights_that_are_not_finite_is_passed_over(tmp_path: Path) -> None:
    spatialalign_trainer(tmp_path, **{**SAVES, "max_steps": 2}).train()
    file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = math.nan
    save_file(weights, file)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_an_evaluation_names_its_row_and_averages_nothing_away(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(tmp_path, eval_dataset=latent_pairs(4, seed=3), eval_strategy="steps", eval_steps=2)
    original = trainer._example_losses

    def changed(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        losses, metrics = original(model, inputs)
        return (losses if model.training else nan_loss(trainer, losses)), metrics

    trainer._example_losses = changed
    with pytest.raises(
        NonFiniteError, match=r"after 2 of 3 steps, the loss in the evaluation .* eval_dataset row 1 \("
    ):
        trainer.train()
    alone = spatialalign_trainer(tmp_path, eval_dataset=latent_pairs(4, seed=3))
    inject(alone, nan_loss, step=0)
    with pytest.raises(NonFiniteError, match=r"the loss in the evaluation is not finite for eval_dataset row 1 \("):
        alone.evaluate()
    with pytest.raises(ValueError, match="logging_nan_inf_filter=True would hide"):
        spatialalign_config(tmp_path, logging_nan_inf_filter=True)


def test_an_input_that_is_not_finite_is_named_and_no_checkpoint_is_blamed(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(tmp_path, **SAVES)
    original = trainer._example_losses

    def broken(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if trainer.state.global_step == 2:
            next(iter(inputs["conditioning"].values()))[1] = math.nan
        return original(model, inputs)

    trainer._example_losses = broken
    name = next(iter(trainer.train_dataset[0]["conditioning"]))
    with pytest.raises(
        NonFiniteError, match=rf"checkpoint-2 is sound\. The input 'conditioning.{name}' itself is not"
    ):
        trainer.train()
    assert not list(tmp_path.rglob(NON_FINITE_FILE))


class UseLossScale(TrainerCallback):
    """Lets a training on the CPU scale its loss as fp16 does on a GPU, where accelerate allows it."""

    def __init__(self, scale: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.trainer: SpatialAlignTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        accelerator.scaler = self.trainer.optimizer.scaler = self.scaler
        accelerator.unscale_gradients = lambda: self.scaler.unscale_(self.trainer.optimizer.optimizer)
        optimizer = self.trainer.optimizer  # what AcceleratedOptimizer does when it is made with a scaler
        optimizer._accelerate_step_called = False
        optimizer._optimizer_original_step_method = optimizer.optimizer.step

        def patched(*arguments: Any, **options: Any) -> Any:
            optimizer._accelerate_step_called = True
            return optimizer._optimizer_original_step_method(*arguments, **options)

        optimizer._optimizer_patched_step_method = patched


def test_a_loss_scale_that_is_too_large_skips_steps_and_does_not_stop(tmp_path: Path) -> None:
    callback = UseLossScale(2.0**127)
    trainer = spatialalign_trainer(tmp_path, callbacks=[callback], max_steps=12)
    callback.trainer, before = trainer, lora_of(trainer)
    original = trainer._example_losses
    trainer._example_losses = lambda *arguments: (1000 * original(*arguments)[0], original(*arguments)[1])
    trainer.train()
    skipped = 12 - len(logged(trainer, "grad_norm"))
    assert 0 < skipped < 12 and callback.scaler.get_scale() == 2.0 ** (127 - skipped)
    assert all(map(math.isfinite, logged(trainer, "grad_norm")))
    assert any(not torch.equal(value, before[name]) for name, value in lora_of(trainer).items())


def test_a_gradient_that_no_loss_scale_makes_finite_stops(tmp_path: Path) -> None:
    callback = UseLossScale(4.0)
    trainer = spatialalign_trainer(tmp_path, callbacks=[callback], max_steps=12)
    callback.trainer = trainer
    original = trainer._example_losses
    trainer._example_losses = lambda *arguments: (
        nan_gradient(trainer, original(*arguments)[0]),
        original(*arguments)[1],
    )
    with pytest.raises(NonFiniteError, match="after 3 of 12 steps, the gradient"):  # at scales 4, 2 and 1 it skipped
        trainer.train()


def test_the_first_tensor_that_is_not_finite_is_found() -> None:
    finite = {"a": torch.ones(2), "rows": torch.tensor([1]), "inner": {"b": torch.zeros(0)}, "text": "nan"}
    assert first_non_finite(finite) is None
    assert first_non_finite({**finite, "inner": {"c": torch.tensor([1.0, math.inf])}}) == "inner.c"
