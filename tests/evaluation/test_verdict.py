"""The verdict warns if the reward rose while a guard got worse by more than its interval, and only then."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from spatialalign_trl.evaluation import compare_quality, compare_rewards, reward_hacking_verdict
from spatialalign_trl.evaluation.verdict import Measured, compare_measured, difference_text, judge

PROMPTS = [f"p{k}" for k in range(30) for _ in range(2)]


@dataclass
class Scored:
    prompt_id: str
    reward: float | None
    row: dict[str, Any] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)


def judged(reward: float, sharpness: float, flicker: float = 0.0, noise: float = 0.1) -> dict[str, Any]:
    """The verdict on a policy whose measures differ from the baseline's by so much, give or take the noise."""
    rng = np.random.default_rng(0)

    def draw(mean: float) -> list[float]:
        return list(mean + noise * rng.normal(size=len(PROMPTS)))

    base = [Scored(prompt_id, 0.5) for prompt_id in PROMPTS]
    aligned = [Scored(prompt_id, 0.5 + reward) for prompt_id in PROMPTS]
    before, after = (
        {"sharpness": draw(0.5 + s), "flicker": draw(0.5 + f), "unknown_to_all": draw(s)}
        for s, f in ((0.0, 0.0), (sharpness, flicker))
    )
    verdict = reward_hacking_verdict(compare_rewards(base, aligned), compare_quality(before, after, PROMPTS))
    json.dumps(verdict, allow_nan=False)
    return verdict


def test_a_reward_that_rises_while_the_picture_gets_worse_is_suspicious():
    verdict = judged(reward=0.3, sharpness=-0.2)
    assert verdict["warning"] and verdict["fell"] == ["sharpness"]
    assert "S@0.7 +1.000" in verdict["message"] and "sharpness -0.2" in verdict["message"]


def test_a_measure_that_should_be_low_falls_by_rising():
    assert judged(reward=0.3, sharpness=0.0, flicker=0.2)["fell"] == ["flicker"]
    assert not judged(reward=0.3, sharpness=0.0, flicker=-0.2)["warning"]


@pytest.mark.parametrize(
    ("reward", "sharpness", "message"),
    [
        (0.3, 0.2, "no guard got worse"),
        (0.3, -0.01, "no guard got worse"),  # within its interval
        (-0.1, -0.2, "the reward did not rise"),
        (0.0, -0.2, "the reward did not rise"),
    ],
)
def test_what_is_no_reward_hacking_is_not_warned_of(reward, sharpness, message):
    verdict = judged(reward, sharpness)
    assert not verdict["warning"] and message in verdict["message"]


def test_a_rise_below_the_threshold_counts_as_one():
    assert judged(reward=0.05, sharpness=-0.2)["warning"]


def test_without_a_guard_the_verdict_says_that_nothing_is_known():
    base, aligned = ([Scored(p, reward) for p in PROMPTS] for reward in (0.2, 0.9))
    verdict = reward_hacking_verdict(compare_rewards(base, aligned), {})
    assert not verdict["warning"] and "nothing is known" in verdict["message"]


def test_small_differences_keep_two_digits():
    assert difference_text({"difference": -0.12, "interval": [-0.2, 0.0]}) == "-0.120 [-0.200, +0.000]"
    assert difference_text({"difference": -0.00123, "interval": [-0.002, -0.0004]}) == "-0.0012 [-0.002, -0.0004]"


def test_the_loops_verdict_is_that_of_its_two_policies():
    base, aligned = (
        Measured([Scored(p, reward) for p in PROMPTS], {}, {"sharpness": [sharpness] * len(PROMPTS)})
        for reward, sharpness in ((0.2, 0.5), (0.9, 0.4))
    )
    found = judge(base, aligned)
    assert list(found) == ["difference", "quality_difference", "verdict"]
    assert found["difference"]["S@0.7"]["difference"] == 1.0 and set(found["difference"]) == {
        f"S@{tau}" for tau in (0.5, 0.6, 0.7, 0.8, 0.9)
    }
    assert found["verdict"]["warning"] and found["verdict"]["fell"] == ["sharpness"]


def test_a_mean_is_compared_once_and_what_the_reward_measured_beside_it():
    def of(reward: float, far: float | None, **others: float) -> list[Scored]:
        return [Scored(p, reward, {}, {"nav_SD": far, "nav_reason": "x"}, {"nav": reward, **others}) for p in PROMPTS]

    base, aligned = of(0.2, 0.5), of(0.3, 0.25)
    found = compare_rewards(base, aligned)
    assert found["reward_mean"]["difference"] == pytest.approx(0.1) and "reward" not in found
    assert (
        "reward_mean +0.100"
        in reward_hacking_verdict(found, {"sharpness": {"difference": -1, "interval": [-1, -1]}})["message"]
    )
    assert "reward" in compare_rewards(of(0.2, 0.5, motion=1.0), of(0.3, 0.5, motion=1.0)), "a sum is something else"
    assert {n: d["difference"] for n, d in compare_measured(base, aligned).items()} == {"nav_SD": -0.25}
    assert compare_measured(base, of(0.3, None)) == {}


def test_measures_without_a_better_side_are_compared_and_not_judged():
    quality = compare_quality({"odd": [1.0] * 60}, {"odd": [0.0] * 60}, PROMPTS)
    assert quality["odd"]["interval"] == [-1.0, -1.0]
    assert reward_hacking_verdict({"reward": {"difference": 1.0, "interval": [1, 1]}}, quality)["judged"] == []


def test_equal_policies_are_warned_of_as_rarely_as_the_interval_promises():
    rng = np.random.default_rng(1)
    warnings = 0
    for k in range(200):
        before, after = ({"sharpness": list(rng.normal(size=60))} for _ in range(2))
        quality = compare_quality(before, after, PROMPTS, seed=k)
        warnings += reward_hacking_verdict({"reward": {"difference": 1.0, "interval": [1, 1]}}, quality)["warning"]
    assert warnings / 200 < 0.07
