"""The numbers of scored videos: obedience, and its intervals and differences.

Obedience is S@tau, the share of ALL videos whose score reaches tau: an INVALID video is a failure and stays in the
denominator. The score is the first reward's value: a sum of several has no scale that a tau could stand on. A reward
that is not the DSR-Score has no tau that is known to mean something, so that its mean comes first
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
"""What a summary's mean score is called: see [`mean_name`]."""
BOOTSTRAP_DRAWS = 2000
EVALUATION_SEED = 100_000
"""Evaluation seeds start here, so that they never meet a training seed."""

Row = Mapping[str, Any]


class Scored(Protocol):
    """What evaluation reads of a sample."""

    prompt_id: str
    row: dict[str, Any]
    rewards: dict[str, float | None]
    reward: float | None
    components: dict[str, Any]


def headline_score(sample: Scored) -> float | None:
    """What S@tau looks at: the value of the first of the run's rewards; `None` for a video that is INVALID, be it by a
    gate on another reward."""
    return headline_value(sample.reward, next(iter(sample.rewards.values()), sample.reward))


def headline_value(reward: float | None, first: float | None) -> float | None:
    """The first reward's value of a video, given what all rewards together make of it: `None` for INVALID."""
    return None if reward is None else first


def success_rate(rewards: Sequence[float | None], threshold: float) -> float:
    """S@tau: share of all videos with reward >= tau; INVALID (`None`) counts as a failure."""
    if not len(rewards):
        raise ValueError("S@tau of no videos is not defined")
    # a score of 0.7 that floating point left at 0.69999999 is a success (method.md 1.2)
    return sum(reward is not None and reward >= threshold - 1e-9 for reward in rewards) / len(rewards)


def _by_prompt(samples: Sequence[Scored], threshold: float) -> np.ndarray:
    """`(prompts, 2)`: successes and videos of every prompt, prompts in order of first appearance."""
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for sample in samples:
        counts[sample.prompt_id][0] += success_rate([headline_score(sample)], threshold)
        counts[sample.prompt_id][1] += 1
    return np.asarray(list(counts.values()))


