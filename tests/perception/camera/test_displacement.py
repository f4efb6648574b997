"""Test SD on small frames: how far the contents of a frame are from their places in the scene."""

import numpy as np
import pytest

from spatialalign_trl.perception.camera.displacement import displacement

HEIGHT, WIDTH, DEPTH, FOCAL = 32, 48, 4.0, 40.0


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Return a random texture, as smooth as a blurred frame."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3))
    smooth = gaussian_filter(noise, (1.5, 1.5, 0))
    return 128 + 60 * smooth / smooth.std()


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Return the points of a wall four metres away."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([columns * DEPTH / FOCAL, rows * DEPTH / FOCAL, np.full(rows.shape, DEPTH)], axis=-1)


def test_a_correct_frame_has_no_displacement_whatever_its_brightness(picture, points) -> None:
    assert displacement(picture, picture, points, 5.0) == 0
    assert displacement(picture * 0.9 + 20, picture, points, 5.0) < 0.02


def test_the_displacement_of_a_shifted_picture_is_the_shift_in_metres(picture, points) -> None:
    wide = np.pad(picture, ((0, 0), (3, 3), (0, 0)), mode="reflect")
    shifted = wide[:, 6:]  # shows what lies 3 pixels, 0.3 m, to the right
    result = displacement(shifted, picture, points, size=5.0)
    assert 0.04 < result < 0.2  # 0.06, and 1 for patches at the edge whose content is outside the picture


def test_a_half_wrong_frame_has_half_of_the_maximum(picture, points) -> None:
    half = picture.copy()
    half[:, WIDTH // 2 :] = (
        np.random.default_rng(1).permutation(picture.reshape(-1, 3)).reshape(picture.shape)[:, WIDTH // 2 :]
    )
    assert displacement(half, picture, points, 5.0) == pytest.approx(0.5, abs=0.12)


def test_the_displacement_does_not_depend_on_the_resolution(picture, points) -> None:
    doubled = [np.repeat(np.repeat(array, 2, axis=0), 2, axis=1) for array in (picture, points)]
    small, large = picture.copy(), doubled[0].copy()
    for frame in (small, large):
        frame[: len(frame) // 2] = 255 - frame[: len(frame) // 2]
    expected = displacement(small, picture, points, 5.0)
    assert displacement(large, *doubled, 5.0) == pytest.approx(expected, abs=0.1)
