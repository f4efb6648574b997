"""Combining several rewards into one number: gates, normalisation and weights."""

import random
from types import SimpleNamespace

import pytest

from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.rewards.combination import RewardCombination
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.store import Sample

WEIGHTS = {"a": 1.0, "b": 0.5}


def videos(count: int, seed: int = 0) -> tuple[list[dict], list[str]]:
    """Return values of two rewards of very different scale, on five prompts, with some verdicts missing."""
    draw = random.Random(seed)
    values = [
        {"a": draw.random(), "b": None if draw.random() < 0.1 else 1e4 * draw.gauss(3.0, 2.0)} for _ in range(count)
    ]
    return values, [f"p{k % 5}" for k in range(count)]


def combination(normalization: str, **options) -> RewardCombination:
    return RewardCombination(**{"weights": WEIGHTS, "normalization": normalization, **options})


def test_without_normalisation_values_are_added_as_they_are():
    values, groups = videos(20)
    raw = combination("none")
    assert raw.normalized(values, groups) == [raw.combined(one) for one in values]
    assert raw.combined({"a": 0.5, "b": 2.0}) == 1.5 and raw.combined({"a": None, "b": 2.0}) == 1.0
    assert raw.combined({"a": None, "b": None}) is None


def test_the_formulas_of_the_help_text():
    values = [{"a": 1.0}, {"a": 3.0}, {"a": 10.0}, {"a": 30.0}]
    one = RewardCombination({"a": 2.0}, normalization="group")
    assert one.normalized(values, ["p", "p", "q", "q"]) == [-2.0, 2.0, -2.0, 2.0]
    over_all = RewardCombination({"a": 1.0}, normalization="global").normalized(values, ["p", "p", "q", "q"])
    mean = 11.0
    std = (((1 - mean) ** 2 + (3 - mean) ** 2 + (10 - mean) ** 2 + (30 - mean) ** 2) / 4) ** 0.5
    assert over_all == pytest.approx([(value["a"] - mean) / std for value in values], rel=1e-14)


@pytest.mark.parametrize("normalization", ["group", "global"])
def test_the_unit_of_a_reward_does_not_matter(normalization):
    values, groups = videos(40)
    other_unit = [{**one, "b": None if one["b"] is None else 1e-7 * one["b"] - 3.0} for one in values]
    scaled = combination(normalization)
    assert scaled.normalized(values, groups) == pytest.approx(scaled.normalized(other_unit, groups), abs=1e-6)
    raw = combination("none")
    assert raw.normalized(values, groups) != pytest.approx(raw.normalized(other_unit, groups), abs=1e-6)


@pytest.mark.parametrize("normalization", ["none", "group", "global"])
def test_the_order_of_the_samples_does_not_matter_to_the_last_bit(normalization):
    values, groups = videos(60)
    expected = combination(normalization).normalized(values, groups)
    order = random.Random(1).sample(range(60), 60)
    shuffled = combination(normalization).normalized([values[k] for k in order], [groups[k] for k in order])
    assert shuffled == [expected[k] for k in order]


@pytest.mark.parametrize("normalization", ["group", "global"])
def test_a_spread_of_rounding_is_none(normalization):
    one = RewardCombination({"a": 1.0}, normalization=normalization)
    assert one.normalized([{"a": 0.1 + 0.2}, {"a": 0.3}], ["p", "p"]) == [0.0, 0.0]
    assert one.normalized([{"a": 0.4}, {"a": None}], ["p", "p"]) == [0.0, None]
    assert one.normalized([{"a": 0.0}, {"a": 0.0}], ["p", "p"]) == [0.0, 0.0]


def test_a_missing_verdict_counts_as_the_mean():
    both = RewardCombination({"a": 1.0, "b": 1.0}, normalization="group")
    values = [{"a": 1.0, "b": None}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 9.0}, {"a": None, "b": None}]
    first, second, third, fourth = both.normalized(values, ["p"] * 4)
    assert first == pytest.approx(-(1.5**0.5)) and second == pytest.approx(1.5**0.5 - 1.0)
    assert third == pytest.approx(1.0) and fourth is None


def test_a_gate_disqualifies_and_says_why():
    gated = RewardCombination({"score": 1.0, "motion": 0.0}, gates={"motion": 0.02})
    assert gated.combined({"score": 0.9, "motion": 0.02}) == 0.9
    assert gated.combined({"score": 0.9, "motion": 0.0199}) is None
    assert gated.gate_reason({"score": 0.9, "motion": 0.0}) == "motion is 0, below its gate 0.02"
    assert gated.combined({"score": 0.9, "motion": None}) is None
    assert gated.gate_reason({"score": 0.9, "motion": None}) == "motion gave no verdict, and its gate asks for 0.02"
    assert gated.gate_reason({"score": 0.9, "motion": 0.5}) is None


def test_what_a_gate_disqualifies_is_in_no_mean():
    gated = RewardCombination({"score": 1.0, "motion": 0.0}, gates={"motion": 0.02}, normalization="group")
    honest = [{"score": 0.2, "motion": 1.0}, {"score": 0.6, "motion": 1.0}]
    cheat = {"score": 99.0, "motion": 0.0}
    assert gated.normalized([*honest, cheat], ["p"] * 3) == [*gated.normalized(honest, ["p"] * 2), None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "groups"}, "normalization 'groups'. Did you mean 'group'"),
        ({"gates": {"c": 0.1}}, "gate for 'c', which is no reward. Known: a, b"),
        ({"gates": {"a": "0.1"}}, "gate of 'a' must be a finite number, got '0.1'"),
        ({"gates": {"a": float("nan")}}, "gate of 'a'"),
        ({"gates": {"a": True}}, "gate of 'a'"),
        ({"gates": ["a"]}, r"Gates must be a mapping such as .*, got \['a'\]"),
    ],
)
def test_settings_that_fit_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        combination(**{"normalization": "none", **options})


