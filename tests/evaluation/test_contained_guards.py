"""Quality guards are somebody's code, as rewards are: they neither end a run nor change it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.evaluation import get_guard, guards, measure_quality
from spatialalign_trl.evaluation.guards import run_guard
from spatialalign_trl.evaluation.looks import QualityMeasures
from spatialalign_trl.evaluation.model_guards import RewardGuard
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.rewards import containment
from spatialalign_trl.rewards.calling import LARGEST
from spatialalign_trl.rollout.store import SampleStore

VIDEO = np.full((3, 136, 144, 3), 90, np.uint8)
ROW = {"prompt_id": "p0", "prompt": "a red fox"}


@pytest.fixture(autouse=True)
def forget_what_was_logged(monkeypatch):
    monkeypatch.setattr(containment, "_logged", set())


def state_of_the_process() -> dict:
    return {
        "cwd": os.getcwd(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "numpy errors": np.geterr(),
        "torch": torch.get_rng_state().tolist(),
    }


CHANGES = {
    "cwd": lambda: os.chdir("/"),
    "grad": lambda: torch.set_grad_enabled(False),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "numpy errors": lambda: np.seterr(all="raise"),
    "torch": lambda: torch.manual_seed(0),
}


class Guard:
    """A guard that does something wherever its code runs."""

    def __init__(self, action, way):
        self.action, self.way = action, way

    def prepare(self):
        if self.way == "prepare":
            self.action()

    def check_prompts(self, rows):
        if self.way == "check_prompts":
            self.action()

    def release(self):
        if self.way == "release":
            self.action()

    def __call__(self, videos, rows):
        if self.way == "call":
            self.action()
        return {"brightness": [float(video.mean()) for video in videos]}


@pytest.fixture
def measured(tmp_path):
    """Measure a stored video with guards, as an evaluation does."""
    store = SampleStore(tmp_path / "samples")
    settings = SamplingSettings(num_frames=3, height=136, width=144, num_inference_steps=1, guidance_scale=1.0, fps=8)
    sample = store.new_sample(ROW, 0, settings.to_dict(), "base")
    store.add(sample, VIDEO, torch.zeros(1, 1, 1, 1), fps=8, crf=0)

    def measure(**extra):
        quality = QualityMeasures([], tmp_path / "looks", [ROW], extra=extra)
        means, _ = quality.measure(store, [sample])
        quality.release()
        return means

    return measure


@pytest.mark.parametrize("way", ["prepare", "check_prompts", "call", "release"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_process_is_as_before(change, way, measured, caplog):
    before = state_of_the_process()
    with caplog.at_level(logging.WARNING):
        assert measured(mine=Guard(CHANGES[change], way))["brightness"] == pytest.approx(90, abs=2)
    assert state_of_the_process() == before
    assert ("quality guard 'mine' changed" in caplog.text) == (change != "torch")  # drawing numbers is normal


@pytest.mark.parametrize(
    ("way", "error"), [("prepare", ValueError), ("check_prompts", ValueError), ("call", RuntimeError)]
)
def test_a_guard_that_exits_is_named(way, error, measured):
    with pytest.raises(error, match=r"the quality guard 'mine' called sys.exit\(3\)"):
        measured(mine=Guard(lambda: sys.exit(3), way))


def test_a_guard_that_exits_while_it_releases_its_models_is_a_warning(measured, caplog):
    assert measured(mine=Guard(lambda: sys.exit(3), "release"))["brightness"] == pytest.approx(90, abs=2)
    assert "'mine' did not release its models" in caplog.text


def test_a_guard_that_exits_while_it_is_made_is_a_wrong_setting(monkeypatch, tmp_path):
    (tmp_path / "leaving_guard.py").write_text("import sys\nclass Leaving:\n    def __init__(self): sys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(guards.GUARDS, "leaving", "leaving_guard:Leaving")
    with pytest.raises(ValueError, match="quality guard 'leaving': called sys.exit"):
        get_guard("leaving")


def test_a_guard_that_writes_into_its_videos_changes_no_other_measure(measured):
    def blackens(videos, rows):
        videos[0][:] = 0
        return {"black": [0.0]}

    mine = Guard(lambda: None, "call")
    assert measured(blackens=blackens, mine=mine)["brightness"] == pytest.approx(90, abs=2)
    assert measure_quality([blackens, mine], [VIDEO.copy()], [ROW])[0]["brightness"] == 90


NUMBERS = st.one_of(
    st.none(), st.floats(), st.integers(), st.booleans(), st.floats(width=32).map(np.float32), st.text(max_size=3)
)


@given(st.lists(NUMBERS, min_size=1, max_size=3), NUMBERS, st.booleans())
def test_every_measure_is_a_number_that_files_and_means_can_hold(values, value, as_array):
    each = values
    if as_array and all(isinstance(number, float) for number in values):
        each = np.array(values)
    found = run_guard("mine", lambda videos, rows: {"each": each, "all": value}, [VIDEO] * len(values), [ROW])
    for given_number, number in zip([*values, value], [*found["each"], found["all"]], strict=True):
        assert number is None or (type(number) is float and abs(number) <= LARGEST)
        if isinstance(given_number, (int, float)) and abs(given_number) <= LARGEST:
            assert number == given_number
    json.dumps(found, allow_nan=False)


def test_numbers_that_no_mean_can_hold_are_not_measured_and_that_is_logged(measured, caplog):
    means = measured(mine=lambda videos, rows: {"huge": [1e200], "nan": math.nan, "sound": [2]})
    assert means == {"huge": None, "nan": None, "sound": 2.0}
    assert "returned 1e+200, which is beyond 1e+30 in magnitude: huge was not measured" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [([1.0], "list"), (None, "NoneType"), ({"x": [1.0, 2.0]}, "2 values of x")],
)
def test_an_answer_that_is_no_measure_names_the_guard(answer, message, measured):
    with pytest.raises(ValueError, match=f"the quality guard 'mine' returned {message}"):
        measured(mine=lambda videos, rows: answer)


def test_a_reward_as_a_guard_is_contained_and_may_be_async():
    before = state_of_the_process()

    async def later(prompts, completions, log_extra, **kwargs):
        await asyncio.sleep(0)
        os.chdir("/")
        log_extra("later_speed", [1e200])
        log_extra("later_steps", [7])
        return [math.inf]

    def exits(prompts, completions, **kwargs):
        sys.exit(3)

    assert RewardGuard(later)([VIDEO], [ROW]) == {"later_score": [None], "later_steps": [7.0]}
    assert state_of_the_process() == before
    with pytest.raises(RuntimeError, match="the quality guard 'exits' called"):
        run_guard("exits", RewardGuard(exits), [VIDEO], [ROW])
