"""Rendered rooms, finished rows and recordings become rows with the same columns, and their videos are cached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Video
from tiny_scenes import walk

from spatialalign_trl.arguments.scenes import SceneArguments
from spatialalign_trl.models import SamplingSettings
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.scenes import rows as scene_rows
from spatialalign_trl.scenes.rows import complete_rows, load_scene_rows, scene_dataset, task_row
from spatialalign_trl.scenes.tasks import SceneTask
from spatialalign_trl.tiny_world.rooms import tasks as room_tasks
from spatialalign_trl.video import encode_video, read_video

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
SIZE, FRAMES = (16, 32), 5


@pytest.fixture
def renders(monkeypatch) -> list[str]:
    """Replace the renderer by random frames, and return the list of task ids that it was called with."""
    rendered: list[str] = []

    def render_row(row, size, num_frames, supersample):
        rendered.append(row["task_id"])
        return scene_task(row["task"], len(rendered), size, num_frames, name=row["task_id"])

    monkeypatch.setattr(room_tasks, "render_row", render_row)
    return rendered


def scene_task(kind="navigation", seed=0, size=SIZE, num_frames=FRAMES, name="a recording") -> SceneTask:
    frames = np.random.default_rng(seed).integers(0, 256, (3 + num_frames, *size, 3), dtype=np.uint8)
    boxes = np.full((num_frames, 4), np.nan)
    boxes[-1] = 1, 2, 9, 8
    return SceneTask(
        name, kind, "Find the green plant.", frames[:3], np.array([1, 7, 30]), np.array(walk(3)), frames[3:],
        np.array(walk(num_frames, 3)), np.eye(3), "green plant" if kind == "grounding" else "", boxes,
        {"room_seed": seed, "style": "indoor"},
    )  # fmt: skip


def complete(rows, folder, size=SIZE, num_frames=FRAMES, **options) -> Dataset:
    return complete_rows(rows, folder, size, num_frames, render=room_tasks.render_row, **options)


def published(kind: str, count: int) -> Dataset:
    return load_scene_rows(DATASETS / f"video4spatial_{kind}" / "test.jsonl", limit=count)


KINDS = pytest.mark.parametrize("kind", ["navigation", "grounding"])


@KINDS
def test_a_row_has_the_columns_of_its_task(kind, tmp_path, renders):
    rows = complete(published(kind, 2), tmp_path, ground_truth=True)
    columns_of_kind = {"camera_poses"} if kind == "navigation" else {"object", "boxes"}
    assert set(rows.column_names) == columns_of_kind | {
        "prompt_id", "prompt", "context", "context_indices", "context_poses", "intrinsics", "video", "room_seed",
        "style",
    }  # fmt: skip


@KINDS
def test_a_row_has_a_json_form_and_the_videos_of_its_task(kind, tmp_path, renders):
    for seed, row in enumerate(complete(published(kind, 2), tmp_path, ground_truth=True), start=1):
        task = scene_task(kind, seed)
        assert np.array_equal(read_video(row["context"]["path"]), task.context_frames)
        assert np.array_equal(read_video(row["video"]["path"]), task.target_frames)
        assert json.loads(json.dumps(row)) == row
        assert Path(row["context"]["path"]).parent == tmp_path
        assert SampleStore.sample_id(row, 0, {}, "base")


@KINDS
def test_without_ground_truth_a_row_has_no_answer(kind, tmp_path, renders):
    rows = complete(published(kind, 2), tmp_path, ground_truth=True)
    without = complete(published(kind, 2), tmp_path)
    assert set(rows.column_names) - set(without.column_names) == {"video", "boxes"} & set(rows.column_names)
    assert len(renders) == 2


@KINDS
def test_videos_are_rendered_again_only_at_another_length_or_if_they_are_gone(kind, tmp_path, renders):
    rows = complete(published(kind, 2), tmp_path, ground_truth=True)
    assert list(complete(published(kind, 2), tmp_path, ground_truth=True)) == list(rows) and len(renders) == 2
    complete(published(kind, 1), tmp_path, num_frames=FRAMES + 4)
    assert len(renders) == 3
    Path(rows[0]["context"]["path"]).unlink()
    complete(published(kind, 1), tmp_path, ground_truth=True)
    assert len(renders) == 4


def test_a_room_of_the_data_set_is_rendered(tmp_path):
    row = complete(published("navigation", 1), tmp_path, supersample=1)[0]
    assert read_video(row["context"]["path"]).shape == (len(row["context_indices"]), *SIZE, 3)
    assert np.shape(row["camera_poses"]) == (FRAMES, 4, 4) and row["room_seed"] >= 0 and row["style"] == "indoor"


def test_rows_that_need_rendering_are_refused_without_a_renderer(tmp_path):
    rows = published("navigation", 1)
    with pytest.raises(ValueError, match=f"row {rows[0]['task_id']!r}: has no recording .*Pass render=.*render_row"):
        complete_rows(rows, tmp_path, SIZE, FRAMES)


@pytest.fixture
def tasks() -> list[SceneTask]:
    return [scene_task(seed=k, name=f"recording {k}") for k in range(2)]


@pytest.fixture
def stored_rows(tasks, tmp_path) -> Dataset:
    """Store the tasks as a data set of another machine has them, with the files' bytes in its rows, and load them."""
    rows = scene_dataset([task_row(task, tmp_path / "other machine", ground_truth=True) for task in tasks])
    assert rows.features["context"] == Video(decode=False)
    with_bytes = []
    for row, task in zip(rows, tasks, strict=True):
        videos = {"context": task.context_frames, "video": task.target_frames}
        cells = {
            name: {"bytes": encode_video(video, 8, crf=0), "path": "../../any.mp4"} for name, video in videos.items()
        }
        with_bytes.append({**row, **cells})
    (tmp_path / "set").mkdir()
    scene_dataset(with_bytes).to_parquet(tmp_path / "set" / "train.parquet")
    loaded = load_scene_rows(tmp_path / "set")
    assert loaded.features["video"]["bytes"].dtype == "binary"
    return loaded


