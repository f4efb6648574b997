"""Rewards are called as TRL calls them, async ones at the same time, and a failing reward is named and survived."""

import asyncio
import functools
import gc
import logging
import math
import threading

import numpy as np
import pytest

from spatialalign_trl.rewards.runner import RewardFailure, RewardRunner


def reward(values, name="given"):
    """Return a reward that always returns `values`."""

    def function(prompts, completions, **kwargs):
        return values

    function.__name__ = name
    return function


def judge(runner, count, **columns):
    return runner(["p"] * count, [None] * count, columns)


def fails(problem, name="bad"):
    def function(prompts, completions, **kwargs):
        raise problem

    function.__name__ = name
    return function


# ------------------------------------------------------------------------------------------------- calling, combining


def test_rewards_are_called_as_in_trl():
    received = {}

    def spy(**kwargs):
        received.update(kwargs)
        return [1.0, 2.0]

    RewardRunner(spy)(
        ["a", "b"],
        ["v", "w"],
        {"prompt": ["a", "b"], "type": ("LR", "TL"), "completion_ids": [1, 2]},
        trainer_state="state",
    )
    assert received.pop("log_extra") and received.pop("log_metric")
    assert received == {
        "prompts": ["a", "b"],
        "completions": ["v", "w"],
        "type": ["LR", "TL"],
        "trainer_state": "state",
    }


def test_what_a_reward_changes_in_place_does_not_reach_the_next_one_or_the_caller():
    def arguments():
        cells = [{"frames": [1, {"x": np.zeros(2)}]}, {"frames": [2, {"x": np.zeros(2)}]}]
        return ["a", "b"], [np.full((1, 2, 2, 3), 7, np.uint8) for _ in range(2)], {"cell": cells, "type": ["L", "R"]}

    def content(prompts, completions, cell, type):
        return repr((prompts, [video.tolist() for video in completions], cell, type))

    seen = []

    def vandal(prompts, completions, cell, type, **kwargs):
        seen.append(content(prompts, completions, cell, type))
        completions[0][:] = 0
        cell[0]["frames"][1]["x"][:] = 9
        cell[1]["frames"].append(3)
        cell[1]["new"] = 1
        type[0] = prompts[0] = "gone"
        completions.reverse()
        return [1.0, 1.0]

    async def patient(prompts, completions, cell, type, **kwargs):
        await asyncio.sleep(0.01)
        return vandal(prompts, completions, cell, type)

    def last(prompts, completions, cell, type, **kwargs):
        return vandal(prompts, completions, cell, type)

    prompts, videos, columns = arguments()
    RewardRunner([vandal, patient, last])(prompts, videos, columns)
    before = content(*arguments()[:2], **arguments()[2])
    assert seen == [before] * 3
    assert content(prompts, videos, **columns) == before


def test_the_weighted_sum_leaves_out_rewards_without_a_verdict():
    runner = RewardRunner([reward([1.0, None, None], "a"), reward([0.5, 0.5, None], "b")], reward_weights=[2.0, 1.0])
    output = judge(runner, 3)
    assert output.rewards == [2.5, 0.5, None]
    assert output.per_reward == {"a": [1.0, None, None], "b": [0.5, 0.5, None]}
    assert output.errors == {}


def test_a_reward_of_weight_zero_cannot_make_a_video_valid():
    runner = RewardRunner([reward([None, 1.0], "main"), reward([9.0, 9.0], "watched")], reward_weights=[1.0, 0.0])
    output = judge(runner, 2)
    assert output.rewards == [None, 1.0]
    assert output.per_reward["watched"] == [9.0, 9.0]


def test_metrics_have_the_names_of_trl():
    output = judge(RewardRunner([reward([0.2, None, 0.6], "a"), reward([None] * 3, "b")]), 3)
    assert output.metrics == {
        "rewards/a/mean": pytest.approx(0.4),
        "rewards/a/std": pytest.approx(math.sqrt(0.08)),
        "rewards/a/invalid_rate": pytest.approx(1 / 3),
        "rewards/b/invalid_rate": 1.0,
        "reward": pytest.approx(0.4),
        "reward_std": pytest.approx(math.sqrt(0.08)),
    }


