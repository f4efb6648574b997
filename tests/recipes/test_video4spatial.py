"""Run the recipes for scenes through their command lines on a tiny random model: they run, resume, write metrics."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fresh_process import PROGRAMS
from posed_recordings import realestate10k
from safetensors.torch import load_file
from tiny_pipelines import saved_wan

from spatialalign_trl.files import read_json
from spatialalign_trl.tiny_world.rooms import render, sample_room, sample_trajectory

ROOT = Path(__file__).resolve().parents[2]
SIZE = "--num_frames 9 --height 16 --width 32 --num_inference_steps 1 --guidance_scale 2 --supersample 1".split()
FEW = (
    "--max_train_prompts 2 --max_eval_prompts 1 --evaluation_seeds 1 --max_steps 2 --warmup_steps 0 --logging_steps 1"
)
FEW = FEW.split()
HOW = "--save_steps 1 --per_device_train_batch_size 2 --use_cpu --disable_tqdm true --report_to none".split()
LOOP = "--num_generations 2 --min_pair_gap 0 --reward_weights 1 0 --report_megabytes 1".split()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Make a model, a reward that scores no two videos equally, and a folder for rooms that are rendered once."""
    folder = tmp_path_factory.mktemp("inputs")
    saved_wan(folder / "model")
    shutil.copy(PROGRAMS / "brightness_reward.py", folder / "judge.py")
    return folder


@pytest.fixture
def run(inputs, tmp_path, monkeypatch):
    """Run a recipe as its command line would, but in this process, because imports take most of the time."""

    def run(name: str, *more: str, output_dir: Path | None = None) -> Path:
        monkeypatch.syspath_prepend(str(ROOT / "recipes"))
        module = importlib.import_module(name)
        folder = output_dir or tmp_path / "run"
        places = ["--model_name_or_path", inputs / "model", "--scenes_dir", inputs / "scenes", "--output_dir", folder]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, places), *SIZE, *FEW, *HOW, *more])
        module.launch(module.DEFAULT_CONFIG)
        return folder

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("task", "reward"), [("navigation", "scene_navigation"), ("grounding", "object_grounding")])
def test_alignment_runs_measures_and_resumes(run, inputs, capsys, task, reward):
    line = [f"video4spatial_{task}", *LOOP, "--reward_funcs", f"{inputs / 'judge.py'}:brightness", reward]
    folder = run(*line)
    for name in ("results.json", "report.html", "contact_sheet.png", "pytorch_lora_weights.safetensors"):
        assert (folder / name).is_file()
    metrics = read_json(folder / "scene_metrics.json")
    assert metrics["num_tasks"] == 1 and {"psnr", "brightness", "brightness_red", reward} <= set(metrics["aligned"])
    assert 0 < metrics["base"]["psnr"]["mean"] < 40
    assert "psnr" in capsys.readouterr().out
    settings = read_json(folder / "run.json")
    assert settings["rewards"][reward]["pose_estimator"] == "room_render_and_compare"
    assert settings["context"]["layout"] == "non_contiguous"

    lora, samples = load_file(folder / "pytorch_lora_weights.safetensors"), sorted((folder / "samples").iterdir())
    written = {file: file.stat().st_mtime_ns for file in samples}
    for name in ("results.json", "scene_metrics.json", "rounds/01/round.json"):
        (folder / name).unlink()
    run(*line)
    assert read_json(folder / "scene_metrics.json") == metrics
    assert {file: file.stat().st_mtime_ns for file in sorted((folder / "samples").iterdir())} == written
    again = load_file(folder / "pytorch_lora_weights.safetensors")
    assert all((again[name] == lora[name]).all() for name in lora)


@pytest.mark.slow
def test_the_supervised_stage_runs_measures_and_resumes(run, tmp_path, capsys):
    options = ["--model_init_kwargs", json.dumps({"context_layout": "contiguous", "context_frames": 3})]
    line = ["video4spatial_sft", *options, "--context_dropout", "0.5"]
    folder = run(*line)
    metrics = read_json(folder / "scene_metrics.json")
    assert {"psnr", "scene_navigation"} <= set(metrics["before"]) & set(metrics["difference"])
    assert "before" in capsys.readouterr().out
    assert "contiguous time indices" in (folder / "README.md").read_text()
    first = load_file(folder / "pytorch_lora_weights.safetensors")
    assert any(name.startswith("transformer.camera_projection") for name in first)

    for name in ("scene_metrics.json", "pytorch_lora_weights.safetensors"):
        (folder / name).unlink()
    for file in (folder / "checkpoint-2").iterdir():
        file.unlink()
    run(*line)
    again = load_file(folder / "pytorch_lora_weights.safetensors")
    assert first.keys() == again.keys() and all((again[name] == first[name]).all() for name in first)
    assert read_json(folder / "scene_metrics.json") == metrics


