"""The examples of rewards/README.md run as they are printed, and its tables are complete."""

import configparser
import importlib.metadata
import re

import numpy as np
import pytest

from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.perception.tracks import TRACKERS
from spatialalign_trl.prompts import RELATIONS
from spatialalign_trl.prompts.relations import wording_table
from spatialalign_trl.rewards.convention import ENTRY_POINT_GROUP
from spatialalign_trl.rewards.runner import RewardRunner, load_reward


@pytest.fixture(scope="module")
def blocks(repo_root):
    """Return the README's fenced blocks: language -> contents, in order."""
    blocks_of = {}
    for language, content in re.findall(
        r"```(\w+)\n(.*?)```", (repo_root / "rewards" / "README.md").read_text(), re.S
    ):
        blocks_of.setdefault(language, []).append(content)
    return blocks_of


@pytest.fixture
def videos():
    return [np.full((9, 32, 32, 3), level, dtype=np.uint8) for level in (0, 51, 255)]


@pytest.fixture
def my_reward(blocks, tmp_path, monkeypatch) -> None:
    """Write the README's first reward into the current folder."""
    (tmp_path / "my_reward.py").write_text(blocks["python"][0])
    monkeypatch.chdir(tmp_path)


def test_the_first_reward_has_ten_lines(blocks):
    assert len(blocks["python"][0].splitlines()) <= 10


def test_the_usage_of_the_first_reward_prints_what_the_readme_says(blocks, my_reward, capsys):
    usage = blocks["python"][1]
    exec(compile(usage, "rewards/README.md", "exec"), {})
    assert "# [None, 0.2, 1.0]" in usage
    assert capsys.readouterr().out == "[None, 0.2, 1.0]\n"


def test_the_first_reward_runs_in_the_runner_and_logs_the_brightness(my_reward, videos):
    output = RewardRunner(load_reward("my_reward.py:brightness"))(["p"] * 3, videos)
    assert output.extra["brightness"] == [0.0, 0.2, 1.0]
    assert output.metrics["rewards/brightness/invalid_rate"] == pytest.approx(1 / 3)
    assert output.errors == {}


MOVING = np.stack([np.full((8, 8, 3), 5 * k, np.uint8) for k in range(4)])


@pytest.fixture
def frame_change(blocks, tmp_path) -> str:
    """Write the README's class to a file and return how it is loaded."""
    (tmp_path / "frame_change.py").write_text(blocks["python"][2])
    return f"{tmp_path / 'frame_change.py'}:FrameChange"


def test_the_class_has_its_own_name_and_requires_its_column(frame_change):
    runner = RewardRunner(frame_change)
    assert runner.names == ["frame_change"]
    with pytest.raises(ValueError, match="'frame_change' needs the prompt column 'animal'"):
        runner.check_columns(["prompt"])


def test_the_class_scores_motion_and_logs_a_metric(frame_change, videos):
    output = RewardRunner(frame_change)(["p"] * 4, [*videos, MOVING], {"animal": ["fox"] * 4})
    assert output.rewards == [0.0, 0.0, 0.0, 0.5]
    assert output.metrics["grey_levels"] == pytest.approx(1.25)


def test_the_class_takes_an_option(frame_change):
    assert load_reward(frame_change, full=5.0)(prompts=["p"], completions=[MOVING]) == [1.0]


def test_the_entry_point_registers_the_class(blocks, tmp_path, monkeypatch):
    parser = configparser.ConfigParser()
    parser.read_string(blocks["ini"][0])
    name, value = (part.strip() for part in parser["options.entry_points"][ENTRY_POINT_GROUP].split("="))
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "frame_change.py").write_text(blocks["python"][2])
    # The files that an installation of that package creates, by which entry points are found.
    information = tmp_path / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("frame_change", full=2.0).full == 2.0
    assert RewardRunner(["dsr_score", "frame_change"], reward_weights=[1.0, 0.2]).names == [
        "dsr_score",
        "frame_change",
    ]


def test_the_table_names_every_reward_that_is_registered_here(repo_root):
    text = (repo_root / "rewards" / "README.md").read_text()
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    points = [point for point in points if point.module.startswith("spatialalign_")]
    assert points
    for point in points:
        assert f"| `{point.name}` |" in text
        columns = ", ".join(f"`{column}`" for column in point.load().required_columns)
        assert columns in text


def test_the_config_of_several_rewards_sets_weights_and_gates(blocks, tmp_path):
    pytest.importorskip("cv2")
    config = tmp_path / "config.yaml"
    config.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\n{blocks['yaml'][0]}")
    rewards, args = parse_recipe((RewardArguments, OnlineSpatialAlignConfig), config, [])
    runner = RewardRunner(
        rewards.load_rewards(), args.reward_weights, 0.5, args.reward_normalization, args.reward_gates
    )
    assert runner.combination.gates == {"motion": 0.02, "dsr_score": 0}
    assert runner.combination.weights == {"dsr_score": 1.0, "clip_similarity": 0.5, "motion": 0.0}


def test_the_config_with_options_loads_its_rewards(blocks, tmp_path):
    pytest.importorskip("cv2")
    _, options = blocks["yaml"]
    config = tmp_path / "config.yaml"
    config.write_text(options)
    (rewards,) = parse_recipe((RewardArguments,), config, [])
    assert [reward.__name__ for reward in rewards.load_rewards()] == ["dsr_score", "motion"]


def test_the_array_example_prints_what_it_says(blocks, capsys):
    example = next(block for block in blocks["py"] if "score_box_arrays" in block)
    exec(compile(example, "rewards/README.md", "exec"), {})
    assert f"print(scores)  # {capsys.readouterr().out.strip()}\n" in example


def test_the_table_names_every_tracker(repo_root):
    text = (repo_root / "rewards" / "README.md").read_text()
    for name in TRACKERS:
        assert f"| `{name}`" in text


def test_the_table_of_phrases_is_the_one_that_is_read(repo_root):
    assert f"\n\n{wording_table()}\n\n" in (repo_root / "rewards" / "README.md").read_text()


def test_the_description_of_a_prompt_is_as_printed(blocks, capsys):
    example = next(block for block in blocks["py"] if "describe()" in block)
    exec(example, {})
    assert capsys.readouterr().out.strip() == re.search(r"# (.*)", example)[1]


def test_the_table_names_every_relation_and_its_words(repo_root):
    text = (repo_root / "rewards" / "README.md").read_text()
    for code, relation in RELATIONS.items():
        assert re.search(rf"\| `{code}` \| .* \| {relation.initial} \| {relation.final} \|", text)
