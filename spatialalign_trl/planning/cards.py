"""GPUs by name or size: how much memory a run may use on one, and how fast it multiplies."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spatialalign_trl.errors import near_miss

GIB = 2**30
CONTEXT = 2.0
"""GiB of a card that a process cannot use: the CUDA context, libraries, and the workspaces of kernels."""
FRAGMENTATION = 0.05
"""Share of the rest that the allocator loses between blocks of different sizes."""
ACHIEVED = 0.4
"""Share of a card's matrix rate that a plan assumes if no rate is stated."""
_SMALLEST, _LARGEST = 4.0, 1024.0
# Drivers report 79.1 GiB of a card sold as 80 GB, 139 of 141, 23.6 of 24: the unit is nearly a GiB.
_REPORTED = 0.985


@dataclass(frozen=True)
class Card:
    """
    A GPU.

    Args:
        name (`str`):
            How it is shown.
        memory (`float`):
            GiB that its driver reports.
        tflops (`float`, *optional*):
            TFLOP/s of dense bf16 matrix products, by the vendor's data sheet.
    """

    name: str
    memory: float
    tflops: float | None = None

    @property
    def usable(self) -> float:
        """GiB that tensors may take, without the context and a margin for fragmentation."""
        return (self.memory - CONTEXT) * (1 - FRAGMENTATION)


_SOLD_AS: dict[str, tuple[float, float]] = {
    "B200": (180, 2250),
    "H200": (141, 989),
    "H100": (80, 989),
    "A100": (80, 312),
    "A100-40GB": (40, 312),
    "L40S": (48, 362),
    "A6000": (48, 155),
    "RTX5090": (32, 210),
    "RTX4090": (24, 165),
    "RTX3090": (24, 71),
    "L4": (24, 121),
}
CARDS = {name: Card(name, size * _REPORTED, tflops) for name, (size, tflops) in _SOLD_AS.items()}
"""Name -> card. Sizes and rates are those of the vendors' data sheets."""


def find_card(text: str) -> Card:
    """
    Return the card that a name or a size means.

    Args:
        text (`str`):
            One of `CARDS`, or a size such as `80GB`.

    Raises:
        ValueError: if there is no such card, or no card has such a size.
    """
    plain = re.sub(r"[\s_-]", "", text).upper()
    by_name = {re.sub(r"[\s_-]", "", name): card for name, card in CARDS.items()}
    for candidate in (plain, plain.removeprefix("NVIDIA"), f"RTX{plain}"):
        if candidate in by_name:
            return by_name[candidate]
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GIB|GB|G)", text.strip().upper())
    if size is None:
        raise ValueError(
            f"gpu={text!r}: unknown card. {near_miss(text, CARDS)} A size such as 80GB is understood, too."
        )
    if not _SMALLEST <= float(size[1]) <= _LARGEST:
        raise ValueError(
            f"gpu={text!r}: no GPU has such a size. Give the memory of one GPU, {_SMALLEST:g}GB to {_LARGEST:g}GB."
        )
    return Card(text, float(size[1]) * (1.0 if size[2] == "GIB" else _REPORTED))