@pytest.mark.parametrize("values", [[1, True], (1.0, 1.0), np.ones(2, dtype=np.float32), [np.float64(1), np.ones(())]])
def test_numbers_may_come_as_arrays_and_scalars(values):
    output = judge(RewardRunner(reward(values)), 2)
    assert output.rewards == [1.0, 1.0]
    assert all(type(value) is float for value in output.rewards)


def test_tensors_are_numbers_too():
    torch = pytest.importorskip("torch")
    assert judge(RewardRunner(reward(torch.tensor([0.5, 1.0]))), 2).rewards == [0.5, 1.0]


def test_classes_and_partials_are_rewards_too():
    class Constant:
        def __init__(self, value=1.0):
            self.value = value

        def __call__(self, prompts, completions, **kwargs):
            return [self.value] * len(completions)

    def scaled(prompts, completions, factor, **kwargs):
        return [factor] * len(completions)

    runner = RewardRunner([Constant, functools.partial(scaled, factor=3.0)])
    assert runner.names == ["Constant", "scaled"]
    assert judge(runner, 2).rewards == [4.0, 4.0]


def test_no_videos_have_no_rewards_and_no_metrics():
    output = judge(RewardRunner(reward([])), 0)
    assert output.rewards == []
    assert output.metrics == {}


# -------------------------------------------------------------------------------------------------------------- async


def test_async_rewards_run_at_the_same_time_and_together_with_plain_ones():
    meeting = {"arrived": 0}

    def make(name):
        async def waits_for_the_other(prompts, completions, **kwargs):
            meeting["arrived"] += 1
            while meeting["arrived"] < 2:
                await asyncio.sleep(0)
            return [1.0] * len(completions)

        waits_for_the_other.__name__ = name
        return waits_for_the_other

    class AsyncJudge:
        async def __call__(self, prompts, completions, **kwargs):
            return [10.0] * len(completions)

    funcs = [make("one"), reward([100.0], "plain"), make("two"), functools.partial(AsyncJudge())]
    assert judge(RewardRunner(funcs), 1).rewards == [112.0]


def test_async_rewards_keep_their_loop_and_work_inside_a_running_one():
    loops = []

    async def remembers(prompts, completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [1.0]

    runner = RewardRunner(remembers)

    async def notebook():
        return judge(runner, 1), judge(runner, 1)

    first, second = asyncio.run(notebook())
    assert first.rewards == second.rewards == [1.0]
    assert loops[0] is loops[1]


def test_the_thread_of_async_rewards_ends_with_the_runner():
    async def instant(prompts, completions, **kwargs):
        return [1.0]

    before = set(threading.enumerate())
    runner = RewardRunner(instant)
    judge(runner, 1)
    (thread,) = set(threading.enumerate()) - before
    del runner
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_failing_async_reward_leaves_the_others_alone():
    async def bad(prompts, completions, **kwargs):
        raise OSError("the judge's server is away")

    async def good(prompts, completions, **kwargs):
        return [1.0]

    output = judge(RewardRunner([bad, good]), 1)
    assert output.per_reward == {"bad": [None], "good": [1.0]}
    assert output.errors == {"bad": ["OSError: the judge's server is away"]}


def test_an_async_reward_goes_on_while_plain_ones_run():
    started = threading.Event()

    async def remote(prompts, completions, **kwargs):
        started.set()
        return [1.0]

    def plain(prompts, completions, **kwargs):
        assert started.wait(timeout=10)
        return [10.0]

    assert judge(RewardRunner([plain, remote]), 1).rewards == [11.0]


@pytest.mark.timeout(120)  # a swallowed interrupt would wait for the answer
def test_an_interrupted_call_cancels_its_async_rewards():
    started, cancelled = threading.Event(), threading.Event()

    async def never(prompts, completions, **kwargs):
        started.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupted(prompts, completions, **kwargs):
        started.wait(timeout=10)
        raise KeyboardInterrupt

    runner = RewardRunner([never, interrupted])
    with pytest.raises(KeyboardInterrupt):
        judge(runner, 1)
    assert cancelled.wait(timeout=10)


# ----------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (fails(RuntimeError("out of memory")), "RuntimeError: out of memory"),
        (fails(KeyError("type")), "KeyError: 'type'"),
        (reward([1.0], "bad"), "returned 1 values for 2 videos"),
        (reward(np.ones((3,)), "bad"), "returned 3 values for 2 videos"),
        (reward(0.5, "bad"), "returned float instead of a list"),
        (reward(np.float64(0.5), "bad"), "returned float instead of a list"),
        (reward(None, "bad"), "returned NoneType instead of a list"),
        (reward("ab", "bad"), "returned str instead of a list"),
        (reward({"a": 1, "b": 2}, "bad"), "returned dict instead of a list"),
        (reward([math.nan, math.nan], "bad"), "returned nan, which is no finite number"),
        (reward([math.inf, -math.inf], "bad"), "returned inf, which is no finite number"),
        (reward(["0.5", b"1"], "bad"), "returned '0.5', which is no finite number"),
        (reward([[1.0], [2.0]], "bad"), "returned [1.0], which is no finite number"),
    ],
)
def test_a_failing_reward_is_named_and_its_videos_are_invalid(bad, problem, caplog):
    runner = RewardRunner([bad, reward([0.5, 0.25], "good")])
    with caplog.at_level(logging.WARNING):
        output = judge(runner, 2)
    assert output.per_reward == {"bad": [None, None], "good": [0.5, 0.25]}
    assert output.rewards == [0.5, 0.25]
    assert problem in output.errors["bad"][0]
    assert set(output.errors) == {"bad"}
    assert problem in output.extra["bad_error"][0]
    assert output.metrics["rewards/bad/invalid_rate"] == 1.0
    assert "'bad' failed on 2 videos" in caplog.text


