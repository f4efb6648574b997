"""Test the choice of context frames, their positions in time, and the cameras."""

import numpy as np
import pytest
import torch
from tiny_scenes import walk

from spatialalign_trl.models.context import (
    FOURIER_CHANNELS,
    FOURIER_METRES,
    FOURIER_OCTAVES,
    as_intrinsics,
    as_poses,
    choose_context_frames,
    context_positions,
    draw_boxes,
    fourier_rays,
    latent_cameras,
    pack_cameras,
    pluecker_rays,
)


def test_frames_are_spread_evenly_and_include_the_last():
    assert choose_context_frames(4) == [0, 1, 2, 3]
    assert choose_context_frames(9, 3) == [0, 4, 8]
    assert choose_context_frames(9, 1) == [8]
    assert choose_context_frames(2, 4) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="0 of 3"):
        choose_context_frames(3, 0)


def test_with_poses_the_frames_nearest_to_the_target_are_chosen():
    poses = np.array(walk(12))
    assert choose_context_frames(12, 3, poses, poses[2:4]) == [2, 3, 11]
    # With all cameras at one place, only the angle matters.
    turning = poses.copy()
    turning[:, :3, 3] = 0
    assert choose_context_frames(12, 2, turning, turning[5:6]) == [5, 11]


def test_positions_keep_the_gaps_of_the_recording():
    assert context_positions([0, 4, 20], 4) == [-6.0, -5.0, -1.0]
    assert context_positions([0, 4, 20], 4, contiguous=True) == [-3.0, -2.0, -1.0]
    assert context_positions([10, 14, 30], 4) == context_positions([0, 4, 20], 4)
    with pytest.raises(ValueError, match="order of time"):
        context_positions([3, 1], 4)


def test_rays_go_through_the_pixels_of_their_camera():
    poses = np.array(walk(5))
    cameras = pack_cameras(poses, as_intrinsics([20, 20, 15.5, 7.5], 16, 32), poses[0])
    rays = pluecker_rays(cameras, 2, 4)
    assert rays.shape == (5, 2, 4, 6)
    direction, moment = rays[..., :3], rays[..., 3:]
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(5, 2, 4))
    torch.testing.assert_close((direction * moment).sum(-1), torch.zeros(5, 2, 4), atol=1e-6, rtol=0)
    # A point in front of a camera lies on the ray of the pixel it projects to.
    relative = np.linalg.inv(poses[0]) @ poses
    for pose, ray in zip(relative, rays, strict=True):
        point = (
            pose[:3, :3] @ np.array([(4 - 16) / 20, (4 - 8) / 20, 1]) * 3 + pose[:3, 3]
        )  # the centre of patch (0, 0)
        torch.testing.assert_close(
            torch.linalg.cross(torch.tensor(point).float(), ray[0, 0, :3]), ray[0, 0, 3:], atol=1e-5, rtol=0
        )
    assert not pluecker_rays(torch.zeros(3, 16), 2, 4).any()


def test_fourier_features_are_those_of_directions_and_origins():
    """Check the formula of the docstring number by number."""
    poses = np.array(walk(3))
    cameras = pack_cameras(poses, as_intrinsics([20, 20, 15.5, 7.5], 16, 32), poses[0])
    rays, features = pluecker_rays(cameras, 2, 4), fourier_rays(cameras, 2, 4)
    assert features.shape == (3, 2, 4, FOURIER_CHANNELS)
    assert torch.equal(features[..., :6], rays)
    direction, origin = rays[2, 1, 3, :3].numpy(), cameras[2, 9:12].numpy()
    expected = []
    for octave in range(FOURIER_OCTAVES):
        angles = 2**octave * np.concatenate([np.pi * direction / 2, 2 * np.pi * origin / FOURIER_METRES])
        expected += [*np.sin(angles), *np.cos(angles)]
    np.testing.assert_allclose(features[2, 1, 3, 6:].numpy(), expected, atol=1e-5)
    # A camera that is not there has no features, although cos(0) = 1.
    assert not fourier_rays(torch.zeros(3, 16), 2, 4).any()
    mixed = fourier_rays(torch.stack([torch.zeros(16), cameras[1]]), 2, 4)
    assert not mixed[0].any() and torch.equal(mixed[1], features[1])


def test_rays_are_exact_under_autocast_too():
    poses = np.array(walk(3))
    cameras = pack_cameras(poses, as_intrinsics([20, 20, 15.5, 7.5], 16, 32), poses[0])
    exact = pluecker_rays(cameras, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pluecker_rays(cameras, 2, 4), exact)
        assert torch.equal(fourier_rays(cameras, 2, 4)[..., :6], exact)


def test_rays_do_not_depend_on_the_world_s_axes():
    poses = np.array(walk(6))
    moved = np.array(walk(9))[8] @ poses
    intrinsics = as_intrinsics([[20, 0, 15.5], [0, 20, 7.5], [0, 0, 1]], 16, 32)
    original, transformed = (pack_cameras(cameras, intrinsics, cameras[0]) for cameras in (poses, moved))
    torch.testing.assert_close(original, transformed, atol=1e-5, rtol=0)


def test_four_frames_share_a_latent_frame_and_the_first_has_its_own():
    cameras = torch.arange(9.0)[None, :, None].expand(1, 9, 16)
    assert latent_cameras(cameras, 4)[0, :, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_poses_are_read_in_all_forms_and_broken_ones_refused():
    poses = np.array(walk(3))
    for form in (poses, poses[:, :3], poses.reshape(3, 16), poses[:, :3].reshape(3, 12).tolist()):
        np.testing.assert_allclose(as_poses(form, "camera_poses"), poses)
    with pytest.raises(ValueError, match="camera_poses: 3 poses for 4 frames"):
        as_poses(poses, "camera_poses", 4)
    with pytest.raises(ValueError, match="not a rotation"):
        as_poses(2 * poses, "camera_poses")
    with pytest.raises(ValueError, match="expected finite"):
        as_poses(poses * np.nan, "camera_poses")
    with pytest.raises(ValueError, match="intrinsics"):
        as_intrinsics([1, 2, 3], 16, 32)


def test_boxes_are_outlines_on_their_frames_only():
    video = np.zeros((3, 60, 80, 3), np.uint8)
    drawn = draw_boxes(video, [None, (10, 20, 30, 50), (-5, -5, 200, 1)])
    assert not video.any() and not drawn[0].any() and not drawn[2].any()
    red = (drawn[1] == (255, 0, 0)).all(-1)
    assert red.sum() == 2 * 20 + 2 * 28 and red[20, 10:30].all() and not red[21:49, 11:29].any()
    with pytest.raises(ValueError, match="2 boxes for 3 frames"):
        draw_boxes(video, [None, None])
