"""Several rewards become one number by weights, normalisation and gates, and pairs are made of these numbers."""

import random
from types import SimpleNamespace

import pytest

from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.online.rounds import make_round_pairs
from spatialalign_trl.rewards.combination import RewardCombination
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.scoring import combine_scores
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
    assert raw.normalized(values, groups) == [raw.combined(sample_values) for sample_values in values]


def test_a_combined_score_is_the_weighted_sum_of_the_verdicts_that_there_are():
    raw = combination("none")
    assert raw.combined({"a": 0.5, "b": 2.0}) == 1.5 and raw.combined({"a": None, "b": 2.0}) == 1.0
    assert raw.combined({"a": None, "b": None}) is None


FOUR = [{"a": 1.0}, {"a": 3.0}, {"a": 10.0}, {"a": 30.0}]


def test_group_normalisation_uses_mean_and_deviation_of_each_prompt():
    by_prompt = RewardCombination({"a": 2.0}, normalization="group")
    assert by_prompt.normalized(FOUR, ["p", "p", "q", "q"]) == [-2.0, 2.0, -2.0, 2.0]


def test_global_normalisation_uses_mean_and_deviation_of_all_samples():
    normalized = RewardCombination({"a": 1.0}, normalization="global").normalized(FOUR, ["p", "p", "q", "q"])
    mean = 11.0
    std = (((1 - mean) ** 2 + (3 - mean) ** 2 + (10 - mean) ** 2 + (30 - mean) ** 2) / 4) ** 0.5
    assert normalized == pytest.approx([(value["a"] - mean) / std for value in FOUR], rel=1e-14)


@pytest.mark.parametrize("normalization", ["group", "global"])
def test_the_unit_of_a_reward_does_not_matter(normalization):
    values, groups = videos(40)
    other_unit = [{"a": v["a"], "b": None if v["b"] is None else 1e-7 * v["b"] - 3.0} for v in values]
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
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.1 + 0.2, 0.3, [0.0, 0.0]), (0.4, None, [0.0, None]), (0.0, 0.0, [0.0, 0.0])],
)
def test_scores_that_differ_by_rounding_or_not_at_all_are_zero(normalization, first, second, expected):
    scaled = RewardCombination({"a": 1.0}, normalization=normalization)
    assert scaled.normalized([{"a": first}, {"a": second}], ["p", "p"]) == expected


def test_a_missing_verdict_counts_as_the_mean():
    both = RewardCombination({"a": 1.0, "b": 1.0}, normalization="group")
    values = [{"a": 1.0, "b": None}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 9.0}, {"a": None, "b": None}]
    first, second, third, fourth = both.normalized(values, ["p"] * 4)
    assert first == pytest.approx(-(1.5**0.5)) and second == pytest.approx(1.5**0.5 - 1.0)
    assert third == pytest.approx(1.0) and fourth is None


GATED = RewardCombination({"score": 1.0, "motion": 0.0}, gates={"motion": 0.02})


@pytest.mark.parametrize(("motion", "combined"), [(0.02, 0.9), (0.0199, None), (None, None)])
def test_a_gate_disqualifies_what_is_below_it_or_has_no_verdict(motion, combined):
    assert GATED.combined({"score": 0.9, "motion": motion}) == combined


@pytest.mark.parametrize(
    ("motion", "reason"),
    [
        (0.0, "motion is 0, below its gate 0.02"),
        (None, "motion gave no verdict, and its gate asks for 0.02"),
        (0.5, None),
    ],
)
def test_a_gate_says_why_it_disqualifies(motion, reason):
    assert GATED.gate_reason({"score": 0.9, "motion": motion}) == reason


def test_a_disqualified_video_is_in_no_mean():
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
def test_invalid_normalisations_and_gates_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        combination(**{"normalization": "none", **options})


# ----------------------------------------------------------------------------------------------------- in the runner


def named(name, values):
    def function(prompts, completions, **kwargs):
        return values

    function.__name__ = name
    return function


SCORE_AND_MOTION = [named("score", [0.9, 0.8, 0.7]), named("motion", [1.0, 0.0, None])]


def test_a_reward_with_a_gate_has_no_weight_unless_it_is_given_one():
    gated = RewardRunner(SCORE_AND_MOTION, gates={"motion": 0.02})(["p"] * 3, [None] * 3)
    assert gated.rewards == [0.9, None, None]
    weighted = RewardRunner(SCORE_AND_MOTION, reward_weights=[1.0, 0.5], gates={"motion": 0.02})
    assert weighted(["p"] * 3, [None] * 3).rewards == [1.4, None, None]