def test_one_unusable_number_spoils_its_video_only():
    output = judge(RewardRunner(reward([0.5, math.nan, None, "x"])), 4)
    assert output.rewards == [0.5, None, None, None]
    assert output.extra["given_error"] == [
        None,
        "returned nan, which is no finite number",
        None,
        "returned 'x', which is no finite number",
    ]
    assert output.metrics["reward"] == 0.5


def test_invalid_is_a_verdict_and_no_failure():
    runner = RewardRunner(reward([None] * 20), max_failure_share=0.0)
    for _ in range(3):
        assert judge(runner, 20).errors == {}


def test_too_many_failures_stop_the_run_naming_reward_and_first_error():
    answers = iter([RuntimeError("first"), RuntimeError("second"), RuntimeError("third")])

    def bad(prompts, completions, **kwargs):
        raise next(answers)

    runner = RewardRunner([reward([1.0] * 8, "good"), bad])
    assert judge(runner, 8).errors  # 8 of 8, but too few videos to stop
    with pytest.raises(RewardFailure, match="'bad' failed on 16 of 16 videos.*0.5.*first error: RuntimeError: first"):
        judge(runner, 8)


@pytest.mark.parametrize(("share", "stops"), [(0.0, True), (0.4, True), (0.6, False), (1.0, False)])
def test_the_share_of_failures_holds_for_a_runner_of_some_of_the_rewards(share, stops):
    """Half of the videos fail. The default share would let both pass."""
    answers = [None if k % 2 else "x" for k in range(16)]
    runner = RewardRunner([reward(answers, "flaky"), reward([1.0] * 16, "good")], max_failure_share=share)
    part = runner.only(["flaky"])
    assert part.names == ["flaky"] and part.max_failure_share == share
    for each in (runner, part):
        if stops:
            with pytest.raises(RewardFailure, match=f"'flaky' failed on 8 of 16 videos.*share of {share}"):
                judge(each, 16)
        else:
            assert judge(each, 16).errors


def test_failures_below_the_share_do_not_stop_the_run():
    calls = iter(range(100))

    def flaky(prompts, completions, **kwargs):
        if next(calls) % 2:
            raise RuntimeError("now and then")
        return [1.0] * len(completions)

    runner = RewardRunner(flaky, max_failure_share=0.5)
    for _ in range(10):
        judge(runner, 4)


def test_a_user_who_stops_the_run_stops_it():
    called = []

    def later(prompts, completions, **kwargs):
        called.append(prompts)
        return [1.0]

    with pytest.raises(KeyboardInterrupt):
        judge(RewardRunner([fails(KeyboardInterrupt()), later]), 1)
    assert not called


# -------------------------------------------------------------------------------------------------------------- hooks


