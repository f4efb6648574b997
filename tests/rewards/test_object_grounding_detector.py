"""Object grounding with a detector of the real class. Its weights are random, so only the interfaces are tested."""

import numpy as np
import pytest
from tiny_perception import random_video, saved_grounding_dino

from spatialalign_trl.rewards.runner import RewardRunner, load_reward
from spatialalign_trl.tiny_world.rooms import intrinsics_for, look

SIZE, FRAMES = (48, 80), 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_grounding_dino(tmp_path_factory.mktemp("grounding_dino"))


def poses(count: int) -> np.ndarray:
    return np.stack([look((0.2 * k, -1.4, 0.1 * k), 4 * k) for k in range(count)])


def everywhere(frames, intrinsics):
    """Return arbitrary poses, because what the frames show is random."""
    return np.concatenate([poses(4), poses(len(frames) - 4)])


def run(checkpoint: str, **options):
    reward = load_reward(
        "object_grounding",
        pose_estimator=everywhere,
        detector_options={"checkpoint": checkpoint, "device": "cpu", **options},
        last_frames=2,
    )
    names = ["cat", "fire hydrant"]
    columns = {
        "context": [random_video(4, *SIZE)] * 2,
        "context_poses": [poses(4)] * 2,
        "intrinsics": [intrinsics_for(SIZE)] * 2,
        "object": names,
    }
    videos = [random_video(FRAMES, *SIZE, seed=k) for k in range(2)]
    runner = RewardRunner([reward])
    runner.check_columns(["prompt", *columns])
    return runner([f"Find the {name}." for name in names], videos, columns)


def test_detected_boxes_of_the_object_are_scored(checkpoint):
    output = run(checkpoint, box_threshold=0.0)
    assert output.errors == {}
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in output.rewards)
    assert all(0 < share <= 1 for share in output.extra["object_grounding_visible"])
    assert output.extra["object_grounding_reason"] == [None, None]


def test_a_video_without_the_object_scores_zero_with_a_reason(checkpoint):
    output = run(checkpoint, box_threshold=1.0)
    assert output.rewards == [0, 0]
    assert output.extra["object_grounding_reason"] == [
        "no cat was found at the end", "no fire hydrant was found at the end"
    ]  # fmt: skip
