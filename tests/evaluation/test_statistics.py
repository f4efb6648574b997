"""Statistics of scored videos: success rates of all videos, intervals over prompts, and summaries in JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from spatialalign_trl.evaluation import (
    bootstrap_interval,
    compare,
    headline_of,
    mean_difference,
    success_rate,
    summarize,
)


@dataclass
class Scored:
    prompt_id: str
    reward: float | None
    row: dict[str, Any] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)


def scored(rewards: dict[str, list[float | None]]) -> list[Scored]:
    """Samples of prompt ids and the rewards of their seeds."""
    return [Scored(name, reward) for name, values in rewards.items() for reward in values]


def simulated(
    rng: np.random.Generator, prompts: int, seeds: int, concentration: float = 2.0, rate: float = 0.3
) -> list[Scored]:
    """Successes with probability `rate`; a prompt's own probability is drawn from a beta distribution around it."""
    own = rng.beta(rate * concentration, (1 - rate) * concentration, size=prompts)
    return scored({f"p{k}": (rng.random(seeds) < own[k]).astype(float).tolist() for k in range(prompts)})


# S@tau


def test_an_invalid_video_fails_and_stays_in_the_denominator():
    rewards = [0.9, None, 0.2, None]
    assert success_rate(rewards, 0.7) == 0.25
    assert success_rate(rewards, 0.0) == 0.5
    assert success_rate([None, None], 0.0) == 0.0


@pytest.mark.parametrize(
    ("reward", "success"),
    [(0.7, True), (0.7 - 1e-12, True), (0.1 * 7, True), (0.7 - 1e-6, False), (0.7 + 1e-12, True), (0.0, False)],
)
def test_a_score_at_the_threshold_is_a_success(reward, success):
    assert success_rate([reward], 0.7) == float(success)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no videos"):
        success_rate([], 0.7)
    with pytest.raises(ValueError, match="no samples"):
        summarize([])
    with pytest.raises(ValueError, match="no samples"):
        bootstrap_interval([], 0.7)


# Intervals


def test_the_interval_covers_the_true_rate_about_95_times_in_100():
    rng = np.random.default_rng(0)
    runs = [bootstrap_interval(simulated(rng, prompts=60, seeds=4), 0.7, seed=k) for k in range(300)]
    covered = np.mean([low <= 0.3 <= high for low, high in runs])
    assert 0.91 <= covered <= 0.98  # 0.95 with a standard error of 0.013, less what a percentile bootstrap falls short
    assert 0.12 < np.mean([high - low for low, high in runs]) < 0.22


def test_seeds_that_agree_are_one_observation():
    """Four equal seeds of 40 prompts say as much as one; four independent ones say more."""
    outcomes = [float(k % 3 == 0) for k in range(40)]
    single = scored({f"p{k}": [outcome] for k, outcome in enumerate(outcomes)})
    correlated = scored({f"p{k}": [outcome] * 4 for k, outcome in enumerate(outcomes)})
    independent = scored({f"p{k}": [1.0, 0.0, 0.0, 0.0] if k % 3 else [1.0, 1.0, 0.0, 0.0] for k in range(40)})
    width = {
        name: np.ptp(bootstrap_interval(samples, 0.7))
        for name, samples in (("single", single), ("correlated", correlated), ("independent", independent))
    }
    assert width["correlated"] == width["single"]
    assert width["correlated"] > 2 * width["independent"]


def test_the_interval_weighs_videos_and_not_prompts():
    """A prompt with more videos counts for more, as it does in S@tau."""
    samples = scored({"a": [1.0] * 9, "b": [0.0]})
    assert bootstrap_interval(samples, 0.7) == (0.0, 1.0)
    samples = scored({f"p{k}": [1.0] * 9 if k % 2 else [0.0] for k in range(200)})
    low, high = bootstrap_interval(samples, 0.7)
    assert low < 0.9 < high and low > 0.8


