"""The samples of a store are scored batch by batch from their stored videos, and only where scores are missing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spatialalign_trl.rewards.runner import RewardFailure, RewardRunner
from spatialalign_trl.rewards.scoring import combine_scores, score_samples
from spatialalign_trl.rollout.store import Sample, SampleStore

SETTINGS = {"num_frames": 5, "height": 16, "width": 16}


def stored(store: SampleStore, count: int) -> list[Sample]:
    """Return stored samples; every pixel of video k is 10 * k."""
    samples = []
    for k in range(count):
        row = {"prompt_id": f"p{k}", "prompt": f"prompt {k}", "type": "LR"}
        sample = store.new_sample(row, 0, SETTINGS, "base")
        samples.append(
            store.add(sample, np.full((5, 16, 16, 3), 10 * k % 256, np.uint8), torch.zeros(4, 2, 2, 2), 8, crf=0)
        )
    return [store.load(sample.sample_id) for sample in samples]


def without_code(components: dict) -> dict:
    """Leave out the columns with the hashes of the rewards' settings and code."""
    return {name: value for name, value in components.items() if not name.endswith("_settings")}


class Grey:
    """A reward that returns the video's grey level and records the prompts it was called with."""

    def __init__(self, name: str = "grey", invalid: int | None = None) -> None:
        self.__name__, self.invalid, self.calls = name, invalid, []

    def __call__(self, prompts, completions, type, log_extra=None, **kwargs):
        self.calls.append([int(prompt.split()[1]) for prompt in prompts])
        assert type == ["LR"] * len(prompts) and set(kwargs) >= {"prompt_id"}
        greys = [float(video.mean()) for video in completions]
        log_extra(f"{self.__name__}_seen", greys)
        return [None if grey == self.invalid else grey / 100 for grey in greys]


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path / "samples")


def test_every_sample_gets_the_score_of_its_own_stored_video(store):
    samples, reward = stored(store, 5), Grey(invalid=30)
    result = score_samples(samples[::-1], store, RewardRunner(reward), batch_size=2)
    assert reward.calls == [[4, 3], [2, 1], [0]]
    assert [sample.prompt_id for sample in result] == ["p4", "p3", "p2", "p1", "p0"]
    assert [sample.reward for sample in result] == [0.4, None, 0.2, 0.1, 0.0]
    assert all(sample.scored and sample.rewards == {"grey": sample.reward} for sample in result)
    assert [sample.components["grey_seen"] for sample in result] == [40.0, 30.0, 20.0, 10.0, 0.0]
    on_disk = json.loads(store.path(samples[4].sample_id, ".scores.json").read_text())
    code = on_disk["components"].pop("grey_settings")
    assert code.startswith("+") and on_disk == {
        "rewards": {"grey": 0.4}, "reward": 0.4, "components": {"grey_seen": 40.0},
    }  # fmt: skip


def test_scored_samples_are_not_scored_again_even_if_they_are_invalid(store):
    samples, reward = stored(store, 4), Grey(invalid=10)
    score_samples(samples[:2], store, RewardRunner(reward))
    loaded = [store.load(sample.sample_id) for sample in samples]
    result = score_samples(loaded, store, RewardRunner(reward), batch_size=3)
    assert reward.calls == [[0, 1], [2, 3]]
    assert [sample.reward for sample in result] == [0.0, None, 0.2, 0.3]
    assert score_samples(result, store, RewardRunner(reward)) == result and len(reward.calls) == 2


