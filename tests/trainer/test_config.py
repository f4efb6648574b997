"""Test the configs: defaults, help texts, the command line, and the values that are refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from trl import TrlParser
from trl.trainer.base_config import _BaseConfig as BaseConfig

from spatialalign_trl.trainer import DiffusionDPOConfig, SpatialAlignConfig
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig

FIELDS_OF_OURS = {f.name for f in dataclasses.fields(SpatialAlignConfig)} - {
    f.name for f in dataclasses.fields(BaseConfig)
}

SFT = {"loss_type": "sft", "zeroth_order_weight": 0.0}


def test_defaults(tmp_path: Path) -> None:
    config = SpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (config.beta, config.margin_clip, config.zeroth_order_weight) == (1.0, 5.0, 0.5)
    assert (config.learning_rate, config.logging_steps, config.report_to) == (1e-4, 10, [])
    assert config.bf16 is False  # TRL's default is True, even on the CPU
    assert config.gradient_checkpointing is True
    assert config.remove_unused_columns is False and config.ddp_find_unused_parameters is False
    assert config.loss_type == "sigmoid" and config.shared_noise is False and config.num_train_timesteps == 1000
    assert (config.sft_weight, config.winner_safe_mu, config.rollout_noise) == (0.0, None, False)
    assert (config.num_noise_draws, config.num_fixed_draws) == (1, None)
    assert config.precompute_reference is False and config.sync_reference is False
    assert SpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True, seed=3).data_seed == 3
    assert SpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_replaced_settings_differ_only_in_what_was_replaced(tmp_path: Path) -> None:
    config = SpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True, accelerator_config={"split_batches": True})
    again = dataclasses.replace(dataclasses.replace(config, bf16=True), bf16=False, seed=3)
    differing = {
        field.name for field in dataclasses.fields(config) if getattr(config, field.name) != getattr(again, field.name)
    }
    assert differing == {"seed"} and again.mixed_precision == "no" and again.accelerator_config.split_batches


def test_bf16_is_on_if_the_accelerator_computes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import spatialalign_trl.trainer.video_trainer_config as module

    monkeypatch.setattr(module, "_accelerator_computes_in_bf16", lambda: True)
    monkeypatch.setattr(BaseConfig, "__post_init__", lambda self: None)  # would look for an accelerator
    monkeypatch.setattr(VideoTrainerConfig, "device", torch.device("cuda"))  # fp16 is refused on a CPU
    assert DiffusionDPOConfig(output_dir=str(tmp_path)).bf16 is True
    assert DiffusionDPOConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is False
    monkeypatch.setattr(module, "check_mixed_precision", lambda args: None)  # refuses fp16 on this machine
    assert DiffusionDPOConfig(output_dir=str(tmp_path), fp16=True).bf16 is False


def test_every_field_of_ours_has_a_help_text() -> None:
    fields = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(SpatialAlignConfig)}
    assert len(FIELDS_OF_OURS) >= 13
    assert all(len(fields[name]) > 30 for name in FIELDS_OF_OURS)
    assert "MEAN squared errors" in fields["beta"] and "sigmoid" in fields["beta"]
    assert "L_dpo + lambda*L_zo" in fields["zeroth_order_weight"]
    documented = SpatialAlignConfig.__doc__ + DiffusionDPOConfig.__doc__ + VideoTrainerConfig.__doc__
    for name in FIELDS_OF_OURS:
        assert f"{name} (`" in documented or name in ("min_sigma", "max_sigma")


def test_parses_from_yaml_and_command_line(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbeta: 2.0\nmargin_clip: null\nflow_shift: 5\n")
    command = ["--config", str(file), "--beta", "3", "--loss_type", "sft", "--zeroth_order_weight", "0"]
    command += ["--model_init_kwargs", '{"torch_dtype": "bfloat16"}']
    (config,) = TrlParser(SpatialAlignConfig).parse_args_and_config(command)
    assert (config.beta, config.margin_clip, config.flow_shift, config.loss_type) == (3.0, None, 5, "sft")
    assert config.model_init_kwargs == {"torch_dtype": "bfloat16"}


def test_help_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        TrlParser(SpatialAlignConfig).parse_args_and_config(["--help"])
    assert "zeroth_order_weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta=0"),
        ({"margin_clip": -1.0}, "margin_clip=-1.0"),
        ({"loss_type": "sigmod"}, "loss_type='sigmod': Did you mean 'sigmoid'.*hinge, ipo, sft, sigmoid"),
        ({"loss_type": "ipo"}, "IPO pulls a pair back.*margin_clip=None"),
        ({"sft_weight": -1.0}, "sft_weight=-1.0"),
        ({"winner_safe_mu": 1.5}, "winner_safe_mu=1.5"),
        ({"num_noise_draws": 0}, "num_noise_draws=0"),
        ({"rollout_noise": True, "shared_noise": True}, "two noises.*one of the two"),
        ({"num_noise_draws": 3, "num_fixed_draws": 2}, "num_fixed_draws=2 is less than num_noise_draws=3"),
        ({"precompute_reference": True}, "precompute_reference=True needs num_fixed_draws.*Start with 8"),
        ({"reference_sync_steps": 0}, "reference_sync_steps=0"),
        ({"reference_mixup_alpha": 0.0}, "reference_mixup_alpha=0.0"),
        (
            {"sync_reference": True, "precompute_reference": True, "num_fixed_draws": 2},
            "the reference changes during the run",
        ),
        ({**SFT, "sft_weight": 1.0}, "loss_type='sft' with sft_weight=1.0.*sft_weight=0"),
        ({**SFT, "winner_safe_mu": 0.5}, "loss_type='sft' with winner_safe_mu=0.5.*winner_safe_mu=None"),
        ({**SFT, "precompute_reference": True, "num_fixed_draws": 1}, "no loser and no reference"),
        ({**SFT, "sync_reference": True}, "loss_type='sft' with sync_reference=True"),
        ({"flow_shift": 0.0}, "flow_shift=0.0"),
        ({"timestep_sampling": "cosine"}, "timestep_sampling='cosine'"),
        ({"min_sigma": 0.9, "max_sigma": 0.5}, "min_sigma=0.9, max_sigma=0.5"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"zeroth_order_weight": -0.1}, "zeroth_order_weight=-0.1"),
        ({"loss_type": "sft"}, "no zeroth-order term.*Set zeroth_order_weight=0"),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True, **options)