# ----------------------------------------------------------------------------------------------------- in the runner


def named(name, values):
    def function(prompts, completions, **kwargs):
        return values

    function.__name__ = name
    return function


def test_a_reward_with_a_gate_only_disqualifies_unless_it_has_a_weight():
    rewards = [named("score", [0.9, 0.8, 0.7]), named("motion", [1.0, 0.0, None])]
    output = RewardRunner(rewards, gates={"motion": 0.02})(["p"] * 3, [None] * 3)
    assert output.rewards == [0.9, None, None]
    assert output.per_reward == {"score": [0.9, 0.8, 0.7], "motion": [1.0, 0.0, None]}
    assert output.extra["gate_reason"][0] is None and "below its gate" in output.extra["gate_reason"][1]
    assert output.metrics["disqualified_rate"] == pytest.approx(2 / 3)
    weighted = RewardRunner(rewards, reward_weights=[1.0, 0.5], gates={"motion": 0.02})(["p"] * 3, [None] * 3)
    assert weighted.rewards == [1.4, None, None]


def test_a_gate_of_no_reward_is_refused_when_the_runner_is_made():
    with pytest.raises(ValueError, match="'motoin', which is no reward. Did you mean 'motion'"):
        RewardRunner([named("motion", [])], gates={"motoin": 0.1})


# ----------------------------------------------------------------------------------------------------- in the config


def config(tmp_path, **options) -> OnlineSpatialAlignConfig:
    return OnlineSpatialAlignConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)


def test_a_threshold_of_raw_scores_is_not_compared_with_normalised_ones(tmp_path):
    with pytest.raises(ValueError, match="score_threshold=0.7 is a raw score.*pair_strategy=best_vs_worst"):
        config(tmp_path, reward_normalization="group")
    assert config(tmp_path, reward_normalization="group", pair_strategy="best_vs_worst").reward_gates is None
    with pytest.raises(ValueError, match="reward normalization 'z'"):
        config(tmp_path, reward_normalization="z")


def test_gates_come_from_a_yaml_or_as_json(tmp_path):
    assert config(tmp_path, reward_gates={"motion": 0.02}).reward_gates == {"motion": 0.02}
    assert config(tmp_path, reward_gates='{"motion": 0.02}').reward_gates == {"motion": 0.02}
    with pytest.raises(ValueError, match="gate of 'motion' must be a finite number, got 'much'"):
        config(tmp_path, reward_gates={"motion": "much"})


def test_pairs_are_made_of_normalised_values_and_keep_the_raw_ones(tmp_path):
    """Without normalisation the second reward decides alone, because its numbers are a thousand times larger."""
    values = {"score": [0.9, 0.8, 0.1, 0.85], "size": [990.0, 1000.0, 1010.0, 980.0], "motion": [1.0, 1.0, 1.0, 0.0]}
    rewards = [named(name, []) for name in values]
    samples = [
        Sample(f"{k:020x}", "p", {"prompt_id": "p", "prompt": "a fox"}, k, {}, "base", scored=True,
               rewards={name: one[k] for name, one in values.items()})
        for k in range(4)
    ]  # fmt: skip

    def pair(normalization: str) -> tuple[str, str]:
        args = config(
            tmp_path, pair_strategy="best_vs_worst", reward_normalization=normalization, reward_weights=[1.0, 0.2, 0.0]
        )
        runner = RewardRunner(rewards, args.reward_weights, 0.5, args.reward_normalization, {"motion": 0.02})
        maker = SimpleNamespace(args=args, runner=runner)
        for order in (samples, samples[::-1]):
            result = OnlineSpatialAlignTrainer._make_pairs(maker, order)
        (made,) = result.pairs
        assert result.stats["invalid_samples"] == 1 and made.chosen.rewards["size"] > 900
        return made.chosen.seed, made.rejected.seed

    assert pair("none") == (2, 0)
    assert pair("group") == pair("global") == (0, 2)


def test_invalid_videos_lose_when_they_are_given_a_score_and_failed_rewards_do_not_speak(tmp_path):
    """Seed 0 wins, 1 is INVALID, 2 was never judged because the reward failed, 3 was not scored yet."""
    failed = {"score_error": "it fell over"}
    samples = [
        Sample(f"{k:020x}", "p", {"prompt_id": "p", "prompt": "a fox"}, k, {}, "base", scored=k != 3,
               rewards={"score": 0.9 if k == 0 else None}, components=failed if k == 2 else {})
        for k in range(4)
    ]  # fmt: skip

    def pairs(**overrides) -> list[tuple[int, int, float]]:
        args = config(tmp_path, pairs_per_prompt=None, **overrides)
        maker = SimpleNamespace(args=args, runner=RewardRunner([named("score", [])]))
        result = OnlineSpatialAlignTrainer._make_pairs(maker, samples)
        assert result.stats["invalid_samples"] == 3
        return [(pair.chosen.seed, pair.rejected.seed, pair.score_rejected) for pair in result.pairs]

    assert pairs(pair_strategy="threshold") == []
    assert pairs(pair_strategy="threshold", invalid_score=0.0) == [(0, 1, 0.0)]
    assert pairs(pair_strategy="best_vs_worst", invalid_score=-1.0) == [(0, 1, -1.0)]
    with pytest.raises(ValueError, match="invalid_score=0.8 is not below score_threshold=0.7"):
        config(tmp_path, pair_strategy="threshold", score_threshold=0.7, invalid_score=0.8)
