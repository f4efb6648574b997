"""Test computations with poses, the lookup of estimators, and the estimators on rendered rooms."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spatialalign_trl.perception.camera import features as camera_features
from spatialalign_trl.perception.camera import geometry as camera_geometry
from spatialalign_trl.perception.camera.colmap import ColmapEstimator
from spatialalign_trl.perception.camera.diagnosis import cut_factor, moving_share, steps
from spatialalign_trl.perception.camera.estimator import (
    CallableEstimator,
    PoseEstimator,
    check_intrinsics,
    check_poses,
    get_pose_estimator,
)
from spatialalign_trl.perception.camera.geometry import align, extent, rotation_degrees, triangulate
from spatialalign_trl.perception.camera.map import SIFTEstimator
from spatialalign_trl.perception.camera.pnp import find_pose
from spatialalign_trl.tiny_world.rooms import intrinsics_for, look, render, sample_room
from spatialalign_trl.tiny_world.rooms.cameras import RoomObjects, RoomRenderAndCompare

SIZE = (240, 416)
SEED = 2_000_001
INTRINSICS = intrinsics_for(SIZE)


def random_poses(rng: np.random.Generator, count: int) -> np.ndarray:
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, rng).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(count, 3))
    return poses


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_alignment_undoes_any_similarity(seed):
    rng = np.random.default_rng(seed)
    poses = random_poses(rng, 5)
    similarity = camera_geometry.Similarity(rng.uniform(0.1, 9), random_poses(rng, 1)[0, :3, :3], rng.normal(size=3))
    found = align(poses, similarity.poses(poses))
    assert found.scale == pytest.approx(similarity.scale)
    np.testing.assert_allclose(found.rotation, similarity.rotation, atol=1e-9)
    np.testing.assert_allclose(found.translation, similarity.translation, atol=1e-9)


def test_alignment_of_cameras_on_a_line_finds_the_rotation_about_the_line():
    poses = np.stack([look((0, -1, 0.3 * k), 0) for k in range(4)])
    rotation_error = camera_geometry.Similarity(
        2.0, Rotation.from_euler("z", 50, degrees=True).as_matrix(), np.ones(3)
    )
    np.testing.assert_allclose(align(poses, rotation_error.poses(poses)).rotation, rotation_error.rotation, atol=1e-9)


def test_alignment_of_a_turning_camera_gives_no_scale():
    poses = np.stack([look((0, -1, 0), 10 * k) for k in range(4)])
    assert np.isnan(align(poses, poses).scale)
    assert align(poses[:1], poses[:1]) is None


def test_small_angles_are_exact():
    turn = Rotation.from_rotvec([0, np.radians(1e-5), 0]).as_matrix()
    assert rotation_degrees(turn, np.eye(3)) == pytest.approx(1e-5)


def test_resized_frames_keep_their_rays():
    larger = camera_geometry.scaled_intrinsics(INTRINSICS, SIZE, (480, 832))
    np.testing.assert_allclose(larger, intrinsics_for((480, 832)))


def test_triangulation_and_pnp_recover_points_and_pose():
    rng = np.random.default_rng(0)
    points, pose = rng.uniform(-1, 1, (60, 3)) + [0, 0, 5], look((0.3, -0.2, 0.1), 7, 3)
    pixels, _ = camera_geometry.project(points, pose, INTRINSICS)
    pixels[:12] = rng.uniform(0, 240, (12, 2))  # wrong matches
    found, inliers = find_pose(points, pixels, INTRINSICS, 1.0)
    np.testing.assert_allclose(found, pose, atol=1e-4)
    assert inliers.sum() >= 48
    centres = np.stack([np.zeros(3), np.array([1.0, 0, 0])])
    rays = points[:, None] - centres
    rays = rays / np.linalg.norm(rays, axis=2, keepdims=True)
    np.testing.assert_allclose(triangulate(np.broadcast_to(centres, rays.shape), rays, np.ones((60, 2))), points)


def test_a_turn_is_found_among_wrong_matches():
    rng = np.random.default_rng(0)
    directions = camera_geometry.bearings(rng.uniform(0, 240, (80, 2)), INTRINSICS)
    turn = Rotation.from_euler("y", 9, degrees=True).as_matrix()
    moved = directions @ turn.T
    moved[:30] = moved[rng.permutation(30)]
    found, inliers = camera_features.find_turn(directions, moved, 1e-3)
    np.testing.assert_allclose(found, turn, atol=1e-6)
    assert inliers[30:].all()


def test_estimators_by_name_object_and_function():
    assert isinstance(get_pose_estimator("sift"), PoseEstimator)
    estimator = CallableEstimator(lambda frames, intrinsics: None)
    assert get_pose_estimator(estimator) is estimator
    assert get_pose_estimator(lambda frames, intrinsics: None, name="vggt").name == "vggt"
    with pytest.raises(ValueError, match="no pose estimator named 'colmop'.*colmap"):
        get_pose_estimator("colmop")
    with pytest.raises(TypeError, match="no option 'minframes'"):
        get_pose_estimator("colmap", minframes=2)
    with pytest.raises(TypeError, match=r"must be an instance.*pass SIFTEstimator\(\)"):
        get_pose_estimator(SIFTEstimator)
    with pytest.raises(TypeError, match=r"needs a method estimate\(.*a function or one of the names colmap"):
        get_pose_estimator(3)
    with pytest.raises(TypeError, match="options min_frames are for a pose estimator given by name"):
        get_pose_estimator(estimator, min_frames=3)


def test_poses_come_from_a_function():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    poses = random_poses(np.random.default_rng(0), 6)
    poses[4] = np.nan
    found = CallableEstimator(lambda all_frames, k: {"poses": poses[:, :3]}).estimate(frames, frames, INTRINSICS)
    np.testing.assert_allclose(found.context_poses, poses[:3])
    assert found.support.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"must have the shape \(6, 4, 4\)"):
        CallableEstimator(lambda all_frames, k: poses[:2]).estimate(frames, frames, INTRINSICS)
    with pytest.raises(ValueError, match="support must be 6 numbers in"):
        CallableEstimator(lambda all_frames, k: {"poses": poses, "support": [2] * 6}).estimate(
            frames, frames, INTRINSICS
        )


def test_invalid_poses_and_intrinsics_are_refused():
    assert check_poses(np.eye(4).reshape(1, 16), 1, "poses").shape == (1, 4, 4)
    with pytest.raises(ValueError, match="number 1 is no pose.*OpenGL"):
        check_poses(np.stack([np.eye(4), np.diag([1, 1, -1, 1])]), None, "poses")
    with pytest.raises(ValueError, match="cannot be read as numbers"):
        check_poses([["a"]], None, "poses")
    np.testing.assert_allclose(check_intrinsics((2, 3, 4, 5)), [[2, 0, 4], [0, 3, 5], [0, 0, 1]])
    with pytest.raises(ValueError, match="focal lengths above 0"):
        check_intrinsics(np.zeros((3, 3)))


def test_colmap_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(ImportError, match=r"spatialalign-trl\[colmap\]"):
        ColmapEstimator().prepare()


# On rendered rooms


@pytest.fixture(scope="module")
def recording() -> tuple[np.ndarray, np.ndarray]:
    """Return frames and poses of a camera that moves through a room and turns."""
    share = np.linspace(0, 1, 9)
    poses = np.stack([look((-1.8 + 1.6 * s, -1.4, -1.9 + 2.4 * s), 25 + 60 * s, -8) for s in share])
    return render(sample_room(SEED), poses, SIZE).frames, poses


@pytest.fixture(scope="module")
def pan() -> tuple[np.ndarray, np.ndarray]:
    """Return frames and poses of a camera that only turns."""
    poses = np.stack([look((-1.0, -1.4, -1.0), yaw, -6) for yaw in np.linspace(20, 80, 7)])
    return render(sample_room(SEED), poses, SIZE).frames, poses


def errors(found, poses, size) -> tuple[float, float]:
    """Return the largest rotation error in degrees, and the mean position error as a share of `size`."""
    distances = np.linalg.norm(found[:, :3, 3] - poses[:, :3, 3], axis=1)
    return float(rotation_degrees(found[:, :3, :3], poses[:, :3, :3]).max()), float(distances.mean() / size)


def test_sift_without_any_known_pose(recording):
    frames, poses = recording
    context, video = slice(0, None, 2), slice(1, None, 2)
    estimate = SIFTEstimator().estimate(frames[context], frames[video], INTRINSICS)
    assert estimate.context_kind == "moving"
    aligned = estimate.aligned(poses[context])
    rotation_error, position_error = errors(aligned.poses, poses[video], extent(poses))
    assert rotation_error < 1.0
    assert position_error < 0.01
    assert estimate.support.min() > 0.5
    assert np.mean([sightings.share() for sightings in estimate.sightings]) > 0.3


def test_sift_with_known_context_poses_needs_no_alignment(recording):
    frames, poses = recording
    context, video = slice(0, None, 2), slice(1, None, 2)
    estimate = SIFTEstimator().estimate(frames[context], frames[video], INTRINSICS, poses[context])
    rotation_error, position_error = errors(estimate.poses, poses[video], extent(poses))
    assert rotation_error < 0.5
    assert position_error < 0.01


def test_the_same_frames_have_the_same_poses(recording):
    frames, _ = recording
    first, second = (SIFTEstimator().estimate(frames[::4], frames[1:3], INTRINSICS) for _ in range(2))
    np.testing.assert_array_equal(first.poses, second.poses)


def test_a_context_that_only_turns_gives_rotations(pan):
    frames, poses = pan
    estimate = SIFTEstimator().estimate(frames[::2], frames[1::2], INTRINSICS)
    assert estimate.context_kind == "turning"
    aligned = estimate.aligned(poses[::2])
    assert rotation_degrees(aligned.poses[:, :3, :3], poses[1::2, :3, :3]).max() < 0.5


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda frames: np.zeros_like(frames), "no texture"),
        (lambda frames: np.repeat(frames[:1], len(frames), axis=0), "all the same picture"),
        (lambda frames: np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8), "same things"),
    ],
    ids=["black", "static", "noise"],
)
def test_a_context_without_information_is_unusable_for_a_reason(recording, make, reason):
    frames = recording[0][::3]
    estimate = SIFTEstimator().estimate(make(frames), frames, INTRINSICS)
    assert estimate.context_kind == "unusable"
    assert reason in estimate.reason
    assert not camera_geometry.known(estimate.poses).any()


def test_a_static_video_has_no_motion_though_it_has_grain(recording):
    frames = recording[0]
    grain = np.random.default_rng(1).normal(0, 1.5, (9, *frames.shape[1:]))
    static = np.clip(frames[:1] + grain, 0, 255).astype(np.uint8)
    assert moving_share(steps(static)) == 0
    assert moving_share(steps(frames)) > 0.9


def test_a_cut_between_scenes_is_detected(recording):
    first, other = recording[0][0], cv2.flip(recording[0][-1], 0)
    slow_pan = np.stack([np.roll(first, shift, axis=1) for shift in range(8)])
    with_a_cut = np.concatenate([slow_pan[:4], [np.roll(other, shift, axis=1) for shift in range(4)]])
    assert cut_factor(steps(with_a_cut)) < 0.5 < cut_factor(steps(slow_pan))


def test_a_cut_stands_out_and_a_pause_does_not():
    assert cut_factor(np.array([3.0, 3, 4, 3, 40, 3, 3])) < 0.5
    assert cut_factor(np.array([3.0, 4, 5, 0, 0, 0, 0])) == 1
    assert cut_factor(np.zeros(5)) == 1


def test_rendering_finds_the_camera_of_tiny_frames():
    size, row = (48, 80), {"room_seed": SEED}
    intrinsics, room = intrinsics_for(size), sample_room(SEED)
    share = np.linspace(0, 1, 4)
    context_poses = np.stack([look((-1.8 + 1.6 * s, -1.4, -1.9 + 2.4 * s), 25 + 60 * s, -8) for s in share])
    poses = np.stack([look((-1.3 + 1.0 * s, -1.3, -1.3 + 0.9 * s), 40 + 35 * s, -6) for s in np.linspace(0, 1, 3)])
    context, video = (render(room, cameras, size, supersample=5).frames for cameras in (context_poses, poses))
    video = np.concatenate([video, np.random.default_rng(0).integers(0, 256, video[:1].shape, np.uint8)])
    estimator = RoomRenderAndCompare(climbs=1, places=2).for_row(row)
    found = estimator.estimate(context, video, intrinsics, context_poses)
    assert camera_geometry.known(found.poses).tolist() == [True, True, True, False]
    rotation_error, position_error = errors(found.poses[:3], poses, 1.0)
    assert rotation_error < 2
    assert position_error < 0.08
    assert np.mean([sightings.share() for sightings in found.sightings[:3]]) > 0.5
    names = [room_object.name for room_object in room.objects]
    boxes = RoomObjects().for_row(row).detect_at(video, names, found.poses, intrinsics)
    assert len(boxes[0].labels) > 0
    assert boxes[3].labels == ()
