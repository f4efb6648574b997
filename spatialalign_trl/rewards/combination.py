"""
Several rewards' values as one number a video: gates, normalisation, weights.

Values stay what the rewards returned; a number is made of them when it is needed, from all samples that are compared,
so it depends neither on the batches in which they were scored nor on where a run was interrupted.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from spatialalign_trl.errors import near_miss

Normalization: TypeAlias = Literal["none", "group", "global"]

# A spread below this share of the values is rounding of float32 arithmetic; dividing by it would blow noise up.
ROUNDING = 1e-6

Values: TypeAlias = Mapping[str, float | None]
"""One video's value of every reward, by name; `None` = INVALID."""


@dataclass(frozen=True)
class RewardCombination:
    """
    How the values of several rewards become one.

    Args:
        weights (`dict[str, float]`):
            Of every reward, by name. One of weight 0 is only looked at.
        gates (`dict[str, float]`, *optional*):
            Reward -> the least value a video needs. One that has less, or on which that reward gave no verdict, is
            disqualified: INVALID, whatever the other rewards say.
        normalization (`str`, *optional*, defaults to `"none"`):
            What a value `v` counts as in [`~RewardCombination.normalized`]:

            - `"none"`: `v`.
            - `"group"`: `(v - mean) / std` over the samples of the same group (prompt).
            - `"global"`: `(v - mean) / std` over all samples.

            `std` is the population's; mean and std are taken over the samples which that reward judged and no gate
            disqualified. Where `std` is no more than rounding (1e-6 of the largest value), all count as 0.

    Raises:
        `ValueError`: for an unknown normalisation, or a gate that names no reward or is no finite number.
    """

    weights: Mapping[str, float]
    gates: Mapping[str, float] = field(default_factory=dict)
    normalization: Normalization = "none"

    def __post_init__(self) -> None:
        check_normalization(self.normalization)
        check_gates(self.gates)
        for name in self.gates:
            if name not in self.weights:
                raise ValueError(f"There is a gate for {name!r}, which is no reward. {near_miss(name, self.weights)}")

    def gate_reason(self, values: Values) -> str | None:
        """Why a gate disqualifies a video; `None` when none does."""
        for name, least in self.gates.items():
            value = values[name]
            if value is None:
                return f"{name} gave no verdict, and its gate asks for {least:g}"
            if value < least:
                return f"{name} is {value:.4g}, below its gate {least:g}"
        return None

    def combined(self, values: Values) -> float | None:
        """
        One video's weighted sum of the values as they are. Those that are `None` are left out.

        Returns:
            `float` or `None`: `None` when a gate disqualifies the video, or no reward with a weight judged it.
        """
        return None if self.gate_reason(values) else self._sum(values)

    def normalized(self, samples: Sequence[Values], groups: Sequence[Hashable]) -> list[float | None]:
        """
        The weighted sums of normalised values: of what is to be compared, and of all of it at once.

        Args:
            samples (sequence of `N` mappings of `str` to `float` or `None`):
                Each video's values.
            groups (sequence of `N` hashables):
                The prompt each is of.

        Returns:
            `list[float | None]`: as from [`~RewardCombination.combined`]. A reward that is `None` for a video counts
            as its mean, 0.
        """
        if self.normalization == "none":
            return [self.combined(values) for values in samples]
        keys = [group if self.normalization == "group" else None for group in groups]
        admitted = [k for k, values in enumerate(samples) if self.gate_reason(values) is None]
        scaled: list[dict[str, float | None]] = [dict.fromkeys(self.weights) for _ in samples]
        for name in self.weights:
            by_key: dict[Hashable, list[int]] = {}
            for k in admitted:
                if samples[k][name] is not None:
                    by_key.setdefault(keys[k], []).append(k)
            for members in by_key.values():
                for k, z in zip(members, _standardized([samples[k][name] for k in members]), strict=True):
                    scaled[k][name] = z
        return [self._sum(values) for values in scaled]

    def _sum(self, values: Values) -> float | None:
        terms = [w * values[name] for name, w in self.weights.items() if w != 0 and values[name] is not None]
        return sum(terms) if terms else None


def check_normalization(normalization: str) -> None:
    """Raises a `ValueError` for an unknown one."""
    if normalization not in get_args(Normalization):
        raise ValueError(
            f"There is no reward normalization {normalization!r}. "
            f"{near_miss(str(normalization), get_args(Normalization))}"
        )


def check_gates(gates: Mapping[str, float]) -> None:
    """Raises a `ValueError` for what is no mapping of names to finite numbers."""
    if not isinstance(gates, Mapping):
        raise ValueError(f"Gates are a mapping such as {{'motion': 0.02}}, got {gates!r}.")
    for name, least in gates.items():
        number = isinstance(least, (int, float)) and not isinstance(least, bool)
        if not number or not math.isfinite(least):
            raise ValueError(f"The gate of {name!r} must be a finite number, got {least!r}.")


def _standardized(values: Sequence[float]) -> list[float]:
    # `statistics` adds up exactly, so that the order of the samples is not in the last bits.
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    if std <= ROUNDING * max(map(abs, values)):
        return [0.0] * len(values)
    return [(value - mean) / std for value in values]
