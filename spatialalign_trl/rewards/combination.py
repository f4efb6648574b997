"""
Combine the values of several rewards into one number per video: gates, normalisation, weights.

Stored values are what the rewards returned. They are combined only when the number is needed, from all samples that
are compared. So the number depends neither on the batches in which the samples were scored nor on interruptions.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from spatialalign_trl.errors import near_miss

Normalization: TypeAlias = Literal["none", "group", "global"]

# A spread below this share of the values is rounding of float32 arithmetic. Dividing by it would amplify noise.
ROUNDING = 1e-6

Values: TypeAlias = Mapping[str, float | None]
"""The value of every reward for one video, by name; `None` = INVALID."""


@dataclass(frozen=True)
class RewardCombination:
    """
    The rule that combines the values of several rewards.

    Args:
        weights (`dict[str, float]`):
            The weight of every reward, by name. A reward of weight 0 is only logged.
        gates (`dict[str, float]`, *optional*):
            Reward -> the minimum value that a video needs. A video with a lower value, or without a value of that
            reward, is disqualified: INVALID, whatever the other rewards say.
        normalization (`str`, *optional*, defaults to `"none"`):
            How [`~RewardCombination.normalized`] scales a value `v`:

            - `"none"`: `v`.
            - `"group"`: `(v - mean) / std` over the samples of the same group (prompt).
            - `"global"`: `(v - mean) / std` over all samples.

            `std` is the population standard deviation. Mean and std are taken over the samples that the reward judged
            and that no gate disqualified. If `std` is only rounding (1e-6 of the largest value), all count as 0.

    Raises:
        `ValueError`: for an unknown normalisation, or a gate that is not a finite number or names no reward.
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
        """Return why a gate disqualifies a video with these values, or `None`."""
        for name, minimum in self.gates.items():
            value = values[name]
            if value is None:
                return f"{name} gave no verdict, and its gate asks for {minimum:g}"
            if value < minimum:
                return f"{name} is {value:.4g}, below its gate {minimum:g}"
        return None

    def combined(self, values: Values) -> float | None:
        """
        Return one video's weighted sum of its values, without normalisation. Values that are `None` are left out.

        Args:
            values (mapping of `str` to `float` or `None`):
                The value of every reward.

        Returns:
            `float` or `None`: `None` if a gate disqualifies the video, or if no reward with a weight judged it.
        """
        return None if self.gate_reason(values) else self._sum(values)

    def normalized(self, samples: Sequence[Values], groups: Sequence[Hashable]) -> list[float | None]:
        """
        Return the weighted sums of normalised values. Pass all samples that are to be compared in one call.

        Args:
            samples (sequence of `N` mappings of `str` to `float` or `None`):
                The values of each video.
            groups (sequence of `N` hashables):
                The prompt of each video.

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
    """Raise a `ValueError` for an unknown normalisation."""
    if normalization not in get_args(Normalization):
        raise ValueError(
            f"There is no reward normalization {normalization!r}. "
            f"{near_miss(str(normalization), get_args(Normalization))}"
        )


def check_gates(gates: Mapping[str, float]) -> None:
    """Raise a `ValueError` unless the gates map names to finite numbers."""
    if not isinstance(gates, Mapping):
        raise ValueError(f"Gates must be a mapping such as {{'motion': 0.02}}, got {gates!r}.")
    for name, minimum in gates.items():
        is_number = isinstance(minimum, (int, float)) and not isinstance(minimum, bool)
        if not is_number or not math.isfinite(minimum):
            raise ValueError(f"The gate of {name!r} must be a finite number, got {minimum!r}.")


def _standardized(values: Sequence[float]) -> list[float]:
    # `statistics` sums exactly, so the result does not depend on the order of the samples.
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    if std <= ROUNDING * max(map(abs, values)):
        return [0.0] * len(values)
    return [(value - mean) / std for value in values]
