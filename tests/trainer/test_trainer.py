"""Test the trainers on a random tiny Wan: exactness at step 0, invariances, resuming, learning and evaluation."""

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_pairs import (
    assert_same_weights,
    latent_pairs,
    logged,
    lora_of,
    spatialalign_trainer,
    video_pairs,
    wan_model,
)
from tiny_pipelines import saved_wan
from transformers import TrainerCallback

from spatialalign_trl.models import load_video_model
from spatialalign_trl.trainer import DiffusionDPOConfig, DiffusionDPOTrainer

LN_2 = -float(torch.nn.functional.logsigmoid(torch.zeros(())))


# Adam divides by the size of the gradient, which amplifies rounding errors; plain gradient descent does not.
SGD = {"optim": "sgd", "learning_rate": 1.0}


# Step 0


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("separate_forward", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16 autocast", "bf16 base"])
def test_step_0_has_margin_0_and_loss_ln_2(
    tmp_path: Path, precision: str, gradient_checkpointing: bool, separate_forward: bool
) -> None:
    model = wan_model()
    if precision == "bf16 base":
        model = load_video_model(saved_wan(tmp_path / "model"), torch_dtype=torch.bfloat16, device="cpu")
    trainer = spatialalign_trainer(
        tmp_path,
        model=model,
        bf16=precision == "bf16 autocast",
        gradient_checkpointing=gradient_checkpointing,
        separate_forward=separate_forward,
        max_steps=2,
    )
    assert trainer.video_model.pipeline.transformer.is_gradient_checkpointing == gradient_checkpointing
    before = lora_of(trainer)
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == 0
    assert logged(trainer, "loss")[0] == LN_2 == pytest.approx(math.log(2), abs=1e-7)
    assert logged(trainer, "loss/zeroth_order")[0] == 0 == logged(trainer, "distance_to_reference")[0]
    assert logged(trainer, "loss")[1] != LN_2  # the policy has changed
    assert any(not torch.equal(before[name], value) for name, value in lora_of(trainer).items())


def test_separate_forwards_compute_the_same(tmp_path: Path) -> None:
    loras = []
    for separate in (False, True):
        trainer = spatialalign_trainer(tmp_path, separate_forward=separate, **SGD)
        trainer.train()
        loras.append(lora_of(trainer))
    assert_same_weights(*loras, atol=1e-6)


def test_gradient_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    loras = []
    for checkpointing in (False, True):
        trainer = spatialalign_trainer(tmp_path, gradient_checkpointing=checkpointing)
        trainer.train()
        loras.append(lora_of(trainer))
    assert_same_weights(*loras)


# Invariances


def test_accumulation_of_4_batches_of_2_is_one_batch_of_8(tmp_path: Path) -> None:
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = spatialalign_trainer(
            tmp_path,
            train_dataset=latent_pairs(24),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **SGD,
        )
        before = lora_of(trainer)
        trainer.train()
        assert max((before[name] - value).abs().max() for name, value in lora_of(trainer).items()) > 1e-3
        runs.append((lora_of(trainer), logged(trainer, "loss"), logged(trainer, "rewards/margins")))
    assert_same_weights(runs[0][0], runs[1][0], atol=1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-6)
    assert runs[0][2] == pytest.approx(runs[1][2], abs=1e-6)


def test_the_same_arguments_give_the_same_run_whatever_was_drawn_before(tmp_path: Path) -> None:
    loras = []
    for noise in (1, 2):
        trainer = spatialalign_trainer(tmp_path)
        torch.manual_seed(noise)
        trainer.train()
        loras.append(lora_of(trainer))
    assert_same_weights(*loras)
    other = spatialalign_trainer(tmp_path, seed=8)
    other.train()
    assert any(not torch.equal(loras[0][name], value) for name, value in lora_of(other).items())


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("stop", [2, 3])  # at the end of an epoch, and inside one
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {
        "train_dataset": latent_pairs(7),
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    uninterrupted = spatialalign_trainer(tmp_path / "uninterrupted", **options)
    uninterrupted.train()

    spatialalign_trainer(tmp_path / "cut", callbacks=[_StopAt(stop)], **options).train()
    assert not (tmp_path / "cut" / f"checkpoint-{stop + 1}").exists()
    resumed = spatialalign_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)

    assert resumed.state.global_step == 5
    assert_same_weights(lora_of(uninterrupted), lora_of(resumed))
    for name in ("loss", "learning_rate", "rewards/margins", "mse/rejected"):
        assert logged(uninterrupted, name) == logged(resumed, name)
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (uninterrupted, resumed)]
    for key, values in moments[0].items():
        assert torch.equal(values["exp_avg"], moments[1][key]["exp_avg"])


