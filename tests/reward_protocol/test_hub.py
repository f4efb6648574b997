"""A reward on the Hub is loaded without code if it is only settings, and runs its code only if trusted and pinned."""

from __future__ import annotations

import json
import py_compile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from fresh_process import PROGRAMS, run_program
from huggingface_hub import HfApi, snapshot_download

from spatialalign_rewards import DSRScore
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.cli.new_reward import write_package
from spatialalign_trl.rewards.hub import load_hub_reward
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.settings import is_hub_spec

CODE = (PROGRAMS / "level.py").read_text()
REPO = "tester/my-reward"


class PushedReward:
    """A repository of a reward whose code, `level.py`, creates a file when it is executed."""

    def __init__(self, executed: Path) -> None:
        self.executed = executed
        self.api = HfApi()
        self.api.create_repo(REPO, private=True)

    def push(self, version: int = 1, reward: str = "level.py:Level", **more: object) -> str:
        config = {"reward": reward, "options": {"level": 0.5}} | more
        self.put("level.py", CODE.replace("VERSION = 1", f"VERSION = {version}").encode())
        return self.put("reward_config.json", json.dumps(config).encode())

    def put(self, name: str, data: bytes) -> str:
        return self.api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=REPO).oid

    @property
    def was_executed(self) -> bool:
        return self.executed.exists()


@pytest.fixture
def pushed(loopback_client, tmp_path, monkeypatch) -> PushedReward:
    monkeypatch.setenv("LEVEL_EXECUTED", str(tmp_path / "executed"))
    return PushedReward(tmp_path / "executed")


def score(reward) -> list[float]:
    return reward(prompts=["p"], completions=["video"])


@pytest.mark.parametrize("at", ["", "@main", "@{commit}"])
def test_code_is_not_executed_unless_it_is_trusted(pushed, at):
    commit = pushed.push()
    with pytest.raises(PermissionError, match=f"only when you say so.*blob/{commit}/level.py.*--trust_remote_code"):
        load_reward(REPO + at.format(commit=commit))
    assert not pushed.was_executed


@pytest.mark.parametrize("at", ["", "@main"])
def test_trusted_code_is_not_executed_without_a_full_commit(pushed, at):
    commit = pushed.push()
    with pytest.raises(PermissionError, match=f"can change after you read it.*--reward_funcs {REPO}@{commit}"):
        load_reward(REPO + at, trust_remote_code=True)
    assert not pushed.was_executed


def test_the_code_of_the_pinned_commit_runs_even_if_there_are_later_ones(pushed):
    first, second = pushed.push(version=1), pushed.push(version=2)
    for commit, value in ((first, 1.5), (second, 2.5), (first, 1.5)):
        reward = load_reward(f"{REPO}@{commit}", trust_remote_code=True)
        assert score(reward) == [value]
        assert reward.describe() == {"hub": f"{REPO}@{commit}"}
    assert score(load_reward(f"{REPO}@{first}", trust_remote_code=True, level=1.0)) == [2.0]


def test_the_source_runs_and_not_a_compiled_file_in_the_repository(pushed, tmp_path):
    """Python would use the compiled file in place of the source, and a user cannot review it."""
    pushed.push()
    malicious = tmp_path / "level.py"
    malicious.write_text("def Level(**options): return lambda **given: ['evil']")
    compiled = py_compile.compile(str(malicious), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    commit = pushed.put(f"__pycache__/{Path(compiled).name}", Path(compiled).read_bytes())
    snapshot_download(REPO, revision=commit)
    assert score(load_reward(f"{REPO}@{commit}", trust_remote_code=True)) == [1.5]


def test_files_of_another_commit_than_the_pinned_one_are_refused(pushed, monkeypatch):
    first, second = pushed.push(version=1), pushed.push(version=2)
    download = HfApi.hf_hub_download

    def download_second(repo, name, revision=None, token=None):
        return download(HfApi(), repo, name, revision=second)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_second)
    with pytest.raises(ValueError, match=f"commit {first} was asked for, and the Hub gave .* of commit {second}"):
        load_reward(f"{REPO}@{first}", trust_remote_code=True)
    assert not pushed.was_executed


def test_a_function_may_be_a_reward_too(pushed):
    commit = pushed.push(reward="level.py:plain", options={})
    reward = load_reward(f"{REPO}@{commit}", trust_remote_code=True)
    runner = RewardRunner(reward)
    assert runner.describe() == {"plain": {"hub": f"{REPO}@{commit}"}} and score(reward) == [1]