def test_log_extra_and_log_metric_are_collected():
    def talkative(prompts, completions, log_extra, log_metric, **kwargs):
        log_extra("seen", [np.float32(0.5), math.nan])
        log_extra("far", [math.inf, np.float32(-np.inf)])
        log_extra("near", np.array([np.inf, 1.0]))
        log_extra("curve", [[0.5, math.inf], {"deep": [-math.inf, 2]}])
        log_extra("why", ["a", None])
        log_metric("speed", 1)
        log_metric("speed", np.float64(2))
        log_metric("speed", math.inf)
        log_metric("nothing", math.nan)
        log_metric("nothing", -math.inf)
        return [1.0, 1.0]

    output = judge(RewardRunner(talkative), 2)
    assert output.extra == {
        "seen": [0.5, None],
        "far": [None, None],
        "near": [None, 1.0],
        "curve": [[0.5, None], {"deep": [None, 2]}],
        "why": ["a", None],
    }
    assert output.metrics["speed"] == 1.5
    assert "nothing" not in output.metrics


def test_a_column_of_the_wrong_length_is_the_rewards_failure():
    def careless(prompts, completions, log_extra, **kwargs):
        log_extra("seen", [1.0])
        return [1.0, 1.0]

    output = judge(RewardRunner(careless), 2)
    assert output.rewards == [None, None]
    assert "log_extra('seen') got 1 values for 2 videos" in output.errors["careless"][0]


def test_two_rewards_cannot_write_one_column():
    def first(prompts, completions, log_extra, **kwargs):
        log_extra("seen", [1.0])
        return [1.0]

    def second(prompts, completions, log_extra, **kwargs):
        log_extra("seen", [2.0])
        return [1.0]

    output = judge(RewardRunner([first, second]), 1)
    assert output.extra["seen"] == [1.0]
    assert "already written by 'first'" in output.errors["second"][0]


# ------------------------------------------------------------------------------------- mistakes found before the run


def test_missing_columns_are_named_before_the_first_rollout():
    def needs(prompts, completions, animal, **kwargs): ...

    runner = RewardRunner(needs)
    runner.check_columns(["prompt", "prompt_id", "animal"])
    with pytest.raises(ValueError, match="'needs' needs the prompt column 'animal'.*Did you mean 'animals'"):
        runner.check_columns(["prompt", "animals"])
    with pytest.raises(ValueError, match="'animal'"):
        judge(runner, 1)


def test_a_column_may_not_take_an_arguments_name():
    with pytest.raises(ValueError, match="'trainer_state'.*rename the column"):
        RewardRunner(reward([])).check_columns(["prompt", "trainer_state"])


def test_columns_and_prompts_must_have_an_entry_for_every_video():
    runner = RewardRunner(reward([1.0, 1.0]))
    with pytest.raises(ValueError, match="type has 1 entries for 2 videos"):
        judge(runner, 2, type=["LR"])
    with pytest.raises(ValueError, match="prompts has 1 entries for 2 videos"):
        runner(["p"], [None, None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_funcs": []}, "No reward"),
        ({"reward_funcs": [reward([]), reward([])]}, "Two rewards are named 'given'"),
        ({"reward_funcs": reward([]), "reward_weights": [1.0, 2.0]}, "1 rewards need 1 weights, got 2"),
        ({"reward_funcs": reward([]), "reward_weights": [math.nan]}, "finite"),
        ({"reward_funcs": reward([]), "max_failure_share": 1.5}, "max_failure_share"),
        ({"reward_funcs": "no_such_reward"}, "no reward named 'no_such_reward'"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RewardRunner(**arguments)


def test_a_reward_without_kwargs_is_refused():
    def strict(prompts, completions): ...

    with pytest.raises(TypeError, match=r"'strict' must end its parameters with \*\*kwargs"):
        RewardRunner(strict)


def test_a_reward_may_refuse_prompts_before_anything_is_sampled():
    class OnlyCats:
        __name__ = "only_cats"

        def check_prompts(self, animal, **kwargs):
            if set(animal) != {"cat"}:
                raise ValueError(f"knows cats, not {animal}")

        def __call__(self, prompts, completions, animal, **kwargs):
            return [1.0] * len(completions)

    runner = RewardRunner([OnlyCats()])
    runner.check_prompts([{"prompt": "p", "animal": "cat"}])
    with pytest.raises(ValueError, match="'only_cats' cannot score these prompts: knows cats, not"):
        runner.check_prompts([{"prompt": "p", "animal": "dog"}])
    with pytest.raises(ValueError, match="animal"):
        runner.check_prompts([{"prompt": "p"}])
    with pytest.raises(ValueError, match="no prompts"):
        runner.check_prompts([])
