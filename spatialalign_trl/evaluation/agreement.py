"""
Measure how far rewards agree with people, and people with each other.

There are two questions, because a reward is used in two ways. Does it *order* videos as people do (best against
worst)? This is Kendall's tau-b between the reward and the human obedience. Does it *decide* as people do (winner or
loser)? This is the accuracy of "reward >= tau" against "starts and ends where the prompt says". The accuracy is
reported together with the one that always giving the more frequent answer would reach, and with Cohen's kappa, which
is 0 for that constant answer. An INVALID video fails and ranks below all others; only `tau_b_valid` leaves it out.
Intervals are bootstrapped over prompts, because the clips of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from spatialalign_trl.evaluation.labels import END, LOOKS, START, Judged, LabelFile
from spatialalign_trl.evaluation.statistics import BOOTSTRAP_DRAWS, success_rate

Weights = np.ndarray
"""Array of shape (draws, clips): how often each clip occurs in each bootstrap draw."""

PARTS = {"initial_score": START, "final_score": END}
"""Component of DSR-Score -> the question that asks a person for the same."""


def prompt_draws(prompt_ids: Sequence[str], seed: int = 0) -> Weights:
    """
    Draw whole prompts with replacement.

    Args:
        prompt_ids (sequence of `str`):
            The prompt of each clip.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `np.ndarray` of shape (BOOTSTRAP_DRAWS, clips): How often each clip occurs in each draw.
    """
    prompts, prompt_of = np.unique(np.asarray(prompt_ids, str), return_inverse=True)
    draws = np.random.default_rng(seed).integers(len(prompts), size=(BOOTSTRAP_DRAWS, len(prompts)))
    counts = np.zeros((BOOTSTRAP_DRAWS, len(prompts)))
    np.add.at(counts, (np.arange(BOOTSTRAP_DRAWS)[:, None], draws), 1)
    return counts[:, prompt_of]


def tau_b(
    x: Sequence[float], y: Sequence[float], weights: Weights, clusters: Sequence[str] | None = None
) -> np.ndarray:
    """
    Compute Kendall's tau-b of weighted observations.

    With weights of 1 the value is that of `scipy.stats.kendalltau`, which takes no weights and would need seconds for
    all bootstrap draws.

    Args:
        x, y (sequences of `float`):
            Observations, of equal length. Infinities are allowed and ranked.
        weights (`np.ndarray` of shape (draws, observations)):
            How often each observation counts.
        clusters (sequence of `str`, *optional*, defaults to one per observation):
            The prompt of each observation, if whole prompts were drawn. A prompt that was drawn twice is one cluster:
            its pairs count twice, but no pair of its two copies counts, and the pairs of two prompts keep their
            number. Otherwise the pairs within prompts would have a larger share in the draws than in the data, and
            the interval might not hold the value.

    Returns:
        `np.ndarray` of shape (draws,): Values in [-1, 1]; NaN if `x` or `y` does not vary.
    """
    # Compare ranks, because the difference of two infinities is not defined.
    ranks = [np.unique(np.asarray(values, float), return_inverse=True)[1].astype(np.int64) for values in (x, y)]
    signs = [np.sign(rank[:, None] - rank[None, :]).astype(np.float32) for rank in ranks]
    names = range(len(ranks[0])) if clusters is None else clusters
    _, first, cluster = np.unique(np.asarray(names, str), return_index=True, return_inverse=True)
    within = cluster[:, None] == cluster[None, :]

    def weighted_sum(matrix: np.ndarray) -> np.ndarray:
        total = np.einsum("dn,dn->d", weights @ matrix, weights)
        inner = (matrix * within).sum(1, dtype=np.float64)
        return weights @ inner + scale * (total - weights**2 @ inner)

    # The pairs of two prompts, relative to the data's. A draw of a single prompt has none.
    drawn = weights[:, first]
    pairs = drawn.sum(1) ** 2 - (drawn**2).sum(1)
    scale = len(first) * (len(first) - 1) / np.where(pairs > 0, pairs, np.inf)

    untied = [weighted_sum(np.abs(sign)) for sign in signs]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(weighted_sum(signs[0] * signs[1]) / np.sqrt(untied[0] * untied[1]), -1, 1)


def accuracy(a: np.ndarray, b: np.ndarray, weights: Weights) -> np.ndarray:
    """
    Compute the share of observations on which two judges agree.

    Args:
        a, b (`np.ndarray` of shape (observations,)):
            The judges' decisions.
        weights (`np.ndarray` of shape (draws, observations)):
            How often each observation counts.

    Returns:
        `np.ndarray` of shape (draws,): Values in [0, 1]; NaN for an empty draw.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ (a == b) / weights.sum(1)