def test_a_package_of_new_reward_can_be_pushed_as_its_readme_says(pushed, tmp_path):
    write_package(tmp_path / "smooth", "smooth")
    commit = pushed.api.upload_folder(
        repo_id=REPO, folder_path=tmp_path / "smooth", allow_patterns=["smooth.py", "reward_config.json", "README.md"]
    ).oid
    reward = load_reward(f"{REPO}@{commit}", trust_remote_code=True)
    clip = np.stack([np.full((4, 4, 3), 5 * k, np.uint8) for k in range(3)])
    assert reward(prompts=["p"], completions=[clip]) == [0.5]
    assert reward.describe() == {"hub": f"{REPO}@{commit}", "full": 10.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reward": "../level.py:Level"}, "reward is '../level.py:Level'; expected file.py:Name"),
        ({"reward": "/etc/level.py:Level"}, "expected file.py:Name"),
        ({"reward": "sub/level.py:Level"}, "expected file.py:Name"),
        ({"reward": "other/repo"}, "expected file.py:Name"),
        ({"reward": 3}, "expected file.py:Name"),
        ({"reward": "absent.py:Level"}, "names 'absent.py', which is not in the repository"),
        ({"reward": "level.py:Levle"}, "defines no 'Levle'. Did you mean 'Level'"),
        ({"reward": "dsr_scroe"}, "no reward named 'dsr_scroe'. Did you mean 'dsr_score'"),
        ({"reward": "level.py:Level", "options": [1]}, "options is \\[1\\]"),
        ({"reward": "level.py:Level", "more": 1}, "expected"),
        ([], "expected"),
    ],
)
def test_a_config_that_names_no_reward_is_refused(pushed, config, message):
    pushed.push()
    commit = pushed.put("reward_config.json", json.dumps(config).encode())
    with pytest.raises(ValueError, match=message):
        load_reward(f"{REPO}@{commit}", trust_remote_code=True)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (REPO, ValueError, "is no reward: it has no reward_config.json"),
        ("tester/absent", FileNotFoundError, "tester/absent"),
        (f"{REPO}@v1", FileNotFoundError, "no revision 'v1'"),
    ],
)
def test_a_missing_repository_revision_or_config_is_named(pushed, spec, error, message):
    with pytest.raises(error, match=message):
        load_reward(spec)


@pytest.mark.parametrize("spec", ["me/reward", "me/my.reward-2@main", "me/reward@" + "a" * 40, "me/reward@refs/pr/1"])
def test_owner_and_name_with_or_without_a_revision_are_a_name_on_the_hub(spec):
    assert is_hub_spec(spec)


@pytest.mark.parametrize(
    "spec",
    ["dsr_score", "a/b/c", "../b", "a/..", "a/b@../c", "/a/b", "./a/b", "a/b.py", "a/b.py:C", "http://host/x", "a /b",
     "a/b@", "a\n/b"],
)  # fmt: skip
def test_paths_urls_and_single_words_are_no_names_on_the_hub(spec):
    assert not is_hub_spec(spec)


def test_the_command_line_trusts_no_code_by_itself(pushed):
    with pytest.raises(PermissionError):
        RewardArguments(reward_funcs=[f"{REPO}@{pushed.push()}"]).load_rewards()


def test_the_command_line_passes_trust_and_options_on_and_the_description_names_the_commit(pushed):
    spec = f"{REPO}@{pushed.push()}"
    options = json.dumps({spec: {"level": 0.25}})
    arguments = RewardArguments(reward_funcs=[spec], trust_remote_code=True, reward_options=options)
    (reward,) = arguments.load_rewards()
    assert score(reward) == [1.25]
    assert RewardRunner(reward).describe() == {"level": {"hub": spec}}


# DSR-Score, whose repositories contain only settings

SETTINGS = {
    "tracker": "grounded_sam",
    "tracker_options": {"box_threshold": 0.4, "detector_checkpoint": "owner/detector", "strict": True},
    "min_frames": 7,
}


def test_settings_are_pushed_as_a_private_repository_without_code(loopback_client):
    commit = DSRScore(**SETTINGS).push_to_hub("tester/strict-dsr")
    repo = loopback_client.repo("model", "tester/strict-dsr")
    assert repo.private and repo.at("main").oid == commit
    files = loopback_client.files("model", "tester/strict-dsr")
    assert set(files) == {".gitattributes", "README.md", "reward_config.json"}
    config = json.loads(files["reward_config.json"])
    assert config["reward"] == "dsr_score" and config["options"]["tracker_options"] == SETTINGS["tracker_options"]


def test_settings_are_loaded_in_every_way_and_name_their_commit(loopback_client):
    commit = DSRScore(**SETTINGS).push_to_hub("tester/strict-dsr")
    for reward in (
        DSRScore.from_pretrained("tester/strict-dsr"),
        load_reward("tester/strict-dsr"),
        load_reward(f"tester/strict-dsr@{commit}"),
    ):
        assert reward.describe() == {"hub": f"tester/strict-dsr@{commit}"} | DSRScore(**SETTINGS).describe()
        assert reward.tracker.rules is not None and reward.min_frames == 7