def test_the_interval_depends_on_the_seed_alone():
    samples = simulated(np.random.default_rng(1), 30, 4)
    assert bootstrap_interval(samples, 0.7, seed=3) == bootstrap_interval(samples, 0.7, seed=3)
    assert bootstrap_interval(samples, 0.7, seed=3) != bootstrap_interval(samples, 0.7, seed=4)


def test_all_or_nothing_has_no_width():
    assert bootstrap_interval(scored({"a": [1.0], "b": [0.9]}), 0.7) == (1.0, 1.0)
    assert bootstrap_interval(scored({"a": [None], "b": [None]}), 0.7) == (0.0, 0.0)


def test_a_paired_interval_is_narrower_where_prompts_differ_more_than_policies():
    rng = np.random.default_rng(2)
    hard = rng.random(60) < 0.5
    base = scored({f"p{k}": [0.0] * 4 if hard[k] else [1.0, 1.0, 1.0, 0.0] for k in range(60)})
    aligned = scored({f"p{k}": [1.0, 0.0, 0.0, 0.0] if hard[k] else [1.0] * 4 for k in range(60)})
    low, high = bootstrap_interval(aligned, 0.7, base)
    assert (low, high) == pytest.approx((0.25, 0.25))  # every prompt gained one video in four
    assert np.ptp(bootstrap_interval(aligned, 0.7)) > 0.1


def test_the_paired_interval_covers_the_true_difference():
    rng = np.random.default_rng(3)
    covered = 0
    for k in range(200):
        own = rng.beta(0.6, 1.4, size=60)
        gain = 0.25 * (1 - own)
        draw = {
            name: scored({f"p{p}": (rng.random(4) < rates[p]).astype(float).tolist() for p in range(60)})
            for name, rates in (("base", own), ("aligned", own + gain))
        }
        low, high = bootstrap_interval(draw["aligned"], 0.7, draw["base"], seed=k)
        covered += low <= 0.25 * 0.7 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_paired_interval_needs_the_same_prompts():
    base = scored({"a": [1.0], "b": [0.0]})
    with pytest.raises(ValueError, match="same prompts.*'c' is on one side only"):
        bootstrap_interval(scored({"a": [1.0], "b": [0.0], "c": [0.0]}), 0.7, base)
    with pytest.raises(ValueError, match="their orders differ"):
        bootstrap_interval(scored({"b": [1.0], "a": [0.0]}), 0.7, base)


def test_compare_gives_every_thresholds_difference_with_a_paired_interval():
    base = scored({f"p{k}": [0.55, None] for k in range(20)})
    aligned = scored({f"p{k}": [0.75, 0.85] for k in range(20)})
    differences = compare(base, aligned)
    assert {name: entry["difference"] for name, entry in differences.items()} == {
        "S@0.5": 0.5, "S@0.6": 1.0, "S@0.7": 1.0, "S@0.8": 0.5, "S@0.9": 0.0,
    }  # fmt: skip
    for entry in differences.values():
        assert entry["interval"] == pytest.approx([entry["difference"]] * 2)
    assert compare(aligned, base)["S@0.7"]["difference"] == -1.0
    json.dumps(differences, allow_nan=False)


def test_a_mean_difference_pairs_videos_and_leaves_out_those_that_lack_a_side():
    prompts = ["a", "a", "b", "b", "c"]
    found = mean_difference([1.0, None, 0.5, 0.5, None], [0.5, 0.0, 0.0, None, 1.0], prompts)
    assert (found["difference"], found["num_pairs"]) == (0.5, 2)
    assert found["interval"] == [0.5, 0.5]
    assert mean_difference([None], [1.0], ["a"]) is None
    with pytest.raises(ValueError):
        mean_difference([1.0], [1.0, 2.0], ["a"])


def test_a_mean_differences_interval_covers_the_truth_and_resamples_prompts():
    rng = np.random.default_rng(0)
    covered = 0
    for k in range(200):
        shift = rng.normal(0.3, 1.0, 40).repeat(4)  # a prompt's own, shared by its four seeds
        base = rng.normal(size=160)
        ids = [f"p{p}" for p in range(40) for _ in range(4)]
        low, high = mean_difference(list(base + shift), list(base), ids, seed=k)["interval"]
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99


