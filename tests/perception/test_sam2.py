"""Test SAM 2 as a follower: both directions share a session, frames are encoded once, boxes have inclusive corners."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from tiny_perception import random_video, saved_edgetam, saved_sam2

from spatialalign_trl.perception.detections import BoxFollower
from spatialalign_trl.perception.sam2 import SAM2Follower, mask_boxes

BOXES = np.array([[5.0, 10, 25, 30], [40, 5, 70, 40]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def follower(checkpoint):
    return SAM2Follower(checkpoint, device="cpu")


@pytest.fixture(params=["sam2", "edgetam"])
def any_follower(request, follower, tmp_path):
    return follower if request.param == "sam2" else SAM2Follower(saved_edgetam(tmp_path), device="cpu")


def count_encodings(follower: SAM2Follower) -> list:
    """Return a list that grows by one element per image that the encoder processes."""
    calls = []
    model, _ = follower.pretrained.load()
    model.vision_encoder.register_forward_hook(lambda module, inputs, output: calls.append(1))
    return calls


def propagate(follower, session, video, frame, backwards) -> dict[int, np.ndarray]:
    with torch.inference_mode():
        masks_by_frame = follower._propagate(session, BOXES, frame, backwards, video.shape[1:3])
        return {index: masks.numpy() for index, masks in masks_by_frame}


def test_boxes_of_masks_have_inclusive_corners_and_are_zero_when_empty():
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    masks[1, 4, 0] = masks[1, 1, 8] = True
    masks[3, 5, 8] = True
    boxes = mask_boxes(masks)
    assert boxes.tolist() == [[3, 2, 7, 4], [0, 1, 8, 4], [0, 0, 0, 0], [8, 5, 8, 5]]
    assert boxes.dtype == np.float64
    assert mask_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("frame", [0, 2, 4])
def test_every_frame_is_covered_and_encoded_once(checkpoint, frame):
    follower, video = SAM2Follower(checkpoint, device="cpu"), random_video(5)
    calls = count_encodings(follower)
    boxes = follower.follow(video, BOXES, frame)
    assert boxes.shape == (5, 2, 4) and boxes.dtype == np.float64
    assert (boxes[:, :, 2] > boxes[:, :, 0]).all(), "no mask of these weights is empty"
    assert boxes[..., [0, 2]].max() <= 79 and boxes[..., [1, 3]].max() <= 47
    assert len(calls) == 5


def test_both_directions_in_one_session_equal_two_fresh_sessions(any_follower):
    video, frame = random_video(6), 3
    session = any_follower._session(video)
    shared = [propagate(any_follower, session, video, frame, backwards) for backwards in (False, True)]
    for backwards, masks in zip((False, True), shared, strict=True):
        fresh = propagate(any_follower, any_follower._session(video), video, frame, backwards)
        assert sorted(fresh) == sorted(masks) == (list(range(4)) if backwards else [3, 4, 5])
        assert all(np.array_equal(fresh[k], masks[k]) for k in fresh)


def test_a_second_pass_equals_a_fresh_session_after_a_reset_and_only_then(any_follower):
    """Compare logits bit for bit. Without a reset, results of the first pass act as memory of the second."""
    video, frame = random_video(6), 3
    model, processor = any_follower.pretrained.load()

    def backward_logits(before: str) -> torch.Tensor:
        session, logits = any_follower._session(video), {}
        for backwards in (False, True):
            if backwards and before == "fresh":
                session = any_follower._session(video)
            if not backwards or before != "nothing":
                session.reset_tracking_data()
                processor.add_inputs_to_inference_session(
                    session, frame_idx=frame, obj_ids=[1, 2], input_boxes=[BOXES.tolist()]
                )
            for output in model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=backwards):
                logits[output.frame_idx] = output.pred_masks
        return torch.stack([logits[k] for k in range(frame)])

    fresh = backward_logits("fresh")
    assert torch.equal(backward_logits("reset"), fresh)
    assert (backward_logits("nothing") - fresh).abs().max() > 1e-3


def test_a_session_is_freed_after_its_clip(follower, monkeypatch):
    """The garbage collector must not be needed, because it does not run when the GPU's memory is full."""
    sessions, make = [], follower._session

    def spy(video):
        session = make(video)
        sessions.append(weakref.ref(session.cache))
        return session

    monkeypatch.setattr(follower, "_session", spy)
    gc.collect()
    gc.disable()
    try:
        follower.follow(random_video(4), BOXES, 2)
        assert sessions[0]() is None
    finally:
        gc.enable()


def test_the_result_depends_on_the_boxes(follower):
    video = random_video(3)
    assert not np.array_equal(follower.follow(video, BOXES, 1), follower.follow(video, BOXES[::-1] / 3, 1))


def test_edgetam_works_with_the_same_class(tmp_path):
    follower = SAM2Follower(saved_edgetam(tmp_path), device="cpu")
    calls = count_encodings(follower)
    boxes = follower.follow(random_video(5), BOXES, 2)
    assert boxes.shape == (5, 2, 4) and boxes.any()
    assert len(calls) == 5


def test_the_weights_are_loaded_on_first_use_and_released(checkpoint):
    follower = SAM2Follower(checkpoint, device="cpu")
    assert isinstance(follower, BoxFollower)
    fingerprint = follower.fingerprint()
    assert not follower.pretrained.is_loaded
    follower.follow(random_video(2), BOXES, 0)
    loaded = follower.pretrained.load()
    assert follower.pretrained.load() is loaded
    follower.release()
    assert not follower.pretrained.is_loaded
    assert follower.fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("boxes", "frame", "message"),
    [(np.zeros((2, 3)), 0, r"shape \(2, 3\)"), (np.zeros((0, 4)), 0, "at least one box"), (BOXES, 5, "frame is 5")],
)
def test_invalid_boxes_and_frames_are_refused(checkpoint, boxes, frame, message):
    with pytest.raises(ValueError, match=message):
        SAM2Follower(checkpoint, device="cpu").follow(random_video(5), boxes, frame)