class _InterruptOnce(TrainerCallback):
    done = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.done:
            self.done = True
            raise KeyboardInterrupt


def test_a_run_interrupted_inside_a_step_starts_over_with_the_same_noise(tmp_path: Path) -> None:
    uninterrupted = spatialalign_trainer(tmp_path, gradient_accumulation_steps=2)
    uninterrupted.train()
    trainer = spatialalign_trainer(tmp_path, gradient_accumulation_steps=2, callbacks=[_InterruptOnce()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert_same_weights(lora_of(uninterrupted), lora_of(trainer))


# Learning


def test_it_learns_to_prefer(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(
        tmp_path, train_dataset=latent_pairs(2), max_steps=40, beta=5.0, zeroth_order_weight=0.0
    )
    trainer.train()
    margins = logged(trainer, "rewards/margins")
    assert sum(margins[-10:]) / 10 > 0.1 > abs(margins[0])
    assert sum(logged(trainer, "rewards/accuracies")[-20:]) / 20 > 0.7


def test_the_zeroth_order_term_keeps_the_policy_near_the_reference(tmp_path: Path) -> None:
    distances = []
    for weight in (0.0, 50.0):
        trainer = spatialalign_trainer(tmp_path, max_steps=15, zeroth_order_weight=weight)
        trainer.train()
        distances.append(logged(trainer, "distance_to_reference")[-1])
    assert distances[1] < 0.3 * distances[0]


def test_weight_0_is_plain_diffusion_dpo(tmp_path: Path) -> None:
    spatialalign = spatialalign_trainer(tmp_path, zeroth_order_weight=0.0)
    args = {
        name: getattr(spatialalign.args, name)
        for name in ("per_device_train_batch_size", "max_steps", "learning_rate", "lr_scheduler_type", "seed")
    }
    args |= {"use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    config = DiffusionDPOConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **args)
    plain = DiffusionDPOTrainer(wan_model(), args=config, train_dataset=latent_pairs())
    for trainer in (spatialalign, plain):
        trainer.train()
    assert_same_weights(lora_of(spatialalign), lora_of(plain))
    assert "loss/zeroth_order" in spatialalign.state.log_history[0]
    assert "loss/zeroth_order" not in plain.state.log_history[0]


def test_sft_learns_the_chosen_alone(tmp_path: Path) -> None:
    options = {"loss_type": "sft", "zeroth_order_weight": 0.0, "eval_dataset": latent_pairs(3, seed=1)}
    trainer = spatialalign_trainer(tmp_path, max_steps=30, **options)
    trainer.train()
    errors = logged(trainer, "mse/chosen")
    assert errors == logged(trainer, "loss/sft") == pytest.approx(logged(trainer, "loss"), abs=1e-6)
    assert sum(errors[-5:]) < sum(errors[:5])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_mse/chosen"] == metrics["eval_loss/sft"]
    assert {"eval_rewards/margins", "eval_mse/rejected", "eval_distance_to_reference"} <= metrics.keys()

    # The rejected videos have no effect.
    swapped = latent_pairs().to_dict()
    swapped["rejected_latents"] = swapped["rejected_latents"][::-1]
    other = spatialalign_trainer(
        tmp_path,
        max_steps=30,
        train_dataset=datasets.Dataset.from_dict(swapped, latent_pairs().features),
        **options,
    )
    other.train()
    assert_same_weights(lora_of(trainer), lora_of(other))


def test_noise_is_independent_or_shared_within_a_pair(tmp_path: Path) -> None:
    for shared in (False, True):
        trainer = spatialalign_trainer(tmp_path, shared_noise=shared)
        batch = next(iter(trainer.get_train_dataloader()))
        sigma, noise, _ = trainer._draw(batch)
        assert sigma.shape == (2,) and sigma.dtype == torch.float32  # one for both videos of a pair
        assert torch.equal(noise.chosen, noise.rejected) == shared
        assert not torch.equal(noise.chosen[0], noise.chosen[1])


# Evaluation


def test_every_evaluation_draws_the_same_noise(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(
        tmp_path,
        eval_dataset=latent_pairs(5, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        optim="sgd",
        learning_rate=1e-30,  # changes no number
    )
    trainer.train()
    losses, margins = logged(trainer, "eval_loss"), logged(trainer, "eval_rewards/margins")
    assert len(losses) == 3 and len(set(losses)) == 1 and set(margins) == {0.0}
    assert trainer.evaluate()["eval_mse/chosen"] == logged(trainer, "eval_mse/chosen")[0]


def test_evaluation_does_not_depend_on_its_batches(tmp_path: Path) -> None:
    metrics = []
    for batch in (1, 2, 5):
        trainer = spatialalign_trainer(
            tmp_path, eval_dataset=latent_pairs(5, seed=1), per_device_eval_batch_size=batch
        )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(0.05)
        metrics.append({k: v for k, v in trainer.evaluate().items() if "second" not in k and "runtime" not in k})
    assert metrics[0]["eval_rewards/margins"] != 0
    for other in metrics[1:]:
        metrics[0].pop("eval_model_preparation_time", None)
        other.pop("eval_model_preparation_time", None)
        assert other == pytest.approx(metrics[0], abs=1e-5)


def test_evaluating_does_not_change_the_training(tmp_path: Path) -> None:
    loras = []
    for options in ({}, {"eval_dataset": latent_pairs(3, seed=1), "eval_strategy": "steps", "eval_steps": 1}):
        trainer = spatialalign_trainer(tmp_path, gradient_accumulation_steps=2, **options)
        trainer.train()
        loras.append(lora_of(trainer))
    assert_same_weights(*loras)


def test_several_evaluation_sets(tmp_path: Path) -> None:
    sets = {"seen": latent_pairs(2), "unseen": latent_pairs(3, seed=1)}
    metrics = spatialalign_trainer(tmp_path, eval_dataset=sets).evaluate()
    assert {"eval_seen_rewards/margins", "eval_unseen_loss"} <= metrics.keys()


# Rounds


@pytest.mark.parametrize("bf16", [False, True])
def test_rounds_on_the_same_model_continue_the_adapter_or_start_again(tmp_path: Path, bf16: bool) -> None:
    model = load_video_model(saved_wan(tmp_path / "model"), device="cpu")
    base = {name: value.clone() for name, value in model.pipeline.transformer.state_dict().items()}
    options: dict[str, Any] = {"model": model, "bf16": bf16, "train_dataset": video_pairs(2)}

    first = spatialalign_trainer(tmp_path / "1", **options)
    first.train()
    trained = lora_of(first)
    second = spatialalign_trainer(tmp_path / "2", **options)  # the encoders are loaded again
    assert_same_weights(lora_of(second), trained)
    second.train()
    assert logged(second, "distance_to_reference")[0] > 0  # the reference is still the base
    assert any(not torch.equal(trained[name], value) for name, value in lora_of(second).items())

    model.unload_lora()
    assert_same_weights(dict(model.pipeline.transformer.state_dict()), base)
    third = spatialalign_trainer(tmp_path / "1", **options)
    third.train()
    assert logged(third, "loss")[0] == LN_2
    assert_same_weights(lora_of(third), trained)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_step_0_against_a_refreshed_reference_has_margin_0(tmp_path: Path, gradient_checkpointing: bool) -> None:
    first = spatialalign_trainer(tmp_path / "1")
    first.train()
    first.save_model()
    model = wan_model()
    model.load_lora(tmp_path / "1")
    model.set_reference_to_policy()
    trainer = spatialalign_trainer(tmp_path / "2", model=model, gradient_checkpointing=gradient_checkpointing)
    trainer.train()
    assert logged(trainer, "loss")[0] == LN_2 and logged(trainer, "rewards/margins")[0] == 0
    assert logged(trainer, "distance_to_reference")[0] == 0 < logged(trainer, "distance_to_reference")[2]
