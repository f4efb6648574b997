"""Pairs follow the rules of their strategy, and a preference dataset contains everything that training needs."""

import logging
from dataclasses import dataclass, field
from hashlib import sha256

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl import preferences
from spatialalign_trl.preferences import Pair, make_pairs, to_dataset
from spatialalign_trl.prompts import PROMPT_COLUMNS, build_prompt
from spatialalign_trl.rollout import noise_seed
from spatialalign_trl.video import encode_video

ROWS = {
    prompt_id: build_prompt(
        scene="In a meadow", animal=animal, object="stump", type="LR", verb="jumps", prompt_id=prompt_id
    ).to_row()
    for prompt_id, animal in {"p0": "fox", "p1": "cat", "p2": "duck"}.items()
}


@dataclass
class Scored:
    prompt_id: str
    seed: int
    reward: float | None
    row: dict = None
    sample_id: str = ""
    components: dict = field(default_factory=dict)

    def __post_init__(self):
        self.row = ROWS[self.prompt_id] if self.row is None else self.row
        self.sample_id = self.sample_id or sha256(f"{self.prompt_id} {self.seed}".encode()).hexdigest()[:20]


def scored(*rewards, prompt_id="p0"):
    return [Scored(prompt_id, seed, reward) for seed, reward in enumerate(rewards)]


def scores(result):
    return [(pair.score_chosen, pair.score_rejected) for pair in result.pairs]


def ids(result):
    return [(pair.chosen.sample_id, pair.rejected.sample_id) for pair in result.pairs]


# a few values, so that ties are common
REWARDS = st.lists(st.none() | st.sampled_from([0.0, 0.3, 0.5, 0.69, 0.7, 0.71, 1.0]) | st.floats(0, 1), max_size=7)
SAMPLES = st.fixed_dictionaries({prompt_id: REWARDS for prompt_id in ROWS}).map(
    lambda by_prompt: [s for prompt_id, rewards in by_prompt.items() for s in scored(*rewards, prompt_id=prompt_id)]
)
SETTINGS = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["threshold", "best_vs_worst", "min_gap"]),
        "threshold": st.floats(0, 1),
        "min_gap": st.floats(0.01, 1),
        "pairs_per_prompt": st.none() | st.integers(1, 4),
        "seed": st.integers(0, 3),
    }
)


# --------------------------------------------------------------------------------------------------- what a pair is


@given(SAMPLES, SETTINGS)
def test_every_pair_is_one_prompt_and_the_winner_scores_higher(samples, settings):
    result = make_pairs(samples, **settings)
    for pair in result.pairs:
        assert pair.chosen.prompt_id == pair.rejected.prompt_id == pair.prompt_id
        assert pair.score_chosen > pair.score_rejected
        assert pair.gap >= settings["min_gap"] - 1e-9
        assert pair.chosen is not pair.rejected
        if settings["strategy"] == "threshold":
            assert pair.score_chosen >= settings["threshold"] > pair.score_rejected
    assert len(set(ids(result))) == len(result.pairs)
    for prompt_id in ROWS:
        count = sum(pair.prompt_id == prompt_id for pair in result.pairs)
        assert settings["pairs_per_prompt"] is None or count <= settings["pairs_per_prompt"]


@given(SAMPLES, SETTINGS)
def test_the_statistics_count_prompts_pairs_and_samples(samples, settings):
    result = make_pairs(samples, **settings)
    with_pair = {pair.prompt_id for pair in result.pairs}
    prompts = {sample.prompt_id for sample in samples}
    assert result.stats["prompts"] == len(prompts)
    assert result.stats["prompts_with_pair"] == len(with_pair)
    assert set(result.without_pair) == prompts - with_pair
    assert result.stats["share_without_pair"] == (len(prompts - with_pair) / len(prompts) if prompts else 0)
    assert result.stats["pairs"] == len(result.pairs)
    gaps = [pair.chosen.reward - pair.rejected.reward for pair in result.pairs]
    assert result.stats["mean_gap"] == (pytest.approx(sum(gaps) / len(gaps)) if gaps else None)
    assert result.stats["samples"] == len(samples)
    assert result.stats["invalid_samples"] == sum(sample.reward is None for sample in samples)