# Summaries

COMPONENTS = ("dsr_initial_score", "dsr_initial_gap", "dsr_final_score", "dsr_final_gap")


def valid(prompt_id: str, reward: float, type: str, **components: float) -> Scored:
    return Scored(prompt_id, reward, {"type": type}, {"dsr_reason": None, **components})


def invalid(prompt_id: str, reason: str | None, type: str = "LR", **row: str) -> Scored:
    components = dict.fromkeys(COMPONENTS) | {"dsr_reason": reason}
    return Scored(prompt_id, None, {"type": type, **row}, components)


def test_a_summary_holds_what_results_json_promises():
    samples = [
        valid("a", 0.95, "LR", dsr_initial_score=1.0, dsr_final_gap=0.5),
        valid("a", 0.72, "LR", dsr_initial_score=0.5, dsr_final_gap=0.0),
        valid("b", 0.65, "TL", dsr_initial_score=0.0, dsr_final_gap=-0.5),
        invalid("b", "only 3 of 17 frames", "TL"),
    ]
    summary = summarize(samples, {"sharpness": 0.25, "distance_to_real": None})
    rates = {"S@0.5": 0.75, "S@0.6": 0.75, "S@0.7": 0.5, "S@0.8": 0.25, "S@0.9": 0.25}
    assert {name: summary[name] for name in rates} == rates
    assert summary["dsr_mean"] == pytest.approx((0.95 + 0.72 + 0.65) / 3)  # of the valid ones
    assert summary["invalid_rate"] == 0.25
    assert summary["components"] == {"dsr_initial_score": 0.5, "dsr_final_gap": 0.0}
    assert list(summary["by_type"]) == ["LR", "TL"]
    assert summary["by_type"]["LR"] == {
        "S@0.5": 1.0, "S@0.6": 1.0, "S@0.7": 1.0, "S@0.8": 0.5, "S@0.9": 0.5,
        "dsr_mean": pytest.approx(0.835), "invalid_rate": 0.0,
    }  # fmt: skip
    assert summary["by_type"]["TL"]["invalid_rate"] == 0.5 and summary["by_type"]["TL"]["S@0.6"] == 0.5
    assert summary["quality"] == {"sharpness": 0.25, "distance_to_real": None}
    assert (summary["num_prompts"], summary["num_videos"]) == (2, 4)
    assert summary["S@0.7_interval"] == list(bootstrap_interval(samples, 0.7))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_with_several_rewards_the_first_is_counted_and_a_gate_on_another_disqualifies():
    """A sum of rewards has no scale that a threshold of the first could stand on."""
    samples = [
        Scored("a", 3.9, rewards={"dsr_score": 0.9, "motion": 3.0}),
        Scored("b", 3.2, rewards={"dsr_score": 0.2, "motion": 3.0}),
        Scored("c", None, rewards={"dsr_score": 0.9, "motion": 0.0}),
        Scored("d", 2.0, rewards={"dsr_score": None, "motion": 2.0}),
    ]
    summary = summarize(samples)
    assert (summary["S@0.7"], summary["invalid_rate"]) == (0.25, 0.5)
    assert summary["dsr_mean"] == pytest.approx(0.55)
    assert summary["rewards"] == {"dsr_score": pytest.approx(2 / 3), "motion": 2.0}
    assert compare(samples, samples)["S@0.7"]["difference"] == 0
    assert bootstrap_interval(samples[:1] * 3, 0.7) == (1.0, 1.0)
    assert "reward_mean" not in summary, "the first is the DSR-Score, whose mean has a name of its own"
    assert "rewards" not in summarize([Scored("a", 0.9, rewards={"dsr_score": 0.9})])


