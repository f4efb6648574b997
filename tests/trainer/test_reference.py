"""Test the precomputed reference, and the reference that follows the policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import assert_same_weights, latent_pairs, logged, lora_of, spatialalign_trainer, wan_model
from transformers import TrainerCallback

import spatialalign_trl.trainer.video_trainer as trainer_module
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.trainer import SpatialAlignTrainer
from spatialalign_trl.trainer.reference_cache import reference_fingerprint

FIXED: dict[str, Any] = {"num_fixed_draws": 2, "optim": "sgd", "learning_rate": 1.0}


def count_forwards(model: VideoModel) -> Callable[[], int]:
    """Return a function that returns how often the network ran since its previous call."""
    calls = []
    model.base_transformer.register_forward_hook(lambda *_: calls.append(1))

    def take() -> int:
        count = len(calls)
        calls.clear()
        return count

    return take


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train with the reference in every step, precomputed, and precomputed by an earlier run."""
    folder = tmp_path_factory.mktemp("reference")
    options = {**FIXED, "latent_cache_dir": str(folder / "cache"), "num_noise_draws": 2, "max_steps": 4}
    options |= {"train_dataset": latent_pairs(5), "eval_dataset": latent_pairs(3, seed=1)}
    found: dict[str, Any] = {"cache": folder / "cache"}
    for name in ("in the step", "precomputed", "reused"):
        model = wan_model()
        forwards = count_forwards(model)
        trainer = spatialalign_trainer(
            folder / name, model=model, precompute_reference=name != "in the step", **options
        )
        trainer.train()
        found[name] = {"trainer": trainer, "training": forwards(), "lora": lora_of(trainer)}
        found[name] |= {"metrics": trainer.evaluate(), "evaluation": forwards()}
    return found


def test_a_precomputed_reference_needs_no_forward_in_the_steps(runs: dict[str, Any]) -> None:
    steps, check = 4, 1  # the last weights are checked with a forward of their own
    assert runs["in the step"]["training"] == 2 * steps + check
    # 5 pairs x 2 draws, 4 of them (2 pairs a batch) a forward
    assert runs["precomputed"]["training"] == 3 + steps + check
    assert runs["reused"]["training"] == steps + check
    batches = 2
    assert [runs[name]["evaluation"] for name in ("in the step", "precomputed", "reused")] == [
        2 * batches,
        2 * batches,
        batches,
    ]
    files = [path for path in runs["cache"].iterdir() if path.name.startswith("reference-")]
    assert len(files) == 5 * 2 + 3 * 2


@pytest.mark.parametrize("name", ["precomputed", "reused"])
def test_a_precomputed_reference_trains_the_same_lora(runs: dict[str, Any], name: str) -> None:
    expected, found = runs["in the step"], runs[name]
    for key in ("loss", "rewards/margins", "loss/zeroth_order"):
        ours, theirs = logged(found["trainer"], key), logged(expected["trainer"], key)
        assert ours == pytest.approx(theirs, abs=1e-6)
    for key, value in expected["lora"].items():
        torch.testing.assert_close(found["lora"][key], value, rtol=0, atol=1e-6)
    for key in ("eval_loss", "eval_rewards/margins", "eval_distance_to_reference"):
        assert found["metrics"][key] == pytest.approx(expected["metrics"][key], abs=1e-6)
    assert expected["metrics"]["eval_distance_to_reference"] > 0


def test_only_missing_predictions_are_computed(runs: dict[str, Any], tmp_path: Path) -> None:
    options = {**FIXED, "latent_cache_dir": str(runs["cache"]), "num_noise_draws": 2, "max_steps": 1}
    broken, gone = sorted(runs["cache"].glob("reference-*"))[:2]
    broken.write_bytes(broken.read_bytes()[:50])
    gone.unlink()
    model = wan_model()
    trainer = spatialalign_trainer(
        tmp_path, model=model, train_dataset=latent_pairs(5), eval_dataset=latent_pairs(3, seed=1),
        precompute_reference=True, **options,
    )  # fmt: skip
    written = []
    predict = trainer._predict_reference
    trainer._predict_reference = lambda pairs, keys: written.extend(set(keys)) or predict(pairs, keys)
    trainer.train()
    trainer.evaluate()
    assert len(written) == 2 and broken.stat().st_size > 50 and gone.exists()


