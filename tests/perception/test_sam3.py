"""Test SAM 3 as a tracker, whose objects follow the same validity rules as Grounded-SAM's boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_perception import random_video, saved_sam3

from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.perception.sam3 import SAM3Tracker, _read_frame, best_object
from spatialalign_trl.perception.tracks import Tracker
from spatialalign_trl.perception.validity import ValidityRules

RULES = ValidityRules(max_redundant=1, min_valid=3, min_run=2)
WORDS = {"animal": ["cat"], "object": ["bench"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_sam3(tmp_path_factory.mktemp("sam3"))


def tracker(checkpoint, rules=RULES, **options) -> SAM3Tracker:
    return SAM3Tracker(checkpoint, rules, device="cpu", disable_progress_bar=True, **options)


class FakeSAM3(SAM3Tracker):
    """A SAM 3 tracker with given detections. `frames` contains `(label, id, score, x)` of each object."""

    def __init__(self, frames, rules=RULES, **options):
        super().__init__("none", rules, disable_progress_bar=True, **options)
        self.frames, self.runs = frames, 0

    def prepare(self):
        pass

    def segment(self, video, names):
        self.runs += 1
        detections, ids = [], []
        for frame in self.frames:
            boxes = np.array([[x, 10.0, x + 9, 19] for *_, x in frame]).reshape(-1, 4)
            labels, object_ids, scores = (tuple(found[k] for found in frame) for k in range(3))
            detections.append(Detections(boxes, np.array(scores), labels))
            ids.append(np.array(object_ids, np.int64))
        return detections, ids


def test_a_random_model_runs_from_the_checkpoint_to_the_tracks(checkpoint):
    sam3, video = tracker(checkpoint), random_video(5)
    assert isinstance(sam3, Tracker) and not sam3.pretrained.is_loaded
    (found,) = sam3.track([video], **WORDS)
    assert found.num_frames == 5 and found.reason is None
    assert found.details == {"valid": 5, "missed": 0, "redundant": 0, "prompt_frame": 0, "followed": 5}
    assert [frame.labels for frame in found] == [("cat", "bench")] * 5
    assert all(frame.boxes.shape == (2, 4) for frame in found)
    sam3.release()
    assert not sam3.pretrained.is_loaded


def test_several_objects_of_a_word_make_frames_redundant():
    frames = [[("cat", 0, 0.7, 10), ("bench", 1, 0.8, 50), ("cat", 2, 0.6, 30)] for _ in range(4)]
    (found,) = FakeSAM3(frames).track([random_video(4)], **WORDS)
    assert found.details["redundant"] == 4 and len(found) == 0
    assert "4 of 4 frames show more than one cat and one bench" in found.reason


def test_the_object_with_the_highest_sum_of_scores_is_the_track():
    """A second cat appears on one frame with a higher score; the bench is lost on another frame."""
    frames = [[("cat", 0, 0.7, k), ("bench", 1, 0.8, 50)] for k in range(6)]
    frames[2].append(("cat", 2, 0.9, 30))
    frames[4].pop()
    (found,) = FakeSAM3(frames).track([random_video(6)], **WORDS)
    assert found.reason is None
    assert found.details == {"valid": 4, "missed": 1, "redundant": 1, "prompt_frame": 0, "followed": 5}
    assert [frame.labels for frame in found] == [("cat", "bench")] * 4 + [("cat",), ("cat", "bench")]
    assert [frame.boxes[0, 0] for frame in found] == list(range(6)), "frame 2 must have the cat of the other frames"


def test_the_rules_are_those_of_grounded_sam():
    frames = [[("cat", 0, 0.7, k)] for k in range(6)]
    (found,) = FakeSAM3(frames).track([random_video(6)], **WORDS)
    assert "found together in 0 of 6 frames (no bench in 6)" in found.reason


def test_best_object_sums_scores():
    assert best_object(np.array([3, 5, 3, 5, 5]), np.array([0.9, 0.6, 0.9, 0.6, 0.7])) == 5
    assert best_object(np.array([7, 4]), np.array([0.5, 0.5])) == 4


def test_detections_of_a_frame_are_read_from_its_masks():
    masks = torch.zeros(3, 8, 9, dtype=torch.bool)
    masks[0, 1:4, 2:6] = True
    masks[2, 5:7, 0:3] = True
    result = {
        "object_ids": torch.tensor([4, 6, 9]),
        "scores": torch.tensor([0.5, 0.6, 0.7], dtype=torch.bfloat16),
        "boxes": torch.zeros(3, 4),
        "masks": masks,
        "prompt_to_obj_ids": {"bench": [4], "cat": [6, 9]},
    }
    detections, ids = _read_frame(result)
    assert detections.labels == ("bench", "cat") and ids.tolist() == [4, 9], "an empty mask is no object"
    assert detections.boxes.tolist() == [[2, 1, 5, 3], [0, 5, 2, 6]]


def test_a_cached_clip_needs_no_model_whatever_the_rules(checkpoint, tmp_path, monkeypatch):
    video = random_video(5)
    (first,) = tracker(checkpoint, cache_dir=tmp_path).track([video], **WORDS)
    again = tracker(checkpoint, ValidityRules(min_valid=5, min_run=1), cache_dir=tmp_path)
    monkeypatch.setattr(again.pretrained, "load", lambda: pytest.fail("a model was loaded"))
    (second,) = again.track([video], **WORDS)
    assert [frame.boxes.tolist() for frame in first] == [frame.boxes.tolist() for frame in second]


@pytest.mark.parametrize("animal", ["cat and dog", "cat.", "bench"])
def test_words_that_cannot_be_tracked_are_refused_before_the_checkpoint_is_searched(animal):
    with pytest.raises(ValueError, match="prompt 0"):
        SAM3Tracker("nobody/nothing").check_prompts(animal=[animal], object=["bench"])


def test_a_missing_checkpoint_is_named():
    with pytest.raises(ConnectionError, match="'facebook/sam3'.*hf download facebook/sam3"):
        SAM3Tracker().check_prompts(**WORDS)
