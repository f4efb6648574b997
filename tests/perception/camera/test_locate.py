"""Test the localisation of frames in a map: near a neighbour if the map is ambiguous, and without changing the map."""

import numpy as np
import pytest

from spatialalign_trl.perception.camera import locate as camera_locate
from spatialalign_trl.perception.camera.features import Features, repeatable
from spatialalign_trl.perception.camera.geometry import project, rotation_degrees
from spatialalign_trl.perception.camera.locate import Locator
from spatialalign_trl.tiny_world.rooms import intrinsics_for, look

SIZE = (240, 416)
INTRINSICS = intrinsics_for(SIZE)
FIRST, SECOND = look((0, -1.4, 0), 0), look((0.1, -1.4, 0.05), 3)
ALIKE = slice(40, None)
"""The points of three walls with the same pattern."""


def random_descriptors(rng: np.random.Generator, count: int) -> np.ndarray:
    descriptors = np.abs(rng.normal(size=(count, 128))).astype(np.float32)
    return 512 * descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)


@pytest.fixture
def locator(monkeypatch) -> Locator:
    """Return the locator of a map with 40 unique points, and 30 points that look the same on each of 3 walls."""
    rng = np.random.default_rng(0)
    unique = rng.uniform((-1.5, -2.2, 3), (1.5, -0.6, 5), (40, 3))
    wall = rng.uniform((-0.4, -2.2, 3), (0.4, -0.6, 5), (30, 3))
    points = np.concatenate([unique, *(wall + (shift, 0, 0) for shift in (-1.5, 0.0, 1.5))])
    descriptors = np.concatenate([random_descriptors(rng, 40), np.tile(random_descriptors(rng, 30), (3, 1))])
    monkeypatch.setattr(camera_locate, "find_features", lambda frame: frame)  # videos are lists of Features here
    return Locator(points, descriptors, INTRINSICS, SIZE)


def seen_from(locator: Locator, pose: np.ndarray, which: slice = slice(None)) -> Features:
    pixels, _ = project(locator.points[which], pose, INTRINSICS)
    inside = ((pixels >= 0) & (pixels < SIZE[::-1])).all(axis=1)
    return Features(pixels[inside], locator.descriptors[which][inside])


def test_a_frame_that_is_ambiguous_in_the_whole_map_is_found_near_a_neighbour(locator):
    known, lost = seen_from(locator, FIRST), seen_from(locator, SECOND, ALIKE)
    before = locator.points.copy(), locator.descriptors.copy()
    with repeatable():
        assert locator.locate([lost]) == [None]
        for video, place in (([known, lost, lost], 1), ([lost, lost, known], 0)):
            found = locator.locate(video)
            assert None not in found
            assert rotation_degrees(found[place].pose[:3, :3], SECOND[:3, :3]) < 0.3
            assert np.linalg.norm(found[place].pose[:3, 3] - SECOND[:3, 3]) < 0.02
        assert locator.locate([lost]) == [None]  # poses of earlier videos are not remembered
    assert np.array_equal(locator.points, before[0])
    assert np.array_equal(locator.descriptors, before[1])


def test_a_frame_of_another_place_is_not_found_near_a_neighbour(locator):
    known = seen_from(locator, FIRST)
    other = Features(known.pixels, random_descriptors(np.random.default_rng(1), len(known.pixels)))
    with repeatable():
        found = locator.locate([known, other])
    assert np.linalg.norm(found[0].pose[:3, 3] - FIRST[:3, 3]) < 0.02
    assert found[1] is None