def test_the_runner_reports_raw_scores_reasons_and_the_share_of_disqualified_videos():
    output = RewardRunner(SCORE_AND_MOTION, gates={"motion": 0.02})(["p"] * 3, [None] * 3)
    assert output.per_reward == {"score": [0.9, 0.8, 0.7], "motion": [1.0, 0.0, None]}
    assert output.extra["gate_reason"][0] is None and "below its gate" in output.extra["gate_reason"][1]
    assert output.metrics["disqualified_rate"] == pytest.approx(2 / 3)


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


def test_an_unknown_normalisation_is_refused_by_the_config(tmp_path):
    with pytest.raises(ValueError, match="reward_normalization='z': Known: global, group, none"):
        config(tmp_path, reward_normalization="z")


def test_gates_come_from_a_yaml_or_as_json(tmp_path):
    assert config(tmp_path, reward_gates={"motion": 0.02}).reward_gates == {"motion": 0.02}
    assert config(tmp_path, reward_gates='{"motion": 0.02}').reward_gates == {"motion": 0.02}
    with pytest.raises(ValueError, match="gate of 'motion' must be a finite number, got 'much'"):
        config(tmp_path, reward_gates={"motion": "much"})


# ------------------------------------------------------------------------------------------------------ in the pairs


def scored_samples(values: dict[str, list], **fields) -> list[Sample]:
    """Return samples of one prompt with these values of the rewards; `fields` are lists too."""
    count = len(next(iter(values.values())))
    return [
        Sample(
            f"{k:020x}", "p", {"prompt_id": "p", "prompt": "a fox"}, k, {}, "base",
            rewards={name: column[k] for name, column in values.items()},
            **{"scored": True} | {name: column[k] for name, column in fields.items()},
        )
        for k in range(count)
    ]  # fmt: skip


def made_pairs(args: OnlineSpatialAlignConfig, runner: RewardRunner, samples: list[Sample]):
    """Make pairs of samples that are combined first, as those of a round are when they are scored or loaded."""
    samples = combine_scores(samples, runner.combination)
    return make_round_pairs(SimpleNamespace(args=args, runner=runner), samples)


@pytest.mark.parametrize(("normalization", "seeds"), [("none", (2, 0)), ("group", (0, 2)), ("global", (0, 2))])
@pytest.mark.parametrize("order", [1, -1])
def test_pairs_are_made_of_normalised_values_and_keep_the_raw_ones(tmp_path, normalization, seeds, order):
    """Without normalisation the second reward decides alone, because its numbers are a thousand times larger."""
    values = {"score": [0.9, 0.8, 0.1, 0.85], "size": [990.0, 1000.0, 1010.0, 980.0], "motion": [1.0, 1.0, 1.0, 0.0]}
    args = config(
        tmp_path, pair_strategy="best_vs_worst", reward_normalization=normalization, reward_weights=[1.0, 0.2, 0.0]
    )
    rewards = [named(name, []) for name in values]
    runner = RewardRunner(rewards, args.reward_weights, 0.5, args.reward_normalization, {"motion": 0.02})
    result = made_pairs(args, runner, scored_samples(values)[::order])
    (pair,) = result.pairs
    assert result.stats["invalid_samples"] == 1 and pair.chosen.rewards["size"] > 900
    assert (pair.chosen.seed, pair.rejected.seed) == seeds


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"pair_strategy": "threshold"}, []),
        ({"pair_strategy": "threshold", "invalid_score": 0.0}, [(0, 1, 0.0)]),
        ({"pair_strategy": "best_vs_worst", "invalid_score": -1.0}, [(0, 1, -1.0)]),
    ],
)
def test_invalid_videos_lose_if_they_get_a_score_and_unjudged_ones_are_in_no_pair(tmp_path, overrides, expected):
    """Seed 0 wins, 1 is INVALID, 2 was not judged because the reward failed, 3 was not scored yet."""
    samples = scored_samples(
        {"score": [0.9, None, None, None]},
        scored=[True, True, True, False],
        components=[{}, {}, {"score_error": "it fell over"}, {}],
    )
    result = made_pairs(
        config(tmp_path, pairs_per_prompt=None, **overrides), RewardRunner([named("score", [])]), samples
    )
    assert result.stats["invalid_samples"] == 3
    assert [(pair.chosen.seed, pair.rejected.seed, pair.score_rejected) for pair in result.pairs] == expected


def test_an_invalid_score_above_the_threshold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="invalid_score=0.8 is not below score_threshold=0.7"):
        config(tmp_path, pair_strategy="threshold", score_threshold=0.7, invalid_score=0.8)
