"""SD of small frames: how far from its place in the scene a frame shows things."""

import numpy as np
import pytest

from spatialalign_trl.perception.camera.displacement import displacement

HEIGHT, WIDTH, DEPTH, FOCAL = 32, 48, 4.0, 40.0


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Random textures, as smooth as blurred frames."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3))
    smooth = gaussian_filter(noise, (1.5, 1.5, 0))
    return 128 + 60 * smooth / smooth.std()


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """A wall, four metres ahead."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([columns * DEPTH / FOCAL, rows * DEPTH / FOCAL, np.full(rows.shape, DEPTH)], axis=-1)


def test_what_is_in_its_place_has_no_distance_whatever_its_brightness(picture, points) -> None:
    assert displacement(picture, picture, points, 5.0) == 0
    assert displacement(picture * 0.9 + 20, picture, points, 5.0) < 0.02


def test_a_shifted_picture_is_off_by_the_shift_in_metres(picture, points) -> None:
    wide = np.pad(picture, ((0, 0), (3, 3), (0, 0)), mode="reflect")
    shifted = wide[:, 6:]  # shows what lies 3 pixels, 0.3 m, to the right
    told = displacement(shifted, picture, points, size=5.0)
    assert 0.04 < told < 0.2  # 0.06, and 1 for the patches at the edge whose content is not in the picture


def test_half_of_something_else_is_half_as_far_as_can_be(picture, points) -> None:
    half = picture.copy()
    half[:, WIDTH // 2 :] = (
        np.random.default_rng(1).permutation(picture.reshape(-1, 3)).reshape(picture.shape)[:, WIDTH // 2 :]
    )
    assert displacement(half, picture, points, 5.0) == pytest.approx(0.5, abs=0.12)


def test_another_size_measures_alike(picture, points) -> None:
    twice = [np.repeat(np.repeat(one, 2, axis=0), 2, axis=1) for one in (picture, points)]
    half = [one.copy() for one in (picture, twice[0])]
    for one in half:
        one[: len(one) // 2] = 255 - one[: len(one) // 2]
    assert displacement(half[0], picture, points, 5.0) == pytest.approx(displacement(half[1], *twice, 5.0), abs=0.1)
