"""The fingerprint of a reward's code: what it covers, and that scores of two versions are never mixed."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.rewards.remote import HTTPReward
from spatialalign_trl.rewards.runner import RewardRunner, load_reward
from spatialalign_trl.rewards.scoring import score_samples
from spatialalign_trl.rewards.sources import source_fingerprint
from spatialalign_trl.rollout.score_files import write_score_file
from spatialalign_trl.rollout.store import SampleStore

REWARD = """
def score(prompts, completions, **kwargs):
    return [{value}] * len(completions)
"""


def load(path: Path, content: str, name: str = "score"):
    path.write_text(content)
    return load_reward(f"{path}:{name}")


def test_the_fingerprint_is_that_of_the_content_and_names_the_file(tmp_path):
    file = tmp_path / "mine.py"
    first = source_fingerprint(load(file, REWARD.format(value=0.25)))
    assert first.startswith("mine.py, sha256 ") and first == source_fingerprint(load(file, REWARD.format(value=0.25)))
    assert source_fingerprint(load(file, REWARD.format(value=0.75))) != first
    (tmp_path / "moved").mkdir()
    assert source_fingerprint(load(tmp_path / "moved" / "mine.py", REWARD.format(value=0.25))) == first


def test_an_edit_after_the_import_does_not_change_what_runs(tmp_path):
    file = tmp_path / "mine.py"
    reward = load(file, REWARD.format(value=0.25))
    first = source_fingerprint(reward)
    file.write_text(REWARD.format(value=0.75))
    assert source_fingerprint(reward) == first


@pytest.mark.parametrize("line", ["from helper import x", "import helper", "import helper as h, json"])
def test_files_beside_it_that_it_imports_belong_to_it(tmp_path, monkeypatch, line):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "deep.py").write_text("y = 1")
    (tmp_path / "other.py").write_text("z = 1")

    def fingerprint() -> str:
        for name in ("helper", "deep"):
            sys.modules.pop(name, None)
        return source_fingerprint(load(tmp_path / "mine.py", line + REWARD.format(value=1.0)))

    (tmp_path / "helper.py").write_text("import deep\nx = 1")
    first = fingerprint()
    assert first.startswith("mine.py and 2 more files, sha256 ")
    (tmp_path / "other.py").write_text("z = 2")
    assert fingerprint() == first
    (tmp_path / "deep.py").write_text("y = 2")
    assert fingerprint() != first


def test_an_installed_reward_is_its_module_and_the_helpers_that_it_imports():
    fingerprint = source_fingerprint(load_reward("dsr_score"))
    assert fingerprint.startswith("dsr_score.py and ") and "more files, sha256" in fingerprint
    assert source_fingerprint(load_reward("motion")) != fingerprint


def test_instances_and_bound_arguments_have_the_code_of_their_definition(tmp_path):
    content = """
class Score:
    def __init__(self, value=1.0):
        self.value = value
    def __call__(self, prompts, completions, **kwargs):
        return [self.value] * len(completions)