def test_the_mean_of_another_reward_is_not_called_a_dsr_score():
    row = {"type": "LR"}
    samples = [Scored("a", 0.5, row, rewards={"motion": 0.5}), Scored("b", None, row, rewards={"motion": None})]
    summary = summarize(samples)
    assert summary["reward_mean"] == summary["by_type"]["LR"]["reward_mean"] == 0.5
    assert "dsr_mean" not in summary and "dsr_mean" not in summary["by_type"]["LR"]


def test_a_reward_that_is_not_the_dsr_score_is_told_by_its_mean_with_an_interval():
    def of(name: str, *values: float | None) -> list[Scored]:
        return [Scored(f"p{k}", value, {}, {}, {name: value}) for k, value in enumerate(values)]

    base, other = of("motion", 0.2, 0.4, None, 0.1), of("motion", 0.3, 0.5, 0.9, None)
    summary, differences = summarize(base), compare(base, other)
    low, high = summary["reward_mean_interval"]
    assert headline_of(summary) == headline_of(differences) == "reward_mean"
    assert 0.1 <= low < summary["reward_mean"] < high < 0.41
    assert differences["reward_mean"]["difference"] == pytest.approx(0.1), "over what is valid on both sides"
    assert differences["reward_mean"]["num_pairs"] == 2
    nothing = of("motion", None, None)
    assert summarize(nothing)["reward_mean"] is None and "reward_mean_interval" not in summarize(nothing)
    assert "reward_mean" not in compare(nothing, nothing)
    dsr = of("dsr_score", 0.2, 0.9)
    assert headline_of(summarize(dsr)) == headline_of(compare(dsr, dsr)) == "S@0.7"
    assert "dsr_mean_interval" not in summarize(dsr)


def test_what_a_reward_logs_under_its_name_is_a_component():
    logged = {"nav_SD": 0.2, "nav_reason": "lost", "nav_found": True, "nav_error": float("nan"), "other": 3.0}
    samples = [Scored("a", 0.5, {}, logged, {"nav": 0.5}), Scored("b", 0.1, {}, {"nav_SD": 0.4}, {"nav": 0.1})]
    assert summarize(samples)["components"] == {"nav_SD": pytest.approx(0.3)}


def test_a_policy_without_a_valid_video_has_no_mean_and_is_still_json():
    summary = summarize([invalid("a", None), invalid("b", None)])
    assert summary["dsr_mean"] is None and summary["components"] == {}
    assert summary["invalid_rate"] == 1.0 and summary["S@0.5"] == 0.0
    assert summary["invalid_reasons"] == {"no reason given": 2}
    json.dumps(summary, allow_nan=False)


def test_prompts_without_a_type_are_left_out_of_by_type_alone():
    samples = [*scored({"a": [0.9], "b": [None]}), valid("c", 0.8, "RT")]
    summary = summarize(samples)
    assert list(summary["by_type"]) == ["RT"] and summary["by_type"]["RT"]["S@0.7"] == 1.0
    assert summary["num_videos"] == 3


def test_invalid_reasons_that_differ_in_numbers_and_nouns_are_counted_together():
    tracker = "{} and {} found together in {} of 17 frames, 13 needed"
    samples = [
        invalid("a", tracker.format("red fox", "stump", 3), animal="fox", object="stump", attribute="red"),
        invalid("b", tracker.format("blue cat", "crate", 9), animal="cat", object="crate", attribute="blue"),
        invalid("c", "only 2 frames show one ox; at least 3 are needed", animal="ox", object="box"),
        Scored("d", None, {}, {"mine_error": "TimeoutError: after 30.5 s"}),
        Scored("e", None, {}, {"mine_error": "TimeoutError: after 31.0 s"}),
    ]
    assert summarize(samples)["invalid_reasons"] == {
        "<attribute> <animal> and <object> found together in N of N frames, N needed": 2,
        "TimeoutError: after N s": 2,
        "only N frames show one <animal>; at least N are needed": 1,
    }


def test_reasons_of_valid_videos_are_not_counted():
    assert summarize([Scored("a", 0.4, {}, {"other_error": "failed"})])["invalid_reasons"] == {}
