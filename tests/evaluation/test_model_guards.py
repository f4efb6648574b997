"""Guards that need a package or a model, on tiny random models of the real classes."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from tiny_judges import saved_clip, saved_dinov2

from spatialalign_trl.evaluation import get_guard
from spatialalign_trl.evaluation.looks import QualityMeasures
from spatialalign_trl.evaluation.model_guards import DriftGuard, FlowGuard

ROW = {"prompt": "a red fox", "type": "LR", "animal": "fox", "object": "stump", "attribute": "red"}


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    return saved_dinov2(tmp_path_factory.mktemp("dinov2"))


def walking(steps: list[float], side: int = 128) -> np.ndarray:
    """A textured square on a textured ground that moves by `steps` pixels from frame to frame."""
    draw = np.random.default_rng(0)
    ground = draw.integers(0, 80, (side // 4, side * 2 // 4, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    thing = draw.integers(100, 255, (10, 10, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    frames = []
    for left in np.cumsum([60.0, *steps]).round().astype(int):
        frame = ground.copy()
        frame[44:84, left : left + 40] = thing
        frames.append(frame)
    return np.stack(frames)


def test_flow_tells_steady_motion_from_trembling_and_a_still():
    pytest.importorskip("cv2")
    steady, trembling, still = walking([4.0] * 10), walking([4.0, -4.0] * 5), walking([0.0] * 10)
    measures = FlowGuard()([steady, trembling, still, still[:1]], [ROW] * 4)
    speed, smooth = measures["flow_speed"], measures["flow_smoothness"]
    assert speed[0] == pytest.approx(4 / np.hypot(128, 256), rel=0.4)
    assert speed[1] > 0.5 * speed[0] and speed[2] < 1e-3 and speed[3] is None
    assert smooth[0] > 0.7 > 0.4 > smooth[1] and smooth[2] is None and smooth[3] is None


def test_without_opencv_the_extra_is_named_before_any_work(monkeypatch, tmp_path):
    found = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("no cv2")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"guard 'flow' needs OpenCV: pip install 'spatialalign-trl\[motion\]'"):
        QualityMeasures(["flow"], tmp_path)


def test_drift_is_nothing_from_oneself_and_grows_with_what_is_seen(dinov2):
    guard, draw = DriftGuard(dinov2, num_frames=3), np.random.default_rng(0)
    video = walking([4.0] * 4)
    noise = draw.integers(0, 256, video.shape, dtype=np.uint8)
    slightly = np.clip(video.astype(int) + draw.integers(-3, 4, video.shape), 0, 255).astype(np.uint8)
    drift = guard([video, slightly, noise], [ROW] * 3, base_videos=[video] * 3)["drift"]
    assert drift[0] == pytest.approx(0.0, abs=1e-6) and drift[0] < drift[1] < drift[2] <= 2.0
    assert guard([video], [ROW], base_videos=[noise])["drift"] == pytest.approx([drift[2]], rel=1e-4)
    # clips of other lengths and sizes are compared at the same times
    assert guard([video], [ROW], base_videos=[video[::2]])["drift"][0] < drift[2]
    guard.release()
    assert guard.pretrained._loaded is None


def test_a_checkpoint_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises((FileNotFoundError, ConnectionError), match="nowhere"):
        QualityMeasures([f"drift,checkpoint={tmp_path / 'nowhere'}"], tmp_path)
    with pytest.raises((FileNotFoundError, ConnectionError), match="nowhere"):
        QualityMeasures([f"identity,checkpoint={tmp_path / 'nowhere'}"], tmp_path, [ROW])


def test_identity_and_clip_iqa_are_guards_by_name(dinov2, tmp_path_factory):
    pytest.importorskip("torchmetrics")
    clip = saved_clip(tmp_path_factory.mktemp("clip"))
    video = np.zeros((5, 32, 48, 3), np.uint8)
    identity = get_guard(f"identity,checkpoint={dinov2}")([video], [ROW])
    assert identity == {"identity_score": [None]}  # no fox to be seen: INVALID
    found = get_guard(f"clip_iqa,checkpoint={clip},num_frames=2")([video], [ROW])
    assert set(found) == {"clip_iqa_score", "clip_iqa_natural", "clip_iqa_quality"}
    assert all(0 <= values[0] <= 1 for values in found.values())
