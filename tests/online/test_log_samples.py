"""Sample videos that are logged during training reach files and trackers, and change no bit of the training."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_loop import config, luck, prompts
from tiny_pipelines import saved_wan
from transformers import TrainerCallback

from spatialalign_trl.models import load_video_model
from spatialalign_trl.online.trackers import Shown, Table, show_outcome, trackers_of, trackers_of_run
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer
from spatialalign_trl.perception.tracks import Tracks


class Grader:
    """The reward `luck` with grades, which draws from the global random generators."""

    __name__ = "luck"

    def __call__(self, prompts, completions, **kwargs):
        random.random(), np.random.rand(), torch.rand(1)
        return luck(prompts, completions)

    def grade(self, videos, *, type, animal, object, attribute=None):
        curve = np.linspace(-1, 1, 5)
        result = SimpleNamespace(
            initial_curve=-curve, visit_curves=[], final_curve=curve, frame_indices=np.arange(5), score=0.5,
            visit_frames=(),
        )  # fmt: skip
        return [SimpleNamespace(result=result, tracks=Tracks([], len(video))) for video in videos]


@dataclass
class Runs:
    """The folders of a run that logs samples every 2 of its 3 steps, and of the same run without logged samples."""

    with_samples: Path
    without_samples: Path

    @property
    def samples(self) -> Path:
        return self.with_samples / SAMPLES


SAMPLES = Path("rounds") / "01" / "policy" / "samples"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = saved_wan(tmp_path_factory.mktemp("wan"))
    outputs = []
    for options in ({"log_samples_steps": 2, "log_samples_prompts": 2, "report_to": "tensorboard"}, {}):
        output = tmp_path_factory.mktemp("run")
        model = load_video_model(folder, device="cpu")
        args = config(output, contact_sheet_prompts=0, evaluation_seeds=1, **options)
        OnlineSpatialAlignTrainer(model, Grader(), args, prompts("train", "red"), prompts("eval", "blue")).train()
        outputs.append(output)
    return Runs(*outputs)


def test_logging_samples_changes_no_bit_of_the_training(runs):
    first, second = (
        load_file(run / "pytorch_lora_weights.safetensors") for run in (runs.with_samples, runs.without_samples)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_samples_are_logged_at_the_chosen_steps(runs):
    assert {path.name for path in runs.samples.iterdir()} == {"step-000000", "step-000002"}


def test_logged_samples_are_videos_scores_and_curves(runs):
    for folder in runs.samples.iterdir():
        expected = {"sheet.png", "scores.json", "eval0.mp4", "eval1.mp4", "eval0_curves.png", "eval1_curves.png"}
        assert {path.name for path in folder.iterdir()} == expected


def test_scores_of_the_same_prompts_change_with_the_policy(runs):
    first, later = (json.loads((runs.samples / f"step-00000{k}" / "scores.json").read_text()) for k in (0, 2))
    assert first.keys() == later.keys() and first != later  # the noise is the same


def test_without_the_option_no_samples_are_logged(runs):
    assert not (runs.without_samples / SAMPLES).exists()


def tensorboard(folder) -> EventAccumulator:
    """Read the only log of TensorBoard in a folder."""
    (log,) = folder.rglob("events.out.tfevents*")
    events = EventAccumulator(str(log.parent))
    events.Reload()
    return events


@pytest.fixture(scope="module")
def training_events(runs) -> EventAccumulator:
    return tensorboard(runs.with_samples / "rounds")


def test_tensorboard_receives_pictures_and_scores_at_every_logged_step(training_events):
    tags = training_events.Tags()
    assert {"samples", "curves/eval0", "curves/eval1"} <= set(tags["images"])
    assert [event.step for event in training_events.Images("samples")] == [0, 2]
    assert "samples/scores/text_summary" in tags["tensors"]
    assert any(tag.endswith("samples/reward") for tag in tags["scalars"])


def test_tensorboard_receives_the_metrics_of_the_training(training_events):
    assert any(tag.endswith("rewards/margins") for tag in training_events.Tags()["scalars"])


@pytest.fixture(scope="module")
def outcome_events(runs) -> EventAccumulator:
    return tensorboard(runs.with_samples / "runs")


def test_tensorboard_receives_the_evaluation_before_and_after(runs, outcome_events):
    results = json.loads((runs.with_samples / "results.json").read_text())
    logged = {event.step: event.value for event in outcome_events.Scalars("evaluation/S@0.7")}
    assert logged == pytest.approx({0: results["base"]["S@0.7"], 1: results["aligned"]["S@0.7"]})
    measures = {"evaluation/reward_mean", "evaluation/invalid_rate", "evaluation/sharpness"}
    assert measures <= set(outcome_events.Tags()["scalars"])


def test_tensorboard_receives_the_table_of_the_outcome_at_the_last_step(outcome_events):
    (table,) = outcome_events.Tensors("evaluation/before_and_after/text_summary")
    assert table.step == 1 and b"| measure | base | aligned |" in table.tensor_proto.string_val[0]


def test_without_trackers_no_outcome_is_logged(runs):
    assert not (runs.without_samples / "runs").exists()


def test_the_page_of_the_run_shows_curves_and_how_to_load_the_lora(runs):
    page = (runs.with_samples / "report.html").read_text()
    assert "on the left of (start)" in page and "load_lora_weights" in page and "Curves and boxes" not in page
    assert "Round 1, sampled to train on" in page


class Recorder(SimpleNamespace):
    """A replacement of wandb or trackio that records what is logged."""

    def __init__(self, name: str) -> None:
        super().__init__(__name__=name, logged=[], run=object())
        self.log = self.logged.append
        self.Image, self.Video = (lambda path: ("image", path)), (lambda path: ("video", path))
        self.Table = lambda **content: ("table", content)


@pytest.fixture(params=["wandb", "trackio"])
def recorder(request, monkeypatch) -> Recorder:
    module = Recorder(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_wandb_and_trackio_receive_videos_and_tables(recorder, tmp_path):
    callback = type(f"{recorder.__name__.capitalize()}Callback", (TrainerCallback,), {})()
    (tracker,) = trackers_of([callback])
    pictures = {"samples": tmp_path / "sheet.png", "samples/a": tmp_path / "a.mp4"}
    tracker.show(4, Shown(pictures, {"scores": Table(["prompt", "score"], [["a", "0.5"]])}))
    (logged,) = recorder.logged
    kind, content = logged.pop("scores")
    if recorder.__name__ == "wandb":
        assert content == {"columns": ["prompt", "score"], "data": [["a", "0.5"]]}
    else:
        assert content["dataframe"].to_dict("list") == {"prompt": ["a"], "score": ["0.5"]}
    assert logged == {"samples": ("image", f"{tmp_path}/sheet.png"), "samples/a": ("video", f"{tmp_path}/a.mp4")}


def test_a_package_that_is_imported_but_does_not_track_the_run_receives_nothing(recorder):
    assert trackers_of([]) == []


def test_the_outcome_goes_to_the_tracker_of_the_training(recorder, tmp_path):
    recorder.init = lambda **options: recorder.logged.append(options)
    recorder.finish = lambda: recorder.logged.append("end")
    unset = dict.fromkeys(("run_name", "trackio_space_id", "hub_private_repo", "trackio_bucket_id"))
    args = SimpleNamespace(report_to=[recorder.__name__], project="p", output_dir=str(tmp_path / "mine"), **unset)
    with trackers_of_run(args) as trackers:
        (tracker,) = trackers
        tracker.show(0, Shown(numbers={"evaluation/S@0.7": 0.5}))
    first, last = recorder.logged[0], recorder.logged[-1]
    if recorder.__name__ == "trackio":  # its run ended with the training
        assert first["project"] == "p" and first["name"] == "mine-outcome" and last == "end"
    else:
        assert first == last == {"evaluation/S@0.7": 0.5}


def test_a_run_without_trackers_logs_its_outcome_nowhere():
    with trackers_of_run(SimpleNamespace(report_to=[])) as trackers:
        assert trackers == []


@pytest.fixture(scope="module")
def outcome() -> list[tuple[int, Shown]]:
    """Show the outcome of two rounds, of which only the second was evaluated, and return what each step showed."""
    calls: list[tuple[int, Shown]] = []
    tracker = SimpleNamespace(show=lambda step, content: calls.append((step, content)))
    summary = {"S@0.7": 0.5, "dsr_mean": None, "invalid_rate": 0.0, "quality": {"sharpness": 0.2}, "by_type": {}}
    rounds = [{"round": 1}, {"round": 2, "evaluation": summary}]
    difference = {"S@0.7": {"difference": 0.0, "interval": [-0.1, 0.1]}}
    results = {"base": summary, "aligned": summary, "difference": difference, "rounds": rounds}
    show_outcome([tracker], results, {"picture": "sheet.png"})
    return calls


def test_the_outcome_has_a_step_for_the_base_and_every_round(outcome):
    assert [step for step, _ in outcome] == [0, 1, 2]


def test_the_outcome_has_the_numbers_of_evaluated_steps_only(outcome):
    (_, base), (_, first_round), _ = outcome
    numbers = {"evaluation/S@0.7": 0.5, "evaluation/invalid_rate": 0.0, "evaluation/sharpness": 0.2}
    assert base.numbers == {**numbers, "evaluation/round": 0.0} and not base.tables
    assert not first_round.numbers


def test_the_last_step_of_the_outcome_has_tables_and_pictures(outcome):
    _, last_round = outcome[-1]
    assert set(last_round.tables) == {"evaluation/before_and_after", "evaluation/difference"}
    assert last_round.pictures == {"picture": "sheet.png"}
