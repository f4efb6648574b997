"""Test the arguments of the trainers: memory, schedule, models by name, and what is refused."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_pairs import latent_pairs, spatialalign_config, spatialalign_trainer, video_pairs, wan_model
from tiny_pipelines import saved_wan
from transformers import TrainerCallback
from trl.trainer import base_trainer

from spatialalign_trl.trainer import DiffusionDPOConfig, SpatialAlignTrainer


class _NoEncoders(TrainerCallback):
    model: Any = None
    steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert not self.model.has_encoders
        self.steps += 1


def test_the_encoders_are_not_in_memory_while_training(tmp_path: Path) -> None:
    callback = _NoEncoders()
    callback.model = wan_model()
    assert callback.model.has_encoders
    trainer = spatialalign_trainer(tmp_path, model=callback.model, train_dataset=video_pairs(3), callbacks=[callback])
    trainer.train()
    assert callback.steps == 3
    assert all(
        component is None for component in (trainer.video_model.pipeline.vae, callback.model.pipeline.text_encoder)
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_never_rises_again(tmp_path: Path, schedule: str) -> None:
    trainer = spatialalign_trainer(tmp_path, lr_scheduler_type=schedule, warmup_steps=3, max_steps=10)
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(40):  # past the end, where a cosine would rise again
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[3] == max(rates) == 1e-2
    assert all(later <= earlier for earlier, later in zip(rates[3:], rates[4:], strict=False))
    assert rates[10] == pytest.approx(0, abs=1e-12) and rates[-1] == rates[10]


def test_the_caller_s_arguments_stay_as_they_are(tmp_path: Path) -> None:
    config = spatialalign_config(tmp_path, gradient_checkpointing=True)
    for _ in range(2):  # the second trainer uses gradient checkpointing too
        trainer = SpatialAlignTrainer(wan_model(), args=config, train_dataset=latent_pairs(2))
        assert trainer.video_model.pipeline.transformer.is_gradient_checkpointing
        assert config.gradient_checkpointing and config.activation_checkpointing
        assert not trainer.args.gradient_checkpointing and not trainer.args.activation_checkpointing


def test_the_model_may_be_a_name(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(
        tmp_path, model=saved_wan(tmp_path / "model"), model_init_kwargs={"torch_dtype": "bfloat16"}
    )
    assert trainer.video_model.dtype == torch.bfloat16
    trainer.train()


def test_the_flow_shift_is_the_one_the_model_samples_with(tmp_path: Path) -> None:
    model = wan_model(shift=3.0)
    assert spatialalign_trainer(tmp_path, model=model).flow_shift == model.default_settings().flow_shift
    assert spatialalign_trainer(tmp_path, flow_shift=2.5).flow_shift == 2.5


def test_arguments_that_cannot_work_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 GPUs.*accelerate launch.*CUDA_VISIBLE_DEVICES"):
        config = spatialalign_config(tmp_path)
        config.n_gpu  # noqa: B018  (initialises the devices)
        config._n_gpu = 3
        SpatialAlignTrainer(wan_model(), args=config, train_dataset=latent_pairs())
    with pytest.raises(ValueError, match="remove_unused_columns"):
        spatialalign_trainer(tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match="grid of 10 .*shift 5"):
        spatialalign_trainer(tmp_path, num_train_timesteps=10, min_sigma=0.01, max_sigma=0.02)
    with pytest.raises(
        TypeError, match="args is a DiffusionDPOConfig; SpatialAlignTrainer needs a SpatialAlignConfig"
    ):
        SpatialAlignTrainer(wan_model(), args=DiffusionDPOConfig(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(TypeError, match="model is a WanPipeline"):
        spatialalign_trainer(tmp_path, model=wan_model().pipeline)
    with pytest.raises(ValueError, match="train_dataset is missing"):
        SpatialAlignTrainer(wan_model(), args=spatialalign_config(tmp_path))
    with pytest.raises(ValueError, match="train_dataset row 1, column 'chosen': num_frames=7:"):
        bad = [video_pairs(1), video_pairs(1, num_frames=7)]
        spatialalign_trainer(tmp_path, train_dataset=datasets.concatenate_datasets(bad))


def test_nothing_is_sent_when_ci_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's telemetry reads a field that diffusers' configs lack. It is off under CI, so only users would see that."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: pytest.fail("telemetry was sent"))
    spatialalign_trainer(tmp_path, train_dataset=latent_pairs(2), max_steps=1).train()
