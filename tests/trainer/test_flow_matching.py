"""Test sigmas and noise: the paper's distribution, the bounds, and the generator of every pair."""

import itertools

import pytest
import torch

from spatialalign_trl.trainer.flow_matching import (
    draw_noise,
    pair_generator,
    sample_sigmas,
    shift_sigma,
    step_position,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shift_keeps_the_ends_and_moves_the_middle_towards_noise() -> None:
    u = torch.linspace(0, 1, 11)
    assert shift_sigma(u, 5.0)[[0, -1]].tolist() == [0, 1]
    assert (shift_sigma(u, 5.0)[1:-1] > u[1:-1]).all()
    torch.testing.assert_close(shift_sigma(u, 1.0), u)
    assert float(shift_sigma(torch.tensor(0.5), 5.0)) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="shift=0"):
        shift_sigma(u, 0)


def test_the_paper_s_sigmas_are_the_shifted_grid_of_1000() -> None:
    sigmas = sample_sigmas(20_000, shift=5.0, generator=generator())
    grid = shift_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000, 5.0).float()
    assert sigmas.dtype == torch.float32
    assert torch.isin(sigmas, grid).all()
    assert len(sigmas.unique()) == 1000  # bf16 would keep 294 of them
    quantiles = torch.quantile(sigmas, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    assert quantiles == pytest.approx([0.21, 0.63, 0.83, 0.94, 0.99], abs=0.02)


def test_the_grid_is_diffusers_own_before_set_timesteps() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas
    ours = sample_sigmas(5_000, shift=3.0, generator=generator())
    assert (ours[:, None] - sigmas[None]).abs().min(1).values.max() < 1e-6


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("logit_normal", [0.16, 0.34, 0.50, 0.66, 0.84]), ("logit_normal_shifted", [0.37, 0.61, 0.75, 0.86, 0.94])],
)
def test_logit_normal_quantiles(sampling: str, expected: list[float]) -> None:
    sigmas = sample_sigmas(20_000, shift=3.0, generator=generator(), sampling=sampling)
    quantiles = torch.quantile(sigmas, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    assert quantiles == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("sampling", ["uniform_shifted", "logit_normal", "logit_normal_shifted"])
@pytest.mark.parametrize("grid", [1000, None])
@pytest.mark.parametrize("bounds", [(0.0, 0.875), (0.875, 1.0), (0.3, 0.6)])
def test_bounds_condition_the_distribution(sampling: str, grid: int | None, bounds: tuple[float, float]) -> None:
    options = {"shift": 3.0, "sampling": sampling, "num_train_timesteps": grid}
    low, high = bounds
    inside = sample_sigmas(4_000, generator=generator(), min_sigma=low, max_sigma=high, **options)
    assert inside.min() >= low - 1e-6 and inside.max() <= high + 1e-6
    free = sample_sigmas(80_000, generator=generator(1), **options)
    kept = free[(free >= low) & (free <= high)]
    assert float(inside.mean()) == pytest.approx(float(kept.mean()), abs=0.01)


def test_sigma_zero_is_never_drawn() -> None:
    assert sample_sigmas(50_000, shift=5.0, generator=generator()).min() > 0
    assert sample_sigmas(50_000, shift=5.0, generator=generator(), num_train_timesteps=None).min() > 0


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="timestep_sampling='cosine'.*uniform_shifted"):
        sample_sigmas(1, shift=3.0, generator=generator(), sampling="cosine")
    with pytest.raises(ValueError, match="min_sigma=0.9, max_sigma=0.1"):
        sample_sigmas(1, shift=3.0, generator=generator(), min_sigma=0.9, max_sigma=0.1)
    with pytest.raises(ValueError, match="grid of 10 "):
        sample_sigmas(1, shift=1.0, generator=generator(), min_sigma=0.51, max_sigma=0.59, num_train_timesteps=10)


def test_noise_is_standard_normal_fp32_and_repeats() -> None:
    noise = draw_noise((4, 3, 20, 20), generator())
    assert noise.dtype == torch.float32 and noise.shape == (4, 3, 20, 20)
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    assert torch.equal(noise, draw_noise((4, 3, 20, 20), generator()))


def test_every_pair_of_a_step_has_its_own_generator() -> None:
    keys = itertools.product((0, 1), ("train", "eval"), range(3), range(4))
    draws = {draw_noise((1,), pair_generator(*key)).item() for key in keys}
    assert len(draws) == 2 * 2 * 3 * 4
    again = [draw_noise((1,), pair_generator(7, "train", 3, 2)).item() for _ in range(2)]
    assert again[0] == again[1]


def test_positions_in_a_step_do_not_depend_on_how_the_step_is_divided() -> None:
    """Cut the sampler's order 0..15 into batches that go to the ranks in turn: a position is a place in the order."""
    for world_size, batch_size in itertools.product((1, 2, 4), (1, 2, 4)):
        batches = [list(range(i, i + batch_size)) for i in range(0, 16, batch_size)]
        for j, batch in enumerate(batches):
            place = {"micro_step": j // world_size, "rank": j % world_size}
            options = {"world_size": world_size, "batch_size": batch_size}
            assert [step_position(i, **place, **options) for i in range(batch_size)] == batch
