"""`spatialalign evaluate` samples, scores and compares policies, from prompts or videos, and names mistakes."""

from __future__ import annotations

import csv
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from fresh_process import PROGRAMS

from spatialalign_trl.arguments.evaluation import EvaluationArguments
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.cli import main
from spatialalign_trl.models.settings import SamplingSettings
from spatialalign_trl.video import write_video

SAM3 = ["--reward_options", '{"dsr_score": {"tracker": "sam3"}}']
TINY = ["evaluate", "--model", "tiny", "--prompts", "tiny_world_prompts", "--num_inference_steps", "2"]


@pytest.fixture(scope="module")
def tiny_evaluation(tmp_path_factory):
    """Evaluate the tiny model on two prompts; return the folder and what was printed."""
    folder, printed = tmp_path_factory.mktemp("evaluation"), StringIO()
    with redirect_stdout(printed):
        assert main([*TINY, "--max_prompts", "2", "--seeds", "2", "--output_dir", str(folder)]) == 0
    return folder, printed.getvalue()


def test_an_evaluation_prints_its_table_and_files(tiny_evaluation):
    _, printed = tiny_evaluation
    assert "S@0.7" in printed and "sprite_shape" in printed and "samples.parquet" in printed


def test_the_results_name_tracker_quality_settings_and_versions(tiny_evaluation):
    results = json.loads((tiny_evaluation[0] / "results.json").read_text())
    assert results["rewards"]["dsr_score"]["tracker"] == "color_segmentation"
    assert {"frame_change", "flicker", "sprite_kind", "distance_to_real"} <= set(
        results["policies"]["tiny"]["summary"]["quality"]
    )
    assert results["settings"]["seeds"] == 2 and "torch" in results["versions"]


def test_the_videos_of_an_evaluation_are_evaluated_to_the_same_scores(tiny_evaluation, tmp_path):
    folder, _ = tiny_evaluation
    words = ["evaluate", "--videos", f"tiny={folder / 'samples'}", "--tracker", "color_segmentation"]
    assert main([*words, "--quality_guards", "frames", "--output_dir", str(tmp_path)]) == 0
    expected, actual = (
        json.loads((place / "results.json").read_text())["policies"]["tiny"]["summary"] for place in (folder, tmp_path)
    )
    assert {name: actual[name] for name in expected if name != "quality"} == {
        name: expected[name] for name in expected if name != "quality"
    }


SCENES = [
    "--tasks", "video4spatial_navigation", "--split", "validation", "--max_prompts", "2", "--reward_funcs",
    "scene_navigation", "--quality_guards", "frames", "--supersample", "1", "--reward_options",
    '{"scene_navigation": {"pose_estimator": "room_render_and_compare", "pose_options": {"places": 2}, "frames": 3}}',
]  # fmt: skip


@pytest.fixture(scope="module")
def scene_evaluation(tmp_path_factory):
    """Evaluate the model of the rooms on two scenes; return the folder, the scenes' folder and what was printed."""
    folder, scenes, printed = tmp_path_factory.mktemp("scenes"), tmp_path_factory.mktemp("rendered"), StringIO()
    model = ["--model", "tiny_rooms", "--model_init_kwargs", '{"context_frames": 4}', "--num_inference_steps", "2"]
    words = ["evaluate", *model, *SCENES, "--scenes_dir", str(scenes), "--seeds", "1", "--output_dir", str(folder)]
    with redirect_stdout(printed):
        assert main(words) == 0
    return folder, scenes, printed.getvalue()


def test_scene_tasks_are_rendered_sampled_and_scored(scene_evaluation):
    folder, _, printed = scene_evaluation
    assert "psnr" in printed
    (policy,) = json.loads((folder / "results.json").read_text())["policies"].values()
    assert 5 < policy["summary"]["quality"]["psnr"] < 40 and "context_frames" in policy["revision"]
    assert "reward_mean" in policy["summary"] and "scene_navigation_SD" in policy["summary"]["components"]


@pytest.fixture(scope="module")
def scene_videos(scene_evaluation, tmp_path_factory) -> list[str]:
    """Write the right answers as videos, and return the words that compare the model's videos with them."""
    folder, scenes, _ = scene_evaluation
    answers_folder = tmp_path_factory.mktemp("right")
    arguments = SceneArguments(scenes_dir=str(scenes), supersample=1)
    size = SamplingSettings(17, 32, 48, num_inference_steps=1, guidance_scale=1)
    tasks = arguments.load_set("video4spatial_navigation", "validation", 2)
    for name, video in arguments.answers(tasks, size, answers_folder).items():
        write_video(answers_folder / f"{name}_F17_seed00.mp4", video, fps=8, crf=0)
    return [*SCENES, "--scenes_dir", str(scenes), "--videos", f"model={folder / 'samples'}", f"right={answers_folder}"]


