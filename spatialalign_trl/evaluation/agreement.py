"""How far rewards agree with people, and people with each other.

Two questions, as a reward is used in two ways. Does it *order* videos as people do (best against worst)? Kendall's
tau-b between the reward and the human obedience. Does it *decide* as people do (winner or loser)? Accuracy of "reward
>= tau" against "starts and ends where the prompt says", beside what always giving the more frequent answer reaches,
and Cohen's kappa, which is 0 there. An INVALID video fails and ranks below all others: it is never dropped, except in
`tau_b_valid`. Intervals are bootstrapped over prompts, because the clips of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from spatialalign_trl.evaluation.labels import END, LOOKS, START, Judged, LabelFile
from spatialalign_trl.evaluation.statistics import BOOTSTRAP_DRAWS, success_rate

Weights = np.ndarray
"""Of shape (draws, clips): how often each clip is in each draw."""

PARTS = {"initial_score": START, "final_score": END}
"""Components of DSR-Score -> the question that asks a person for the same."""


def prompt_draws(prompt_ids: Sequence[str], seed: int = 0) -> Weights:
    """Bootstrap draws of whole prompts, as weights of their clips: `(BOOTSTRAP_DRAWS, clips)`."""
    prompts, prompt_of = np.unique(np.asarray(prompt_ids, str), return_inverse=True)
    draws = np.random.default_rng(seed).integers(len(prompts), size=(BOOTSTRAP_DRAWS, len(prompts)))
    counts = np.zeros((BOOTSTRAP_DRAWS, len(prompts)))
    np.add.at(counts, (np.arange(BOOTSTRAP_DRAWS)[:, None], draws), 1)
    return counts[:, prompt_of]


def tau_b(x: Sequence[float], y: Sequence[float], weights: Weights) -> np.ndarray:
    """
    Kendall's tau-b of weighted observations, one value a draw; NaN where a side does not vary.

    Args:
        x, y (sequences of `float`):
            Of equal length; infinities are ranks like others.
        weights (`np.ndarray` of shape (draws, observations)):
            How often each observation counts. With ones the value is that of `scipy.stats.kendalltau`, which takes no
            weights and would need seconds for the draws.
    """
    # Ranks first: the difference of two infinities is none.
    ranks = [np.unique(np.asarray(side, float), return_inverse=True)[1].astype(np.int64) for side in (x, y)]
    signs = [np.sign(side[:, None] - side[None, :]).astype(np.float32) for side in ranks]

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("dn,dn->d", weights @ matrix, weights)

    both = [pairs(np.abs(side)) for side in signs]
    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs(signs[0] * signs[1]) / np.sqrt(both[0] * both[1])


def accuracy(a: np.ndarray, b: np.ndarray, weights: Weights) -> np.ndarray:
    """Share of observations on which two judges say the same, one value a draw; NaN for an empty draw."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ (a == b) / weights.sum(1)


