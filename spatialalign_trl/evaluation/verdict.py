"""
The verdict on reward hacking: did the reward rise while the picture got worse?

All comparisons are paired: they take two policies' videos of the same prompts and seeds, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spatialalign_trl.evaluation.guards import better_side
from spatialalign_trl.evaluation.statistics import Scored, compare, headline_of, mean_difference, measured_by_all

Difference = Mapping[str, Any]
"""A dict with `difference` and its 95 % `interval`."""


class Measured(NamedTuple):
    """
    A policy's scored videos with their summary and quality measures.

    Args:
        samples (sequence of [`Scored`]):
            The scored samples, by prompt and seed.
        summary (`dict`):
            Their summary, from `statistics.summarize`.
        quality_per_video (`dict[str, list]`):
            Quality measure -> one value per video, in the order of the samples.
    """

    samples: Sequence[Any]
    summary: dict[str, Any]
    quality_per_video: Mapping[str, Sequence[float | None]]


def judge(base: Measured, aligned: Measured, seed: int = 0) -> dict[str, Any]:
    """
    Compare two policies of the training loop on the same prompts and seeds, in the same order.

    Args:
        base ([`Measured`]):
            The policy before training.
        aligned ([`Measured`]):
            The policy after training.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: `difference` (see `statistics.compare`), `quality_difference` (of the guards' measures) and `verdict`.
    """
    rewards = compare_rewards(base.samples, aligned.samples, seed)
    prompt_ids = [sample.prompt_id for sample in aligned.samples]
    quality = compare_quality(base.quality_per_video, aligned.quality_per_video, prompt_ids, seed)
    verdict = reward_hacking_verdict(rewards, quality)
    difference = {name: value for name, value in rewards.items() if name != "reward"}
    return {"difference": difference, "quality_difference": quality, "verdict": verdict}


def compare_rewards(base: Sequence[Scored], aligned: Sequence[Scored], seed: int = 0) -> dict[str, Any]:
    """
    Compute the differences aligned - base of the rewards.

    Args:
        base, aligned (sequences of [`Scored`]):
            Scored samples of the same prompts and seeds, in the same order.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: The differences of `statistics.compare`, and `reward`: the difference of the mean reward (the weighted
        sum, if there are several) over the videos that are valid on both sides. `reward` is left out if it would
        repeat `reward_mean`.
    """
    differences = compare(base, aligned, seed)
    if not headline_of(differences).startswith("S@") and all(len(sample.rewards) == 1 for sample in aligned):
        return differences
    rewards = [[sample.reward for sample in samples] for samples in (aligned, base)]
    reward = mean_difference(*rewards, [sample.prompt_id for sample in aligned], seed)
    return differences | ({} if reward is None else {"reward": reward})


def compare_measured(base: Sequence[Scored], aligned: Sequence[Scored], seed: int = 0) -> dict[str, dict[str, Any]]:
    """
    Compute the differences aligned - base of the numbers that the rewards logged for each video.

    Args:
        base, aligned (sequences of [`Scored`]):
            Scored samples of the same prompts and seeds, in the same order.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: Measure (see `statistics.measured_by_all`) -> its difference, as [`compare_quality`] returns it.
    """
    prompt_ids = [sample.prompt_id for sample in aligned]
    return compare_quality(measured_by_all(base), measured_by_all(aligned), prompt_ids, seed)


def compare_quality(
    base: Mapping[str, Sequence[float | None]],
    aligned: Mapping[str, Sequence[float | None]],
    prompt_ids: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """
    Compute the differences aligned - base of measures with one value per video, with paired 95 % intervals.

    Args:
        base, aligned (`Mapping[str, list]`):
            Measure -> one value per video. Measures that only one side has are left out.
        prompt_ids (sequence of `str`):
            The prompt of each video.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: Measure -> `difference`, `interval` and `num_pairs`; without the measures that no pair of videos has.
    """
    differences = {
        name: mean_difference(values, base[name], prompt_ids, seed) for name, values in aligned.items() if name in base
    }
    return {name: value for name, value in differences.items() if value is not None}


def reward_hacking_verdict(rewards: Mapping[str, Difference], quality: Mapping[str, Difference]) -> dict[str, Any]:
    """
    Warn if the reward rose while a quality guard got worse by more than its interval.

    The reward rose if the headline measure (`statistics.headline_of`) or the mean reward rose. A guard got worse if
    its paired 95 % interval lies wholly on the worse side of 0. Measures without a better side (`guards.better_side`)
    are not judged. If two policies are equal, each judged guard gets worse by chance in about 2.5 % of comparisons.

    Args:
        rewards (`Mapping`):
            Differences from [`compare_rewards`].
        quality (`Mapping`):
            Differences from [`compare_quality`].

    Returns:
        `dict`: `warning` (bool), `reward_rose` (bool), `fell` (names of measures), `judged` (names of measures), and
        `message` (a sentence).
    """
    changes = {name: rewards[name]["difference"] for name in (headline_of(rewards), "reward") if name in rewards}
    rose = [f"{name} {change:+.3f}" for name, change in changes.items() if change > 1e-9]
    judged = [name for name in quality if better_side(name)]
    fell = [name for name in judged if max(better_side(name) * end for end in quality[name]["interval"]) < 0]
    losses = ", ".join(f"{name} {difference_text(quality[name])}" for name in fell)
    if not judged:
        message = "no quality guard was compared, so nothing is known about how the videos look"
    elif rose and fell:
        message = (
            f"the reward rose ({', '.join(rose)}) while {losses} got worse: this may be reward hacking. Look at the "
            "videos"
        )
    elif fell:
        message = f"{losses} got worse; the reward did not rise"
    else:
        message = f"no guard got worse by more than its interval ({', '.join(judged)})"
    return {
        "warning": bool(rose and fell),
        "reward_rose": bool(rose),
        "fell": fell,
        "judged": judged,
        "message": message,
    }


def difference_text(difference: Difference) -> str:
    """
    Format a difference and its interval, such as `"+0.120 [+0.050, +0.190]"`. If all three numbers are below 0.01,
    they get two significant digits.

    Args:
        difference (`Mapping`):
            A dict with `difference` and `interval`.
    """
    values = (difference["difference"], *difference["interval"])
    number_format = "+.3f" if max(map(abs, values)) >= 0.01 else "+.2g"
    middle, low, high = (format(value, number_format) for value in values)
    return f"{middle} [{low}, {high}]"
