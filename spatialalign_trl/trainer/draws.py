"""What a step draws for its pairs: the noise level of every pair and the noise of its two videos.

A pair draws `num_noise_draws` times from a generator of its own. With `num_fixed_draws` it does not draw anew, but
picks among a few draws which belong to it for the whole run, so that what the reference says about them can be kept.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spatialalign_trl.trainer.diffusion_dpo_config import DiffusionDPOConfig
from spatialalign_trl.trainer.flow_matching import Stream, draw_noise, pair_generator, sample_sigmas, step_position
from spatialalign_trl.trainer.pair_columns import SIDES
from spatialalign_trl.trainer.video_trainer_config import VideoTrainerConfig


class DrawKey(NamedTuple):
    """Names a draw that can be made again at any time: the `index`-th of the pair in row `row`."""

    stream: Stream
    row: int
    index: int


class Draws(NamedTuple):
    """
    The draws of a batch of pairs, `num_noise_draws` of each pair one after the other.

    Args:
        sigma (`torch.Tensor` of shape `(batch * num_noise_draws,)`):
            Noise levels in [0, 1], shared by the two videos of a pair.
        noise (`dict[str, torch.Tensor]`):
            For `"chosen"` and `"rejected"`, fp32, of shape `(batch * num_noise_draws, C, F, H, W)`.
        keys (`list[DrawKey]`):
            Their names; empty where they are met only once.
    """

    sigma: Tensor
    noise: dict[str, Tensor]
    keys: list[DrawKey]


class PairNoise:
    """
    Draws noise levels and noise as the arguments say.

    Args:
        args ([`DiffusionDPOConfig`]):
            Its fields on noise and timesteps.
        flow_shift (`float`):
            `k` of `s = k*u/(1 + (k-1)*u)`.
        sigma_bounds (`tuple[float, float]`):
            Noise levels are drawn from this interval.
    """

    def __init__(self, args: DiffusionDPOConfig, flow_shift: float, sigma_bounds: tuple[float, float]) -> None:
        self.args = args
        self.flow_shift = flow_shift
        self.sigma_bounds = sigma_bounds

    def describe(self) -> dict[str, Any]:
        """Everything, beside the pair and the [`DrawKey`], that decides what a key's draw is."""
        names = ("seed", "shared_noise", "rollout_noise", "timestep_sampling", "num_train_timesteps")
        own = {name: getattr(self.args, name) for name in names}
        return {**own, "flow_shift": self.flow_shift, "sigma_bounds": list(self.sigma_bounds)}

    def from_generator(
        self, generator: torch.Generator, count: int, latent_shape: Sequence[int], noise_seeds: Tensor | None
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`count` draws of one pair, one after the other: sigma of shape `(1,)`, noise of both sides."""
        return [self._one(generator, tuple(latent_shape), noise_seeds) for _ in range(count)]

    def of_key(
        self, key: DrawKey, latent_shape: Sequence[int], noise_seeds: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The draw that a key names."""
        if key.stream == "fixed":  # each has a generator of its own, and need not wait for those before it
            generator = pair_generator(self.args.seed, "fixed", key.index, key.row)
            return self.from_generator(generator, 1, latent_shape, noise_seeds)[0]
        generator = pair_generator(self.args.seed, key.stream, 0, key.row)
        return self.from_generator(generator, key.index + 1, latent_shape, noise_seeds)[-1]

    def pick_fixed(self, row: int, generator: torch.Generator) -> list[DrawKey]:
        """`num_noise_draws` different ones of the `num_fixed_draws` draws of a pair."""
        order = torch.randperm(self.args.num_fixed_draws, generator=generator)[: self.args.num_noise_draws]
        return [DrawKey("fixed", row, index) for index in order.tolist()]

    def _one(
        self, generator: torch.Generator, shape: tuple[int, ...], noise_seeds: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        args = self.args
        sigma = draw_sigma(args, self.flow_shift, self.sigma_bounds, generator)
        if args.rollout_noise:  # the noise that `VideoModel.initial_noise` gave the sampler
            seeded = [torch.Generator("cpu").manual_seed(seed) for seed in noise_seeds.tolist()]
            chosen, rejected = (draw_noise(shape, one) for one in seeded)
            return sigma, chosen, rejected
        chosen = draw_noise(shape, generator)
        return sigma, chosen, chosen if args.shared_noise else draw_noise(shape, generator)


def draw_sigma(
    args: VideoTrainerConfig, flow_shift: float, sigma_bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """One noise level, `(1,)`, drawn as the arguments say; `flow_shift` and `sigma_bounds` as in [`PairNoise`]."""
    return sample_sigmas(
        1,
        shift=flow_shift,
        generator=generator,
        sampling=args.timestep_sampling,
        min_sigma=sigma_bounds[0],
        max_sigma=sigma_bounds[1],
        num_train_timesteps=args.num_train_timesteps,
    )


def stack_draws(draws: list[tuple[Tensor, Tensor, Tensor]], keys: list[DrawKey], device: torch.device) -> Draws:
    """Stacks single draws to those of a batch, on a device."""
    sigma, *noises = zip(*draws, strict=True)
    noise = {side: torch.stack(values).to(device) for side, values in zip(SIDES, noises, strict=True)}
    return Draws(torch.cat(sigma).to(device), noise, keys)


class StepGenerators:
    """The part of a trainer that gives every example of a batch a generator of its own."""

    _micro_step: tuple[int, int]
    _eval_batches: int

    def _generators(self, count: int) -> list[torch.Generator]:
        """One generator for every example of the batch at hand; see [`flow_matching.pair_generator`]."""
        place = {"rank": self.args.process_index, "world_size": self.args.world_size}
        if self.model.training:
            step, drawn = self._micro_step
            drawn = drawn + 1 if step == self.state.global_step else 0
            step = self.state.global_step
            self._micro_step = (step, drawn)
            first = step_position(0, micro_step=drawn, batch_size=self._train_batch_size, **place)
            stream = "train"
        else:
            step, stream = 0, "eval"
            first = step_position(0, micro_step=self._eval_batches, batch_size=self.args.eval_batch_size, **place)
            self._eval_batches += 1
        return [pair_generator(self.args.seed, stream, step, first + i) for i in range(count)]


class PairDrawing:
    """The part of a trainer that says which draws each pair of a batch gets."""

    noise: PairNoise

    def _draw(self, inputs: dict[str, Any]) -> Draws:
        """The draws of a batch, on the latents' device."""
        latents, count = inputs["chosen"], self.args.num_noise_draws
        shape = tuple(latents.shape[1:])
        draws, keys = [], []
        for i, generator in enumerate(self._generators(len(latents))):
            seeds = inputs["noise_seeds"][i] if self.args.rollout_noise else None
            picked = self._keys(inputs, i, generator)
            keys += picked
            if picked:
                draws += [self.noise.of_key(key, shape, seeds) for key in picked]
            else:
                draws += self.noise.from_generator(generator, count, shape, seeds)
        return stack_draws(draws, keys, latents.device)

    def _keys(self, inputs: dict[str, Any], i: int, generator: torch.Generator) -> list[DrawKey]:
        """Names of the draws of the batch's `i`-th pair, where they can be met again."""
        if self.model.training:
            fixed = self.args.num_fixed_draws is not None
            return self.noise.pick_fixed(int(inputs["row"][i]), generator) if fixed else []
        if not self.args.precompute_reference:
            return []
        return [DrawKey("eval", int(inputs["row"][i]), index) for index in range(self.args.num_noise_draws)]
