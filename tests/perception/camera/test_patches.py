"""Test which points of a map a frame shows: from near or far, blurred or dark, but not pasted in or misplaced."""

import cv2
import numpy as np
import pytest

from spatialalign_trl.perception.camera.patches import Patches
from spatialalign_trl.tiny_world.rooms import intrinsics_for, look

SIZE = (120, 208)
INTRINSICS = intrinsics_for(SIZE)
DEPTH, SCALE = 4.0, 60.0
"""Distance of a painted wall in metres, and pixels per metre of its picture."""


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(600, 800, 3))
    spots = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 45 * spots / spots.std(), 0, 255).astype(np.uint8)


def view(wall: np.ndarray, place: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of the wall from a camera at a place, and the camera's pose."""
    x, y, z = place
    zoom = INTRINSICS[0, 0] / (DEPTH - z) / SCALE
    shift = INTRINSICS[:2, 2] - zoom * (np.array([x, y]) * SCALE + (400, 300))
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    flags = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(wall, matrix, SIZE[::-1], flags=flags), look(place, 0)


CONTEXT = ((-0.6, 0, 0), (0, 0.2, -0.5), (0.6, -0.2, 0.1))
NEAR = (0.1, 0.1, 1.4)


@pytest.fixture(scope="module")
def patches() -> Patches:
    x, y = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-0.6, 0.6, 13))
    points = np.stack([x.ravel(), y.ravel(), np.full(x.size, DEPTH)], axis=1)
    frames, poses = map(np.stack, zip(*(view(picture(0), place) for place in CONTEXT), strict=True))
    return Patches(points, frames, poses, [np.arange(len(points))] * len(frames), INTRINSICS)


def test_the_same_wall_is_seen_from_nearer_blurred_and_in_other_light(patches):
    frame, pose = view(picture(0), NEAR)
    assert patches.sightings(pose, frame).share() > 0.9
    worse = np.clip(0.8 * cv2.GaussianBlur(frame, (0, 0), 1.5) + 20, 0, 255).astype(np.uint8)
    assert patches.sightings(pose, worse).share() > 0.8


def test_another_wall_or_a_wrong_pose_is_not_seen(patches):
    frame, pose = view(picture(0), NEAR)
    assert patches.sightings(pose, view(picture(1), NEAR)[0]).share() < 0.15
    assert patches.sightings(view(picture(0), (0.3, -0.1, 1.4))[1], frame).share() < 0.15
    assert patches.sightings(pose, np.full_like(frame, 128)).share() == 0
    assert patches.sightings(pose, 255 - frame).share() < 0.15


def test_a_pasted_box_is_not_seen_but_the_rest_is(patches):
    frame, pose = view(picture(0), NEAR)
    frame[30:90, 60:140] = frame[20:80, 120:200].copy()
    found, box = patches.sightings(pose, frame), np.array([60, 30, 140, 90])
    inside = ((found.pixels > box[:2]) & (found.pixels < box[2:])).all(axis=1)
    assert found.share(box) < 0.15
    assert found.seen[~inside].mean() > 0.8


def test_directions_are_enough_for_a_camera_that_turns():
    wall, rays = picture(0), np.stack([*np.meshgrid(np.linspace(-0.4, 0.4, 9), np.linspace(-0.2, 0.2, 5))], axis=-1)
    points = np.concatenate([rays.reshape(-1, 2), np.ones((45, 1))], axis=1)
    frame, pose = view(wall, (0.3, 0.2, 0))
    patches = Patches(points, frame[None], pose[None], [np.arange(45)], INTRINSICS, centre=pose[:3, 3])
    assert patches.sightings(pose, frame).share() == 1
    assert len(patches.sightings(look((0.3, 0.2, 0), 180), frame).seen) == 0
