"""Quality guards: what they measure, what they ignore, and how they are found and combined."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from spatialalign_trl.evaluation import frame_statistics, get_guard, guards, measure_quality
from spatialalign_trl.evaluation.guards import flicker_statistics, pixel_drift
from spatialalign_trl.evaluation.model_guards import RewardGuard
from spatialalign_trl.tiny_world.fidelity import tiny_world_guard


def moving_square(step: int) -> np.ndarray:
    video = np.full((9, 32, 48, 3), 40, np.uint8)
    for k in range(9):
        video[k, 10:20, 2 + step * k : 12 + step * k] = 220
    return video


def test_frame_statistics_tell_a_still_from_a_moving_and_a_sharp_from_a_blurred_video():
    still, moving = moving_square(0), moving_square(3)
    blurred = ndimage.gaussian_filter(moving.astype(float), (0, 2, 2, 0)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, moving.shape, dtype=np.uint8)
    measures = frame_statistics([still, moving, blurred, noise], [{}] * 4)
    change, sharpness = measures["frame_change"], measures["sharpness"]
    assert change[0] == 0.0 < change[2] < change[1] < change[3]
    assert sharpness[2] < 0.6 * sharpness[1] and sharpness[1] < sharpness[3]
    # two columns of ten pixels, three wide, change by 180 of 255 at each of the eight steps
    assert change[1] == pytest.approx(2 * 30 * 180 / 255 / (32 * 48))
    # the square's outline: two edges of ten pixels along either axis
    edges = 20 * (180 / 255) ** 2
    assert sharpness[0] == pytest.approx(((edges / (31 * 48) + edges / (32 * 47)) / 2) ** 0.5)


def test_frame_statistics_do_not_wrap_around_and_stay_finite_on_single_frames_and_pixels():
    flicker = np.zeros((2, 16, 16, 3), np.uint8)
    flicker[1] = 255
    assert frame_statistics([flicker, flicker[::-1]], [{}] * 2)["frame_change"] == [1.0, 1.0]
    values = frame_statistics([flicker[:1], np.zeros((3, 1, 1, 3), np.uint8)], [{}] * 2)
    assert values == {"frame_change": [0.0, 0.0], "sharpness": [0.0, 0.0]}
    checker = np.where(np.indices((2, 8, 8)).sum(0) % 2, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
    assert frame_statistics([checker], [{}])["sharpness"] == [1.0]


def test_guards_are_found_by_name():
    assert get_guard("frames") is frame_statistics
    assert get_guard("tiny_world") is tiny_world_guard
    with pytest.raises(ValueError, match=r"unknown quality guard 'frame'. Did you mean 'frames'\?"):
        get_guard("frame")


def test_quality_averages_what_has_a_value_a_video_and_keeps_what_has_one_for_all(monkeypatch):
    seen = []

    def guard(videos, rows):
        seen.append((len(videos), [row["prompt"] for row in rows]))
        return {"each": [1.0, 2.0], "all": 5.0, "unknown": None}

    monkeypatch.setattr(guards, "get_guard", {"mine": guard, "frames": frame_statistics}.__getitem__)
    videos, rows = [moving_square(0), moving_square(3)], [{"prompt": "a"}, {"prompt": "b"}]
    means, per_video = measure_quality(["mine", "frames"], videos, rows)
    assert seen == [(2, ["a", "b"])]
    assert (means["each"], means["all"], means["unknown"]) == (1.5, 5.0, None)
    assert set(per_video) == {"each", "frame_change", "sharpness"} and per_video["each"] == [1.0, 2.0]
    assert means["frame_change"] == pytest.approx(sum(per_video["frame_change"]) / 2)
    json.dumps(means, allow_nan=False)


def test_quality_of_no_videos_names_the_guards():
    with pytest.raises(ValueError, match="frames, tiny_world have no videos"):
        measure_quality(["frames", "tiny_world"], [], [])
    assert measure_quality([], [], []) == ({}, {})


def test_flicker_is_seen_and_motion_and_fades_are_not():
    still, moving = moving_square(0), moving_square(3)
    flickering = still.copy()
    flickering[1::2] += 10
    fade = np.full((9, 8, 8, 3), 40, np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None] * 5
    noise = np.random.default_rng(0).integers(0, 256, moving.shape, dtype=np.uint8)
    values = flicker_statistics([still, fade, moving, flickering, noise, still[:2]], [{}] * 6)["flicker"]
    assert values[0] == values[1] == values[5] == 0.0
    assert values[3] == pytest.approx(10 / 255)
    assert values[2] == 0.0  # what the square covers changes once, and once again many frames later
    assert values[4] > 0.1


def test_a_measure_may_lack_a_video_and_a_guard_may_look_at_the_baseline():
    def identity(videos, rows):
        return {"identity": [0.5, None]}

    def drift(videos, rows, base_videos):
        return {"drift": [float(np.abs(v - b.astype(float)).mean()) for v, b in zip(videos, base_videos, strict=True)]}

    videos = [moving_square(0), moving_square(3)]
    means, per_video = measure_quality([identity, drift], videos, [{}] * 2)
    assert means == {"identity": 0.5} and per_video == {"identity": [0.5, None]}
    means, per_video = measure_quality([drift], videos, [{}] * 2, base_videos=videos)
    assert per_video == {"drift": [0.0, 0.0]}


def test_every_guard_is_found_and_options_go_to_those_that_take_them():
    for name in guards.GUARDS:
        assert callable(get_guard(name))
    assert get_guard("drift,num_frames=3,checkpoint=some/place").num_frames == 3
    identity = get_guard("identity,checkpoint=some/place,batch_size=4")
    assert identity.reward.describe()["checkpoint"] == "some/place" and identity.reward.batch_size == 4
    nested = guards._options("x", ["tracker=sam3", "tracker_options.cache_dir=kept", "tracker_options.text=null"])
    assert nested == {"tracker": "sam3", "tracker_options": {"cache_dir": "kept", "text": None}}
    for spec, message in (
        ("frames,checkpoint=x", "'frames' takes no options"),
        ("drift,frames", "'frames' is not of the form option=value"),
        ("drift,frames=3", "unexpected keyword argument 'frames'"),
        ("identty", "Did you mean 'identity'"),
    ):
        with pytest.raises(ValueError, match=message):
            get_guard(spec)


def test_pixel_drift_is_the_distance_to_the_baselines_pixels():
    still, moving = moving_square(0), moving_square(3)
    found = pixel_drift([still, moving, still], [{}] * 3, base_videos=[still, still, still[:3]])["pixel_drift"]
    assert found[0] == 0.0 and found[1] == pytest.approx(np.abs(moving - still.astype(float)).mean() / 255)
    assert found[2] is None


def test_a_reward_is_a_guard_with_the_numbers_that_it_logs():
    def mine(prompts, completions, animal, log_extra, **kwargs):
        log_extra("mine_speed", [1 if animal == ["ox"] else None])
        log_extra("mine_reason", ["none"])
        return [len(word) / 10 for word in animal]

    measures = RewardGuard(mine)([moving_square(0)] * 2, [{"prompt": "p", "animal": word} for word in ("ox", "cat")])
    assert measures == {"mine_score": [0.2, 0.3], "mine_speed": [1.0, None]}
    assert [guards.better_side(name) for name in ("mine_score", "mine_speed", "flicker", "drift")] == [1, 0, -1, 0]
