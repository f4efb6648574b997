"""Test the draws of a step: several draws per pair, fixed draws, and the noise that the rollouts started from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import (
    LATENT_SHAPE,
    NOISE_SEEDS,
    latent_pairs,
    lora_of,
    moved,
    spatialalign_trainer,
    wan_model,
    with_noise_seeds,
)

from spatialalign_trl.trainer import SpatialAlignTrainer
from spatialalign_trl.trainer.draws import Draws
from spatialalign_trl.trainer.losses import Pair


def first_batch(trainer: SpatialAlignTrainer) -> dict[str, Any]:
    trainer.model.train()
    return next(iter(trainer.get_train_dataloader()))


def test_the_loss_is_the_mean_over_a_pair_s_draws(tmp_path: Path) -> None:
    several = moved(spatialalign_trainer(tmp_path, num_noise_draws=3))
    batch = first_batch(several)
    sigma, noise, _ = draws = several._draw(batch)
    assert sigma.shape == (6,) and noise.chosen.shape == (6, *LATENT_SHAPE) == noise.rejected.shape
    assert len(sigma.unique()) == 6 and not torch.equal(noise.chosen[0], noise.chosen[1])
    several._draw = lambda inputs: draws
    losses, metrics = several.compute_loss(several.model, batch, return_outputs=True)
    assert losses.ndim == 0 and all(value.shape == (2,) for value in metrics.values())

    single_draw = moved(spatialalign_trainer(tmp_path))
    # A single draw is the first of several.
    single = single_draw._draw(batch)
    assert torch.equal(single.sigma, sigma[::3]) and torch.equal(single.noise.rejected, noise.rejected[::3])
    parts = []
    for k in range(3):
        part = Draws(sigma[k::3], Pair(*(values[k::3] for values in noise)), [])
        single_draw._draw = lambda inputs, part=part: part
        parts.append(single_draw.compute_loss(single_draw.model, batch, return_outputs=True))
    assert losses.item() == pytest.approx(sum(loss.item() for loss, _ in parts) / 3, abs=1e-6)
    for name, value in metrics.items():
        torch.testing.assert_close(value, sum(part[name] for _, part in parts) / 3, atol=1e-5, rtol=1e-4)


def test_accumulation_is_one_batch_with_everything_switched_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_noise_draws": 2, "num_fixed_draws": 3, "shared_noise": True, "max_steps": 2}
    options |= {"loss_type": "hinge", "winner_safe_mu": 0.2, "sft_weight": 0.1, "optim": "sgd", "learning_rate": 1.0}
    loras = []
    for batch, accumulation in ((8, 1), (2, 4)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = spatialalign_trainer(tmp_path, train_dataset=latent_pairs(16), **sizes, **options)
        trainer.train()
        loras.append(lora_of(trainer))
    for name, value in loras[0].items():
        torch.testing.assert_close(value, loras[1][name], rtol=0, atol=1e-6)


def test_a_pair_has_its_fixed_draws_for_the_whole_run(tmp_path: Path) -> None:
    trainer = spatialalign_trainer(tmp_path, num_fixed_draws=3, num_noise_draws=2, train_dataset=latent_pairs(2))
    batch = first_batch(trainer)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for step in range(12):
        trainer.state.global_step = step
        sigma, noise, keys = trainer._draw(batch)
        assert [key.row for key in keys] == batch["row"].repeat_interleave(2).tolist()
        assert keys[0].index != keys[1].index
        for key, rejected in zip(keys, noise.rejected, strict=True):
            assert torch.equal(seen.setdefault((key.row, key.index), rejected), rejected)
    assert set(seen) == {(row, index) for row in range(2) for index in range(3)}
    assert len({float(noise.sum()) for noise in seen.values()}) == 6


def test_the_rollouts_noise_is_what_sampling_started_from(tmp_path: Path) -> None:
    model = wan_model()
    trainer = spatialalign_trainer(
        tmp_path, model=model, train_dataset=with_noise_seeds(latent_pairs(4)), rollout_noise=True, num_noise_draws=2
    )
    batch = first_batch(trainer)
    sigma, noise, _ = trainer._draw(batch)
    assert len(sigma.unique()) == 4  # noise levels are drawn, although the noise is given
    settings = model.default_settings()
    frames, height, width = model._pixel_shape(torch.empty(1, *LATENT_SHAPE))
    settings = type(settings)(**{**settings.to_dict(), "num_frames": frames, "height": height, "width": width})
    for side in ("chosen", "rejected"):
        seeds = [NOISE_SEEDS[side][row] for row in batch["row"].tolist()]
        expected = model.initial_noise(seeds, settings).repeat_interleave(2, 0)
        assert torch.equal(getattr(noise, side), expected)
    trainer.train()


def test_the_rollouts_noise_has_to_be_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_dataset lacks the columns chosen_noise_seed and rejected_noise_seed"):
        spatialalign_trainer(tmp_path, rollout_noise=True)
    wrong = latent_pairs(2).add_column("chosen_noise_seed", [1, -1]).add_column("rejected_noise_seed", [1, 2])
    with pytest.raises(ValueError, match=r"train_dataset row 1, column 'chosen_noise_seed': expected a seed.*got -1"):
        spatialalign_trainer(tmp_path, train_dataset=wrong)


def test_only_noise_levels_that_the_transformer_sees_in_sampling_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(wan_model()), "sigma_range", property(lambda self: (0.5, 1.0)))
    trainer = spatialalign_trainer(tmp_path, max_sigma=0.8)
    assert trainer.noise.sigma_bounds == (0.5, 0.8)
    with pytest.raises(ValueError, match=r"min_sigma=0.0, max_sigma=0.4.*\[0.5, 1.0\]"):
        spatialalign_trainer(tmp_path, max_sigma=0.4)
