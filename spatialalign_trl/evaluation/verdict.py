"""The reward-hacking verdict: did the reward rise while the picture got worse?

Everything here is paired: two policies' videos of the same prompts and seeds, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spatialalign_trl.evaluation.guards import better_side
from spatialalign_trl.evaluation.statistics import Scored, compare, headline_of, mean_difference, measured_by_all

Difference = Mapping[str, Any]
"""`difference` and its 95 % `interval`."""


class Measured(NamedTuple):
    """
    What is known of a policy's videos.

    Args:
        samples: Scored, by prompt and seed.
        summary (`dict`): What `statistics.summarize` returned.
        looks (`dict[str, list]`): Measure -> one value a video, in the order of the samples.
    """

    samples: Sequence[Any]
    summary: dict[str, Any]
    looks: Mapping[str, Sequence[float | None]]


def judge(base: Measured, aligned: Measured, seed: int = 0) -> dict[str, Any]:
    """What the loop writes of two policies on the same prompts and seeds, in the same order.

    Returns:
        `difference` (as `compare` has it), `quality_difference` (of the guards' measures), `verdict`.
    """
    rewards = compare_rewards(base.samples, aligned.samples, seed)
    quality = compare_quality(base.looks, aligned.looks, [sample.prompt_id for sample in aligned.samples], seed)
    verdict = reward_hacking_verdict(rewards, quality)
    difference = {name: value for name, value in rewards.items() if name != "reward"}
    return {"difference": difference, "quality_difference": quality, "verdict": verdict}


def compare_rewards(base: Sequence[Scored], aligned: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """`compare`'s differences, and `reward`: that of the mean reward (of several the weighted sum), over the videos
    that are valid on both sides; left out where it is `reward_mean`."""
    differences = compare(base, aligned, seed)
    if not headline_of(differences).startswith("S@") and all(len(sample.rewards) == 1 for sample in aligned):
        return differences
    rewards = [[sample.reward for sample in group] for group in (aligned, base)]
    reward = mean_difference(*rewards, [sample.prompt_id for sample in aligned], seed)
    return differences | ({} if reward is None else {"reward": reward})


def compare_measured(base: Sequence[Scored], aligned: Sequence[Scored], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Differences aligned - base of what the rewards measured of each video (`statistics.measured_by_all`), as
    `compare_quality` has them."""
    ids = [sample.prompt_id for sample in aligned]
    return compare_quality(measured_by_all(base), measured_by_all(aligned), ids, seed)


def compare_quality(
    base: Mapping[str, Sequence[float | None]],
    aligned: Mapping[str, Sequence[float | None]],
    prompt_ids: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Differences aligned - base of the guards' measures that have a value a video, with paired 95 % intervals.

    Args:
        base, aligned: measure -> one value a video.
        prompt_ids: the prompt of each video.
        seed: of the resampling.
    """
    differences = {
        name: mean_difference(values, base[name], prompt_ids, seed) for name, values in aligned.items() if name in base
    }
    return {name: value for name, value in differences.items() if value is not None}


def reward_hacking_verdict(rewards: Mapping[str, Difference], quality: Mapping[str, Difference]) -> dict[str, Any]:
    """Warns when the reward rose while a guard fell by more than its interval.

    The reward rose when the headline (`statistics.headline_of`) or the mean reward did. A guard fell when its paired
    95 % interval lies wholly on the worse side of 0 (`guards.better_side` says which side that is; measures that have
    none are not judged). With k judged guards one falls by chance alone in about 2.5 % times k of comparisons of equal
    policies.

    Args:
        rewards: what `compare_rewards` returned.
        quality: what `compare_quality` returned.

    Returns:
        `warning` (bool), `reward_rose` (bool), `fell` (names), `judged` (names), `message` (a sentence).
    """
    told = {name: rewards[name]["difference"] for name in (headline_of(rewards), "reward") if name in rewards}
    rose = [f"{name} {difference:+.3f}" for name, difference in told.items() if difference > 1e-9]
    judged = [name for name in quality if better_side(name)]
    fell = [name for name in judged if _is_worse(quality[name], better_side(name))]
    losses = [_describe(name, quality[name]) for name in fell]
    if not judged:
        message = "no quality guard was compared, so nothing is known about how the videos look"
    elif rose and fell:
        message = (
            f"the reward rose ({', '.join(rose)}) while {', '.join(losses)} got worse: this may be reward hacking. "
            "Look at the videos"
        )
    elif fell:
        message = f"{', '.join(losses)} got worse; the reward did not rise"
    else:
        message = f"no guard got worse by more than its interval ({', '.join(judged)})"
    return {
        "warning": bool(rose and fell),
        "reward_rose": bool(rose),
        "fell": fell,
        "judged": judged,
        "message": message,
    }


def _is_worse(difference: Difference, better: int) -> bool:
    return max(better * end for end in difference["interval"]) < 0


def _describe(name: str, difference: Difference) -> str:
    return f"{name} {difference_text(difference)}"


def difference_text(difference: Difference) -> str:
    """`"+0.120 [+0.050, +0.190]"`; with two digits that count where all three are small."""
    values = (difference["difference"], *difference["interval"])
    form = "+.3f" if max(map(abs, values)) >= 0.01 else "+.2g"
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} [{low}, {high}]"
