"""`spatialalign evaluate`: the tiny model from prompts to tables, the authors' prompt files, and errors."""

from __future__ import annotations

import csv
import json
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


def test_the_tiny_model_is_evaluated_with_one_line_and_again_from_its_videos(tmp_path, capsys):
    first = tmp_path / "first"
    assert main([*TINY, "--max_prompts", "2", "--seeds", "2", "--output_dir", str(first)]) == 0
    printed = capsys.readouterr().out
    assert "S@0.7" in printed and "sprite_shape" in printed and "samples.parquet" in printed
    results = json.loads((first / "results.json").read_text())
    assert results["rewards"]["dsr_score"]["tracker"] == "color_segmentation"
    assert {"frame_change", "flicker", "sprite_kind", "distance_to_real"} <= set(
        results["policies"]["tiny"]["summary"]["quality"]
    )
    assert results["settings"]["seeds"] == 2 and "torch" in results["versions"]

    words = ["evaluate", "--videos", f"tiny={first / 'samples'}", "--tracker", "color_segmentation"]
    assert main([*words, "--quality_guards", "frames", "--output_dir", str(tmp_path / "second")]) == 0
    again = json.loads((tmp_path / "second" / "results.json").read_text())["policies"]["tiny"]["summary"]
    known = results["policies"]["tiny"]["summary"]
    assert {name: again[name] for name in known if name != "quality"} == {
        name: known[name] for name in known if name != "quality"
    }


def test_scene_tasks_are_rendered_sampled_and_compared_with_their_right_answers(tmp_path, capsys):
    common = ["--tasks", "video4spatial_navigation", "--split", "validation", "--max_prompts", "2"]
    common += ["--reward_funcs", "scene_navigation", "--quality_guards", "frames", "--supersample", "1"]
    options = {"pose_estimator": "room_render_and_compare", "pose_options": {"places": 2}, "frames": 3}
    common += ["--reward_options", json.dumps({"scene_navigation": options}), "--scenes_dir", str(tmp_path / "scenes")]
    model = ["--model", "tiny_rooms", "--model_init_kwargs", '{"context_frames": 4}', "--num_inference_steps", "2"]
    first = tmp_path / "first"
    assert main(["evaluate", *model, *common, "--seeds", "1", "--output_dir", str(first)]) == 0
    assert "psnr" in capsys.readouterr().out
    results = json.loads((first / "results.json").read_text())
    (policy,) = results["policies"].values()
    assert 5 < policy["summary"]["quality"]["psnr"] < 40 and "context_frames" in policy["revision"]
    assert "reward_mean" in policy["summary"] and "scene_navigation_SD" in policy["summary"]["components"]

    truths = SceneArguments(scenes_dir=str(tmp_path / "scenes"), supersample=1)
    size = SamplingSettings(17, 32, 48, num_inference_steps=1, guidance_scale=1)
    answers = truths.answers(truths.load_set("video4spatial_navigation", "validation", 2), size, tmp_path)
    for name, video in answers.items():
        write_video(tmp_path / "right" / f"{name}_F17_seed00.mp4", video, fps=8, crf=0)
    words = [*common, "--videos", f"model={first / 'samples'}", f"right={tmp_path / 'right'}"]
    assert main(["evaluate", *words, "--output_dir", str(tmp_path / "second")]) == 2
    assert "set num_frames, height and width" in capsys.readouterr().err
    size = ["--num_frames", "17", "--height", "32", "--width", "48"]
    assert main(["evaluate", *words, *size, "--output_dir", str(tmp_path / "second")]) == 0
    second = json.loads((tmp_path / "second" / "results.json").read_text())
    assert second["policies"]["right"]["summary"]["quality"]["psnr"] == 100
    difference = second["differences"]["right"]
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
        ([*TINY[1:], "--seeds", "0"], "seeds=0: must be at least 1"),
        ([*TINY[1:], "--tasks", "video4spatial_navigation"], "give one of them"),
        (["--model", "tiny_rooms", "--tasks", "video4spatial_navigation"], "dsr_score cannot judge scene tasks"),
        ([*TINY[1:], "--model_init_kwargs", "{"], "model_init_kwargs='{' is not JSON"),
        (["--model", "tiny", "--prompts", "none.csv"], "there is no prompt file none.csv"),
        (["--videos", "nowhere", "--tracker", "color_segmentation"], "no folder of videos 'nowhere'"),
        ([*TINY[1:], "--reward_funcs", "motion", "--tracker", "sam3"], "tracker='sam3' is an option of dsr_score"),
        ([*TINY[1:], *SAM3, "--tracker", "grounded_sam"], "tracker='grounded_sam', but reward_options has 'sam3'"),
        ([*TINY[1:], "--reward_funcs", "motion", *SAM3], "reward_options: 'dsr_score' is not in reward_funcs"),
        (["--model", "tiny", "--prompts", "tiny_world_promts"], "Did you mean 'tiny_world_prompts'?"),
    ],
)
def test_errors_exit_with_2_and_name_the_reason(words, message, capsys, tmp_path):
    assert main(["evaluate", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "--seed", "3"])
    assert ended.value.code == 2 and "Did you mean 'seeds'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dsr_eval30.csv", "dsr_eval120.csv"])
def test_the_authors_prompt_files_and_names_are_taken_as_they_are(name, tmp_path, shared_data):
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
