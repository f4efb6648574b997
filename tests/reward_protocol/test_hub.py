"""Rewards on the Hub: settings need no code; code is executed only if trusted and only from the pinned commit."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi, snapshot_download

from spatialalign_rewards import DSRScore
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.cli.new_reward import write_package
from spatialalign_trl.rewards.hub import load_hub_reward
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rewards.settings import is_hub_spec

CODE = """
from pathlib import Path

Path({mark!r}).touch()

class Level:
    def __init__(self, level=0.0, trainer=None):
        self.__name__, self.level = "level", level

    def __call__(self, prompts, completions, **kwargs):
        return [self.level + {version}] * len(completions)

def plain(prompts, completions, **kwargs):
    return [{version}] * len(completions)
"""
REPO = "tester/my-reward"


class Pushed:
    """A repository of a reward, and the file that its code writes when it is executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.api = HfApi()
        self.api.create_repo(REPO, private=True)

    def push(self, version: int = 1, reward: str = "level.py:Level", **more: object) -> str:
        config = {"reward": reward, "options": {"level": 0.5}} | more
        self.put("level.py", CODE.format(mark=str(self.mark), version=version).encode())
        return self.put("reward_config.json", json.dumps(config).encode())

    def put(self, name: str, data: bytes) -> str:
        return self.api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=REPO).oid

    @property
    def was_executed(self) -> bool:
        return self.mark.exists()


@pytest.fixture
def pushed(loopback_client, tmp_path) -> Pushed:
    return Pushed(tmp_path / "executed")


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


def test_the_pinned_commits_code_runs_whatever_came_later(pushed):
    first, second = pushed.push(version=1), pushed.push(version=2)
    for commit, value in ((first, 1.5), (second, 2.5), (first, 1.5)):
        reward = load_reward(f"{REPO}@{commit}", trust_remote_code=True)
        assert score(reward) == [value]
        assert reward.describe() == {"hub": f"{REPO}@{commit}"}
    assert score(load_reward(f"{REPO}@{first}", trust_remote_code=True, level=1.0)) == [2.0]


