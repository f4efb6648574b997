"""Forecasts of small models: what is counted, what fits, and which settings make a run fit."""

from __future__ import annotations

import dataclasses
import json

import pytest
from planned_run import RUN

from spatialalign_trl.planning import remedies
from spatialalign_trl.planning.architectures import read_architecture
from spatialalign_trl.planning.cards import GIB, Card
from spatialalign_trl.planning.forecast import RunSettings, forecast
from spatialalign_trl.planning.remedies import REMEDIES, Attempt, check_remedies, find_remedy
from spatialalign_trl.planning.stages import ModelSetup, StageTracer
from spatialalign_trl.planning.text import as_text, memory_line
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig

SIZE = (17, 32, 48)


@pytest.fixture(scope="module")
def tiny() -> StageTracer:
    return StageTracer(read_architecture("tiny"), ModelSetup(*SIZE))


@pytest.fixture
def run(tmp_path) -> RunSettings:
    args = SpatialAlignConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=True, report_to="none", per_device_train_batch_size=4,
        gradient_checkpointing=False,
    )  # fmt: skip
    return RunSettings(args, sampler_steps=10, guided=True, rollout_batch=8)


def card(usable: float) -> Card:
    """A card on which this many GiB are usable."""
    return Card("a card", usable / 0.95 + 2)


def test_stages_add_up(tiny, run):
    plan = forecast(tiny, run, RUN, card(1), tflops=100.0, price=2.0)
    hours = {stage.name: stage.hours for stage in plan.stages}
    assert hours.pop("scoring") is None
    assert plan.hours == pytest.approx(sum(stage.hours for stage in plan.stages if stage.count and stage.hours))
    assert plan.gpu_hours == pytest.approx(8 * plan.hours) and plan.cost == pytest.approx(2 * plan.gpu_hours)
    denoising = plan.stage("rollout: denoising")
    assert denoising.pflop == pytest.approx(20 * tiny.predict().flops / 1e15)  # 10 steps, with and without the prompt
    assert denoising.hours == pytest.approx(denoising.pflop * 12_000 * 1e3 / (100.0 * 8) / 3600)
    assert plan.stage("evaluation: denoising").count == 1200
    assert plan.stage("training step (no checkpointing)").count == 8 * 18_000
    assert plan.stage("training step (checkpointing)").count == 0
    assert plan.fits and plan.remedy is None
    for stage in plan.stages:
        assert stage.memory >= stage.weights > 0


def test_twice_the_rate_is_half_the_time_and_no_rate_is_no_time(tiny, run):
    slow, fast, unknown = (forecast(tiny, run, RUN, tflops=rate) for rate in (10.0, 20.0, None))
    assert slow.hours == pytest.approx(2 * fast.hours)
    assert unknown.hours is None and unknown.fits is None and unknown.cost is None
    assert "hours: not known without a rate" in as_text(unknown)


def test_a_forecast_is_json(tiny, run):
    plan = forecast(tiny, run, RUN, card(1), tflops=100.0)
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["fits"] is True and values["parameters"] == tiny.parameters
    assert [stage["name"] for stage in values["stages"]] == [stage.name for stage in plan.stages]


def test_checkpointing_and_offloading_lower_what_they_say(tiny, run):
    plan = forecast(tiny, run, RUN)
    assert plan.stage("training step (checkpointing)").memory < plan.stage("training step (no checkpointing)").memory
    resting = forecast(tiny, dataclasses.replace(run, offload_encoders=True), RUN)
    saved = tiny.weights["text_encoder"] / GIB
    assert resting.stage("rollout: decode").memory == pytest.approx(plan.stage("rollout: decode").memory - saved)
    assert resting.stage("rollout: text encoder").memory == plan.stage("rollout: text encoder").memory


def test_the_first_line_that_fits_is_found_and_no_more_than_needed(tiny, run):
    """A card that only the training step is too large for, and that checkpointing makes fit."""
    run.trainer.per_device_train_batch_size = 64
    plain = forecast(tiny, run, RUN)
    needed = max(stage.memory for stage in plain.stages if "no checkpointing" not in stage.name)
    step = plain.stage("training step (no checkpointing)").memory
    assert needed < step
    small = card((needed + step) / 2)
    plan = forecast(tiny, run, RUN, small)
    start = Attempt(tiny, run, RUN, {})
    found = find_remedy(plan, start, small, remedies=["offload_encoders", "vae_tiling", "gradient_checkpointing"])
    assert plan.fits is False and found.remedy == "--gradient_checkpointing true"
    assert f"It fits with: {found.remedy}" in as_text(found)


def test_a_card_that_nothing_fits(tiny, run):
    nothing = card(1e-6)
    plan = forecast(tiny, run, RUN, nothing)
    found = find_remedy(plan, Attempt(tiny, run, RUN, {}), nothing, remedies=["offload_encoders", "separate_forward"])
    assert found.remedy == "" and found.tried and "no remedy helps enough" in as_text(found)


def test_a_run_that_fits_is_left_alone(tiny, run):
    plan = forecast(tiny, run, RUN, card(10))
    assert find_remedy(plan, Attempt(tiny, run, RUN, {}), card(10)) is plan


def test_unknown_and_missing_remedies_are_one_clear_line(tiny, monkeypatch):
    check_remedies(REMEDIES, tiny)
    with pytest.raises(ValueError, match="remedies='vae_tilling': unknown. Did you mean 'vae_tiling'"):
        check_remedies(["vae_tilling"], tiny)
    monkeypatch.setattr(tiny, "can_tile", False)
    with pytest.raises(ValueError, match="remedies='vae_tiling': AutoencoderKLWan has no tiles"):
        check_remedies(["vae_tiling"], tiny)
    assert "has no tiles" in remedies._lacks("vae_tiling", tiny)


def test_the_line_of_a_yaml_file_has_the_peaks(tiny, run):
    line = memory_line(forecast(tiny, run, RUN))
    assert line.startswith("training step ") and "with checkpointing" in line and "sampling" in line
