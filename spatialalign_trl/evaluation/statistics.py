"""
Statistics of scored videos: success rates and means, with their intervals and differences.

The success rate S@tau is the share of ALL videos whose score reaches tau: an INVALID video is a failure and stays in
the denominator. The score is the first reward's value, because a sum of several rewards has no scale on which a tau
would mean something. For rewards other than DSR-Score no meaningful tau is known, so their mean comes first
([`headline_of`]). Intervals are bootstrapped over prompts, because the seeds of one prompt are not independent.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
COMPONENTS = ("dsr_initial_score", "dsr_initial_gap", "dsr_final_score", "dsr_final_gap")
HEADLINE = "S@0.7"
DSR = "dsr_score"
MEANS = ("dsr_mean", "reward_mean")
"""Names of the mean score in a summary: of DSR-Score, and of any other reward. See [`mean_name`]."""
BOOTSTRAP_DRAWS = 2000
EVALUATION_SEED = 100_000
"""The first evaluation seed. It is far above the training seeds, so that the two never overlap."""

Row = Mapping[str, Any]


class Scored(Protocol):
    """A scored sample: the part of [`~spatialalign_trl.rollout.store.Sample`] that evaluation reads."""

    prompt_id: str
    row: dict[str, Any]
    rewards: dict[str, float | None]
    reward: float | None
    components: dict[str, Any]


def headline_score(sample: Scored) -> float | None:
    """
    Return the score that S@tau uses: the value of the run's first reward.

    Args:
        sample ([`Scored`]):
            The sample.

    Returns:
        `float` or `None`: The score; `None` if the video is INVALID, even if only a gate on another reward made it so.
    """
    return headline_value(sample.reward, next(iter(sample.rewards.values()), sample.reward))


def headline_value(reward: float | None, first: float | None) -> float | None:
    """
    Return the first reward's value, or `None` if the video is INVALID.

    Args:
        reward (`float`, *optional*):
            The combination of all rewards; `None` is INVALID.
        first (`float`, *optional*):
            The first reward's value.
    """
    return None if reward is None else first


def success_rate(rewards: Sequence[float | None], threshold: float) -> float:
    """
    Compute S@tau, the share of all videos with reward >= tau.

    Args:
        rewards (sequence of `float | None`):
            The scores. INVALID (`None`) counts as a failure.
        threshold (`float`):
            tau.

    Raises:
        ValueError: If there are no videos.
    """
    if not len(rewards):
        raise ValueError("S@tau of no videos is not defined: pass at least one score.")
    # A score of 0.7 that floating point left at 0.69999999 is a success (method.md 1.2).
    return sum(reward is not None and reward >= threshold - 1e-9 for reward in rewards) / len(rewards)


def _by_prompt(samples: Sequence[Scored], threshold: float) -> np.ndarray:
    """Count the successes and the videos of every prompt, in order of first appearance: shape (prompts, 2)."""
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for sample in samples:
        counts[sample.prompt_id][0] += success_rate([headline_score(sample)], threshold)
        counts[sample.prompt_id][1] += 1
    return np.asarray(list(counts.values()))


def bootstrap_interval(
    samples: Sequence[Scored], threshold: float, baseline: Sequence[Scored] | None = None, seed: int = 0
) -> tuple[float, float]:
    """
    Compute the 95 % bootstrap interval of S@tau over prompts, or of its paired difference to a baseline.

    Args:
        samples (sequence of [`Scored`]):
            Scored samples.
        threshold (`float`):
            tau.
        baseline (sequence of [`Scored`], *optional*):
            The baseline's samples, of the same prompts in the same order.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `tuple[float, float]`: The lower and the upper end.

    Raises:
        ValueError: If the prompts of the two sides differ, or there are no samples.
    """
    if not samples:
        raise ValueError("an interval of no samples is not defined: pass at least one sample.")
    counts = _by_prompt(samples, threshold)
    draws = np.random.default_rng(seed).integers(len(counts), size=(BOOTSTRAP_DRAWS, len(counts)))
    sums = counts[draws].sum(1)
    rates = sums[:, 0] / sums[:, 1]
    if baseline is not None:
        ids, base_ids = (list(dict.fromkeys(s.prompt_id for s in side)) for side in (samples, baseline))
        if ids != base_ids:
            different = sorted(set(ids) ^ set(base_ids))
            problem = f"{different[0]!r} is on one side only" if different else "their orders differ"
            raise ValueError(f"a paired interval needs the same prompts in the same order on both sides: {problem}.")
        sums = _by_prompt(baseline, threshold)[draws].sum(1)
        rates = rates - sums[:, 0] / sums[:, 1]
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def mean_difference(
    values: Sequence[float | None], baseline: Sequence[float | None], prompt_ids: Sequence[str], seed: int = 0
) -> dict[str, Any] | None:
    """
    Compute the mean of values - baseline over the videos that have both, with a paired 95 % bootstrap interval over
    prompts.

    Args:
        values, baseline (sequences of `float | None`):
            One value per video, of the same prompts and seeds in the same order; `None` for a video without a value.
        prompt_ids (sequence of `str`):
            The prompt of each video.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: `difference`, `interval` and `num_pairs`; `None` if no video has both values.

    Raises:
        ValueError: If the lengths differ.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for prompt_id, value, base in zip(prompt_ids, values, baseline, strict=True):
        if value is not None and base is not None:
            sums[prompt_id][0] += value - base
            sums[prompt_id][1] += 1
    if not sums:
        return None
    counts = np.asarray(list(sums.values()))
    draws = np.random.default_rng(seed).integers(len(counts), size=(BOOTSTRAP_DRAWS, len(counts)))
    drawn = counts[draws].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    total, number = counts.sum(0)
    return {"difference": float(total / number), "interval": [float(low), float(high)], "num_pairs": int(number)}


