"""Random predictions and targets for the tests of the losses."""

import functools

import torch
from torch import Tensor

from spatialalign_trl.trainer.losses import Pair, zeroth_order_dpo_loss

plain_dpo_loss = functools.partial(zeroth_order_dpo_loss, zeroth_order_weight=0)
"""Diffusion-DPO without the zeroth-order term."""


def random_pairs(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> dict[str, Pair]:
    """Draw the three pairs that the losses take, by the names of their arguments."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    return {name: Pair(draw(), draw()) for name in ("policy", "reference", "target")}


def mapped(function, pairs: dict[str, Pair]) -> dict[str, Pair]:
    """Apply a function to all six tensors."""
    return {name: Pair(*map(function, pair)) for name, pair in pairs.items()}
