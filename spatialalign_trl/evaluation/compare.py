"""Compare two policies on the prompts and seeds that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialalign_trl.evaluation.policies import Policy
from spatialalign_trl.evaluation.verdict import (
    compare_measured,
    compare_quality,
    compare_rewards,
    reward_hacking_verdict,
)
from spatialalign_trl.evaluation.video_folder import VideoFolder
from spatialalign_trl.rollout.store import Sample, SampleStore


@dataclass
class Evaluated:
    """
    A policy's videos and what was found out about them.

    Args:
        policy ([`Policy`]): What made them.
        store: Where they lie.
        samples (`list[Sample]`): By prompt, then by seed.
        quality (`dict`): Means of the guards' measures.
        looks (`dict[str, list]`): The measures that have a value a video, in the order of the samples.
    """

    policy: Policy
    store: SampleStore | VideoFolder
    samples: list[Sample]
    quality: dict[str, float | None] = field(default_factory=dict)
    looks: dict[str, list[float | None]] = field(default_factory=dict)

    def video_path(self, sample: Sample) -> Path:
        """The file of a sample's video."""
        if isinstance(self.store, VideoFolder):
            return self.store.path(sample.sample_id)
        return self.store.path(sample.sample_id, ".mp4")


def compare_policies(base: Evaluated, other: Evaluated) -> dict[str, Any]:
    """
    Paired differences other - base, on the prompts that both have, and the verdict.

    Videos are paired by prompt and seed; where the two have no seed in common (other models' videos), by prompt and
    place among its seeds.

    Returns:
        `rewards`, `components` and `quality` (`verdict.compare_rewards`, `compare_measured`, `compare_quality`),
        `verdict`, `num_prompts`, `num_pairs`, `paired_by` (`"seed"` or `"prompt"`). Without a common prompt only the
        last three.
    """
    places, paired_by = _pairs(base.samples, other.samples)
    pairs = [(base.samples[b], other.samples[o]) for b, o in places]
    counts = {
        "num_prompts": len({sample.prompt_id for sample, _ in pairs}),
        "num_pairs": len(pairs),
        "paired_by": paired_by,
    }
    if not pairs:
        return counts
    sides = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    rewards, components = compare_rewards(*sides), compare_measured(*sides)
    before = {name: [values[b] for b, _ in places] for name, values in base.looks.items()}
    after = {name: [values[o] for _, o in places] for name, values in other.looks.items()}
    quality = compare_quality(before, after, [sample.prompt_id for sample, _ in pairs])
    verdict = reward_hacking_verdict(rewards, quality)
    return {"rewards": rewards, "components": components, "quality": quality, "verdict": verdict, **counts}


def _pairs(base: Sequence[Sample], other: Sequence[Sample]) -> tuple[list[tuple[int, int]], str]:
    """Places of the paired videos, by the order of the baseline's."""
    keys = {(sample.prompt_id, sample.seed): place for place, sample in enumerate(other)}
    by_seed = [(b, keys[key]) for b, s in enumerate(base) if (key := (s.prompt_id, s.seed)) in keys]
    if by_seed:
        return by_seed, "seed"
    ours, theirs = _ranked(base), _ranked(other)
    return [(place, theirs[key]) for key, place in ours.items() if key in theirs], "prompt"


def _ranked(samples: Sequence[Sample]) -> dict[tuple[str, int], int]:
    """(prompt id, place among the prompt's seeds) -> place among the samples."""
    seen: dict[str, int] = {}
    ranks = {}
    for place, sample in enumerate(samples):
        rank = seen.get(sample.prompt_id, 0)
        seen[sample.prompt_id] = rank + 1
        ranks[sample.prompt_id, rank] = place
    return ranks