def cohen_kappa(a: np.ndarray, b: np.ndarray, weights: Weights) -> np.ndarray:
    """Cohen's kappa of two judges, one value a draw; NaN where chance alone agrees always.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", 1960: (p_o - p_e)/(1 - p_e).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(1)
        chance = sum((weights @ (a == v)) * (weights @ (b == v)) for v in np.union1d(a, b)) / total**2
        kappa = (accuracy(a, b, weights) - chance) / (1 - chance)
    return np.where(np.isclose(chance, 1), np.nan, kappa)


def _estimate(measure: Callable[[Weights], np.ndarray], prompt_ids: Sequence[str], seed: int) -> dict[str, Any]:
    """`value`, `interval` (95 %, over prompts) and `n`; `None` for what is not defined."""
    value = measure(np.ones((1, len(prompt_ids))))[0] if len(prompt_ids) else np.nan
    if np.isnan(value):
        return {"value": None, "interval": None, "n": len(prompt_ids)}
    drawn = measure(prompt_draws(prompt_ids, seed))
    drawn = drawn[~np.isnan(drawn)]
    # One prompt is drawn alike every time: that says nothing about others.
    known = len(drawn) and len(set(prompt_ids)) > 1
    interval = [float(end) for end in np.quantile(drawn, (0.025, 0.975))] if known else None
    return {"value": float(value), "interval": interval, "n": len(prompt_ids)}


def order_agreement(
    scores: Sequence[float | None], humans: Sequence[float | None], prompt_ids: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """
    Kendall's tau-b between a reward and people.

    Args:
        scores (sequence of `float | None`):
            The reward; INVALID (`None`) ranks below all others.
        humans (sequence of `float | None`):
            What people said; clips with `None` are left out.
        prompt_ids (sequence of `str`):
            Which clips belong together.
        seed (`int`, *optional*, defaults to `0`):
            Of the bootstrap.

    Returns:
        `dict`: `value` (in [-1, 1], `None` where a side does not vary), `interval` (95 %), `n`.
    """
    asked = [place for place, human in enumerate(humans) if human is not None]
    x = [-np.inf if scores[place] is None else scores[place] for place in asked]
    y = [humans[place] for place in asked]
    return _estimate(lambda weights: tau_b(x, y, weights), [prompt_ids[place] for place in asked], seed)


def reward_agreement(
    humans: Sequence[Judged],
    scores: Sequence[float | None],
    threshold: float,
    components: Mapping[str, Sequence[float | None]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    How far a reward agrees with people.

    Args:
        humans (sequence of [`Judged`]):
            What people said about each clip.
        scores (sequence of `float | None`):
            The reward of the same clips; `None` = INVALID.
        threshold (`float`):
            From where on the reward calls a video a success.
        components (`dict`, *optional*):
            Components in `PARTS`, one value a clip, to compare with what was said about the start and the end.
        seed (`int`, *optional*, defaults to `0`):
            Of the bootstrap.

    Returns:
        A dict ready for JSON: `clips`, `prompts`, `threshold`; `tau_b` and `tau_b_valid` with the human obedience,
        `tau_b_looks` with the looks; `accuracy`, `kappa` and the counts in `decisions` at the threshold, over the
        clips on which people are not split; `always`, the accuracy of the more frequent answer; `invalid` (clips, and
        share of the labels on them which say that the animal or the object is missing); `parts`.

    Raises:
        ValueError: when there are no clips, or not one score a clip.
    """
    if not humans or len(humans) != len(scores):
        raise ValueError(f"{len(humans)} labelled clips and {len(scores)} scores; both must be the same, and not 0")
    ids = [one.prompt_id for one in humans]
    obedience = [one.obedience for one in humans]
    looks = [one.answers.get(LOOKS) for one in humans]
    valid = [one.obedience if score is not None else None for one, score in zip(humans, scores, strict=True)]
    invalid = [one.absent for one, score in zip(humans, scores, strict=True) if score is None]
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
        said = [one.answers.get(PARTS[name]) for one in humans]
        agreement["parts"][name] = order_agreement(values, said, ids, seed)
    return agreement


def _decisions(
    humans: Sequence[Judged], scores: Sequence[float | None], threshold: float, seed: int
) -> dict[str, Any]:
    decided = [(one, score) for one, score in zip(humans, scores, strict=True) if one.obeys is not None]
    ids = [one.prompt_id for one, _ in decided]
    said = np.asarray([one.obeys for one, _ in decided], bool)
    passed = np.asarray([success_rate([score], threshold) for _, score in decided], bool)
    return {
        "accuracy": _estimate(lambda weights: accuracy(passed, said, weights), ids, seed),
        "kappa": _estimate(lambda weights: cohen_kappa(passed, said, weights), ids, seed),
        "always": float(max(said.mean(), 1 - said.mean())) if len(said) else None,
        "decisions": {
            "both_yes": int((passed & said).sum()),
            "both_no": int((~passed & ~said).sum()),
            "reward_only": int((passed & ~said).sum()),
            "humans_only": int((~passed & said).sum()),
            "humans_split": len(humans) - len(decided),
        },
    }


def labeller_agreement(files: Sequence[LabelFile], seed: int = 0) -> list[dict[str, Any]]:
    """
    How far each two labellers agree on the clips that both labelled.

    Returns:
        `list[dict]`: of each pair `labellers`, `clips`, Cohen's `kappa` and the `accuracy` of "starts and ends where
        the prompt says", and `tau_b` of the obedience: the bar that a reward can be held to.
    """
    pairs = []
    for one, other in combinations(files, 2):
        common = [clip_id for clip_id in one.labels if clip_id in other.labels]
        sides = [[file.labels[clip_id] for clip_id in common] for file in (one, other)]
        ids = [label.prompt_id for label in sides[0]]
        a, b = (np.asarray([label.obeys for label in side], bool) for side in sides)
        pairs.append(
            {
                "labellers": [one.labeller, other.labeller],
                "clips": len(common),
                "kappa": _estimate(lambda weights, a=a, b=b: cohen_kappa(a, b, weights), ids, seed),
                "accuracy": _estimate(lambda weights, a=a, b=b: accuracy(a, b, weights), ids, seed),
                "tau_b": order_agreement(*([label.obedience for label in side] for side in sides), ids, seed),
            }
        )
    return pairs
