"""The time that a run has left, from its forecast and what was measured."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.planning.forecast import Forecast, Stage
from spatialalign_trl.planning.pace import Pace


def plan(videos: int, batches: int, gpus: int = 1) -> Forecast:
    stages = [
        Stage("rollout: denoising", 1, 2, 3.0, "video", videos),
        Stage("rollout: decode", 1, 2, 0.5, "video", videos, speed=0.5),
        Stage("scoring", 1, 1, 0.0, "video", videos),
        Stage("training step (checkpointing)", 1, 2, 8.0, "batch", batches),
        Stage("training step (no checkpointing)", 1, 2, 6.0, "batch", 0),
    ]
    return Forecast(
        "m", "wan", [1, 1, 1], "", 1, 1, {}, None, None, gpus, None, stages, 1, 0.2, 1, None, None, None, {}, 0
    )  # fmt: skip


def hours(text: str) -> float:
    return float(re.search(r"([\d,.]+) h left", text)[1].replace(",", ""))


def test_nothing_is_said_without_a_forecast():
    assert Pace().sampled(1, 10.0) == ""


def test_the_first_batch_calibrates_the_whole_run():
    pace = Pace()
    pace.start(plan(videos=100, batches=50))
    # A video is 4 units of work: 3 of denoising, and half a unit at half the speed. A batch of the training is 8.
    assert hours(pace.sampled(1, 3600.0)) == pytest.approx((99 * 4 + 50 * 8) / 4, abs=1)


@given(st.integers(1, 8), st.floats(1, 1e4), st.integers(2, 20))
def test_the_time_left_falls_at_a_steady_pace_and_gpus_share_the_work(gpus, seconds, count):
    alone, shared = Pace(), Pace()
    alone.start(plan(1000, 1000))
    shared.start(plan(1000, 1000, gpus))
    left = [(hours(alone.sampled(1, seconds)), hours(shared.sampled(1, seconds))) for _ in range(count)]
    assert all(later[0] <= earlier[0] for earlier, later in zip(left, left[1:], strict=False))
    total = (1000 * 4 + 1000 * 8) / 4 * seconds / 3600
    assert left[0][0] == pytest.approx(total, rel=0.02, abs=0.6)
    assert left[0][1] == pytest.approx(total / gpus, rel=0.02, abs=0.6)


def test_it_never_falls_below_zero():
    pace = Pace()
    pace.start(plan(1, 0))
    assert hours(pace.sampled(5, 10.0)) == 0
