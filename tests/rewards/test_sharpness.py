"""Sharpness falls with blur at any size, equals the guard's measure, and breaks ties of another reward."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from spatialalign_rewards import Sharpness
from spatialalign_trl.evaluation import frame_statistics
from spatialalign_trl.rewards.runner import RewardRunner, load_reward


def picture(height: int, width: int, blur: float) -> np.ndarray:
    """Return two frames of a chessboard of 8x8 tiles, blurred by `blur` tiles."""
    tile = height // 8
    rows, columns = np.indices((height, width)) // tile
    frame = gaussian_filter(((rows + columns) % 2) * 255.0, blur * tile)
    return np.repeat(frame[None, ..., None], 2, 0).repeat(3, -1).round().astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (240, 416)])
def test_it_falls_with_blur_and_is_what_the_guard_measures(height, width):
    clips = [picture(height, width, blur) for blur in (0.0, 0.1, 0.2, 0.4)]
    values = Sharpness()(["p"] * 4, clips)
    assert values == sorted(values, reverse=True) and values[0] > 2 * values[-1] > 0
    assert values == frame_statistics(clips, [{}] * 4)["sharpness"]


def test_the_score_is_limited_by_the_ceiling():
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    assert Sharpness(ceiling=0.1)(["p"], [noise]) == [0.1] and Sharpness()(["p"], [noise])[0] > 0.3


@pytest.mark.parametrize("ceiling", [0, -0.1, 1.5, float("nan")])
def test_a_ceiling_out_of_range_is_refused(ceiling):
    with pytest.raises(ValueError, match=f"ceiling is {ceiling}"):
        Sharpness(ceiling=ceiling)


def test_a_completion_that_is_no_video_is_named():
    with pytest.raises(ValueError, match=r"completions\[1\] has shape"):
        Sharpness()(["p"] * 2, [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)])


def test_with_a_small_weight_it_only_decides_between_equals():
    blurred, sharp = picture(32, 48, 0.4), picture(32, 48, 0.0)

    def moves(prompts, completions, **kwargs):
        return [0.9, 0.1, 0.1]

    runner = RewardRunner([moves, load_reward("sharpness", ceiling=0.3)], [1.0, 1.0])
    obedient, blurred_tie, sharp_tie = runner(["p"] * 3, [blurred, blurred, sharp]).rewards
    assert obedient > sharp_tie > blurred_tie