@pytest.mark.slow
def test_ablations_end_in_one_table_and_resume(run, inputs, capsys):
    judge = ["--reward_funcs", f"{inputs / 'judge.py'}:brightness", "--reward_options", "{}"]
    prompts = ["--train_prompts", "video4spatial_grounding"]
    variants = ["contiguous", "no_box", "longer_context", "outdoor"]
    # told_cameras is skipped: a search has no trajectory, in whose coordinates the cameras could be given
    line = ["video4spatial_ablations", *judge, *prompts, "--variants", *variants, "told_cameras"]
    folder = run(*line)
    results = read_json(folder / "ablations.json")
    assert list(results) == ["full", *variants]
    assert not results["full"]["difference"] and not results["outdoor"]["difference"]
    assert {"psnr", "brightness"} <= set(results["contiguous"]["difference"])
    table = (folder / "ablations.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 2 + len(results)
    trained = [
        load_file(folder / name / "pytorch_lora_weights.safetensors") for name in ("full", "contiguous", "no_box")
    ]
    for other in trained[1:]:
        assert any((other[name] != trained[0][name]).any() for name in other), "a variant was trained as full"

    written = {file: file.stat().st_mtime_ns for file in (folder / "samples").iterdir()}
    run(*line)
    assert read_json(folder / "ablations.json") == results
    assert {file: file.stat().st_mtime_ns for file in (folder / "samples").iterdir()} == written


@pytest.mark.slow
def test_the_lines_of_the_page_turn_recordings_into_rows_for_the_supervised_stage(run, inputs, tmp_path, monkeypatch):
    """Run the lines of docs/video4spatial.md, with only sizes changed, on files in the layout of RealEstate10K."""
    (tmp_path / "recordings").mkdir()
    for seed in (6, 7, 8):
        room = sample_room(seed)
        poses = sample_trajectory(room, "survey", np.random.default_rng(0)).poses(40)
        realestate10k(
            tmp_path / "recordings", poses, render(room, poses, (24, 40), supersample=1), True, f"room{seed}"
        )
    page = (ROOT / "docs" / "video4spatial.md").read_text()
    program = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL).group(1)
    size = "size=(480, 832), num_frames=81"
    assert size in program
    program = program.replace(size, "size=(16, 32), num_frames=9")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/video4spatial.md", "exec"), {})
    rows = (tmp_path / "rows" / "train.jsonl").read_text().splitlines()
    assert len(rows) == 3
    for name, kept in (("train", rows[:2]), ("test", rows[2:])):
        (tmp_path / "rows" / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in kept))

    line = re.search(r"accelerate launch recipes/video4spatial_sft.py (.*rows/train.jsonl.*)", page).group(1)
    folder = run("video4spatial_sft", *shlex.split(line))
    metrics = read_json(folder / "scene_metrics.json")
    assert metrics["num_tasks"] == 1 and metrics["after"]["psnr"]["num_videos"] == 1
    assert metrics["after"]["scene_navigation_invalid_rate"]["mean"] == 1, "16 rows are too few for keypoints"
    assert read_json(folder / "checkpoint-2" / "trainer_state.json")["global_step"] == 2


@pytest.mark.parametrize("recipe", ["video4spatial_sft", "video4spatial_ablations"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--save_only_model", "true"], "save_only_model=True writes checkpoints without the optimizer"),
        (["--report_to", "clearml"], "report_to='clearml'"),
        (["--lora_target_modules", "to_kk"], "to_kk"),
        (["--optim", "adamw_8bit"], "bitsandbytes|adamw_8bit"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_all_work(run, inputs, tmp_path, recipe, option, message):
    more = ["--reward_funcs", f"{inputs / 'judge.py'}:brightness", "--reward_options", "{}"]
    with pytest.raises((ValueError, ImportError), match=message):
        run(recipe, *more, *option)
    assert not list((tmp_path / "run" / "samples").glob("*.mp4"))


def test_wrong_options_are_refused_with_the_nearest_name(run, tmp_path):
    for kwargs, message in (
        ({"context_layout": "continuous"}, "context_layout=.continuous.: .*Did you mean 'contiguous'"),
        ({"context_layot": "none"}, "context_layot.*Did you mean 'context_layout'"),
        ({"variant": "contxt"}, "variant='context', but model_init_kwargs has 'contxt'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            run("video4spatial_navigation", "--model_init_kwargs", json.dumps(kwargs))
    with pytest.raises(ValueError, match="there is no variant 'contxt'. Did you mean 'context'"):
        run("video4spatial_navigation", "--variant", "contxt")
