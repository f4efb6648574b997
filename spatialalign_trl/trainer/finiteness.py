"""Refuse numbers that are not finite, before they reach the weights, an average or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class NonFiniteError(FloatingPointError):
    """Raised, by all processes at the same step, for a loss, a gradient or a weight that is NaN or infinite."""


def first_non_finite(tensors: Mapping[str, Any]) -> str | None:
    """
    Find a tensor that has a value which is not finite.

    Args:
        tensors (`dict[str, Any]`):
            Tensors by name, or dictionaries of them; values of other types, and integers, are passed over.

    Returns:
        `str`: the name of the first such tensor; `None` if all values are finite.
    """
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            inner = first_non_finite(value)
            if inner is not None:
                return f"{name}.{inner}"
        elif isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return None


def refuse_non_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """
    Refuse weights that are not finite.

    Args:
        weights (`dict[str, torch.Tensor]`):
            The weights that are about to be written.
        what (`str`):
            What they are and where they would go; the error begins with it.

    Raises:
        NonFiniteError: if a weight is NaN or infinite; the message names its tensor.
    """
    name = first_non_finite(weights)
    if name is not None:
        raise NonFiniteError(
            f"{what}: {name} has values that are not finite, so nothing was written. Continue from the last "
            "checkpoint with a smaller learning_rate."
        )


def list_examples(examples: Sequence[str], limit: int = 4) -> str:
    """Join the descriptions of examples for a message; says how many are left out."""
    left_out = len(examples) - limit
    return ", ".join(examples[:limit]) + (f" and {left_out} more" if left_out > 0 else "")
