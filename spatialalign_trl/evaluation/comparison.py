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
    A policy's videos with their scores and quality measures.

    Args:
        policy ([`Policy`]):
            The policy.
        store ([`SampleStore`] or [`VideoFolder`]):
            Where the videos are.
        samples (`list[Sample]`):
            The samples, by prompt, then by seed.
        quality (`dict[str, float | None]`, *optional*):
            Quality measure -> its mean over the videos.
        quality_per_video (`dict[str, list]`, *optional*):
            Quality measure -> one value per video, in the order of `samples`.
    """

    policy: Policy
    store: SampleStore | VideoFolder
    samples: list[Sample]
    quality: dict[str, float | None] = field(default_factory=dict)
    quality_per_video: dict[str, list[float | None]] = field(default_factory=dict)

    def video_path(self, sample: Sample) -> Path:
        """
        Return the path of a sample's video.

        Args:
            sample ([`Sample`]):
                One of `samples`.
        """
        if isinstance(self.store, VideoFolder):
            return self.store.path(sample.sample_id)
        return self.store.path(sample.sample_id, ".mp4")


def compare_policies(base: Evaluated, other: Evaluated) -> dict[str, Any]:
    """
    Compute the paired differences other - base on the prompts that both have, and the verdict on reward hacking.

    Videos are paired by prompt and seed. If the two have no seed in common (another model's videos), they are paired
    by prompt and rank: the k-th video of a prompt with the k-th.

    Args:
        base ([`Evaluated`]):
            The baseline's videos.
        other ([`Evaluated`]):
            The other policy's videos.

    Returns:
        `dict`: `rewards`, `components` and `quality` (see `verdict.compare_rewards`, `compare_measured` and
        `compare_quality`), `verdict`, `num_prompts`, `num_pairs`, and `paired_by` (`"seed"` or `"prompt"`). Without a
        common prompt it has only the last three.
    """
    pairs, paired_by = _pairs(base.samples, other.samples)
    base_samples = [base.samples[b] for b, _ in pairs]
    other_samples = [other.samples[o] for _, o in pairs]
    prompt_ids = [sample.prompt_id for sample in base_samples]
    counts = {"num_prompts": len(set(prompt_ids)), "num_pairs": len(pairs), "paired_by": paired_by}
    if not pairs:
        return counts
    rewards = compare_rewards(base_samples, other_samples)
    components = compare_measured(base_samples, other_samples)
    before = {name: [values[b] for b, _ in pairs] for name, values in base.quality_per_video.items()}
    after = {name: [values[o] for _, o in pairs] for name, values in other.quality_per_video.items()}
    quality = compare_quality(before, after, prompt_ids)
    verdict = reward_hacking_verdict(rewards, quality)
    return {"rewards": rewards, "components": components, "quality": quality, "verdict": verdict, **counts}


def _pairs(base: Sequence[Sample], other: Sequence[Sample]) -> tuple[list[tuple[int, int]], str]:
    """Return the indices of the paired videos in the baseline's order, and what they are paired by."""
    indices = {(sample.prompt_id, sample.seed): index for index, sample in enumerate(other)}
    by_seed = [
        (index, indices[key])
        for index, sample in enumerate(base)
        if (key := (sample.prompt_id, sample.seed)) in indices
    ]
    if by_seed:
        return by_seed, "seed"
    base_ranks, other_ranks = _by_rank(base), _by_rank(other)
    return [(index, other_ranks[key]) for key, index in base_ranks.items() if key in other_ranks], "prompt"


def _by_rank(samples: Sequence[Sample]) -> dict[tuple[str, int], int]:
    """Map (prompt id, rank among the prompt's samples) to the sample's index."""
    counts: dict[str, int] = {}
    indices = {}
    for index, sample in enumerate(samples):
        rank = counts.get(sample.prompt_id, 0)
        counts[sample.prompt_id] = rank + 1
        indices[sample.prompt_id, rank] = index
    return indices
