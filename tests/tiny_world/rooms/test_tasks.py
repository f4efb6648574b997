"""Tasks in rooms: a seed gives a row, a row gives videos, and the context covers the target."""

from __future__ import annotations

import json

import numpy as np
import pytest

from spatialalign_trl.tiny_world.rooms import intrinsics_for, look, render_geometry, sample_room
from spatialalign_trl.tiny_world.rooms.tasks import (
    MIN_COVERAGE,
    NAVIGATION_KINDS,
    covered,
    familiar,
    make_row,
    render_row,
)

SIZE = (24, 42)
SEEDS = {"navigation": (0, "indoor"), "grounding": (2_000_001, "outdoor")}


@pytest.fixture(scope="module", params=list(SEEDS))
def row(request):
    seed, style = SEEDS[request.param]
    return make_row(seed, request.param, style)


def test_a_row_repeats_and_survives_json(row):
    assert make_row(row["room_seed"], row["task"], row["style"]) == row
    assert json.loads(json.dumps(row)) == row
    assert row["coverage"] >= MIN_COVERAGE
    assert (np.diff(row["context_indices"]) > 0).all() and len(set(np.diff(row["context_indices"]))) > 1


def test_a_row_renders_into_videos_with_cameras(row):
    task = render_row(row, SIZE, num_frames=5, supersample=1)
    number = len(row["context_indices"])
    assert task.context_frames.shape == (number, *SIZE, 3) and task.target_frames.shape == (5, *SIZE, 3)
    assert task.context_poses.shape == (number, 4, 4) and task.target_poses.shape == (5, 4, 4)
    assert np.allclose(task.intrinsics, intrinsics_for(SIZE, row["field_of_view"]))
    longer = render_row(row, SIZE, num_frames=9, supersample=1)
    assert np.array_equal(longer.target_frames[::2], task.target_frames)
    assert np.array_equal(longer.context_frames, task.context_frames)
    columns = task.columns()
    assert (columns["room_seed"], columns["style"]) == (row["room_seed"], row["style"])
    if row["task"] == "navigation":
        assert np.array_equal(columns["camera_poses"], task.target_poses) and np.isnan(task.boxes).all()
    else:
        assert columns["object"] == row["object"] and row["object"] in row["prompt"]
        assert np.isnan(task.boxes[0]).all() and not np.isnan(task.boxes[-1]).any()


@pytest.mark.parametrize("task", ["navigation", "grounding"])
def test_a_path_continues_from_the_end_of_the_recording(task):
    kinds = set()
    for variant in range(4):
        row = make_row(1_000_003, task, variant=variant)
        kinds.add(row["trajectory"])
        assert row["context_indices"][-1] == row["context_length"] - 1
        rendered = render_row(row, SIZE, num_frames=3, supersample=1)
        assert np.allclose(rendered.target_poses[0], rendered.context_poses[-1], atol=1e-9)
        assert np.array_equal(rendered.target_frames[0], rendered.context_frames[-1])
        assert (rendered.target_frames[0] != rendered.target_frames[-1]).mean() > 0.2
    assert kinds == (set(NAVIGATION_KINDS) if task == "navigation" else {"approach"})


def test_variants_are_other_tasks_in_the_same_room(row):
    seed, task, style = row["room_seed"], row["task"], row["style"]
    other = make_row(seed, task, style, variant=1)
    assert other == make_row(seed, task, style, variant=1)
    assert other["task_id"] == f"{row['task_id']}-1" and other["room_seed"] == seed
    assert other["objects"] == row["objects"]
    assert other["knots"] != row["knots"] and other["context_knots"] != row["context_knots"]
    with pytest.raises(ValueError, match="variant=-1"):
        make_row(seed, task, style, variant=-1)


def test_coverage_is_the_share_of_points_that_the_context_shows():
    room = sample_room(4)
    point = next(
        np.array([x, -1.4, z]) for x in np.linspace(-1, 1, 9) for z in np.linspace(-1, 1, 9)
        if room.clearance(np.array([[x, -1.4, z]]))[0] > 0.4
    )  # fmt: skip
    ahead, aside, behind = (look(point, angle)[None] for angle in (0, 20, 180))
    seen = render_geometry(room, ahead, (36, 64))
    assert covered(room, ahead, ahead, seen) > 0.97
    assert 0.5 < covered(room, aside, ahead, seen) < 0.95
    assert covered(room, behind, ahead, seen) < 0.02


def test_points_seen_from_one_camera_only_are_not_familiar():
    row = make_row(1_000_003, "grounding", num_context=24, min_familiar=0.5)
    room, task = sample_room(row["room_seed"]), render_row(row, SIZE, num_frames=5, supersample=1)
    seen = render_geometry(room, task.context_poses, (36, 64))
    assert familiar(room, task.target_poses, task.context_poses, seen) > 0.4
    seen_once = render_geometry(room, task.context_poses[-1:], (36, 64))
    assert familiar(room, task.target_poses, task.context_poses[-1:], seen_once) == 0  # two views are needed


def test_invalid_rows_are_refused(row):
    with pytest.raises(ValueError, match="Did you mean 'grounding'"):
        make_row(0, "groundings")
    with pytest.raises(ValueError, match="context_indices=.*: they must increase"):
        render_row(row | {"context_indices": [4, 3]}, SIZE)
    with pytest.raises(ValueError, match=r"lie in \[0, 81\)"):
        render_row(row | {"context_indices": [4, 81]}, SIZE)
    if row["task"] == "grounding":
        with pytest.raises(KeyError, match="has no 'green elephant'"):
            render_row(row | {"object": "green elephant"}, SIZE, 2, 1)
