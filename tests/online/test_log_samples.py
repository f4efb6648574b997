"""Looking at the policy while it trains: files, trackers, and not a bit of difference to the training."""

from __future__ import annotations

import json
import random
import sys
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
    """Luck with reasons, and a habit of drawing random numbers."""

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


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A run that is looked at every 2 of 3 steps, and its twin that is not."""
    folder = saved_wan(tmp_path_factory.mktemp("wan"))
    runs = {}
    for name, options in (
        ("looked at", {"log_samples_steps": 2, "log_samples_prompts": 2, "report_to": "tensorboard"}),
        ("in peace", {}),
    ):
        output = tmp_path_factory.mktemp("run")
        model = load_video_model(folder, device="cpu")
        args = config(output, contact_sheet_prompts=0, evaluation_seeds=1, **options)
        OnlineSpatialAlignTrainer(model, Grader(), args, prompts("train", "red"), prompts("eval", "blue")).train()
        runs[name] = output
    return runs


def test_looking_changes_no_bit_of_the_training(looked_at):
    one, other = (load_file(run / "pytorch_lora_weights.safetensors") for run in looked_at.values())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_look_leaves_videos_scores_and_curves(looked_at):
    samples = looked_at["looked at"] / "rounds" / "01" / "policy" / "samples"
    assert {path.name for path in samples.iterdir()} == {"step-000000", "step-000002"}
    for folder in samples.iterdir():
        expected = {"sheet.png", "scores.json", "eval0.mp4", "eval1.mp4", "eval0_curves.png", "eval1_curves.png"}
        assert {path.name for path in folder.iterdir()} == expected
    first, later = (json.loads((samples / f"step-00000{k}" / "scores.json").read_text()) for k in (0, 2))
    assert first.keys() == later.keys() and first != later  # the policy has moved, the noise has not
    assert not (looked_at["in peace"] / "rounds" / "01" / "policy" / "samples").exists()


def test_tensorboard_gets_pictures_scores_and_the_training_s_metrics(looked_at):
    events = tensorboard(looked_at["looked at"] / "rounds")
    tags = events.Tags()
    assert {"samples", "curves/eval0", "curves/eval1"} <= set(tags["images"])
    scalars = set(tags["scalars"])
    assert any(tag.endswith("samples/reward") for tag in scalars)
    assert any(tag.endswith("rewards/margins") for tag in scalars)
    assert [event.step for event in events.Images("samples")] == [0, 2]
    assert "samples/scores/text_summary" in tags["tensors"]


def tensorboard(folder) -> EventAccumulator:
    (log,) = folder.rglob("events.out.tfevents*")
    events = EventAccumulator(str(log.parent))
    events.Reload()
    return events


def test_tensorboard_gets_the_outcome(looked_at):
    run = looked_at["looked at"]
    events, results = tensorboard(run / "runs"), json.loads((run / "results.json").read_text())
    told = {event.step: event.value for event in events.Scalars("evaluation/S@0.7")}
    assert told == pytest.approx({0: results["base"]["S@0.7"], 1: results["aligned"]["S@0.7"]})
    assert {"evaluation/reward_mean", "evaluation/invalid_rate", "evaluation/sharpness"} <= set(
        events.Tags()["scalars"]
    )
    (table,) = events.Tensors("evaluation/before_and_after/text_summary")
    assert table.step == 1 and b"| measure | base | aligned |" in table.tensor_proto.string_val[0]
    assert not (looked_at["in peace"] / "runs").exists()


def test_the_run_leaves_its_page(looked_at):
    page = (looked_at["looked at"] / "report.html").read_text()
    assert "on the left of (start)" in page and "load_lora_weights" in page and "Curves and boxes" not in page
    assert "Round 1, sampled to train on" in page


class Recorder(SimpleNamespace):
    """wandb or trackio, as far as it is called."""

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


def test_wandb_and_trackio_get_videos_and_tables_too(recorder, tmp_path):
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
    assert trackers_of([]) == []  # the package is imported, but does not track this run


def test_the_outcome_goes_to_the_tracker_that_the_run_had(recorder, tmp_path):
    recorder.init = lambda **given: recorder.logged.append(given)
    recorder.finish = lambda: recorder.logged.append("end")
    free = dict.fromkeys(("run_name", "trackio_space_id", "hub_private_repo", "trackio_bucket_id"))
    args = SimpleNamespace(report_to=[recorder.__name__], project="p", output_dir=str(tmp_path / "mine"), **free)
    with trackers_of_run(args) as trackers:
        (tracker,) = trackers
        tracker.show(0, Shown(numbers={"evaluation/S@0.7": 0.5}))
    first, last = recorder.logged[0], recorder.logged[-1]
    if recorder.__name__ == "trackio":  # its run ended with the training
        assert first["project"] == "p" and first["name"] == "mine-outcome" and last == "end"
    else:
        assert first == last == {"evaluation/S@0.7": 0.5}
    args.report_to = []
    with trackers_of_run(args) as trackers:
        assert trackers == []


def test_the_outcome_has_a_step_a_round_and_the_table_at_the_last():
    shown = []
    tracker = SimpleNamespace(show=lambda step, what: shown.append((step, what)))
    summary = {"S@0.7": 0.5, "dsr_mean": None, "invalid_rate": 0.0, "quality": {"sharpness": 0.2}, "by_type": {}}
    rounds = [{"round": 1}, {"round": 2, "evaluation": summary}]
    difference = {"S@0.7": {"difference": 0.0, "interval": [-0.1, 0.1]}}
    results = {"base": summary, "aligned": summary, "difference": difference, "rounds": rounds}
    show_outcome([tracker], results, {"picture": "sheet.png"})
    assert [step for step, _ in shown] == [0, 1, 2] and not shown[1][1].numbers
    numbers = {"evaluation/S@0.7": 0.5, "evaluation/invalid_rate": 0.0, "evaluation/sharpness": 0.2}
    assert shown[0][1].numbers == {**numbers, "evaluation/round": 0.0} and not shown[0][1].tables
    assert set(shown[2][1].tables) == {"evaluation/before_and_after", "evaluation/difference"}
    assert shown[2][1].pictures == {"picture": "sheet.png"}
