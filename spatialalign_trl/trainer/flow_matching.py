"""Draw the sigmas and the noise of rectified flow; training draws them nowhere else.

A pipeline's scheduler is never used for training: its `set_timesteps` shifts a second time, and the multistep solvers
have no flow sigmas before it is called. Sigma stays in fp32, because bf16 distinguishes only 294 of 1000 timesteps.

Every pair draws from its own generator, seeded by the run's seed, the optimizer step and the *position of the pair in
that step*, counted over ranks, micro-steps and batch rows. Therefore ranks draw different noise, a resumed run
continues exactly, and a pair gets the same noise whether the 8 pairs of a step are one batch, four accumulated batches
or divided between two processes.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

TimestepSampling = Literal["uniform_shifted", "logit_normal", "logit_normal_shifted"]
Stream = Literal["train", "eval", "fixed"]


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """
    Apply the flow shift `s = k*u / (1 + (k-1)*u)`, which for `k > 1` moves mass towards noise; 0 and 1 stay fixed.

    Args:
        u (`torch.Tensor`):
            Values in [0, 1].
        shift (`float`):
            `k > 0`; 1 changes nothing. SpatialAlign's recipe: 5.

    Returns:
        `torch.Tensor` of the same shape.

    Raises:
        ValueError: if the shift is not positive.
    """
    if not shift > 0:
        raise ValueError(f"shift={shift}: the flow shift must be positive")
    return shift * u / (1 + (shift - 1) * u)


def sample_sigmas(
    batch: int,
    *,
    shift: float,
    generator: torch.Generator,
    sampling: TimestepSampling = "uniform_shifted",
    min_sigma: float = 0.0,
    max_sigma: float = 1.0,
    num_train_timesteps: int | None = 1000,
) -> Tensor:
    """
    Draw noise levels.

        uniform_shifted:       s = k*u/(1+(k-1)*u),  u uniform on {1/N, 2/N, ..., 1}   (the paper: k = 5, N = 1000)
        logit_normal:          s = u,                u = sigmoid(n), n ~ N(0, 1), rounded up to the grid
        logit_normal_shifted:  s = k*u/(1+(k-1)*u),  u as in logit_normal

    Args:
        batch (`int`):
            Number of sigmas.
        shift (`float`):
            The `k` above; `logit_normal` does not use it.
        generator (`torch.Generator`):
            A CPU generator, so that draws do not depend on the device.
        sampling (`str`, *optional*, defaults to `"uniform_shifted"`):
            One of the three distributions above.
        min_sigma, max_sigma (`float`, *optional*, default to `0.0` and `1.0`):
            Sigmas are drawn from the distribution conditioned on `[min_sigma, max_sigma]`, without rejection.
        num_train_timesteps (`int`, *optional*, defaults to `1000`):
            `N` of the grid; `None` draws continuous values.

    Returns:
        `torch.Tensor` of shape `(batch,)`, fp32, on the CPU.

    Raises:
        ValueError: if `sampling` is unknown, the bounds are out of order, or the grid has no point between them.
    """
    low, high = sigma_bounds(shift, sampling, min_sigma, max_sigma, num_train_timesteps)
    v = torch.rand(batch, generator=generator, dtype=torch.float64)
    if sampling == "uniform_shifted":
        u = high - (high - low) * v  # in (low, high]: 0 means no noise, and is not on the grid
    else:  # the inverse of the cumulative distribution, between the bounds
        bounds = torch.special.ndtr(torch.logit(torch.tensor([low, high], dtype=torch.float64)))
        u = torch.sigmoid(torch.special.ndtri(bounds[1] - (bounds[1] - bounds[0]) * v))
    if num_train_timesteps is not None:  # round up to the grid
        first, last = round(low * num_train_timesteps) + 1, round(high * num_train_timesteps)
        u = torch.ceil(u * num_train_timesteps).clamp(first, last) / num_train_timesteps
    return (u if sampling == "logit_normal" else shift_sigma(u, shift)).to(torch.float32)


def sigma_bounds(
    shift: float,
    sampling: TimestepSampling,
    min_sigma: float,
    max_sigma: float,
    num_train_timesteps: int | None,
) -> tuple[float, float]:
    """
    Compute the interval `(low, high]` of the unshifted `u` from which [`sample_sigmas`] draws.

    Args:
        shift, sampling, min_sigma, max_sigma, num_train_timesteps:
            See [`sample_sigmas`].

    Returns:
        `tuple[float, float]`: `low` and `high`. With a grid, `low` is the grid point *before* the first allowed one.

    Raises:
        ValueError: see [`sample_sigmas`].
    """
    if sampling not in get_args(TimestepSampling):
        raise ValueError(f"timestep_sampling={sampling!r}: expected one of {', '.join(get_args(TimestepSampling))}")
    if not 0 <= min_sigma < max_sigma <= 1:
        raise ValueError(f"min_sigma={min_sigma}, max_sigma={max_sigma}: need 0 <= min_sigma < max_sigma <= 1")
    k = 1.0 if sampling == "logit_normal" else shift
    if not k > 0:
        raise ValueError(f"shift={k}: the flow shift must be positive")
    low, high = (s / (k - (k - 1) * s) for s in (min_sigma, max_sigma))  # the inverse of the shift
    if num_train_timesteps is None:
        return low, high
    n = num_train_timesteps
    first = max(1, int(np.ceil(low * n - 1e-6)))
    last = min(n, int(np.floor(high * n + 1e-6)))
    if first > last:
        raise ValueError(
            f"min_sigma={min_sigma}, max_sigma={max_sigma}: no sigma of the grid of {n} lies between them at shift "
            f"{k}. Widen the bounds, or set num_train_timesteps=None for continuous sigmas."
        )
    return (first - 1) / n, last / n


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """
    Draw standard normal noise in fp32 on the CPU, where the numbers do not depend on the device.

    Args:
        shape (`tuple[int, ...]`):
            The shape of the noise, for example `(channels, frames, height, width)`.
        generator (`torch.Generator`):
            A CPU generator.
    """
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def pair_generator(seed: int, stream: Stream, step: int, position: int) -> torch.Generator:
    """
    Make the generator that one pair draws from.

    Args:
        seed (`int`):
            The run's seed.
        stream (`"train"`, `"eval"` or `"fixed"`):
            Separates the noise of training, of evaluation, and of the fixed draws that a pair keeps for a whole run.
        step (`int`):
            The optimizer step of `"train"`; 0 for `"eval"`, so that every evaluation draws the same noise; the number
            of the draw for `"fixed"`.
        position (`int`):
            The pair's position in the step over all ranks and micro-steps ([`step_position`]) for `"train"`; its row
            in the dataset for `"eval"` and `"fixed"`.

    Returns:
        `torch.Generator`: on the CPU.
    """
    words = [seed & 0xFFFFFFFFFFFFFFFF, get_args(Stream).index(stream), step, position]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))


def step_position(index: int, *, micro_step: int, rank: int, world_size: int, batch_size: int) -> int:
    """
    Compute the position within an optimizer step of the pair at row `index` of a batch.

        position = (micro_step*world_size + rank)*batch_size + index

    The sampler's batches go to the ranks in turn, `(micro-step 0: rank 0, rank 1, ...), (micro-step 1: ...)`. The
    position of a pair is therefore its place in the sampler's order, however the step is divided.

    Args:
        index (`int`):
            The pair's row in its batch.
        micro_step (`int`):
            Number of the batch among those that the step accumulates, from 0.
        rank, world_size (`int`):
            This process and the number of processes.
        batch_size (`int`):
            Pairs per batch and process.
    """
    return (micro_step * world_size + rank) * batch_size + index