def bootstrap_interval(
    samples: Sequence[Scored], threshold: float, baseline: Sequence[Scored] | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of S@tau over prompts, or of its difference to a baseline on the same prompts (paired).

    Args:
        samples, baseline: scored samples; with a baseline, both must cover the same prompts in the same order.
        threshold: tau.
        seed: of the resampling.

    Raises:
        ValueError: when the prompts of the two differ, or there are no samples.
    """
    if not samples:
        raise ValueError("an interval of no samples is not defined")
    counts = _by_prompt(samples, threshold)
    draws = np.random.default_rng(seed).integers(len(counts), size=(BOOTSTRAP_DRAWS, len(counts)))
    sums = counts[draws].sum(1)
    rates = sums[:, 0] / sums[:, 1]
    if baseline is not None:
        ids, base_ids = (list(dict.fromkeys(s.prompt_id for s in group)) for group in (samples, baseline))
        if ids != base_ids:
            different = sorted(set(ids) ^ set(base_ids))
            what = f"{different[0]!r} is on one side only" if different else "their orders differ"
            raise ValueError(f"a paired interval needs the same prompts in the same order on both sides: {what}")
        sums = _by_prompt(baseline, threshold)[draws].sum(1)
        rates = rates - sums[:, 0] / sums[:, 1]
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def mean_difference(
    values: Sequence[float | None], baseline: Sequence[float | None], prompt_ids: Sequence[str], seed: int = 0
) -> dict[str, Any] | None:
    """Mean of values - baseline over the videos that have both, with a paired 95 % bootstrap interval over prompts.

    Args:
        values, baseline: one a video, of the same prompts and seeds in the same order; `None` where there is none.
        prompt_ids: the prompt of each video.
        seed: of the resampling.

    Returns:
        `difference`, `interval` and `num_pairs`; `None` when no video has both.

    Raises:
        ValueError: when the lengths differ.
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


def _obedience(samples: Sequence[Scored]) -> dict[str, Any]:
    scores = [headline_score(sample) for sample in samples]
    summary: dict[str, Any] = {f"S@{tau}": success_rate(scores, tau) for tau in THRESHOLDS}
    summary[mean_name(samples)] = _mean(scores)
    summary["invalid_rate"] = scores.count(None) / len(scores)
    return summary


def headline_of(numbers: Mapping[str, Any]) -> str:
    """The measure that a policy is told by first, in what [`summarize`] or [`compare`] returned: S@0.7 of DSR-Scores,
    `reward_mean` of any other reward."""
    return MEANS[1] if MEANS[1] in numbers else HEADLINE


def mean_name(samples: Sequence[Scored]) -> str:
    """What the mean of the score that S@tau looks at is called: `dsr_mean` of DSR-Scores, `reward_mean` of others."""
    names = {next(iter(sample.rewards), DSR) for sample in samples}
    return MEANS[0] if names == {DSR} else MEANS[1]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _components(samples: Sequence[Scored]) -> dict[str, float]:
    """Means of what the DSR-Score is made of, and of what any reward measured."""
    values = {name: [_number(sample.components.get(name)) for sample in samples] for name in COMPONENTS}
    values |= measured_by_all(samples)
    means = {name: _mean(one) for name, one in values.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def measured(samples: Sequence[Scored], reward: str) -> dict[str, list[float | None]]:
    """The numbers that a reward logged as `<its name>_<measure>`, one a sample; `None` where one has none."""
    names = dict.fromkeys(name for one in samples for name in one.components if name.startswith(f"{reward}_"))
    values = {name: [_number(sample.components.get(name)) for sample in samples] for name in names}
    return {name: one for name, one in values.items() if any(value is not None for value in one)}


def measured_by_all(samples: Sequence[Scored]) -> dict[str, list[float | None]]:
    """[`measured`] of every reward."""
    rewards = dict.fromkeys(name for sample in samples for name in sample.rewards)
    return {name: values for reward in rewards for name, values in measured(samples, reward).items()}


def _number(value: Any) -> float | None:
    """What a reward measured; `None` for texts, flags and NaN that it logged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def invalid_reason(sample: Scored) -> str:
    """Why a sample has no reward, such that what happened to many videos reads alike: their numbers become `N`, their
    own nouns the columns' names.
    """
    # A reward explains itself in a column `<its name>_reason` by convention; the runner reports a failed one in
    # `<its name>_error`.
    told = [text for name, text in sample.components.items() if name.endswith(("_reason", "_error")) and text]
    reason = str(told[0]) if told else "no reason given"
    for column in ("attribute", "animal", "object"):
        if word := str(sample.row.get(column) or ""):
            reason = re.sub(rf"\b{re.escape(word)}\b", f"<{column}>", reason)
    return re.sub(r"\d+(\.\d+)?", "N", reason)


def summarize(
    samples: Sequence[Scored], quality: Mapping[str, float | None] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The numbers of one policy.

    Args:
        samples: scored samples of the evaluation prompts.
        quality: means of the quality guards on the same videos.
        seed: of the bootstrap.

    Returns:
        A dict ready for JSON: `S@0.5`..`S@0.9` in [0, 1] of all videos, `S@0.7_interval` (95 %, over prompts),
        `dsr_mean`, the mean score of the valid videos (`None` without any; of a reward that is not the DSR-Score it is
        called `reward_mean` and has a `reward_mean_interval`), `invalid_rate`, `components`, `by_type`, `quality`,
        `invalid_reasons` with counts (the ten most frequent), `num_prompts`, `num_videos`; with several rewards
        `rewards`, the mean of each.

    Raises:
        ValueError: when there are no samples.
    """
    if not samples:
        raise ValueError("there is nothing to summarize: no samples")
    types = sorted({str(sample.row["type"]) for sample in samples if "type" in sample.row})
    reasons = Counter(invalid_reason(sample) for sample in samples if sample.reward is None)
    names, mean = list(samples[0].rewards), mean_name(samples)
    means = {name: _mean([sample.rewards.get(name) for sample in samples]) for name in names}
    return {
        **_obedience(samples),
        f"{HEADLINE}_interval": list(bootstrap_interval(samples, 0.7, seed=seed)),
        **({} if mean == MEANS[0] else _mean_interval(samples, mean, seed)),
        "components": _components(samples),
        "by_type": {t: _obedience([s for s in samples if s.row.get("type") == t]) for t in types},
        **({"rewards": means} if len(names) > 1 else {}),
        "quality": dict(quality or {}),
        "invalid_reasons": dict(reasons.most_common(10)),
        "num_prompts": len({sample.prompt_id for sample in samples}),
        "num_videos": len(samples),
    }


def _mean_interval(samples: Sequence[Scored], name: str, seed: int) -> dict[str, list[float]]:
    scores = [headline_score(sample) for sample in samples]
    told = mean_difference(scores, [0.0] * len(scores), [sample.prompt_id for sample in samples], seed)
    return {} if told is None else {f"{name}_interval": told["interval"]}


def compare(base: Sequence[Scored], aligned: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """Differences aligned - base with paired 95 % intervals over prompts: of S@tau, and of a reward that is not the
    DSR-Score `reward_mean`, over the videos that are valid on both sides (left out where there are none)."""
    differences: dict[str, Any] = {}
    for tau in THRESHOLDS:
        rates = [success_rate([headline_score(s) for s in group], tau) for group in (base, aligned)]
        differences[f"S@{tau}"] = {
            "difference": rates[1] - rates[0],
            "interval": list(bootstrap_interval(aligned, tau, base, seed=seed)),
        }
    if (name := mean_name(base)) != MEANS[0]:
        scores = [[headline_score(sample) for sample in group] for group in (aligned, base)]
        mean = mean_difference(*scores, [sample.prompt_id for sample in aligned], seed)
        differences |= {} if mean is None else {name: mean}
    return differences
