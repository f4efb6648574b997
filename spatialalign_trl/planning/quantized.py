"""Linear layers that take the memory of bitsandbytes' quantised ones, for plans on machines without a GPU."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BYTES_PER_WEIGHT = {"bitsandbytes_8bit": 1.0, "bitsandbytes_4bit": 0.5 + 4 / 64}
"""8 bits and a scale per row (left out); 4 bits and an fp32 scale per 64 weights."""


class _Dequantized(torch.autograd.Function):
    """Multiplies with weights that exist in full only during the product, forwards and backwards."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, packed: torch.Tensor, bias: Any, shape: Any, dtype: Any
    ) -> torch.Tensor:
        ctx.shape, ctx.dtype = shape, dtype
        ctx.save_for_backward(packed)
        return F.linear(input.to(dtype), torch.empty(shape, dtype=dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        return gradient.to(ctx.dtype) @ torch.empty(ctx.shape, dtype=ctx.dtype), None, None, None, None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is packed into bytes, of the size that bitsandbytes gives it."""

    def __init__(self, linear: nn.Linear, bytes_per_weight: float, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count = linear.in_features * linear.out_features
        packed = torch.empty(round(count * bytes_per_weight), dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        self._dtype = dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply with the weight."""
        shape = (self.out_features, self.in_features)
        return _Dequantized.apply(input, self.weight, self.bias, shape, self._dtype)


def quantize_linears(network: nn.Module, name: str, dtype: torch.dtype, kept: Collection[str]) -> None:
    """
    Replace a network's linear layers by quantised ones, in place.

    Args:
        network (`torch.nn.Module`):
            The network.
        name (`str`):
            One of `BYTES_PER_WEIGHT`.
        dtype (`torch.dtype`):
            The type that the layers compute in.
        kept (collection of `str`):
            Names of modules that stay in fp32.
    """
    for prefix, parent in list(network.named_modules()):
        for child_name, child in list(parent.named_children()):
            parts = set(f"{prefix}.{child_name}".split("."))
            if type(child) is nn.Linear and not parts & set(kept):
                setattr(parent, child_name, QuantizedLinear(child, BYTES_PER_WEIGHT[name], dtype))
