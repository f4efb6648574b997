"""Motion measures the true speed at any size and frame rate, and disqualifies motionless videos as a gate."""

import builtins

import numpy as np
import pytest

from spatialalign_rewards import Motion, motion_speed
from spatialalign_trl.rewards.runner import RewardRunner, load_reward

pytest.importorskip("cv2")


def walk(speed: float, height: int = 240, width: int = 416, fps: float = 16, seconds: float = 1.0) -> np.ndarray:
    """Return a textured square that moves `speed` diagonals per second to the right on a textured ground."""
    draw = np.random.default_rng(0)
    tile = max(height // 30, 1)

    def texture(rows: int, columns: int, low: int, high: int) -> np.ndarray:
        blocks = draw.integers(low, high, (rows // tile + 1, columns // tile + 1, 3))
        return blocks.repeat(tile, 0).repeat(tile, 1)[:rows, :columns].astype(np.uint8)

    ground, side = texture(height, width, 0, 80), height // 3
    thing = texture(side, side, 100, 255)
    frames = []
    for k in range(round(fps * seconds) + 1):
        frame, left = ground.copy(), 4 + round(speed * np.hypot(height, width) * k / fps)
        frame[side : 2 * side, left : left + side] = thing
        frames.append(frame)
    return np.stack(frames)


@pytest.mark.parametrize(("height", "width", "fps"), [(240, 416, 16), (480, 832, 8), (96, 168, 12)])
@pytest.mark.parametrize("speed", [0.05, 0.2])
def test_speed_does_not_depend_on_size_and_frame_rate(speed, height, width, fps):
    assert motion_speed(walk(speed, height, width, fps), fps) == pytest.approx(speed, rel=0.3)


def test_the_score_has_a_floor_and_a_ceiling():
    clips = [walk(0.0), walk(0.05), walk(0.1), walk(0.3)]
    logged = {}
    values = Motion(floor=0.01, ceiling=0.15)(["p"] * 4, clips, fps=[16.0] * 4, log_extra=logged.__setitem__)
    assert values[0] == 0.0 and 0.0 < values[1] < values[2] < 1.0 and values[3] == 1.0
    speeds = logged["motion_speed"]
    assert speeds[0] == 0.0 and values[1] == pytest.approx((speeds[1] - 0.01) / 0.14)
    assert Motion(floor=0.2, ceiling=1.0)(["p"], [clips[2]]) == [0.0]


def test_without_the_column_fps_the_option_fps_is_used():
    clip = [walk(0.05, fps=8)]
    assert Motion(fps=8)(["p"], clip) == Motion()(["p"], clip, fps=[8.0])
    assert Motion()(["p"], clip)[0] == pytest.approx(Motion(floor=0.0025, ceiling=0.05, fps=8)(["p"], clip)[0])


def test_a_single_frame_cannot_be_judged():
    assert Motion()(["p"], [walk(0.0)[:1]]) == [None]


def test_as_a_gate_it_disqualifies_a_motionless_clip():
    def luck(prompts, completions, **kwargs):
        return [0.9] * len(prompts)

    runner = RewardRunner([luck, load_reward("motion")], gates={"motion": 0.02})
    output = runner(["p"] * 2, [walk(0.0), walk(0.1)])
    assert output.rewards == [None, 0.9] and output.extra["gate_reason"][0] == "motion is 0, below its gate 0.02"


@pytest.mark.parametrize("options", [{"floor": 0.2}, {"floor": -1.0}, {"fps": 0}, {"floor": 0.1, "ceiling": 0.1}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="floor|fps"):
        Motion(**options)


def test_without_opencv_the_extra_is_named_before_anything_is_sampled(monkeypatch):
    original_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("no cv2")
        return original_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"'motion' needs OpenCV: pip install 'spatialalign-trl\[motion\]'"):
        Motion().check_prompts(prompt=["p"])