def cohen_kappa(a: np.ndarray, b: np.ndarray, weights: Weights) -> np.ndarray:
    """
    Compute Cohen's kappa of two judges.

    Args:
        a, b (`np.ndarray` of shape (observations,)):
            The judges' decisions.
        weights (`np.ndarray` of shape (draws, observations)):
            How often each observation counts.

    Returns:
        `np.ndarray` of shape (draws,): Values of at most 1; NaN if the judges would always agree by chance.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", 1960: (p_o - p_e)/(1 - p_e).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(1)
        chance = sum((weights @ (a == v)) * (weights @ (b == v)) for v in np.union1d(a, b)) / total**2
        kappa = (accuracy(a, b, weights) - chance) / (1 - chance)
    return np.where(np.isclose(chance, 1), np.nan, kappa)


def _estimate(measure: Callable[[Weights], np.ndarray], prompt_ids: Sequence[str], seed: int) -> dict[str, Any]:
    """Return `value`, `interval` (95 %, over prompts) and `n`; `None` for what is not defined."""
    value = measure(np.ones((1, len(prompt_ids))))[0] if len(prompt_ids) else np.nan
    if np.isnan(value):
        return {"value": None, "interval": None, "n": len(prompt_ids)}
    drawn = measure(prompt_draws(prompt_ids, seed))
    drawn = drawn[~np.isnan(drawn)]
    # Draws that equal the value up to rounding must not push it out of the interval.
    drawn = np.where(np.isclose(drawn, value, rtol=0, atol=1e-12), value, drawn)
    # With a single prompt all draws are equal, and their spread says nothing about other prompts.
    has_spread = len(drawn) and len(set(prompt_ids)) > 1
    interval = [float(end) for end in np.quantile(drawn, (0.025, 0.975))] if has_spread else None
    return {"value": float(value), "interval": interval, "n": len(prompt_ids)}


def order_agreement(
    scores: Sequence[float | None], humans: Sequence[float | None], prompt_ids: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """
    Compute Kendall's tau-b between a reward and people.

    Args:
        scores (sequence of `float | None`):
            The reward of each clip. INVALID (`None`) ranks below all others.
        humans (sequence of `float | None`):
            The human rating of each clip. Clips with `None` are left out.
        prompt_ids (sequence of `str`):
            The prompt of each clip.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: `value` (in [-1, 1], `None` if a side does not vary), `interval` (95 %) and `n`.
    """
    rated = [index for index, human in enumerate(humans) if human is not None]
    x = [-np.inf if scores[index] is None else scores[index] for index in rated]
    y = [humans[index] for index in rated]
    ids = [prompt_ids[index] for index in rated]
    return _estimate(lambda weights: tau_b(x, y, weights, ids), ids, seed)


def reward_agreement(
    humans: Sequence[Judged],
    scores: Sequence[float | None],
    threshold: float,
    components: Mapping[str, Sequence[float | None]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Measure how far a reward agrees with people.

    Args:
        humans (sequence of [`Judged`]):
            The labellers' consensus on each clip.
        scores (sequence of `float | None`):
            The reward of the same clips. `None` is INVALID.
        threshold (`float`):
            The reward calls a video a success from this score on.
        components (`dict`, *optional*):
            Component in `PARTS` -> one value per clip, to compare with the answers about the start and the end.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`, ready for JSON:
            - `clips`, `prompts`, `threshold`;
            - `tau_b` and `tau_b_valid` with the human obedience, `tau_b_looks` with the answers about looks;
            - `accuracy`, `kappa` and the counts in `decisions` at the threshold, over the clips on which people are
              not split, and `always`, the accuracy of always giving the more frequent answer;
            - `invalid`: the number of INVALID clips, and the share of their labels which say that the animal or the
              object is missing;
            - `parts`: component -> agreement with the answers about the same.

    Raises:
        ValueError: If there are no clips, or not one score per clip.
    """
    if not humans or len(humans) != len(scores):
        raise ValueError(
            f"{len(humans)} labelled clips and {len(scores)} scores: expected one score per clip, and at least one."
        )
    ids = [clip.prompt_id for clip in humans]
    obedience = [clip.obedience for clip in humans]
    looks = [clip.answers.get(LOOKS) for clip in humans]
    valid = [clip.obedience if score is not None else None for clip, score in zip(humans, scores, strict=True)]
    invalid = [clip.absent for clip, score in zip(humans, scores, strict=True) if score is None]
    agreement = {
        "clips": len(humans),
        "prompts": len(set(ids)),
        "threshold": threshold,
        "tau_b": order_agreement(scores, obedience, ids, seed),
        "tau_b_valid": order_agreement(scores, valid, ids, seed),
        "tau_b_looks": order_agreement(scores, looks, ids, seed),
        **_decisions(humans, scores, threshold, seed),
        "invalid": {"clips": len(invalid), "absent_to_humans": float(np.mean(invalid)) if invalid else None},
        "parts": {},
    }
    for name, values in (components or {}).items():
        answers = [clip.answers.get(PARTS[name]) for clip in humans]
        agreement["parts"][name] = order_agreement(values, answers, ids, seed)
    return agreement


