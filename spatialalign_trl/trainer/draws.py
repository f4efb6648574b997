"""Draw the noise level of every pair and the noise of its two videos.

Every pair draws `num_noise_draws` times from its own generator. With `num_fixed_draws` it picks among a few draws that
belong to it for the whole run, so that the reference's predictions at these draws can be computed once and cached.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spatialalign_trl.trainer.diffusion_dpo_config import DiffusionDPOConfig
from spatialalign_trl.trainer.flow_matching import Stream, draw_noise, pair_generator, sample_sigmas
from spatialalign_trl.trainer.losses import Pair
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig


class DrawKey(NamedTuple):
    """The name of a draw that can be repeated at any time: number `index` of the pair in row `row`."""

    stream: Stream
    row: int
    index: int


class Draws(NamedTuple):
    """
    The draws of a batch of pairs: `num_noise_draws` consecutive draws per pair.

    Args:
        sigma (`torch.Tensor` of shape `(batch * num_noise_draws,)`):
            Noise levels in [0, 1], shared by the two videos of a pair.
        noise ([`Pair`] of `torch.Tensor` of shape `(batch * num_noise_draws, C, F, H, W)`):
            Standard normal noise, fp32.
        keys (`list[DrawKey]`):
            The names of the draws; empty if they are never repeated.
    """

    sigma: Tensor
    noise: Pair
    keys: list[DrawKey]


SingleDraw = tuple[Tensor, Tensor, Tensor]
"""One draw of one pair: sigma of shape `(1,)`, and the noise of the chosen and of the rejected video."""


class PairNoise:
    """
    Draws noise levels and noise for pairs.

    Args:
        args ([`DiffusionDPOConfig`]):
            Its fields on noise and timesteps are used.
        flow_shift (`float`):
            `k` of `s = k*u/(1 + (k-1)*u)`.
        sigma_bounds (`tuple[float, float]`):
            The interval that noise levels are drawn from.
    """

    def __init__(self, args: DiffusionDPOConfig, flow_shift: float, sigma_bounds: tuple[float, float]) -> None:
        self.args = args
        self.flow_shift = flow_shift
        self.sigma_bounds = sigma_bounds

    def describe(self) -> dict[str, Any]:
        """Return every setting that a draw depends on, apart from the pair and the [`DrawKey`]."""
        names = ("seed", "shared_noise", "rollout_noise", "timestep_sampling", "num_train_timesteps")
        arguments = {name: getattr(self.args, name) for name in names}
        return {**arguments, "flow_shift": self.flow_shift, "sigma_bounds": list(self.sigma_bounds)}

    def from_generator(
        self, generator: torch.Generator, count: int, latent_shape: Sequence[int], noise_seeds: Tensor | None
    ) -> list[SingleDraw]:
        """Draw `count` times for one pair."""
        return [self._draw_once(generator, tuple(latent_shape), noise_seeds) for _ in range(count)]

    def of_key(self, key: DrawKey, latent_shape: Sequence[int], noise_seeds: Tensor | None) -> SingleDraw:
        """Repeat the draw that a key names."""
        if key.stream == "fixed":  # every fixed draw has its own generator, so earlier ones need not be drawn first
            generator = pair_generator(self.args.seed, "fixed", key.index, key.row)
            return self.from_generator(generator, 1, latent_shape, noise_seeds)[0]
        generator = pair_generator(self.args.seed, key.stream, 0, key.row)
        return self.from_generator(generator, key.index + 1, latent_shape, noise_seeds)[-1]

    def pick_fixed(self, row: int, generator: torch.Generator) -> list[DrawKey]:
        """Pick `num_noise_draws` different draws among the `num_fixed_draws` of a pair."""
        order = torch.randperm(self.args.num_fixed_draws, generator=generator)[: self.args.num_noise_draws]
        return [DrawKey("fixed", row, index) for index in order.tolist()]

    def _draw_once(self, generator: torch.Generator, shape: tuple[int, ...], noise_seeds: Tensor | None) -> SingleDraw:
        args = self.args
        sigma = draw_sigma(args, self.flow_shift, self.sigma_bounds, generator)
        if args.rollout_noise:  # the same noise as `VideoModel.initial_noise` started the rollout from
            seeded = [torch.Generator("cpu").manual_seed(seed) for seed in noise_seeds.tolist()]
            chosen, rejected = (draw_noise(shape, seeded_generator) for seeded_generator in seeded)
            return sigma, chosen, rejected
        chosen = draw_noise(shape, generator)
        return sigma, chosen, chosen if args.shared_noise else draw_noise(shape, generator)


def draw_sigma(
    args: VideoTrainerConfig, flow_shift: float, sigma_bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw one noise level of shape `(1,)`; `flow_shift` and `sigma_bounds` are those of [`PairNoise`]."""
    return sample_sigmas(
        1,
        shift=flow_shift,
        generator=generator,
        sampling=args.timestep_sampling,
        min_sigma=sigma_bounds[0],
        max_sigma=sigma_bounds[1],
        num_train_timesteps=args.num_train_timesteps,
    )


def stack_draws(draws: list[SingleDraw], keys: list[DrawKey], device: torch.device) -> Draws:
    """Stack single draws into those of a batch, on a device."""
    sigma, chosen, rejected = zip(*draws, strict=True)
    noise = Pair(torch.stack(chosen).to(device), torch.stack(rejected).to(device))
    return Draws(torch.cat(sigma).to(device), noise, keys)
