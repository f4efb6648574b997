"""Test that a trainer computes in its own precision, whatever else in the process has set up accelerate."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from tiny_pairs import assert_same_weights, latent_pairs, lora_of, spatialalign_config, wan_model

from spatialalign_trl.trainer import SpatialAlignConfig, SpatialAlignTrainer
from spatialalign_trl.trainer.video_trainer_config import LAUNCHED_PRECISION


def trainer_of(args: SpatialAlignConfig) -> SpatialAlignTrainer:
    return SpatialAlignTrainer(wan_model(), args=args, train_dataset=latent_pairs(), eval_dataset=latent_pairs(2))


def precisions_of(trainer: SpatialAlignTrainer) -> set[torch.dtype | None]:
    """Train, and return the precisions in which the policy was computed; `None` is without autocast."""
    precisions = set()

    def record(module: torch.nn.Module, inputs: tuple) -> None:
        if torch.is_grad_enabled():
            precisions.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    trainer.video_model.base_transformer.register_forward_pre_hook(record)
    trainer.train()
    return precisions


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, torch.Tensor]]:
    """The LoRA of each value of `bf16`, from a process in which nothing else was set up in between."""
    loras = {}
    for bf16 in (False, True):
        trainer = trainer_of(spatialalign_config(tmp_path_factory.mktemp("alone"), bf16=bf16))
        trainer.train()
        loras[bf16] = lora_of(trainer)
    return loras


@pytest.mark.parametrize("bf16", [False, True])
def test_an_accelerator_made_earlier_does_not_decide(tmp_path: Path, trained_alone, bf16: bool) -> None:
    args = spatialalign_config(tmp_path, bf16=bf16)
    plugin = TorchDynamoPlugin(backend="eager")
    Accelerator(cpu=True, mixed_precision="no" if bf16 else "bf16", dynamo_plugin=plugin)
    trainer = trainer_of(args)
    assert trainer.accelerator.state.dynamo_plugin.backend == "NO"
    assert precisions_of(trainer) == {torch.bfloat16 if bf16 else None}
    assert_same_weights(lora_of(trainer), trained_alone[bf16])


def test_trainers_of_one_process_each_compute_in_their_own_precision(tmp_path: Path, trained_alone) -> None:
    # All arguments first, then all trainers, then the trainings in another order.
    configs = {bf16: spatialalign_config(tmp_path / str(bf16), bf16=bf16) for bf16 in (False, True)}
    trainers = {bf16: trainer_of(args) for bf16, args in configs.items()}
    for bf16, trainer in trainers.items():
        assert precisions_of(trainer) == {torch.bfloat16 if bf16 else None}
        assert_same_weights(lora_of(trainer), trained_alone[bf16])


def test_arguments_made_between_a_trainer_and_its_training_change_nothing(tmp_path: Path, trained_alone) -> None:
    trainer = trainer_of(spatialalign_config(tmp_path / "first", bf16=True))
    spatialalign_config(tmp_path / "second", bf16=False)
    assert AcceleratorState._shared_state == {}
    assert precisions_of(trainer) == {torch.bfloat16}
    assert_same_weights(lora_of(trainer), trained_alone[True])
    spatialalign_config(tmp_path / "third", bf16=False)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("launched", "options", "expected"),
    [
        (None, {}, "no"),
        (None, {"bf16": True}, "bf16"),
        ("no", {"bf16": True}, "bf16"),
        ("bf16", {}, "bf16"),
        ("bf16", {"bf16": False}, "no"),  # a YAML's word counts more than the launcher's
        ("bf16", {"bf16": True}, "bf16"),
        ("fp16", {"bf16": True}, "bf16"),
    ],
)
def test_the_recorded_flags_are_the_precision_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: str | None, options: dict, expected: str
) -> None:
    monkeypatch.delenv(LAUNCHED_PRECISION, raising=False)
    if launched:
        monkeypatch.setenv(LAUNCHED_PRECISION, launched)
    args = spatialalign_config(tmp_path, max_steps=1, **options)
    assert (args.mixed_precision, args.bf16, args.fp16) == (expected, expected == "bf16", False)
    assert precisions_of(trainer_of(args)) == {torch.bfloat16 if expected == "bf16" else None}


@pytest.mark.parametrize(("launched", "options"), [(None, {"fp16": True}), ("fp16", {})])
def test_fp16_is_refused_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: str | None, options: dict
) -> None:
    monkeypatch.setenv(LAUNCHED_PRECISION, launched or "no")
    with pytest.raises(ValueError, match="fp16=True: .* needs a GPU, .* computes on the CPU. Leave fp16 out"):
        spatialalign_config(tmp_path, **options)
