"""A reward is found by its entry point, its file, or as an object, and a missing one is named with the nearest."""

import functools
import importlib.metadata

import pytest
from fresh_process import PROGRAMS

from spatialalign_trl.rewards.convention import required_columns, reward_name
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.runner import RewardRunner

REWARD_FILE = PROGRAMS / "my_rewards.py"
NAMES = "Mute, Scaled, brightness"  # the functions and classes that it defines


def entry_points_are(monkeypatch, *points):
    """Pretend that these (name, value) are the installed entry points."""
    group = "spatialalign_trl.rewards"
    installed = importlib.metadata.EntryPoints(importlib.metadata.EntryPoint(n, v, group) for n, v in points)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **selection: installed.select(**selection))


def plain(prompts, completions, type, level=1, **kwargs):
    return [level] * len(completions)


class Judge:
    required_columns = ("animal", "type")

    def __call__(self, prompts, completions, type, scene, attribute=None, *, verb, log_extra=None, **kwargs):
        return [1.0] * len(completions)


def test_a_function_is_used_as_it_is():
    assert load_reward(plain) is plain


def test_arguments_are_bound_to_a_function():
    reward = load_reward(plain, level=7)
    assert reward(prompts=["p"], completions=["v"], type=["LR"]) == [7]
    assert reward_name(reward) == "plain"


class Threshold:
    def __init__(self, level=0.5, device="cpu", model=None):
        self.level = level

    def __call__(self, prompts, completions, **kwargs):
        return [self.level] * len(completions)


@pytest.mark.parametrize(("reward", "name"), [(plain, "plain"), (Threshold, "Threshold")])
def test_options_are_described_so_that_a_rerun_with_others_is_noticed(reward, name):
    descriptions = [RewardRunner(load_reward(reward, level=level)).describe() for level in (1, 2)]
    assert descriptions == [{name: {"options": {"level": level}}} for level in (1, 2)]
    assert RewardRunner(load_reward(reward)).describe() == {name: None}


def test_only_options_that_mean_the_same_in_every_process_are_described():
    made = load_reward(Threshold, level=1, device="cuda:1", model=object())
    assert made.describe() == {"options": {"level": 1}}  # a device changes no score, and an object has no value


def test_a_class_is_instantiated_and_an_instance_is_not():
    judge = Judge()
    assert isinstance(load_reward(Judge), Judge)
    assert load_reward(judge) is judge


def test_an_entry_point_is_found_by_name(monkeypatch):
    entry_points_are(monkeypatch, ("judge", f"{__name__}:Judge"), ("plain", f"{__name__}:plain"))
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: globals()[self.attr])
    assert isinstance(load_reward("judge"), Judge)
    assert load_reward("plain") is plain


def test_the_installed_entry_point_of_dsr_score():
    (point,) = importlib.metadata.entry_points(group="spatialalign_trl.rewards", name="dsr_score")
    assert point.value == "spatialalign_rewards.dsr_score:DSRScore"
    assert point.load().required_columns == ("type", "animal", "object")


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="named 'drs_score'. Did you mean 'dsr_score'.*path/to/file.py:Name"):
        load_reward("drs_score")


def test_a_name_claimed_twice_is_refused(monkeypatch):
    entry_points_are(monkeypatch, ("judge", "one:Judge"), ("judge", "two:Judge"))
    with pytest.raises(ValueError, match="several packages: one:Judge, two:Judge"):
        load_reward("judge")


@pytest.mark.parametrize("value", ["no_such_module_here:Judge", "json:NoSuchReward"])
def test_a_broken_entry_point_is_named(monkeypatch, value):
    entry_points_are(monkeypatch, ("judge", value))
    with pytest.raises(ImportError, match=f"The reward 'judge' \\({value}\\) cannot be imported"):
        load_reward("judge")


def test_a_reward_is_loaded_from_a_file_by_its_name():
    assert load_reward(f"{REWARD_FILE}:brightness").__name__ == "brightness"
    assert load_reward(f"{REWARD_FILE}:Scaled", factor=2.0)(prompts=["p"], completions=["v"]) == [2.0]


def test_files_of_one_name_do_not_replace_each_other():
    other_file = PROGRAMS / "other_folder" / "my_rewards.py"
    first, second = load_reward(f"{REWARD_FILE}:brightness"), load_reward(f"{other_file}:brightness")
    assert second(prompts=[], completions=[]) == ["other"]
    assert first(prompts=[], completions=[]) == []


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (f"{PROGRAMS}/absent.py:brightness", FileNotFoundError, "no file .*absent.py.*'brightness'"),
        (f"{REWARD_FILE}:brightnes", ValueError, "no 'brightnes'. Did you mean 'brightness'.*Known: " + NAMES),
        (f"{REWARD_FILE}", ValueError, "name of the reward is missing.*Known: " + NAMES),
        (f"{REWARD_FILE}:NUMBER", TypeError, "is 3, which cannot be called"),
        (f"{REWARD_FILE}:Mute", TypeError, "class Mute has no __call__"),
    ],
)
def test_a_file_or_name_that_is_no_reward_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        load_reward(spec)


def test_a_file_that_cannot_be_imported_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_here\n")
    with pytest.raises(ImportError, match="broken.py cannot be imported: ModuleNotFoundError: .*no_such_module_here"):
        load_reward(f"{path}:reward")


def test_names_are_those_of_trl():
    judge = Judge()
    assert reward_name(functools.partial(functools.partial(plain, level=1), type=["LR"])) == "plain"
    assert reward_name(judge) == "Judge"
    judge.__name__ = "judge"
    assert reward_name(judge) == "judge"


def test_required_columns_are_declared_or_parameters_without_default():
    assert required_columns(plain) == ["type"]
    assert required_columns(Judge()) == ["animal", "type", "scene", "verb"]
    assert required_columns(functools.partial(plain, type="LR")) == []


def test_a_single_required_column_may_be_a_string():
    def reward(prompts, completions, **kwargs): ...

    reward.required_columns = "scene"
    assert required_columns(reward) == ["scene"]


@pytest.mark.parametrize("value", ["false", "False", "no", 1, 0, [True]])
def test_only_a_boolean_permits_code(value):
    for arguments in (
        {"trust_remote_code": value},
        {"tracker": "sam3", "tracker_options": {"trust_remote_code": value}},
    ):
        with pytest.raises(ValueError, match=r"'dsr_score'.*trust_remote_code=.* is neither true nor false"):
            load_reward("dsr_score", **arguments)


def test_the_error_about_a_permission_shows_no_url():
    with pytest.raises(ValueError, match="a reward on a server") as error:
        load_reward("http://me:secret@host/score", trust_remote_code="false")
    assert "secret" not in str(error.value)