def test_recordings_of_another_machine_are_written_into_the_folder_of_this_one(stored_rows, tasks, tmp_path):
    completed = complete_rows(load_scene_rows(stored_rows), tmp_path / "here", SIZE, FRAMES, ground_truth=True)
    for row, task in zip(completed, tasks, strict=True):
        assert row["prompt_id"] == task.task_id and Path(row["context"]["path"]).parent == tmp_path / "here"
        assert np.array_equal(read_video(row["context"]["path"]), task.context_frames)
        assert np.array_equal(read_video(row["video"]["path"]), task.target_frames)


def test_recordings_of_another_size_or_length_are_refused(stored_rows, tmp_path):
    with pytest.raises(ValueError, match="'recording 0': context has 3 frames of 16x32.*samples 5 frames of 32x48"):
        complete_rows(load_scene_rows(stored_rows), tmp_path, (32, 48), FRAMES)
    with pytest.raises(ValueError, match="row 'recording 0': camera_poses has 5 poses for a video of 9"):
        complete_rows(load_scene_rows(stored_rows.remove_columns("video")), tmp_path, SIZE, 9)


def test_a_row_that_is_no_scene_task_is_refused_with_its_place(tmp_path):
    file = tmp_path / "mine.jsonl"
    for row, message in (
        ({"prompt": "Go."}, "mine.jsonl, line 1: a scene task needs an id"),
        ({"prompt_id": "a"}, "mine.jsonl, line 1: column 'prompt': expected a text, got None"),
        ({"prompt_id": "a", "prompt": "Go."}, "line 1: .*'context'.*'room_seed'.*this row has prompt, prompt_id"),
    ):
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=message):
            load_scene_rows(file)
    file.write_text(2 * '{"task_id": "a", "prompt": "Go.", "room_seed": 1}\n')
    with pytest.raises(ValueError, match="line 2: its id was already used at .*line 1"):
        load_scene_rows(file)
    file.write_text("")
    with pytest.raises(ValueError, match="contains no scene tasks"):
        load_scene_rows(file)