def test_different_weights_draws_or_precision_give_different_files(tmp_path: Path) -> None:
    def file(model: VideoModel | None = None, **options: Any) -> Path:
        trainer = spatialalign_trainer(
            tmp_path, model=model or wan_model(), train_dataset=latent_pairs(1),
            **{**FIXED, "precompute_reference": True, "max_steps": 1, "per_device_train_batch_size": 1, **options},
        )  # fmt: skip
        trainer._predict_reference = lambda pairs, keys: []
        trainer._precompute_reference(trainer.train_dataset, "fixed")
        cache, pairs = trainer._reference_caches["fixed"]
        return cache.path(pairs, trainer.noise.pick_fixed(0, torch.Generator().manual_seed(0))[0])

    assert file() == file(learning_rate=3.0)
    others = [{"seed": 1}, {"flow_shift": 2.0}, {"bf16": True}]
    paths = [file(), file(wan_model(seed=1)), *(file(**options) for options in others)]
    assert len(set(paths)) == len(paths)

    model = wan_model()
    base = reference_fingerprint(model)
    trainer = spatialalign_trainer(tmp_path, model=model)
    assert reference_fingerprint(model) == base  # the policy's adapter is not the reference's
    trainer.train()
    assert reference_fingerprint(model) == base
    model.set_reference_to_policy()
    assert reference_fingerprint(model) != base


# A reference that follows


def test_a_synced_reference_is_the_policy(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(
        tmp_path, max_steps=5, sync_reference=True, reference_sync_steps=2, reference_mixup_alpha=1.0
    )
    trainer.train()
    distances = logged(trainer, "distance_to_reference")
    assert [distance == 0 for distance in distances] == [True, False, True, False, True]


def test_mixing_is_its_formula(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(tmp_path)
    model = trainer.video_model
    trainer.train()
    first = lora_of(trainer)
    model.update_reference(0.25)  # from the base: its A may be any, its B is 0
    for name, value in model.reference_weights.items():
        torch.testing.assert_close(value, 0.25 * first[name] if "lora_B" in name else first[name])
    held = {name: value.clone() for name, value in model.reference_weights.items()}
    trainer.train()
    second = lora_of(trainer)
    model.update_reference(0.25)
    for name, value in model.reference_weights.items():
        torch.testing.assert_close(value, 0.25 * second[name] + 0.75 * held[name])
    with pytest.raises(ValueError, match="adapter does not match the policy's"):
        model.set_reference_weights({"a": torch.zeros(1)})


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("stop", [1, 3])  # before the first change of the reference, and after it
def test_resumed_is_uninterrupted_with_a_reference_that_follows(tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    options |= {"sync_reference": True, "reference_sync_steps": 2, "reference_mixup_alpha": 0.5}
    options |= {"num_noise_draws": 2, "num_fixed_draws": 3, "train_dataset": latent_pairs(7)}
    uninterrupted = spatialalign_trainer(tmp_path / "uninterrupted", **options)
    uninterrupted.train()
    spatialalign_trainer(tmp_path / "cut", callbacks=[_StopAt(stop)], **options).train()
    resumed: SpatialAlignTrainer = spatialalign_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "loss") == logged(uninterrupted, "loss")
    assert_same_weights(lora_of(resumed), lora_of(uninterrupted))
    assert_same_weights(resumed.video_model.reference_weights, uninterrupted.video_model.reference_weights)


# Memory and precision


def test_evaluation_releases_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = []
    monkeypatch.setattr(trainer_module, "release_memory", lambda: releases.append(1))
    trainer = spatialalign_trainer(
        tmp_path, eval_dataset=latent_pairs(2, seed=1), eval_strategy="steps", eval_steps=1, max_steps=2
    )
    trainer.train()
    assert len(releases) == 2


def test_the_lora_its_gradients_and_the_errors_are_fp32_over_a_bf16_base(tmp_path: Path) -> None:
    model = wan_model()
    model.base_transformer.to(torch.bfloat16)
    trainer = spatialalign_trainer(tmp_path, model=model, bf16=True)
    losses, metrics = trainer._example_losses(trainer.model.train(), next(iter(trainer.get_train_dataloader())))
    losses.mean().backward()
    assert model.dtype == torch.bfloat16 and losses.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in metrics.values())
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in trained)