@given(SAMPLES, SETTINGS, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(samples, settings, random_order):
    shuffled = list(samples)
    random_order.shuffle(shuffled)
    assert sorted(ids(make_pairs(shuffled, **settings))) == sorted(ids(make_pairs(samples, **settings)))


def test_the_pairs_of_a_prompt_do_not_depend_on_other_prompts():
    samples = scored(0.9, 0.8, 0.1, 0.2)
    pairs = ids(make_pairs(samples))
    among_others = ids(make_pairs(scored(0.9, 0.1, prompt_id="p1") + samples))
    assert pairs == among_others[1:]
    assert len({tuple(ids(make_pairs(samples, seed=seed))) for seed in range(20)}) > 1


def test_an_impossible_pair_is_refused():
    high, low = scored(0.9, 0.1)
    with pytest.raises(ValueError, match="not above"):
        Pair(chosen=low, rejected=high)
    with pytest.raises(ValueError, match="not above"):
        Pair(chosen=high, rejected=high)
    with pytest.raises(ValueError, match="different prompts"):
        Pair(chosen=high, rejected=scored(0.1, prompt_id="p1")[0])
    with pytest.raises(ValueError, match="INVALID"):
        Pair(chosen=high, rejected=scored(None)[0])


# -------------------------------------------------------------------------------------------------------- strategies


def test_threshold_takes_any_winner_over_any_valid_loser():
    samples = scored(0.7, 0.9, 0.69, 0.1, None)
    result = make_pairs(samples, pairs_per_prompt=None)
    assert sorted(scores(result)) == [(0.7, 0.1), (0.7, 0.69), (0.9, 0.1), (0.9, 0.69)]
    (pair,) = make_pairs(samples).pairs
    assert pair.score_chosen >= 0.7 > pair.score_rejected


def test_min_gap_applies_to_threshold():
    result = make_pairs(scored(0.7, 0.9, 0.69, 0.1), min_gap=0.5, pairs_per_prompt=None)
    assert sorted(scores(result)) == [(0.7, 0.1), (0.9, 0.1)]


def test_best_vs_worst_works_inwards():
    samples = scored(0.5, 0.9, 0.1, 0.6, 0.4, None)
    assert scores(make_pairs(samples, "best_vs_worst")) == [(0.9, 0.1)]
    assert scores(make_pairs(samples, "best_vs_worst", pairs_per_prompt=None)) == [(0.9, 0.1), (0.6, 0.4)]
    assert scores(make_pairs(samples, "best_vs_worst", pairs_per_prompt=None, min_gap=0.5)) == [(0.9, 0.1)]


def test_best_vs_worst_draws_among_equals():
    samples = scored(0.9, 0.9, 0.9, 0.1)
    chosen = {make_pairs(samples, "best_vs_worst", seed=seed).pairs[0].chosen.sample_id for seed in range(30)}
    assert len(chosen) == 3


def test_min_gap_takes_any_two_far_enough_apart():
    result = make_pairs(scored(0.9, 0.8, 0.1, None), "min_gap", min_gap=0.1, pairs_per_prompt=None)
    assert sorted(scores(result)) == [(0.8, 0.1), (0.9, 0.1), (0.9, 0.8)]


def test_a_gap_that_is_short_by_rounding_only_counts():
    assert 0.7 - 0.6 < 0.1
    assert scores(make_pairs(scored(0.7, 0.6), "min_gap", min_gap=0.1)) == [(0.7, 0.6)]


@pytest.mark.parametrize("strategy", ["threshold", "best_vs_worst", "min_gap"])
@pytest.mark.parametrize("rewards", [(0.8, 0.8, 0.8), (0.8,), (0.8, None), (None, None), (0.4, 0.4)])
def test_ties_and_single_samples_give_no_pair(strategy, rewards):
    result = make_pairs(scored(*rewards), strategy, min_gap=0.05)
    assert result.pairs == []
    assert result.stats["share_without_pair"] == 1.0
    assert result.stats["mean_gap"] is None


def test_prompts_without_a_pair_are_reported_with_the_reason(caplog):
    samples = scored(0.9, 0.8) + scored(0.1, 0.2, prompt_id="p1") + scored(0.9, None, prompt_id="p2")
    with caplog.at_level(logging.WARNING):
        result = make_pairs(samples)
    assert result.without_pair == {
        "p0": "no valid sample below 0.7",
        "p1": "no valid sample of at least 0.7",
        "p2": "fewer than two valid samples",
    }
    assert "3 of 3 prompts have no pair" in caplog.text


def test_no_samples_no_pairs():
    result = make_pairs([])
    assert result.pairs == []
    assert result.stats["prompts"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "treshold"}, "strategy='treshold': .* Did you mean 'threshold'"),
        ({"strategy": "min_gap"}, "needs a value above 0"),
        ({"min_gap": -0.1}, "min_gap=-0.1: must be"),
        ({"threshold": float("nan")}, "threshold=nan: must be"),
        ({"pairs_per_prompt": 0}, "pairs_per_prompt=0: must be"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(scored(0.9, 0.1), **arguments)


def test_contradictory_samples_are_refused():
    with pytest.raises(ValueError, match="appears twice"):
        make_pairs(scored(0.9) + scored(0.9))
    with pytest.raises(ValueError, match="score nan.*None for INVALID"):
        make_pairs(scored(0.9, float("nan")))
    with pytest.raises(ValueError, match="'p0' is used for two prompts"):
        make_pairs([*scored(0.9), Scored("p0", 1, 0.1, row=ROWS["p0"] | {"prompt": "another"})])
    with pytest.raises(ValueError, match="has the prompt id 'p0', but its row has 'p1'"):
        make_pairs([Scored("p0", 1, 0.1, row=ROWS["p1"])])


# -------------------------------------------------------------------------------------------------------- the dataset


def video_bytes(sample_id):
    return b"mp4 of " + sample_id.encode()


def latents_bytes(sample_id):
    return b"latents of " + sample_id.encode()


def two_pairs():
    return make_pairs(scored(0.9, 0.1) + scored(0.2, 0.8, prompt_id="p1")).pairs


def test_rows_hold_both_videos_their_scores_and_the_prompt():
    pairs = two_pairs()
    dataset = to_dataset(pairs, video_bytes, latents_bytes)
    assert dataset.column_names == [
        *PROMPT_COLUMNS,
        *("chosen", "rejected", "score_chosen", "score_rejected", "chosen_sample_id", "rejected_sample_id"),
        *("seed_chosen", "seed_rejected", "chosen_noise_seed", "rejected_noise_seed"),
        *("chosen_latents", "rejected_latents"),
    ]
    assert dataset.features["chosen"] == datasets.Video(decode=False)
    assert dataset.features["score_chosen"] == datasets.Value("float64")
    for row, pair in zip(dataset, pairs, strict=True):
        assert {name: row[name] for name in PROMPT_COLUMNS} == ROWS[pair.prompt_id]
        for side, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            assert row[side] == {"bytes": video_bytes(sample.sample_id), "path": f"{sample.sample_id}.mp4"}
            assert row[f"{side}_latents"] == latents_bytes(sample.sample_id)
            assert row[f"{side}_sample_id"] == sample.sample_id
            assert row[f"seed_{side}"] == sample.seed
            assert row[f"{side}_noise_seed"] == noise_seed(sample.seed, sample.prompt_id)
            assert row[f"score_{side}"] == sample.reward
        assert row["score_chosen"] > row["score_rejected"]


def test_parquet_keeps_bytes_and_the_video_feature(tmp_path):
    dataset = to_dataset(two_pairs(), video_bytes, latents_bytes)
    dataset.to_parquet(tmp_path / "train.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["chosen"], datasets.Video)
    loaded = loaded.cast_column("chosen", datasets.Video(decode=False))
    loaded = loaded.cast_column("rejected", datasets.Video(decode=False))
    assert loaded.to_list() == dataset.to_list()


def test_a_real_video_can_be_read_back(tmp_path):
    np = pytest.importorskip("numpy")
    from spatialalign_trl.video import encode_video, read_video

    video = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    content = encode_video(video, fps=8, crf=0)
    row = to_dataset(two_pairs(), lambda _: content)[0]
    np.testing.assert_array_equal(read_video(row["chosen"]["bytes"]), video)


def test_no_local_path_is_stored_even_in_the_folder_of_the_videos(tmp_path, monkeypatch):
    pairs = two_pairs()
    for pair in pairs:
        for sample in (pair.chosen, pair.rejected):
            (tmp_path / f"{sample.sample_id}.mp4").write_bytes(b"on disk")
    monkeypatch.chdir(tmp_path)
    dataset = to_dataset(pairs, video_bytes)
    dataset.to_parquet(tmp_path / "train.parquet")
    assert str(tmp_path).encode() not in (tmp_path / "train.parquet").read_bytes()
    for row in dataset:
        assert row["chosen"]["bytes"] == video_bytes(row["chosen_sample_id"])
        assert "/" not in row["chosen"]["path"]


def test_videos_of_the_prompts_travel_as_bytes_under_their_bare_names(tmp_path):
    recording = encode_video(np.zeros((5, 16, 16, 3), np.uint8), 8, 23)
    (tmp_path / "scene.mp4").write_bytes(recording)
    for cell in (
        {"bytes": None, "path": str(tmp_path / "scene.mp4")},
        {"bytes": recording, "path": "/x/scene.mp4"},
    ):
        row = ROWS["p0"] | {"context": cell, "context_indices": [1, 4]}
        dataset = to_dataset([Pair(*(Scored("p0", k, 0.9 - k / 2, row=row) for k in range(2)))], video_bytes)
        assert dataset.features["context"] == datasets.Video(decode=False)
        assert dataset[0]["context"] == {"bytes": recording, "path": "scene.mp4"}
        assert dataset[0]["context_indices"] == [1, 4]
    gone = ROWS["p0"] | {"context": {"bytes": None, "path": str(tmp_path / "gone.mp4")}}
    with pytest.raises(ValueError, match="prompt 'p0', column 'context': the video file cannot be read"):
        to_dataset([Pair(*(Scored("p0", k, 0.9 - k / 2, row=gone) for k in range(2)))], video_bytes)


def test_more_rows_than_a_block(monkeypatch):
    monkeypatch.setattr(preferences, "ROWS_PER_BLOCK", 2)
    pairs = make_pairs(scored(0.9, 0.8, 0.75, 0.1, 0.2), pairs_per_prompt=None).pairs
    dataset = to_dataset(pairs, video_bytes)
    assert dataset["chosen_sample_id"][:] == [pair.chosen.sample_id for pair in pairs]


def test_no_pairs_give_an_empty_dataset_of_the_same_kind():
    dataset = to_dataset([], video_bytes, latents_bytes)
    assert len(dataset) == 0
    assert dataset.features == to_dataset(two_pairs(), video_bytes, latents_bytes).features


def test_further_prompt_columns_are_kept():
    row = ROWS["p0"] | {"difficulty": 3, "held_out": True}
    pairs = make_pairs([Scored("p0", 0, 0.9, row=row), Scored("p0", 1, 0.1, row=row)]).pairs
    (out,) = to_dataset(pairs, video_bytes)
    assert (out["difficulty"], out["held_out"]) == (3, True)


@pytest.mark.parametrize("sample_id", ["../../etc/passwd", "ABCDEF0123", "abc", "0123abcd/", "0123abcd\n", "g" * 20])
def test_sample_ids_are_checked_before_they_become_file_names(sample_id):
    pair = Pair(Scored("p0", 0, 0.9, sample_id=sample_id), scored(0.1)[0])
    with pytest.raises(ValueError, match="not a hexadecimal number"):
        to_dataset([pair], video_bytes)


def test_contradictory_rows_and_empty_videos_are_refused():
    (pair,) = make_pairs(scored(0.9, 0.1)).pairs
    with pytest.raises(ValueError, match="video of sample .* is empty"):
        to_dataset([pair], lambda _: b"")
    taken = {**ROWS["p0"], "chosen": "x"}
    with pytest.raises(ValueError, match="'chosen' has the name of a preference column"):
        to_dataset([Pair(Scored("p0", 0, 0.9, row=taken), Scored("p0", 1, 0.1, row=taken))], video_bytes)
    with pytest.raises(ValueError, match="differs from the others in its prompt columns.*'extra'"):
        to_dataset([Pair(scored(0.9)[0], Scored("p0", 1, 0.1, row=ROWS["p0"] | {"extra": 1}))], video_bytes)
    with pytest.raises(ValueError, match="no column 'prompt_id'"):
        to_dataset([Pair(*(Scored("p0", k, 0.9 - k, row={"prompt": "x"}) for k in range(2)))], video_bytes)