"""
    reward = load(tmp_path / "mine.py", content, "Score")
    assert source_fingerprint(reward) == source_fingerprint(type(reward)(2.0))
    assert source_fingerprint(functools.partial(reward, x=1)) == source_fingerprint(reward)


def test_what_has_no_code_of_its_own_has_no_fingerprint():
    with pytest.raises(ConnectionError, match="cannot be reached"):  # which is not the same as unknown
        source_fingerprint(HTTPReward("http://127.0.0.1:9/x"))
    namespace: dict = {"__name__": "typed_into_a_console"}
    exec("def score(prompts, completions, **kwargs): return [1.0]", namespace)
    assert source_fingerprint(namespace["score"]) is None


@pytest.fixture
def store(tmp_path):
    store = SampleStore(tmp_path / "samples")
    for k in range(4):
        row = {"prompt_id": f"p{k}", "prompt": f"prompt {k}"}
        sample = store.new_sample(row, 0, {"num_frames": 5}, "base")
        store.add(sample, np.full((5, 16, 16, 3), k, np.uint8), torch.zeros(4, 2, 2, 2), 8, crf=0)
    return store


def rewards_of(store: SampleStore, reward) -> list[float]:
    return [sample.reward for sample in score_samples(store.samples(), store, RewardRunner(reward))]


def test_an_edited_reward_scores_everything_again(store, tmp_path):
    file = tmp_path / "mine.py"
    first = load(file, REWARD.format(value=0.25))
    score_samples(store.samples()[:2], store, RewardRunner(first))  # a run that was killed
    assert rewards_of(store, load(file, REWARD.format(value=0.75))) == [0.75] * 4


def kept_scores(store: SampleStore) -> list[dict]:
    return [json.loads(path.read_text())["rewards"] for path in sorted(store.directory.glob("*.replaced-*.json"))]


def test_the_scores_of_a_changed_reward_are_kept_beside_the_new_ones(store, tmp_path, caplog):
    file = tmp_path / "mine.py"
    rewards_of(store, load(file, REWARD.format(value=0.25)))
    assert rewards_of(store, load(file, REWARD.format(value=0.25))) == [0.25] * 4
    assert not kept_scores(store) and "scored again" not in caplog.text
    for value in (0.5, 0.75):
        assert rewards_of(store, load(file, REWARD.format(value=value))) == [value] * 4
    assert [scores["score"] for scores in kept_scores(store)] == [0.25, 0.5] * 4
    assert caplog.text.count("4 samples are scored again") == 2 and "*.replaced-N.json" in caplog.text
    assert len(store.samples()) == 4, "the kept scores are no samples"


def test_a_value_is_kept_when_its_reward_fails_while_another_one_is_tried_again(store):
    values = {"costly": 0.5, "other": RuntimeError("no connection")}

    def make(name):
        def reward(prompts, completions, **kwargs):
            if isinstance(values[name], Exception):
                raise values[name]
            return [values[name]] * len(completions)

        reward.__name__ = name
        return reward

    rewards = [make("costly"), make("other")]
    score_samples(store.samples(), store, RewardRunner(rewards, max_failure_share=1.0))
    values |= {"costly": RuntimeError("no money"), "other": 0.25}
    samples = score_samples(store.samples(), store, RewardRunner(rewards, max_failure_share=1.0))
    assert [sample.rewards for sample in samples] == [{"costly": None, "other": 0.25}] * 4
    assert kept_scores(store) == [{"costly": 0.5, "other": None}] * 4


SCORES = st.dictionaries(st.sampled_from("abc"), st.sampled_from([None, 0.25, 0.5]))


@given(st.lists(SCORES, min_size=2, max_size=6))
def test_no_value_that_was_written_is_ever_lost(written):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.scores.json"
        for rewards in written:
            write_score_file(file, {"rewards": rewards, "reward": None, "components": {"seen": list(rewards.items())}})
        there = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    for rewards in written:
        for name, value in rewards.items():
            assert value is None or any(scores["rewards"].get(name) == value for scores in there)
        assert any(scores["components"]["seen"] == [list(item) for item in rewards.items()] for scores in there)
    assert len(there) <= len(written)


def test_scores_from_before_count_as_made_by_the_present_code_and_by_no_later_one(store, tmp_path):
    file = tmp_path / "mine.py"
    score_samples(store.samples()[:3], store, RewardRunner(load(file, REWARD.format(value=0.25))))
    for path in store.directory.glob("*.scores.json"):  # as an earlier version wrote them
        scores = json.loads(path.read_text())
        del scores["components"]["score_settings"]
        path.write_text(json.dumps(scores))
    assert rewards_of(store, load(file, REWARD.format(value=0.5))) == [0.25] * 3 + [0.5]  # it cannot be known
    assert rewards_of(store, load(file, REWARD.format(value=0.75))) == [0.75] * 4
