"""Camera paths: clear of everything, smooth, and consistent with their text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from spatialalign_trl.tiny_world.rooms import (
    TRAJECTORY_KINDS,
    Trajectory,
    is_clear,
    render,
    sample_approach,
    sample_room,
    sample_trajectory,
)
from spatialalign_trl.tiny_world.rooms.trajectories import CLEARANCE, direction, look

ROOMS = [(2, "indoor"), (1_000_001, "indoor"), (2_000_003, "outdoor"), (5, "flat"), (2_500_001, "flat_outdoor")]


@pytest.fixture(scope="module", params=ROOMS, ids=[str(seed) for seed, _ in ROOMS])
def room(request):
    return sample_room(*request.param)


def steps(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return metres and degrees from frame to frame."""
    relative = np.linalg.inv(poses[:-1]) @ poses[1:]
    turns = np.degrees(np.arccos(np.clip((np.trace(relative[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)))
    return np.linalg.norm(relative[:, :3, 3], axis=1), turns


@pytest.mark.parametrize("kind", TRAJECTORY_KINDS)
def test_paths_keep_clear_and_are_smooth_and_repeat(room, kind):
    path = sample_trajectory(room, kind, np.random.default_rng(1))
    assert sample_trajectory(room, kind, np.random.default_rng(1)) == path
    poses = path.poses(81)
    assert room.clearance(poses[:, :3, 3]).min() >= CLEARANCE - 1e-3
    rotation = poses[:, :3, :3]
    assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3))
    metres, turns = steps(poses)
    assert metres.max() < 0.17 and turns.max() < 9
    assert np.abs(np.diff(metres)).max() < 0.03 and np.abs(np.diff(turns)).max() < 2
    assert metres.sum() > 0.5 or turns.sum() > 30


def test_the_text_of_a_path_describes_its_motion(room):
    rng = np.random.default_rng(2)
    for _ in range(4):
        pan = sample_trajectory(room, "pan", rng)
        poses = pan.poses(9)
        ahead = poses[0, :3, :3].T @ poses[3, :3, 2]  # before half a turn, after which the sides would be swapped
        assert ("right" in pan.text) == (ahead[0] > 0)
        assert steps(poses)[1].sum() == pytest.approx(float(re.search(r"by (\d+)", pan.text)[1]), abs=2)
        dolly = sample_trajectory(room, "dolly", rng)
        moved = dolly.poses(2)[0, :3, :3].T @ np.diff(dolly.poses(2)[:, :3, 3], axis=0)[0]
        axis, sign = {"right": (0, 1), "left": (0, -1), "forward": (2, 1), "backward": (2, -1)}[dolly.text.split()[1]]
        assert moved[axis] * sign > 0.9 * np.linalg.norm(moved)
        orbit = sample_trajectory(room, "orbit", rng)
        moved = orbit.poses(9)[0, :3, :3].T @ (orbit.poses(9)[3, :3, 3] - orbit.poses(9)[0, :3, 3])
        assert ("to the right" in orbit.text) == (moved[0] > 0)


def test_an_approach_starts_without_its_target_and_ends_on_it(room):
    rng = np.random.default_rng(3)
    for target in room.objects[:3]:
        path = sample_approach(room, target, rng)
        assert path.text == f"Find the {target.name}."
        rendering = render(room, path.poses(9), (60, 104), supersample=1)
        index = room.objects.index(target)
        assert rendering.visible_pixels[0, index] <= 10 and rendering.visible_pixels[-1, index] > 90
        x1, _, x2, _ = rendering.boxes[-1, index]
        assert abs((x1 + x2) / 2 - 52) < 18


def test_a_path_starts_at_the_given_camera(room):
    """Include angles above 360 degrees, because a recording may end there."""
    rng = np.random.default_rng(4)
    for kind in sorted(set(TRAJECTORY_KINDS) - {"survey"}):
        start = sample_trajectory(room, kind, rng).knots[0]
        start = (*start[:3], start[3] + 720, start[4])
        path = None
        while path is None:
            try:
                path = sample_trajectory(room, kind, rng, start)
            except RuntimeError:
                continue
        assert path.knots[0] == pytest.approx(start, abs=1e-6)
        assert abs(path.knots[-1][3] - start[3]) < 180


def test_an_orbit_ends_with_its_target_in_the_middle(room):
    rng = np.random.default_rng(5)
    for _ in range(3):
        path = sample_trajectory(room, "orbit", rng)
        target = room.object_named(re.search(r"Circle the (.+) to the", path.text)[1])
        for pose, limit in zip(path.poses(3), (20, 6, 1), strict=True):
            local = (target.centre - pose[:3, 3]) @ pose[:3, :3]
            assert abs(np.degrees(np.arctan2(local[0], local[2]))) < limit
        swept = float(re.search(r"by (\d+) degrees", path.text)[1])
        arms = (path.poses(2)[:, :3, 3] - target.centre)[:, [0, 2]]
        cosine = np.prod(np.linalg.norm(arms, axis=1)) ** -1 * (arms[0] @ arms[1])
        assert np.degrees(np.arccos(cosine)) == pytest.approx(swept, abs=1)


def test_a_path_without_space_is_refused(room):
    x, z = np.array(room.layout.half) - 0.3
    start = (x, -1.4, z, 45.0, 0.0)  # in a corner, looking at it
    with pytest.raises(RuntimeError, match="no space for a 'walk'"):
        sample_trajectory(room, "walk", np.random.default_rng(0), start)


def test_any_number_of_frames_of_one_path_agree():
    path = Trajectory("walk", ((0, -1, 0, 0, 0), (0, -1, 0.5, 10, 0), (0, -1, 1, 30, -5)), "Walk.")
    assert np.allclose(path.poses(17)[::4], path.poses(5))
    assert np.allclose(path.poses(2)[0], look([0, -1, 0], 0, 0))
    assert np.allclose(path.poses(1)[0], path.poses(9)[0])
    with pytest.raises(ValueError, match="num_frames=0"):
        path.poses(0)


@pytest.mark.parametrize("knots", [((0, 0, 0, 0, 0),), ((0, 0, 0), (0, 0, 1)), ((0,) * 5, (0, 0, np.nan, 0, 0))])
def test_invalid_paths_are_refused(knots):
    with pytest.raises(ValueError, match="trajectory"):
        Trajectory("walk", knots, "Walk.")


def test_a_path_through_furniture_is_not_clear(room):
    thing = room.objects[0]
    inside = (*thing.centre, 0.0, 0.0)
    outside = (*(thing.centre + [0, -0.2, 0.1]), 0.0, 0.0)
    assert not is_clear(room, Trajectory("dolly", (inside, outside), ""))
    assert room.clearance(thing.centre[None])[0] < 0
    assert room.clearance(np.array([[99.0, -1, 0]]))[0] < 0


def test_directions_and_unknown_kinds(room):
    assert direction([0, 0, 0], [1, 0, 0]) == pytest.approx((90, 0))
    assert direction([0, 0, 0], [0, -1, 1]) == pytest.approx((0, 45))
    with pytest.raises(ValueError, match="Did you mean 'orbit'"):
        sample_trajectory(room, "orbits", np.random.default_rng(0))
