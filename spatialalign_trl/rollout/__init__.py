"""Rollouts: a policy and prompts become samples on disk.

Names are resolved when they are first used, so that importing this package needs no torch.
"""

from importlib import import_module
from typing import Any

_PUBLIC_NAMES = {"Sample": "store", "SampleStore": "store", "noise_seed": "sampler", "roll_out": "sampler"}

__all__ = [*_PUBLIC_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