def test_an_interruption_loses_only_the_batch_in_flight(store):
    samples, reward = stored(store, 6), Grey()

    class Interrupting(Grey):
        def __call__(self, prompts, **kwargs):
            if prompts[0] == "prompt 4":
                raise KeyboardInterrupt
            return super().__call__(prompts, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        score_samples(samples, store, RewardRunner(Interrupting()), batch_size=2)
    loaded = [store.load(sample.sample_id) for sample in samples]
    assert [sample.scored for sample in loaded] == [True] * 4 + [False] * 2
    result = score_samples(loaded, store, RewardRunner(reward), batch_size=2)
    assert reward.calls == [[4, 5]]
    assert [sample.reward for sample in result] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_only_an_added_reward_scores_samples_that_the_others_have_scored(store):
    first, second = Grey(), Grey("other")
    samples = stored(store, 3)
    score_samples(samples[:2], store, RewardRunner(first))
    loaded = [store.load(sample.sample_id) for sample in samples]
    runner = RewardRunner([second, first], [2.0, 1.0])
    both = score_samples(loaded, store, runner)
    assert first.calls == [[0, 1], [2]] and second.calls == [[0, 1], [2]]
    assert both == score_samples(both, store, runner)
    assert both[1].rewards == {"grey": 0.1, "other": 0.1} and both[1].reward == pytest.approx(0.3)
    assert without_code(both[1].components) == {"grey_seen": 10.0, "other_seen": 10.0}


def test_the_gate_of_an_added_reward_disqualifies_scored_samples(store):
    samples = score_samples(stored(store, 2), store, RewardRunner(Grey()))
    runner = RewardRunner([Grey("other"), Grey()], [2.0, 1.0], gates={"other": 0.05})
    invalid, valid = score_samples(samples, store, runner)
    assert invalid.reward is None and "below its gate" in invalid.components["gate_reason"]
    assert without_code(valid.components) == {"grey_seen": 10.0, "other_seen": 10.0, "gate_reason": None}
    assert [invalid, valid] == score_samples([invalid, valid], store, runner)


def test_all_rewards_score_again_if_one_was_removed(store):
    first, second = Grey(), Grey("other")
    both = score_samples(stored(store, 2), store, RewardRunner([first, second]))
    only = score_samples(both, store, RewardRunner(second))
    assert only[1].rewards == {"other": 0.1} and without_code(only[1].components) == {"other_seen": 10.0}


def test_another_order_of_the_rewards_reorders_the_scores_and_scores_nothing_again(store):
    first, second = Grey(), Grey("other")
    result = score_samples(stored(store, 2), store, RewardRunner([first, second]))
    reordered = score_samples(result, store, RewardRunner([second, first]))
    assert len(first.calls) == len(second.calls) == 1
    assert list(reordered[0].rewards) == ["other", "grey"] and list(result[0].rewards) == ["grey", "other"]


def test_a_sample_on_which_a_reward_failed_is_scored_again_when_the_reward_works(store):
    calls, failing_greys = [], {20.0}

    def fragile(prompts, completions, **kwargs):
        calls.append(prompts)
        greys = [float(video.mean()) for video in completions]
        if failing_greys & set(greys):
            raise TimeoutError("the judge is away")
        return greys

    first = score_samples(stored(store, 4), store, RewardRunner(fragile), batch_size=2)
    assert [sample.reward for sample in first] == [0.0, 10.0, None, None]
    assert "the judge is away" in first[3].components["fragile_error"]
    failing_greys.clear()
    calls.clear()
    second = score_samples(first, store, RewardRunner(fragile), batch_size=2)
    assert calls == [["prompt 2", "prompt 3"]]
    assert [sample.reward for sample in second] == [0.0, 10.0, 20.0, 30.0]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_the_share_of_failures_holds_where_only_one_reward_is_missing(store, share):
    """20 of 32 videos fail, all of them in the part that has the scores of the other reward."""
    samples, good = stored(store, 32), Grey()
    score_samples(samples, store, RewardRunner(good))

    def bad(prompts, completions, **kwargs):
        return [None if int(prompt.split()[1]) < 12 else "broken" for prompt in prompts]

    loaded = [store.load(sample.sample_id) for sample in samples]
    runner = RewardRunner([good, bad], max_failure_share=share)
    if share == 0.2:
        with pytest.raises(RewardFailure, match="'bad' failed on 4 of 16 videos, more than the allowed share of 0.2"):
            score_samples(loaded, store, runner)
    else:
        result = score_samples(loaded, store, runner)
        assert [bool(sample.components["bad_error"]) for sample in result] == [k >= 12 for k in range(32)]
    assert len(good.calls) == 2


def test_a_damaged_video_is_named_and_not_judged(store):
    samples, reward = stored(store, 2), Grey()
    path = store.path(samples[1].sample_id, ".mp4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        score_samples(samples, store, RewardRunner(reward), batch_size=1)
    assert reward.calls == [[0]]


class Process:
    """The part of an Accelerator that `score_samples` uses."""

    def __init__(self, rank: int, world: int) -> None:
        self.process_index, self.num_processes, self.waits = rank, world, 0

    def wait_for_everyone(self) -> None:
        self.waits += 1


def test_processes_share_the_samples_even_if_one_has_already_written_its_scores(store):
    """The slow process loads its samples after the quick one has written; each must still score its share."""
    samples, rewards = stored(store, 5), [Grey(), Grey()]
    quick, slow = Process(0, 2), Process(1, 2)
    score_samples(samples, store, RewardRunner(rewards[0]), accelerator=quick)
    loaded = [store.load(sample.sample_id) for sample in samples]
    result = score_samples(loaded, store, RewardRunner(rewards[1]), accelerator=slow)
    assert rewards[0].calls == [[0, 2, 4]] and rewards[1].calls == [[1, 3]]
    assert [sample.reward for sample in result] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert quick.waits == slow.waits == 1


def test_no_samples_need_no_scores(store):
    assert score_samples([], store, RewardRunner(Grey())) == []


def test_a_batch_of_no_videos_is_refused(store):
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_samples([], store, RewardRunner(Grey()), batch_size=0)


def test_other_weights_sum_the_stored_scores_again_without_scoring(store):
    samples, reward = stored(store, 3), Grey(invalid=10)
    scored = score_samples(samples, store, RewardRunner(reward))
    doubled = score_samples(scored, store, RewardRunner(reward, reward_weights=[2.0]))
    assert [sample.reward for sample in doubled] == [0.0, None, 0.4]
    assert len(reward.calls) == 1


def test_a_reward_with_other_settings_scores_again(store):
    class Tracked(Grey):
        def __init__(self, tracker):
            super().__init__()
            self.tracker = tracker

        def describe(self):
            return {"tracker": self.tracker}

    samples, first, other = stored(store, 2), Tracked("colors"), Tracked("grounded_sam")
    scored = score_samples(samples, store, RewardRunner(first))
    assert score_samples(scored, store, RewardRunner(Tracked("colors"))) == scored
    score_samples(scored, store, RewardRunner(other))
    assert first.calls == other.calls == [[0, 1]]


def test_the_rewards_release_their_models_after_the_last_batch(store):
    class Heavy(Grey):
        released_after = None

        def release(self):
            self.released_after = len(self.calls)

    reward = Heavy()
    score_samples(stored(store, 4), store, RewardRunner([reward, Grey("light")]), batch_size=2)
    assert reward.released_after == 2


@pytest.mark.parametrize("normalization", ["none", "group", "global"])
def test_combined_scores_do_not_depend_on_batches_or_on_what_was_scored_before(store, normalization):
    samples, rewards = stored(store, 6), [Grey(invalid=30), Grey("other")]
    runner = RewardRunner(rewards, [1.0, 3.0], normalization=normalization, gates={"other": 0.1})
    score_samples(samples[3:], store, runner, batch_size=2)  # an interrupted run
    resumed = score_samples([store.load(s.sample_id) for s in samples], store, runner, batch_size=4)
    combined = combine_scores(resumed, runner.combination, normalize=True)
    for sample in samples:
        store.path(sample.sample_id, ".scores.json").unlink()
    in_one_batch = score_samples([store.load(s.sample_id) for s in samples], store, runner, batch_size=6)
    assert combine_scores(in_one_batch[::-1], runner.combination, normalize=True)[::-1] == combined
    assert [sample.rewards for sample in combined] == [sample.rewards for sample in resumed]  # raw values stay raw
    assert combined[0].reward is None and combined[0].components["gate_reason"] == "other is 0, below its gate 0.1"
    ungated = combine_scores(combined, RewardRunner(rewards).combination)
    assert ungated[0].reward == 0.0 and "gate_reason" not in ungated[0].components


def test_rewards_receive_the_frame_rate_of_the_videos(store):
    received = []

    def speed(prompts, completions, fps=None, **kwargs):
        received.append(fps)
        return [1.0] * len(prompts)

    row = {"prompt_id": "p", "prompt": "prompt 0"}
    sample = store.new_sample(row, 0, {**SETTINGS, "fps": 12.0}, "base")
    sample = store.add(sample, np.zeros((5, 16, 16, 3), np.uint8), torch.zeros(4, 2, 2, 2), 12, crf=0)
    score_samples([sample], store, RewardRunner(speed))
    score_samples(stored(store, 1), store, RewardRunner(speed))
    assert received == [[12.0], None]