def test_a_compiled_file_beside_the_source_is_not_what_runs(pushed, tmp_path):
    """Python would use the compiled file in place of the source, and a user cannot review it."""
    pushed.push()
    evil = tmp_path / "level.py"
    evil.write_text("def Level(**options): return lambda **given: ['evil']")
    compiled = py_compile.compile(str(evil), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    commit = pushed.put(f"__pycache__/{Path(compiled).name}", Path(compiled).read_bytes())
    snapshot_download(REPO, revision=commit)
    assert score(load_reward(f"{REPO}@{commit}", trust_remote_code=True)) == [1.5]


def test_another_commits_files_are_refused(pushed, monkeypatch):
    first, second = pushed.push(version=1), pushed.push(version=2)
    real = HfApi.hf_hub_download

    def swapped(repo, name, revision=None, token=None):
        return real(HfApi(), repo, name, revision=second)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", swapped)
    with pytest.raises(ValueError, match=f"commit {first} was asked for, and the Hub gave .* of commit {second}"):
        load_reward(f"{REPO}@{first}", trust_remote_code=True)
    assert not pushed.was_executed


def test_a_function_may_be_a_reward_too(pushed):
    commit = pushed.push(reward="level.py:plain", options={})
    reward = load_reward(f"{REPO}@{commit}", trust_remote_code=True)
    runner = RewardRunner(reward)
    assert runner.describe() == {"plain": {"hub": f"{REPO}@{commit}"}} and score(reward) == [1]


def test_what_new_reward_writes_can_be_pushed_as_its_readme_says(pushed, tmp_path):
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
def test_configs_that_are_refused(pushed, config, message):
    pushed.push()
    commit = pushed.put("reward_config.json", json.dumps(config).encode())
    with pytest.raises(ValueError, match=message):
        load_reward(f"{REPO}@{commit}", trust_remote_code=True)


def test_a_repository_that_is_no_reward_or_is_not_there(pushed):
    with pytest.raises(ValueError, match="is no reward: it has no reward_config.json"):
        load_reward(REPO)
    with pytest.raises(FileNotFoundError, match="tester/absent"):
        load_reward("tester/absent")
    with pytest.raises(FileNotFoundError, match="no revision 'v1'"):
        load_reward(f"{REPO}@v1")


def test_what_is_a_name_on_the_hub():
    for spec in ("me/reward", "me/my.reward-2@main", "me/reward@" + "a" * 40, "me/reward@refs/pr/1"):
        assert is_hub_spec(spec)
    for spec in (
        "dsr_score", "a/b/c", "../b", "a/..", "a/b@../c", "/a/b", "./a/b", "a/b.py", "a/b.py:C", "http://host/x",
        "a /b", "a/b@", "a\n/b",
    ):  # fmt: skip
        assert not is_hub_spec(spec), spec


def test_the_command_line_takes_it_and_what_run_json_keeps_names_the_commit(pushed):
    spec = f"{REPO}@{pushed.push()}"
    with pytest.raises(PermissionError):
        PromptArguments(reward_funcs=[spec]).load_rewards()
    options = json.dumps({spec: {"level": 0.25}})
    arguments = PromptArguments(reward_funcs=[spec], trust_remote_code=True, reward_options=options)
    (reward,) = arguments.load_rewards()
    assert score(reward) == [1.25]
    assert RewardRunner(reward).describe() == {"level": {"hub": spec}}


# DSR-Score, whose repositories contain only settings

SETTINGS = {
    "tracker": "grounded_sam",
    "tracker_options": {"box_threshold": 0.4, "detector_checkpoint": "owner/detector", "strict": True},
    "min_frames": 7,
}


def test_dsr_score_comes_back_from_the_hub_without_code(loopback_client):
    commit = DSRScore(**SETTINGS).push_to_hub("tester/strict-dsr")
    repo = loopback_client.repo("model", "tester/strict-dsr")
    assert repo.private and repo.at("main").oid == commit
    files = loopback_client.files("model", "tester/strict-dsr")
    assert set(files) == {".gitattributes", "README.md", "reward_config.json"}
    config = json.loads(files["reward_config.json"])
    assert config["reward"] == "dsr_score" and config["options"]["tracker_options"] == SETTINGS["tracker_options"]
    for reward in (
        DSRScore.from_pretrained("tester/strict-dsr"),
        load_reward("tester/strict-dsr"),
        load_reward(f"tester/strict-dsr@{commit}"),
    ):
        assert reward.describe() == {"hub": f"tester/strict-dsr@{commit}"} | DSRScore(**SETTINGS).describe()
        assert reward.tracker.rules is not None and reward.min_frames == 7
    assert DSRScore.from_pretrained("tester/strict-dsr", min_frames=9).min_frames == 9


def test_pushing_the_same_settings_gives_the_same_bytes(tmp_path):
    first = DSRScore(**SETTINGS).save_pretrained(tmp_path / "first")
    second = DSRScore.from_pretrained(first).save_pretrained(tmp_path / "second")
    for name in ("reward_config.json", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert "hub" not in DSRScore.from_pretrained(first).describe()


def test_a_fresh_process_loads_the_same_scores(loopback_hub, tmp_path, repo_root):
    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=repo_root, env=loopback_hub.environment(tmp_path / "home"),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert loopback_hub.token not in done.stdout + done.stderr
        return done.stdout

    grade = (
        "import numpy as np\nfrom spatialalign_rewards import DSRScore\n"
        "from spatialalign_trl.rewards.loading import load_reward\n"
        "clips = list(np.random.default_rng(0).integers(0, 256, (2, 9, 32, 48, 3), dtype=np.uint8))\n"
        "columns = {'type': ['LR'] * 2, 'animal': ['fox'] * 2, 'object': ['stump'] * 2, 'attribute': ['red'] * 2}\n"
        "say = lambda reward: print(*reward.grade(clips, **columns))\n"
    )
    pushed = python(grade + "reward = DSRScore(min_frames=3)\nreward.push_to_hub('tester/dsr')\nsay(reward)")
    assert python(grade + "say(load_reward('tester/dsr'))") == pushed
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
def test_settings_that_mean_nothing_elsewhere_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DSRScore(tracker="grounded_sam", tracker_options=options).save_pretrained(tmp_path / "saved")


def test_an_object_cannot_be_saved(tmp_path):
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
def test_settings_from_elsewhere_name_no_paths_and_ask_for_no_code(tmp_path, repo_root, monkeypatch, options, message):
    monkeypatch.chdir(repo_root)
    (tmp_path / "reward_config.json").write_text(json.dumps({"reward": "dsr_score", "options": options}))
    with pytest.raises(ValueError, match=message):
        DSRScore.from_pretrained(tmp_path)


def test_another_rewards_settings_are_refused(tmp_path):
    (tmp_path / "reward_config.json").write_text(json.dumps({"reward": "motion", "options": {}}))
    with pytest.raises(ValueError, match="contains the reward 'motion', not 'dsr_score'"):
        DSRScore.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder '../x'"):
        DSRScore.from_pretrained("../x")


@pytest.mark.parametrize("value", ["false", "true", 1])
def test_a_text_is_no_permission_to_execute_code(pushed, value):
    commit = pushed.push()
    for load in (load_reward, load_hub_reward):
        with pytest.raises(ValueError, match="neither true nor false"):
            load(f"{REPO}@{commit}", trust_remote_code=value)
    with pytest.raises(ValueError, match="neither true nor false"):
        PromptArguments(reward_funcs=[f"{REPO}@{commit}"], trust_remote_code=value).load_rewards()
    assert not pushed.was_executed