def test_a_loaded_setting_can_be_replaced(loopback_client):
    DSRScore(**SETTINGS).push_to_hub("tester/strict-dsr")
    assert DSRScore.from_pretrained("tester/strict-dsr", min_frames=9).min_frames == 9


def test_pushing_the_same_settings_gives_the_same_bytes(tmp_path):
    first = DSRScore(**SETTINGS).save_pretrained(tmp_path / "first")
    second = DSRScore.from_pretrained(first).save_pretrained(tmp_path / "second")
    for name in ("reward_config.json", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert "hub" not in DSRScore.from_pretrained(first).describe()


def test_a_fresh_process_loads_the_same_scores_and_the_token_is_written_nowhere(loopback_hub, tmp_path, repo_root):
    environment = loopback_hub.environment(tmp_path / "home")
    outputs = [
        run_program("dsr_grades.py", action, "tester/dsr", env=environment, cwd=repo_root)
        for action in ("push", "load")
    ]
    pushed, loaded = outputs
    assert loaded.stdout == pushed.stdout
    assert all(loopback_hub.token not in output.stdout + output.stderr for output in outputs)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or loopback_hub.token.encode() not in file.read_bytes()
    assert all(loopback_hub.token.encode() not in data for data in loopback_hub.files("model", "tester/dsr").values())


def test_settings_of_one_machine_are_not_saved(tmp_path):
    options = {"cache_dir": str(tmp_path / "cache"), "device": "cpu", "trust_remote_code": None, "box_threshold": 0.4}
    folder = DSRScore(tracker="grounded_sam", tracker_options=options).save_pretrained(tmp_path / "saved")
    saved = json.loads((folder / "reward_config.json").read_text())["options"]["tracker_options"]
    assert saved == {"box_threshold": 0.4}
    assert str(tmp_path) not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector_checkpoint": "/data/detector"}, "'/data/detector' is a path"),
        ({"detector_checkpoint": "../detector"}, "is a path"),
        ({"trust_remote_code": True}, "trust_remote_code cannot be saved"),
    ],
)
def test_settings_that_mean_nothing_on_another_machine_cannot_be_saved(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DSRScore(tracker="grounded_sam", tracker_options=options).save_pretrained(tmp_path / "saved")


def test_a_tracker_that_is_an_object_cannot_be_saved(tmp_path):
    tracker = DSRScore().tracker
    with pytest.raises(ValueError, match="only parts given by name can be saved"):
        DSRScore(tracker=tracker).save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tracker_options": {"cache_dir": "home"}}, "sets 'cache_dir', which only this machine may"),
        ({"tracker_options": {"trust_remote_code": True}}, "trust_remote_code cannot be saved or loaded"),
        ({"tracker_options": {"checkpoint": "/etc"}}, "'/etc' is a path"),
        ({"tracker_options": {"checkpoint": "tests/rewards"}}, "is a path"),
        ({"tracker_options": {"checkpoint": "a/../../b"}}, "is a path"),
        ({"tracker": "my_file.py:Tracker"}, "is a path"),
        ({"tracker": "no_such_tracker"}, "no tracker named"),
    ],
)
def test_loaded_settings_may_name_no_paths_and_ask_for_no_code(tmp_path, repo_root, monkeypatch, options, message):
    monkeypatch.chdir(repo_root)
    (tmp_path / "reward_config.json").write_text(json.dumps({"reward": "dsr_score", "options": options}))
    with pytest.raises(ValueError, match=message):
        DSRScore.from_pretrained(tmp_path)


def test_settings_of_another_reward_are_refused(tmp_path):
    (tmp_path / "reward_config.json").write_text(json.dumps({"reward": "motion", "options": {}}))
    with pytest.raises(ValueError, match="contains the reward 'motion', not 'dsr_score'"):
        DSRScore.from_pretrained(tmp_path)


def test_a_missing_folder_of_settings_is_named():
    with pytest.raises(FileNotFoundError, match="no folder '../x'"):
        DSRScore.from_pretrained("../x")


@pytest.mark.parametrize("value", ["false", "true", 1])
def test_a_text_is_no_permission_to_execute_code(pushed, value):
    commit = pushed.push()
    for load in (load_reward, load_hub_reward):
        with pytest.raises(ValueError, match="neither true nor false"):
            load(f"{REPO}@{commit}", trust_remote_code=value)
    with pytest.raises(ValueError, match="trust_remote_code=.*: must be true or false"):
        RewardArguments(reward_funcs=[f"{REPO}@{commit}"], trust_remote_code=value).load_rewards()
    assert not pushed.was_executed