def test_the_arguments_keep_answers_out_of_the_prompts(tmp_path, renders):
    scenes = SceneArguments(train_prompts="video4spatial_grounding", max_train_prompts=2, max_eval_prompts=1)
    settings = SamplingSettings(FRAMES, *SIZE, num_inference_steps=1, guidance_scale=1.0)
    rows = scenes.load()
    train, evaluation = scenes.at_size(rows, settings, tmp_path)
    assert (len(train), len(evaluation)) == (2, 1)
    assert not {*scene_rows.GROUND_TRUTH} & {*train.column_names, *evaluation.column_names}
    answers = scenes.answers(rows[1], settings, tmp_path)
    assert answers.keys() == {evaluation[0]["prompt_id"]} and answers.popitem()[1].shape == (FRAMES, *SIZE, 3)
    assert len(renders) == 3 and Path(train[0]["context"]["path"]).parent == tmp_path / "scenes"
    shared = SceneArguments(scenes_dir=str(tmp_path / "shared"))
    assert list(shared.with_answers(rows[1], settings, tmp_path))[0]["context"]["path"].startswith(shared.scenes_dir)
    with pytest.raises(ValueError, match="supersample=0"):
        SceneArguments(supersample=0)


# ---------------------------------------------------------------------------------------- paths in somebody's set


def finished_row(video, **columns) -> dict:
    return {"prompt_id": "a", "prompt": "Walk.", "context": video, "camera_poses": walk(FRAMES), **columns}


def cell(path) -> dict:
    return {"bytes": None, "path": str(path)}


@pytest.fixture
def sent(tmp_path) -> Path:
    """A set in a folder, beside the user's own files."""
    video = encode_video(np.zeros((3, *SIZE, 3), np.uint8), 8)
    for file in ("sent/clips/a.mp4", "home/private.mp4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(video)
    (tmp_path / "home" / "token").write_text("hf_secret")
    (tmp_path / "sent" / "link.mp4").symlink_to(tmp_path / "home" / "private.mp4")
    return tmp_path / "sent"


def write_set(folder: Path, row: dict) -> Path:
    (folder / "rows.jsonl").write_text(json.dumps(row))
    return folder / "rows.jsonl"


@pytest.mark.parametrize(
    "place", ["{home}/private.mp4", "../home/private.mp4", "{home}/token", "link.mp4", "gone.mp4"]
)
@pytest.mark.parametrize("column", ["context", "video", "extra"])
def test_rows_of_a_set_name_only_files_of_the_set(sent, tmp_path, place, column):
    path = place.format(home=tmp_path / "home")
    row = finished_row(cell("clips/a.mp4")) | {column: cell(path)}
    with pytest.raises(ValueError, match=f"rows.jsonl, line 1: the column '{column}' names .*not a file in"):
        load_scene_rows(write_set(sent, row))


@pytest.mark.parametrize("bare", [True, False])
def test_a_path_is_relative_to_the_set_or_to_the_working_directory(sent, tmp_path, monkeypatch, bare):
    monkeypatch.chdir(tmp_path)
    for path in ("clips/a.mp4", "sent/clips/a.mp4", str(sent / "clips" / "a.mp4")):
        row = finished_row(path if bare else cell(path), extra=cell(path))
        rows = load_scene_rows(write_set(sent, row))
        assert rows[0]["context"] == rows[0]["extra"] == cell(sent / "clips" / "a.mp4")
        complete_row = complete_rows(rows, tmp_path / "run", SIZE, FRAMES)[0]
        for column in ("context", "extra"):  # a run reads and publishes its own copies
            assert Path(complete_row[column]["path"]).parent == tmp_path / "run"
            assert read_video(complete_row[column]["path"]).shape == (3, *SIZE, 3)


def test_a_column_that_no_model_reads_holds_a_video_or_stops_the_run_before_it_starts(sent, tmp_path):
    (sent / "notes.mp4").write_text("no video")
    rows = load_scene_rows(write_set(sent, finished_row(cell("clips/a.mp4"), extra=cell("notes.mp4"))))
    with pytest.raises(ValueError, match="row 'a', column 'extra' is not a video file"):
        complete_rows(rows, tmp_path / "run", SIZE, FRAMES)


def test_a_cached_row_names_no_file_outside_of_its_folder(tmp_path, renders):
    (row,) = complete(published("navigation", 1), tmp_path / "run")
    (task,) = (tmp_path / "run").glob("task-*.json")
    outside = tmp_path / "private.mp4"
    outside.write_bytes(Path(row["context"]["path"]).read_bytes())
    for name in ("../private.mp4", str(outside)):
        task.write_text(json.dumps(json.loads(task.read_text()) | {"context": name}))
        (again,) = complete(published("navigation", 1), tmp_path / "run")
        assert Path(again["context"]["path"]).parent == tmp_path / "run"
    assert len(renders) == 3
