"""A long run prints its forecast before the first video; a short one does not, and no forecast changes a run."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console
from tiny_loop import loop
from tiny_pipelines import saved_wan

from spatialalign_trl.online import forecast
from spatialalign_trl.online.forecast import announce_long_run, device_tflops


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


def announced(run) -> str:
    """Return what a run prints before its first video."""
    text = io.StringIO()
    object.__setattr__(run.parts, "console", Console(file=text, width=200))
    announce_long_run(run.parts, None, len(run.eval_rows))
    return text.getvalue()


def test_a_short_run_is_not_even_traced(folder, tmp_path, monkeypatch):
    run = loop(folder, tmp_path)
    monkeypatch.setattr(forecast, "forecast_of", lambda *a: pytest.fail("a run of seconds was traced"))
    assert announced(run) == ""
    assert run.parts.pace.sampled(1, 1.0) == ""


def test_a_long_run_prints_its_forecast_and_measures_its_pace(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "device_tflops", lambda device: 1e-9)  # a slow machine
    run = loop(folder, tmp_path)
    numbers = torch.get_rng_state()
    text = announced(run)
    assert torch.equal(torch.get_rng_state(), numbers)
    weights = sum(weight.numel() for weight in run.model.base_transformer.parameters())
    assert f"{weights:,} weights" in text and re.search(r"rollout: denoising .* 12 ", text)  # 3 prompts, 4 videos
    assert re.search(r"evaluation: denoising .* 12 ", text)  # 3 prompts, 2 seeds, before and after
    assert "h left" in run.parts.pace.sampled(1, 60.0)


def test_a_forecast_that_fails_does_not_stop_a_run(folder, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no shapes\nfor this")

    monkeypatch.setattr(forecast, "device_tflops", lambda device: 1e-9)
    monkeypatch.setattr(forecast, "StageTracer", fail)
    text = announced(loop(folder, tmp_path))
    assert "no forecast of this run: no shapes for this" in text


def test_a_forecast_changes_no_weight(folder, tmp_path, monkeypatch):
    plain = loop(folder, tmp_path / "plain", max_steps=1)
    plain.train()
    monkeypatch.setattr(forecast, "device_tflops", lambda device: 1e-9)
    forecasted = loop(folder, tmp_path / "forecasted", max_steps=1)
    forecasted.train()
    lora, other = (run.model.lora_state_dict() for run in (plain, forecasted))
    assert lora.keys() == other.keys() and all(torch.equal(lora[name], other[name]) for name in lora)
    assert forecasted.parts.pace.sampled(1, 1.0)


def test_a_continued_run_leaves_the_time_to_the_bar_of_its_stage(folder, tmp_path, monkeypatch):
    loop(folder, tmp_path, max_steps=1).train()
    monkeypatch.setattr(forecast, "device_tflops", lambda device: 1e-9)
    run = loop(folder, tmp_path, max_steps=1)
    announced(run)
    assert run.parts.pace.sampled(1, 1.0) == ""


def test_the_rate_of_this_cpu_is_measured():
    assert 1e-4 < device_tflops(torch.device("cpu")) < 100