def test_videos_of_scenes_need_a_size(scene_videos, tmp_path, capsys):
    assert main(["evaluate", *scene_videos, "--output_dir", str(tmp_path)]) == 2
    assert "set num_frames, height and width" in capsys.readouterr().err


def test_the_right_answers_of_scenes_score_above_the_model(scene_videos, tmp_path):
    size = ["--num_frames", "17", "--height", "32", "--width", "48"]
    assert main(["evaluate", *scene_videos, *size, "--output_dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["policies"]["right"]["summary"]["quality"]["psnr"] == 100
    difference = results["differences"]["right"]
    assert difference["rewards"]["reward_mean"]["difference"] > 0 and difference["quality"]["psnr"]["difference"] > 60
    assert difference["components"]["scene_navigation_SD"]["difference"] < 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "tiny"], "a model needs prompts"),
        (["--prompts", "tiny_world_prompts"], "nothing to evaluate"),
        ([*TINY[1:], "--lora", "nowhere/at/all"], "no LoRA file or folder 'nowhere/at/all'"),
        ([*TINY[1:], "--quality_guards", "flick"], "unknown quality guard 'flick'"),
        ([*TINY[1:], "--reward_funcs", "dsr"], "There is no reward named 'dsr'"),
        ([*TINY[1:], "--seeds", "0"], "seeds=0: must be in [1, 100_000]"),
        ([*TINY[1:], "--tasks", "video4spatial_navigation"], "give one of them"),
        (["--model", "tiny_rooms", "--tasks", "video4spatial_navigation"], "dsr_score cannot judge scene tasks"),
        ([*TINY[1:], "--model_init_kwargs", "{"], "model_init_kwargs='{' is not valid YAML"),
        (["--model", "tiny", "--prompts", "none.csv"], "there is no prompt file none.csv"),
        (["--videos", "nowhere", "--tracker", "color_segmentation"], "no folder of videos 'nowhere'"),
        ([*TINY[1:], "--reward_funcs", "motion", "--tracker", "sam3"], "tracker='sam3' is an option of dsr_score"),
        ([*TINY[1:], *SAM3, "--tracker", "grounded_sam"], "tracker='grounded_sam', but reward_options has 'sam3'"),
        ([*TINY[1:], "--reward_funcs", "motion", *SAM3], "reward_options: 'dsr_score' is not in reward_funcs"),
        (["--model", "tiny", "--prompts", "tiny_world_promts"], "Did you mean 'tiny_world_prompts'?"),
    ],
)
def test_errors_exit_with_2_and_name_the_reason(words, message, capsys, tmp_path):
    try:
        code = main(["evaluate", *words, "--output_dir", str(tmp_path / "out")])
    except SystemExit as stop:  # of the parser
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "--seed", "3"])
    assert ended.value.code == 2 and "Did you mean 'seeds'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dsr_eval30.csv", "dsr_eval120.csv"])
def test_the_authors_prompt_files_and_video_names_are_read_unchanged(name, tmp_path, shared_data):
    file = shared_data / name
    with file.open(newline="") as opened:
        ids = [row["prompt_id"] for row in csv.DictReader(opened)]
    videos = tmp_path / "videos"
    videos.mkdir()
    for prompt_id in ids[:3]:
        (videos / f"{prompt_id}_F81_seed01.mp4").write_bytes(b"not opened before it is scored")
    args = EvaluationArguments(
        videos=[str(videos)],
        prompts=str(file),
        reward_funcs=[f"{PROGRAMS / 'constant_reward.py'}:one_half"],
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
    )
    evaluation = args.build()
    assert len(evaluation.rows) == len(ids) == int(name.removeprefix("dsr_eval").removesuffix(".csv"))
    samples = evaluation._folders["videos"].samples
    assert [(sample.prompt_id, sample.seed) for sample in samples] == [(prompt_id, 1) for prompt_id in ids[:3]]


def test_the_recipes_default_config_parses(repo_root):
    config = repo_root / "recipes" / "configs" / "evaluate.yaml"
    (args,) = parse_recipe((EvaluationArguments,), config, [])
    assert args.is_tiny and args.lora == ["aligned=runs/tiny"] and Path(args.samples_dir) == Path("runs/tiny/samples")
