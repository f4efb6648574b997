"""Both scene rewards distinguish correct from wrong 32x48 videos of tiny rooms, with render and compare."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from spatialalign_rewards._scene_scoring import SceneGrade
from spatialalign_rewards.object_grounding import ObjectGrounding
from spatialalign_rewards.scene_navigation import SceneNavigation
from spatialalign_trl.perception.camera.render import RenderAndCompare
from spatialalign_trl.tiny_world.rooms import Trajectory, render, sample_room
from spatialalign_trl.tiny_world.rooms.tasks import make_row, render_row

SIZE, FRAMES = (32, 48), 17
SEEDS = {"navigation": 1, "grounding": 1}
ESTIMATOR = "room_render_and_compare"
GOOD = ("correct", "blurred")
LIMITS = (("correct", 0.5, 0.03), ("blurred", 1.5, 0.1))
"""Mean errors in degrees and metres."""


def melted(video: np.ndarray, sigma: float) -> np.ndarray:
    """Imitate what a small autoencoder does to a video: blur, a little noise, and slightly changed colours."""
    blurred = gaussian_filter(video.astype(float), (0, sigma, sigma, 0)) * [1.03, 0.98, 0.96] + [3, -4, 2]
    return np.clip(blurred + np.random.default_rng(0).normal(0, 6, video.shape) + 0.5, 0, 255).astype(np.uint8)


def videos_of(row: dict, intrinsics: np.ndarray) -> dict[str, np.ndarray]:
    """Return the correct video, and those that must be distinguished from it."""
    path = Trajectory(row["trajectory"], tuple(map(tuple, row["knots"])), row["prompt"])
    poses = path.poses(2 * FRAMES - 1)
    dense = render(sample_room(row["room_seed"]), poses, SIZE, intrinsics=intrinsics, supersample=5).frames
    correct, other = dense[::2], sample_room(row["room_seed"] + 1)
    return {
        "correct": correct,
        "blurred": melted(correct, 1.25),
        "static": dense[np.zeros(FRAMES, int)],
        "freeze at half": dense[np.minimum(np.arange(0, 2 * FRAMES, 2), FRAMES - 1)],
        "half motion": dense[:FRAMES],
        "blurred half motion": melted(dense[:FRAMES], 1.25),
        "mirrored": correct[:, :, ::-1].copy(),
        "reversed": correct[::-1].copy(),
        "black": np.zeros_like(correct),
        "noise": np.random.default_rng(0).integers(0, 256, correct.shape, np.uint8),
        "other room": render(other, poses[::2], SIZE, intrinsics=intrinsics, supersample=5).frames,
    }


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, SceneGrade]]:
    rewards = {
        "navigation": SceneNavigation(pose_estimator=ESTIMATOR),
        "grounding": ObjectGrounding(pose_estimator=ESTIMATOR, detector="room_objects"),
    }
    grades = {}
    for task, reward in rewards.items():
        row = make_row(SEEDS[task], task)
        columns = {**render_row(row, SIZE, FRAMES, supersample=5).columns(), "room_seed": row["room_seed"]}
        videos = videos_of(row, np.array(columns["intrinsics"]))
        grades[task] = {name: reward.grade(video, columns) for name, video in videos.items()}
    return grades


@pytest.mark.parametrize("task", SEEDS)
def test_correct_videos_score_well_sharp_or_blurred(table, task):
    for name in GOOD:
        assert table[task][name].reward > 0.6, (name, table[task][name])


@pytest.mark.parametrize("task", SEEDS)
def test_wrong_videos_score_at_most_half_as_well(table, task):
    best = table[task]["correct"].reward
    for name, grade in table[task].items():
        if name not in GOOD:
            assert grade.reward <= 0.5 * best, (name, grade)


def test_half_of_the_motion_scores_between_none_and_all(table):
    grades = table["navigation"]
    assert grades["static"].reward < grades["half motion"].reward < grades["correct"].reward
    assert abs(grades["half motion"].reward - grades["blurred half motion"].reward) < 0.1


def test_poses_of_blurred_videos_are_near(table):
    for grade, angle, distance in ((table["navigation"][name], *most) for name, *most in LIMITS):
        assert grade.factors["registered"] == 1
        assert grade.factors["rotation_error"] < angle
        assert grade.factors["position_error"] < distance


@pytest.mark.parametrize("task", SEEDS)
def test_videos_that_show_no_scene_score_zero_with_a_reason(table, task):
    for name in ("black", "noise"):
        assert table[task][name].reward == 0
        assert table[task][name].reason == "no frame was found in the scene of the context"


@pytest.mark.parametrize("task", SEEDS)
def test_spatial_distance_is_small_in_the_scene_and_large_elsewhere(table, task):
    """Also for a still video: SD only depends on where things are."""
    distance = {name: grade.factors["SD"] for name, grade in table[task].items()}
    assert max(distance[name] for name in ("correct", "blurred", "static", "half motion")) < 0.05
    assert distance["black"] == distance["noise"] == 1
    assert distance["other room"] > 0.6


def test_an_instruction_counts_as_followed_only_in_the_scene(table):
    grades = table["grounding"]
    assert grades["correct"].factors["IF"] == pytest.approx(grades["correct"].factors["visible"])
    assert grades["noise"].factors["IF"] == 0


def test_a_view_of_a_blank_wall_has_no_pose_and_no_error():
    """A view of a single colour has no contrast that could distort the measure."""

    def blank(poses: np.ndarray, size: tuple[int, int], intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(poses), *size, 3), 90, np.uint8), np.ones((len(poses), *size), np.float32)

    video = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    poses = np.tile(np.eye(4), (2, 1, 1))
    estimate = RenderAndCompare(blank).estimate(video[:2], video, np.diag([31.0, 31.0, 1.0]), poses)
    assert np.isnan(estimate.poses).all() and not estimate.support.any()