def _decisions(
    humans: Sequence[Judged], scores: Sequence[float | None], threshold: float, seed: int
) -> dict[str, Any]:
    """Compare the decisions at the threshold with the people's, over the clips on which people are not split."""
    decided = [(clip, score) for clip, score in zip(humans, scores, strict=True) if clip.obeys is not None]
    ids = [clip.prompt_id for clip, _ in decided]
    obeys = np.asarray([clip.obeys for clip, _ in decided], bool)
    passed = np.asarray([success_rate([score], threshold) for _, score in decided], bool)
    return {
        "accuracy": _estimate(lambda weights: accuracy(passed, obeys, weights), ids, seed),
        "kappa": _estimate(lambda weights: cohen_kappa(passed, obeys, weights), ids, seed),
        "always": float(max(obeys.mean(), 1 - obeys.mean())) if len(obeys) else None,
        "decisions": {
            "both_yes": int((passed & obeys).sum()),
            "both_no": int((~passed & ~obeys).sum()),
            "reward_only": int((passed & ~obeys).sum()),
            "humans_only": int((~passed & obeys).sum()),
            "humans_split": len(humans) - len(decided),
        },
    }


def labeller_agreement(files: Sequence[LabelFile], seed: int = 0) -> list[dict[str, Any]]:
    """
    Measure how far each two labellers agree on the clips that both labelled.

    Args:
        files (sequence of [`LabelFile`]):
            The labels, one file per labeller.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `list[dict]`: For each pair `labellers`, `clips`, Cohen's `kappa` and the `accuracy` of "starts and ends where
        the prompt says", and `tau_b` of the obedience. A reward cannot be expected to agree better with people than
        people do with each other.
    """
    pairs = []
    for first, second in combinations(files, 2):
        common = [clip_id for clip_id in first.labels if clip_id in second.labels]
        sides = [[file.labels[clip_id] for clip_id in common] for file in (first, second)]
        ids = [label.prompt_id for label in sides[0]]
        a, b = (np.asarray([label.obeys for label in side], bool) for side in sides)
        pairs.append(
            {
                "labellers": [first.labeller, second.labeller],
                "clips": len(common),
                "kappa": _estimate(lambda weights, a=a, b=b: cohen_kappa(a, b, weights), ids, seed),
                "accuracy": _estimate(lambda weights, a=a, b=b: accuracy(a, b, weights), ids, seed),
                "tau_b": order_agreement(*([label.obedience for label in side] for side in sides), ids, seed),
            }
        )
    return pairs