def _success(samples: Sequence[Scored]) -> dict[str, Any]:
    """Compute S@tau at all thresholds, the mean score, and the share of INVALID videos."""
    scores = [headline_score(sample) for sample in samples]
    summary: dict[str, Any] = {f"S@{tau}": success_rate(scores, tau) for tau in THRESHOLDS}
    summary[mean_name(samples)] = _mean(scores)
    summary["invalid_rate"] = scores.count(None) / len(scores)
    return summary


def headline_of(numbers: Mapping[str, Any]) -> str:
    """
    Return the name of the headline measure: S@0.7 for DSR-Score, `reward_mean` for any other reward.

    Args:
        numbers (`Mapping[str, Any]`):
            What [`summarize`] or [`compare`] returned.
    """
    return MEANS[1] if MEANS[1] in numbers else HEADLINE


def mean_name(samples: Sequence[Scored]) -> str:
    """
    Return the name of the mean score: `dsr_mean` if the first reward is DSR-Score, `reward_mean` otherwise.

    Args:
        samples (sequence of [`Scored`]):
            Scored samples.
    """
    names = {next(iter(sample.rewards), DSR) for sample in samples}
    return MEANS[0] if names == {DSR} else MEANS[1]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not `None`."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _components(samples: Sequence[Scored]) -> dict[str, float]:
    """Compute the means of DSR-Score's components, and of the numbers that any reward logged."""
    values = {name: [_number(sample.components.get(name)) for sample in samples] for name in COMPONENTS}
    values |= measured_by_all(samples)
    means = {name: _mean(numbers) for name, numbers in values.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def measured(samples: Sequence[Scored], reward: str) -> dict[str, list[float | None]]:
    """
    Return the numbers that a reward logged as `<reward>_<measure>`.

    Args:
        samples (sequence of [`Scored`]):
            Scored samples.
        reward (`str`):
            The reward's name.

    Returns:
        `dict[str, list]`: Measure -> one value per sample, `None` if it has none; without measures that no sample has.
    """
    names = dict.fromkeys(name for sample in samples for name in sample.components if name.startswith(f"{reward}_"))
    values = {name: [_number(sample.components.get(name)) for sample in samples] for name in names}
    return {name: numbers for name, numbers in values.items() if any(number is not None for number in numbers)}


def measured_by_all(samples: Sequence[Scored]) -> dict[str, list[float | None]]:
    """
    Return the numbers that all rewards logged, as [`measured`] does for one of them.

    Args:
        samples (sequence of [`Scored`]):
            Scored samples.
    """
    rewards = dict.fromkeys(name for sample in samples for name in sample.rewards)
    return {name: values for reward in rewards for name, values in measured(samples, reward).items()}


def _number(value: Any) -> float | None:
    """Return a logged value as a number; `None` for texts, flags, NaN and infinities."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def invalid_reason(sample: Scored) -> str:
    """
    Return why a sample has no reward, in a form that is equal for videos with the same problem: numbers become `N`,
    and the prompt's own words become the names of their columns, such as `<animal>`.

    Args:
        sample ([`Scored`]):
            An INVALID sample.
    """
    # By convention, a reward logs its reasons as `<its name>_reason`. The runner logs a reward's failure as
    # `<its name>_error`.
    reasons = [text for name, text in sample.components.items() if name.endswith(("_reason", "_error")) and text]
    reason = str(reasons[0]) if reasons else "no reason given"
    for column in ("attribute", "animal", "object"):
        if word := str(sample.row.get(column) or ""):
            reason = re.sub(rf"\b{re.escape(word)}\b", f"<{column}>", reason)
    return re.sub(r"\d+(\.\d+)?", "N", reason)


def summarize(
    samples: Sequence[Scored], quality: Mapping[str, float | None] | None = None, seed: int = 0
) -> dict[str, Any]:
    """
    Summarise one policy.

    Args:
        samples (sequence of [`Scored`]):
            Scored samples of the evaluation prompts.
        quality (`Mapping[str, float | None]`, *optional*):
            Means of the quality guards on the same videos.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`, ready for JSON:
            - `S@0.5` ... `S@0.9`: success rates of all videos, in [0, 1], and `S@0.7_interval` (95 %, over prompts);
            - `dsr_mean`: the mean score of the valid videos, `None` without any. For a reward other than DSR-Score it
              is called `reward_mean` and has a `reward_mean_interval`;
            - `invalid_rate`, and `invalid_reasons` with counts (the ten most frequent);
            - `components`, `by_type`, `quality`, `num_prompts`, `num_videos`;
            - `rewards`: the mean of each reward, if there are several.

    Raises:
        ValueError: If there are no samples.
    """
    if not samples:
        raise ValueError("there is nothing to summarize: no samples. Pass at least one.")
    types = sorted({str(sample.row["type"]) for sample in samples if "type" in sample.row})
    reasons = Counter(invalid_reason(sample) for sample in samples if sample.reward is None)
    names, mean = list(samples[0].rewards), mean_name(samples)
    means = {name: _mean([sample.rewards.get(name) for sample in samples]) for name in names}
    return {
        **_success(samples),
        f"{HEADLINE}_interval": list(bootstrap_interval(samples, 0.7, seed=seed)),
        **({} if mean == MEANS[0] else _mean_interval(samples, mean, seed)),
        "components": _components(samples),
        "by_type": {t: _success([s for s in samples if s.row.get("type") == t]) for t in types},
        **({"rewards": means} if len(names) > 1 else {}),
        "quality": dict(quality or {}),
        "invalid_reasons": dict(reasons.most_common(10)),
        "num_prompts": len({sample.prompt_id for sample in samples}),
        "num_videos": len(samples),
    }


def _mean_interval(samples: Sequence[Scored], name: str, seed: int) -> dict[str, list[float]]:
    """Compute the interval of the mean score, as that of its difference to zeros."""
    scores = [headline_score(sample) for sample in samples]
    mean = mean_difference(scores, [0.0] * len(scores), [sample.prompt_id for sample in samples], seed)
    return {} if mean is None else {f"{name}_interval": mean["interval"]}


def compare(base: Sequence[Scored], aligned: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """
    Compute the differences aligned - base with paired 95 % intervals over prompts.

    Args:
        base, aligned (sequences of [`Scored`]):
            Scored samples of the same prompts and seeds, in the same order.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: The differences of `S@0.5` ... `S@0.9`. For a reward other than DSR-Score also that of `reward_mean`,
        over the videos that are valid on both sides, if there are any.
    """
    differences: dict[str, Any] = {}
    for tau in THRESHOLDS:
        rates = [success_rate([headline_score(sample) for sample in side], tau) for side in (base, aligned)]
        differences[f"S@{tau}"] = {
            "difference": rates[1] - rates[0],
            "interval": list(bootstrap_interval(aligned, tau, base, seed=seed)),
        }
    if (name := mean_name(base)) != MEANS[0]:
        scores = [[headline_score(sample) for sample in side] for side in (aligned, base)]
        mean = mean_difference(*scores, [sample.prompt_id for sample in aligned], seed)
        differences |= {} if mean is None else {name: mean}
    return differences
