"""Rewards are somebody's code: they neither end a run nor change it, whatever they do to the process."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import pathlib
import random
import signal
import socket
import sys
import threading
import warnings
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from spatialalign_trl.files import write_json
from spatialalign_trl.online.log_samples import LogSamples
from spatialalign_trl.report.write import _Grader
from spatialalign_trl.rewards import containment
from spatialalign_trl.rewards.calling import LARGEST, CallLog
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.store import plain

COUNT = 2


def judge(rewards, count=COUNT, **options):
    return RewardRunner(rewards, **options)(["p"] * count, [None] * count)


def doing(action, name="bad", values=(0.5, 0.25)):
    """Return a reward that does something and then judges."""

    def reward(prompts, completions, **kwargs):
        action(**kwargs)
        return list(values)

    reward.__name__ = name
    return reward


def in_time(call):
    """Return what a call returns, or fail after 30 seconds: a lost answer would be waited for for ever."""
    future = Future()

    def run():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout=30)


def good(prompts, completions, **kwargs):
    return [1.0] * len(completions)


@pytest.fixture(autouse=True)
def forget_what_was_logged(monkeypatch):
    monkeypatch.setattr(containment, "_logged", set())


# ---------------------------------------------------------------------------------------------------- the process


def state_of_the_process() -> dict:
    return {
        "cwd": os.getcwd(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "anomaly": torch.is_anomaly_enabled(),
        "numpy errors": np.geterr(),
        "gc": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "socket": socket.getdefaulttimeout(),
        "streams": (sys.stdout, sys.stderr),
        "logging": logging.root.manager.disable,
        "SIGINT": signal.getsignal(signal.SIGINT),
        "errors": [entry for entry in warnings.filters if entry[0] == "error"],
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
    }


def set_seeds(**kwargs) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


CHANGES = {
    "cwd": lambda **k: os.chdir("/"),
    "grad": lambda **k: torch.set_grad_enabled(False),
    "dtype": lambda **k: torch.set_default_dtype(torch.float64),
    "device": lambda **k: torch.set_default_device("meta"),
    "threads": lambda **k: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic": lambda **k: torch.use_deterministic_algorithms(True),
    "precision": lambda **k: torch.set_float32_matmul_precision("medium"),
    "benchmark": lambda **k: setattr(torch.backends.cudnn, "benchmark", True),
    "anomaly": lambda **k: torch.autograd.set_detect_anomaly(True),
    "numpy errors": lambda **k: np.seterr(all="raise"),
    "gc": lambda **k: gc.disable(),
    "recursion": lambda **k: sys.setrecursionlimit(5000),
    "socket": lambda **k: socket.setdefaulttimeout(0.001),
    "streams": lambda **k: setattr(sys, "stdout", None),
    "logging": lambda **k: logging.disable(logging.CRITICAL),
    "SIGINT": lambda **k: signal.signal(signal.SIGINT, signal.SIG_IGN),
    "errors": lambda **k: warnings.simplefilter("error"),
    "python": set_seeds,
    "numpy": set_seeds,
    "torch": set_seeds,
}
QUIET = {"python", "numpy", "torch"}  # drawing random numbers is normal


@pytest.mark.parametrize("way", ["plain", "raising", "check_prompts", "describe", "release", "loading"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_process_is_as_before(change, way, caplog):
    class Changing:
        __name__ = "changing"

        def __init__(self):
            if way == "loading":
                CHANGES[change]()

        def __call__(self, prompts, completions, **kwargs):
            if way in ("plain", "raising"):
                CHANGES[change]()
                assert state_of_the_process()[change] != before[change]
            if way == "raising":
                raise RuntimeError("halfway")
            return [1.0] * len(completions)

        def check_prompts(self, **columns):
            if way == "check_prompts":
                CHANGES[change]()

        def describe(self):
            if way == "describe":
                CHANGES[change]()

        def release(self):
            if way == "release":
                CHANGES[change]()

    before = state_of_the_process()
    with caplog.at_level(logging.WARNING):
        runner = RewardRunner([load_reward(Changing), good])
        runner.check_prompts([{"prompt": "p"}])
        runner.describe()
        output = runner(["p"] * COUNT, [None] * COUNT)
        runner.release()
    assert state_of_the_process() == before
    assert output.per_reward["good"] == [1.0] * COUNT
    assert ("which holds for the whole process" in caplog.text) == (change not in QUIET)


@pytest.mark.parametrize("change", sorted(set(CHANGES) - {"SIGINT", "grad"}))  # of the main thread alone
def test_async_rewards_leave_the_process_as_it_was_too(change):
    async def changing(prompts, completions, **kwargs):
        await asyncio.sleep(0)
        CHANGES[change]()
        return [1.0] * len(completions)

    before = state_of_the_process()
    assert judge([changing, good]).rewards == [2.0] * COUNT
    assert state_of_the_process() == before


def test_a_reward_does_not_change_what_the_next_one_sees():
    seen = []

    def looking(prompts, completions, **kwargs):
        seen.append((torch.tensor(1.0).dtype, torch.is_grad_enabled(), os.getcwd()))
        return [1.0] * len(completions)

    judge([doing(lambda **k: (CHANGES["dtype"](), CHANGES["grad"](), CHANGES["cwd"]())), looking])
    assert seen == [(torch.float32, True, os.getcwd())]


def test_a_reward_that_writes_into_its_videos_changes_no_other_score():
    def blackens(prompts, completions, **kwargs):
        for video in completions:
            video[:] = 0
        return [1.0] * len(completions)

    def brightness(prompts, completions, **kwargs):
        return [float(video.mean()) for video in completions]

    videos = [np.full((3, 136, 144, 3), value, np.uint8) for value in (90, 200)]
    runner = RewardRunner([blackens, brightness])
    assert runner(["p"] * 2, videos).per_reward["brightness"] == [90.0, 200.0]


def test_what_a_sound_reward_returns_and_logs_stays_the_same():
    def sound(prompts, completions, log_extra, log_metric, **kwargs):
        log_extra("seen", [np.float32(0.5), {"a": (1, None), "b": np.arange(3)}])
        log_metric("speed", 2)
        return np.array([0.1, 1e29])

    output = judge(sound)
    assert output.rewards == [0.1, 1e29] and output.errors == {}
    assert output.extra == {"seen": [0.5, {"a": [1, None], "b": [0, 1, 2]}]}
    assert plain(output.extra) == output.extra and output.metrics["speed"] == 2


# ---------------------------------------------------------------------------------------------------- leaving


async def exits_later(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    sys.exit(3)


async def exits_in_a_task(prompts, completions, **kwargs):
    async def task():
        sys.exit(3)

    await asyncio.create_task(task())


def exits(prompts, completions, **kwargs):
    sys.exit(3)


@pytest.mark.parametrize("leaving", [exits, exits_later, exits_in_a_task])
def test_a_reward_that_exits_fails_and_the_others_go_on(leaving):
    runner = RewardRunner([leaving, good])
    for _ in range(2):
        output = in_time(lambda: runner(["p"] * COUNT, [None] * COUNT))
        assert output.per_reward == {leaving.__name__: [None] * COUNT, "good": [1.0] * COUNT}
        assert output.errors[leaving.__name__] == [
            "RewardExit: called sys.exit(3). Raise an exception instead, or return None for INVALID"
        ]


def test_an_async_reward_that_is_interrupted_interrupts_the_run():
    async def interrupted(prompts, completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_time(lambda: judge([interrupted, good]))


@pytest.mark.parametrize("error", [asyncio.CancelledError("x"), GeneratorExit("x"), RecursionError("x")])
def test_exceptions_of_all_kinds_are_the_reward_s(error):
    def raising(prompts, completions, **kwargs):
        raise error

    assert judge([raising, good]).errors == {"raising": [f"{type(error).__name__}: x"]}


@pytest.mark.parametrize("code", ["import sys\nsys.exit()", "class R:\n    def __init__(self): exit_now()\n"])
def test_a_file_that_exits_is_named_before_anything_is_sampled(tmp_path, code):
    file = tmp_path / "script.py"
    file.write_text("import sys\nexit_now = sys.exit\n" + code + "\n")
    with pytest.raises(ImportError, match=r"script\.py"):
        load_reward(f"{file}:R")


def test_what_else_of_a_reward_exits_is_an_error_that_names_it(caplog):
    class Exiting:
        __name__ = "exiting"

        def __call__(self, prompts, completions, **kwargs): ...

        def check_prompts(self, **columns):
            sys.exit()

        release = check_prompts

    runner = RewardRunner(Exiting())
    with pytest.raises(ValueError, match="'exiting' cannot score these prompts: called sys.exit"):
        runner.check_prompts([{"prompt": "p"}])
    with caplog.at_level(logging.WARNING):
        runner.release()  # after the scores were paid for
    assert "'exiting' did not release its models: RewardExit" in caplog.text


def test_curves_of_a_reward_that_exits_are_missing_and_the_page_is_written():
    row = {"type": "LR", "animal": "fox", "object": "stump"}
    grader = _Grader({}, lambda videos, **columns: sys.exit(), None)
    with pytest.warns(UserWarning, match="Curves and boxes of some videos are missing: RewardExit"):
        assert grader([SimpleNamespace(row=row)], [None]) == [None]


# ---------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [1e308, -1e308, 1.1e30, 10**31, np.float64(1e300)])
def test_numbers_that_overflow_sums_are_refused(value):
    output = judge(doing(lambda **k: None, values=[value, 0.5]), reward_weights=[1e30])
    assert output.per_reward["bad"] == [None, 0.5]
    assert "is beyond 1e+30 in magnitude" in output.extra["bad_error"][0]
    assert all(math.isfinite(number) for number in output.metrics.values())


class Odd:
    def __init__(self, **methods):
        self.methods = methods

    def __float__(self):
        raise RuntimeError("no number")

    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("value", [10**400, 10**5000, Odd(), 1j, [1], object(), "\ud800", b"1"], ids=type)
def test_values_that_are_no_numbers_spoil_their_video_alone(value, tmp_path):
    output = judge(doing(lambda **k: None, values=[value, 0.5]))
    assert output.per_reward["bad"] == [None, 0.5] and output.extra["bad_error"][0].startswith("returned ")
    assert len(output.extra["bad_error"][0]) < 200


def test_an_answer_or_an_error_that_cannot_be_read_is_a_failure(tmp_path, caplog):
    # pytest-xdist cannot send a log with the lone surrogate to the main process.
    caplog.set_level(logging.CRITICAL, "spatialalign_trl.rewards")

    class Mute(Exception):
        def __str__(self):
            raise ValueError("no message")

    def mute(prompts, completions, **kwargs):
        raise Mute

    def surrogate(prompts, completions, **kwargs):
        raise ValueError("bad \ud800 byte")

    def meta(prompts, completions, **kwargs):
        return torch.ones(2, device="meta")

    output = judge([mute, surrogate, meta, good])
    assert output.rewards == [1.0] * COUNT
    assert "(it has no readable message)" in output.errors["mute"][0]
    assert "Tensor that cannot be read" in output.errors["meta"][0]
    write_json(tmp_path / "scores.json", output.extra)


@pytest.mark.parametrize("weight", [1e31, math.inf, math.nan])
def test_weights_that_overflow_sums_are_refused(weight):
    with pytest.raises(ValueError, match="finite numbers of at most 1e\\+30"):
        RewardRunner(good, [weight])


@given(st.lists(st.one_of(st.floats(), st.integers(), st.none(), st.booleans()), min_size=1, max_size=8))
@example([2**53 + 1])
def test_whatever_numbers_come_sums_and_means_are_finite(values):
    output = judge(doing(lambda **k: None, values=values), count=len(values))
    numbers = [value for value in output.rewards if value is not None] + list(output.metrics.values())
    assert all(math.isfinite(number) and abs(number) <= LARGEST for number in numbers)
    for value, number in zip(values, output.rewards, strict=True):
        assert number is None or number == float(value)  # 2**53 + 1 has no float of its own


# ---------------------------------------------------------------------------------------------------- the log


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([object(), 1], "TypeError: log_extra('seen'): a value of type object has no JSON form"),
        ([{1, 2}, 1], "a value of type set has no JSON form"),
        ([pathlib.Path("x"), 1], "has no JSON form"),
        ([b"x", 1], "a value of type bytes has no JSON form"),
        ([[object()], 1], "a value of type object has no JSON form"),
        ([np.datetime64("2020-01-01"), 1], "a value of type date has no JSON form"),
        ([10**5000, 1], "a whole number of 16610 bits; 64 are possible"),
        (3, "'int' object is not iterable"),
    ],
)
def test_columns_without_a_json_form_are_the_reward_s_failure(values, problem):
    output = judge([doing(lambda log_extra, **k: log_extra("seen", values)), good])
    assert problem in output.errors["bad"][0] and output.rewards == [1.0] * COUNT
    assert "seen" not in output.extra


def test_a_column_that_contains_itself_is_the_reward_s_failure():
    endless = []
    endless.append(endless)
    output = judge([doing(lambda log_extra, **k: log_extra("seen", [endless, 1])), good])
    assert "RecursionError" in output.errors["bad"][0]


@pytest.mark.parametrize("column", ["bad_error", "good_settings", "gate_reason", 3])
def test_columns_of_the_library_are_not_for_rewards(column):
    output = judge([doing(lambda log_extra, **k: log_extra(column, [1, 2])), good])
    assert f"log_extra({column!r})" in output.errors["bad"][0]


def test_huge_numbers_in_columns_become_none_and_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        output = judge(doing(lambda log_extra, **k: log_extra("seen", [1e308, [math.inf, 0.5]])))
    assert output.extra["seen"] == [None, [None, 0.5]]
    assert "beyond 1e+30 in magnitude, such as 1e+308" in caplog.text


def test_huge_numbers_are_in_no_metric():
    output = judge(
        doing(lambda log_metric, **k: [log_metric("speed", value) for value in (1e308, 1e308, math.inf, 2)])
    )
    assert output.metrics["speed"] == 2


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_LIKE, st.text(st.characters()))
def test_whatever_is_logged_can_be_written_or_is_refused_at_once(tmp_path_factory, value, column):
    log = CallLog(1)
    try:
        log.extra("reward", column, [value])
    except ValueError as error:
        assert "bits; 64 are possible" in str(error)
        return
    file = write_json(tmp_path_factory.getbasetemp() / "columns.json", plain(log.columns, nan_is_none=True))
    assert json.loads(file.read_text("utf-8")) == log.columns


# ---------------------------------------------------------------------------------------------- while it trains


def looking(tmp_path, reward, rows) -> LogSamples:
    settings = SimpleNamespace(fps=8)
    callback = LogSamples(None, rows, RewardRunner(reward), settings, every=1)
    callback._sample = lambda: [np.full((9, 32, 48, 3), 40, np.uint8) for _ in rows]
    callback.on_step_end(
        SimpleNamespace(output_dir=str(tmp_path / "run")),
        SimpleNamespace(is_world_process_zero=True, global_step=1),
        None,
    )
    return callback


HOSTILE_IDS = ["../../evil", "/etc/evil", "a\x00b", "CON", "x" * 300, "\ud800", "fine"]


def test_ids_of_prompts_are_names_of_files_in_the_folder_of_the_samples(tmp_path):
    looking(tmp_path, good, [{"prompt_id": text, "prompt": "a fox"} for text in HOSTILE_IDS])
    folder = tmp_path / "run" / "samples" / "step-000001"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {file.parent for file in files} == {folder}
    assert len(list(folder.glob("*.mp4"))) == len(HOSTILE_IDS) and (folder / "fine.mp4").is_file()
    assert len(json.loads((folder / "scores.json").read_text("utf-8"))) == len(HOSTILE_IDS)


def test_a_look_at_the_training_does_not_end_it(tmp_path):
    class Bad:
        __name__ = "bad"

        def __call__(self, prompts, completions, **kwargs):
            raise RuntimeError("no")

        def grade(self, videos, **columns):
            sys.exit()

    row = {"prompt": "a fox", "type": "LR", "animal": "fox", "object": "stump"}
    with pytest.warns(UserWarning, match="no curves of the samples: RewardExit"):
        looking(tmp_path, Bad(), [row | {"prompt_id": str(k)} for k in range(2)])
    with pytest.warns(UserWarning, match="the samples of step 1 have no scores: The reward 'bad' failed"):
        looking(tmp_path, Bad(), [row | {"prompt_id": str(k)} for k in range(16)])
