"""Test Grounded-SAM from clips to tracks: the rules between its two models, the cache, early errors, the reward."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny_perception import random_video, saved_grounding_dino, saved_sam2

from spatialalign_rewards.dsr_score import DSRScore
from spatialalign_trl.perception.detection_cache import DetectionCache
from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.perception.grounded_sam import GroundedSAMTracker
from spatialalign_trl.perception.grounding_dino import GroundingDINODetector
from spatialalign_trl.perception.open_vocabulary import check_nouns
from spatialalign_trl.perception.sam2 import SAM2Follower
from spatialalign_trl.perception.tracks import Tracker, get_tracker
from spatialalign_trl.perception.validity import StrictRules, ValidityRules

WORDS = {"animal": ["cat"], "object": ["bench"]}
BENCH = [40.0, 22, 56, 36]


def walk(frame: int, num_frames: int) -> list[float]:
    """Return the box of a cat that walks from the left of the bench to its right."""
    x = 4 + 56 * frame / (num_frames - 1)
    return [x, 10.0, x + 15, 24]


class FakeDetector:
    """Detects a bench and a cat, in this order, except on the frames for which `labels` gives other labels."""

    def __init__(self, labels: dict[int, tuple[str, ...]] | None = None):
        self.labels, self.runs, self.released = labels or {}, 0, False

    def detect(self, video, names):
        self.runs += 1
        detections = []
        for frame in range(len(video)):
            labels = self.labels.get(frame, ("bench", "cat"))
            boxes = [BENCH if label == "bench" else walk(frame, len(video)) for label in labels]
            detections.append(Detections(np.array(boxes).reshape(-1, 4), np.full(len(labels), 0.5), labels))
        return detections

    def fingerprint(self):
        return f"fake {sorted(self.labels.items())}"

    def release(self):
        self.released = True


class FakeFollower:
    """Returns the true boxes of the cat and the bench; on `lost` frames the cat's mask is empty."""

    def __init__(self, lost: tuple[int, ...] = (), boxes=walk):
        self.lost, self.boxes, self.prompts, self.released = lost, boxes, [], False

    def follow(self, video, boxes, frame):
        self.prompts.append((boxes.tolist(), frame))
        followed = np.array([[self.boxes(k, len(video)), BENCH] for k in range(len(video))])
        followed[list(self.lost), 0] = 0
        return followed

    def fingerprint(self):
        return f"fake {self.lost}"

    def release(self):
        self.released = True


def fake_tracker(labels=None, lost=(), boxes=walk, **options) -> GroundedSAMTracker:
    options.setdefault("disable_progress_bar", True)
    return GroundedSAMTracker(FakeDetector(labels), FakeFollower(lost, boxes), **options)


def real_tracker(**options) -> GroundedSAMTracker:
    return get_tracker("grounded_sam", device="cpu", disable_progress_bar=True, **options)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "detector_checkpoint": saved_grounding_dino(folder / "grounding_dino"),
        "follower_checkpoint": saved_sam2(folder / "sam2"),
    }


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


# The real path


def test_two_random_models_run_from_their_checkpoints_to_the_tracks(checkpoints):
    """Random weights do not find one cat and one bench, so the clip is INVALID for this reason."""
    tracker = real_tracker(**checkpoints)
    (found,) = tracker.track([random_video(4)], **WORDS)
    assert found.num_frames == 4 and len(found) == 0
    assert "the cat and the bench were found together in 0 of 4 frames" in found.reason
    assert found.details["missed"] + found.details["redundant"] == 4 and found.details["prompt_frame"] is None
    assert tracker.detector.pretrained.is_loaded and not tracker.follower.pretrained.is_loaded
    tracker.release()
    assert not tracker.detector.pretrained.is_loaded


@pytest.mark.parametrize("label_mode", ["exact", "span"])
def test_real_sam2_follows_what_was_detected(checkpoints, label_mode):
    tracker = real_tracker(**checkpoints, label_mode=label_mode)
    assert tracker.detector.label_mode == label_mode
    tracker.detector = FakeDetector({0: ("cat",)})
    (found,) = tracker.track([random_video(21)], **WORDS)
    assert found.reason is None
    assert found.details == {"valid": 20, "missed": 1, "redundant": 0, "prompt_frame": 1, "followed": 21}
    prompt = np.array([walk(1, 21), BENCH])
    expected = tracker.follower.follow(random_video(21), prompt, 1)
    assert np.array_equal(np.stack([frame.boxes for frame in found]), expected)
    json.dumps(found.details)


def test_the_reward_reads_real_tracks(checkpoints):
    tracker = real_tracker(detector=FakeDetector(), follower_checkpoint=checkpoints["follower_checkpoint"])
    reward, reasons = DSRScore(tracker=tracker), {}
    videos = [random_video(20), random_video(12)]
    words = {name: values * 2 for name, values in {**WORDS, "type": ["LR"]}.items()}
    scores = reward(
        prompts=[""] * 2, completions=videos, **words, log_extra=lambda name, column: reasons.update({name: column})
    )
    assert scores[0] is None or 0 <= scores[0] <= 1
    assert scores[1] is None and "12 of 12 frames" in reasons["dsr_reason"][1]


def test_a_walk_to_the_right_scores_as_one():
    reward = DSRScore(tracker=fake_tracker())
    assert reward([""], [random_video(24)], ["LR"], **WORDS)[0] > 0.9
    assert reward([""], [random_video(24)], ["RL"], **WORDS)[0] < 0.1


# The rules between detector and follower


def test_the_follower_is_prompted_on_the_first_long_run_with_the_animal_first():
    tracker = fake_tracker({1: ("cat",), 3: (), 8: ("cat", "cat")})
    (found,) = tracker.track([random_video(30)], **WORDS)
    assert found.details == {"valid": 27, "missed": 2, "redundant": 1, "prompt_frame": 4, "followed": 30}
    assert tracker.follower.prompts == [([walk(4, 30), BENCH], 4)]
    assert [frame.labels for frame in found] == [("cat", "bench")] * 30


def test_an_invalid_clip_is_not_followed():
    tracker = fake_tracker({k: ("cat",) for k in range(5, 30)})
    (found,) = tracker.track([random_video(30)], **WORDS)
    assert "in 5 of 30 frames (no bench in 25)" in found.reason
    assert tracker.follower.prompts == [] and len(found) == 0


def test_an_empty_mask_is_no_box():
    (found,) = fake_tracker(lost=(3, 4)).track([random_video(20)], **WORDS)
    assert [frame.labels for frame in found if len(frame.labels) < 2] == [("bench",)] * 2
    assert found.details["followed"] == 18
    assert all(frame.boxes.any(axis=1).all() for frame in found)


def test_thresholds_scale_with_the_clip_when_asked():
    video = random_video(12)
    assert "12 of 12 frames; at least 20 are needed" in fake_tracker().track([video], **WORDS)[0].reason
    assert fake_tracker(scale_to_length=True).track([video], **WORDS)[0].reason is None


def test_strict_rules_refuse_a_teleport_that_the_papers_rules_reward():
    def leap(k, num_frames):
        return walk(0 if k < num_frames // 2 else num_frames - 1, num_frames)

    video = random_video(24)
    assert fake_tracker(boxes=leap).track([video], **WORDS)[0].reason is None
    assert "the cat leaps" in fake_tracker(boxes=leap, strict=True).track([video], **WORDS)[0].reason
    assert fake_tracker(strict=True).track([video], **WORDS)[0].reason is None
    lenient = StrictRules(max_step=100)
    assert fake_tracker(boxes=leap, strict=lenient).track([video], **WORDS)[0].reason is None


def test_a_mask_that_floods_the_frame_is_invalid_when_strict():
    def flood(k, num_frames):
        stray = walk(k // 4, num_frames)
        return np.array([8.0, 0.0, 79.0, 47.0]) if k >= num_frames - 4 else stray

    def score(**options):
        return DSRScore(tracker=fake_tracker(boxes=flood, **options))([""], [random_video(24)], ["LR"], **WORDS)[0]

    assert score() >= 0.7 and score(strict=True) is None
    tracks = fake_tracker(boxes=flood, strict=True).track([random_video(24)], **WORDS)[0]
    assert tracks.reason == "the box of the cat covers 90% of frame 20; strict rules allow 80%"


def test_strictness_and_scaling_keep_the_other_rules():
    rules = ValidityRules(min_valid=7)
    assert fake_tracker(rules=rules, strict=True, scale_to_length=True).rules == replace(
        rules, strict=StrictRules(), scale_to_length=True
    )
    assert fake_tracker().rules == ValidityRules()


# The cache


def test_a_cached_clip_runs_neither_model_whatever_the_rules(tmp_path):
    video = random_video(24)
    first = fake_tracker(cache_dir=tmp_path)
    (before,) = first.track([video], **WORDS)
    again = fake_tracker(cache_dir=tmp_path, rules=ValidityRules(max_redundant=3, min_valid=4), strict=True)
    (after,) = again.track([video], **WORDS)
    assert (first.detector.runs, len(first.follower.prompts)) == (1, 1)
    assert (again.detector.runs, len(again.follower.prompts)) == (0, 0)
    assert all(np.array_equal(old.boxes, new.boxes) for old, new in zip(before, after, strict=True))


def test_rules_that_move_the_prompt_frame_follow_anew_and_detect_no_more(tmp_path):
    labels, video = {2: ("cat",)}, random_video(24)
    fake_tracker(labels, cache_dir=tmp_path).track([video], **WORDS)
    again = fake_tracker(labels, cache_dir=tmp_path, rules=ValidityRules(min_run=2))
    (found,) = again.track([video], **WORDS)
    assert found.details["prompt_frame"] == 0
    assert (again.detector.runs, len(again.follower.prompts)) == (0, 1)


@pytest.mark.parametrize("changed", ["video", "words", "detector", "follower"])
def test_everything_that_the_boxes_depend_on_is_in_the_key(tmp_path, changed):
    video = random_video(24)
    fake_tracker(cache_dir=tmp_path).track([video], **WORDS)
    again = fake_tracker(
        {20: ("cat",)} if changed == "detector" else None, (5,) if changed == "follower" else (), cache_dir=tmp_path
    )
    again.track(
        [random_video(24, seed=1) if changed == "video" else video],
        animal=["cat"],
        object=["stool" if changed == "words" else "bench"],
    )
    assert again.detector.runs == (0 if changed == "follower" else 1)
    # The other detector finds the same boxes on the prompt frame, so the followed boxes are the same too.
    assert len(again.follower.prompts) == (1 if changed in ("video", "follower") else 0)


def test_a_damaged_entry_is_computed_again(tmp_path):
    video = random_video(24)
    (before,) = fake_tracker(cache_dir=tmp_path).track([video], **WORDS)
    entries = sorted(tmp_path.glob("*.safetensors"))
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    again = fake_tracker(cache_dir=tmp_path)
    with pytest.warns(UserWarning, match="no usable cache entry"):
        (after,) = again.track([video], **WORDS)
    assert (again.detector.runs, len(again.follower.prompts)) == (1, 1)
    assert all(np.array_equal(old.boxes, new.boxes) for old, new in zip(before, after, strict=True))


def test_a_hit_loads_no_real_model(checkpoints, tmp_path, monkeypatch):
    video, options = random_video(4), {**checkpoints, "cache_dir": tmp_path}
    real_tracker(**options).track([video], **WORDS)
    again = real_tracker(**options)
    monkeypatch.setattr(again.detector.pretrained, "load", lambda: pytest.fail("a model was loaded"))
    assert "in 0 of 4 frames" in again.track([video], **WORDS)[0].reason
    changed = real_tracker(**options, box_threshold=0.3)
    changed.track([video], **WORDS)
    assert changed.detector.pretrained.is_loaded


def test_a_clip_is_hashed_once_for_all_its_entries(tmp_path, monkeypatch):
    hashed, digest = [], DetectionCache.digest
    monkeypatch.setattr(DetectionCache, "digest", lambda self, video: hashed.append(video) or digest(video))
    videos = [random_video(30), random_video(30, seed=1)]
    fake_tracker(cache_dir=tmp_path).track(videos, **{name: values * 2 for name, values in WORDS.items()})
    assert len(hashed) == 2 and len(list(tmp_path.iterdir())) == 4


def test_without_a_cache_no_fingerprint_is_computed(monkeypatch):
    """A fingerprint reads whole checkpoints."""
    tracker = fake_tracker()
    monkeypatch.setattr(tracker.detector, "fingerprint", lambda: pytest.fail("a fingerprint was computed"))
    assert tracker.track([random_video(20)], **WORDS)[0].reason is None


# Early errors


def test_a_missing_checkpoint_of_either_model_is_named_before_any_work(checkpoints, empty_hub):
    with pytest.raises(ConnectionError, match="hf download IDEA-Research/grounding-dino-tiny"):
        GroundedSAMTracker().check_prompts(**WORDS)
    with pytest.raises(ConnectionError, match="hf download facebook/sam2.1-hiera-large"):
        real_tracker(detector_checkpoint=checkpoints["detector_checkpoint"]).prepare()
    with pytest.raises(FileNotFoundError, match="no checkpoint folder '/no/sam2'"):
        real_tracker(**{**checkpoints, "follower_checkpoint": "/no/sam2"}).track([random_video(2)], **WORDS)
    with pytest.raises(ValueError, match="of the kind 'sam2_video', but here grounding-dino"):
        real_tracker(detector_checkpoint=checkpoints["follower_checkpoint"]).prepare()


def test_missing_torchvision_is_reported_before_any_work(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        real_tracker(**checkpoints).check_prompts(**WORDS)


def test_the_reward_reports_a_missing_checkpoint_before_anything_is_sampled(empty_hub):
    with pytest.raises(ConnectionError, match="hf download"):
        DSRScore(tracker=GroundedSAMTracker()).check_prompts(["LR"], **WORDS)


@pytest.mark.parametrize(
    ("animal", "object_word", "message"),
    [
        ("cat.", "bench", "prompt 1: animal is 'cat.'; '.' and '\\?' end a label"),
        ("cat", "bench?", "object is 'bench\\?'"),
        ("Cat", "cat", "both 'Cat'; their boxes cannot be told apart"),
        ("cat and dog", "bench", "'cat and dog', which names several things"),
        ("cat, dog", "bench", "several things"),
        ("cat", "table or bench", "several things"),
        ("", "bench", "animal is ''; a noun"),
        ("cat", None, "object is None; a noun"),
        (" cat", "bench", "remove the spaces"),
    ],
)
def test_words_that_cannot_be_tracked_are_refused(animal, object_word, message):
    with pytest.raises(ValueError, match=message):
        fake_tracker().check_prompts(animal=["fox", animal], object=["stump", object_word], attribute=None)


def test_usual_nouns_are_accepted():
    check_nouns(["hamster", "red panda", "sand cat", "T-rex"], ["fire hydrant", "bandstand", "orange", "box"])


def test_the_adjective_is_not_part_of_the_text():
    tracker = fake_tracker()
    for attribute in (None, [""], ["red"]):
        assert tracker.track([random_video(20)], **WORDS, attribute=attribute)[0].reason is None


# Options


def test_it_is_found_by_name_with_flat_options():
    tracker = get_tracker("grounded_sam", label_mode="span", box_threshold=0.3, batch_size=2, follower_revision="v1")
    assert isinstance(tracker, GroundedSAMTracker) and isinstance(tracker, Tracker)
    assert isinstance(tracker.detector, GroundingDINODetector) and isinstance(tracker.follower, SAM2Follower)
    assert (tracker.detector.label_mode, tracker.detector.box_threshold, tracker.detector.batch_size) == (
        "span",
        0.3,
        2,
    )
    assert tracker.detector.pretrained.checkpoint == "IDEA-Research/grounding-dino-tiny"
    assert tracker.follower.pretrained.checkpoint == "facebook/sam2.1-hiera-large"
    assert tracker.follower.pretrained.revision == "v1"
    with pytest.raises(TypeError, match="'label_mod'. Did you mean 'label_mode'"):
        get_tracker("grounded_sam", label_mod="span")


def test_flat_options_are_the_arguments_of_tracker_detector_and_follower():
    shared = {"device": "cpu", "dtype": "float32", "trust_remote_code": True}
    of_detector = {"checkpoint": "o/d", "revision": "v1", "text_threshold": 0.2, "label_mode": "span", "batch_size": 2}
    of_follower = {"checkpoint": "o/f", "revision": "v2"}
    grouped = GroundedSAMTracker(
        GroundingDINODetector(**of_detector, **shared, disable_progress_bar=False),
        SAM2Follower(**of_follower, **shared, disable_progress_bar=False),
        ValidityRules(min_run=2),
        strict=True,
        scale_to_length=True,
    )
    flat = get_tracker(
        "grounded_sam", rules=ValidityRules(min_run=2), strict=True, scale_to_length=True, detector_checkpoint="o/d",
        detector_revision="v1", box_threshold=None, text_threshold=0.2, label_mode="span", batch_size=2,
        follower_checkpoint="o/f", follower_revision="v2", **shared,
    )  # fmt: skip
    assert flat.rules == grouped.rules and flat.cache is None and not flat.disable_progress_bar
    for part, expected in ((flat.detector, grouped.detector), (flat.follower, grouped.follower)):
        assert vars(part.pretrained) == vars(expected.pretrained)
        assert {**vars(part), "pretrained": None} == {**vars(expected), "pretrained": None}


def test_every_flat_option_can_be_set_to_its_default():
    """`option_names` is what misspelt options are compared with, so it must list what `from_options` accepts."""
    defaults = {"strict": False, "scale_to_length": False, "disable_progress_bar": False}
    options = dict.fromkeys(GroundedSAMTracker.option_names) | defaults
    assert get_tracker("grounded_sam", **options).rules == ValidityRules()


@pytest.mark.parametrize("option", ["detector_checkpoint", "label_mode", "follower_revision", "device"])
def test_options_of_a_part_that_is_passed_as_an_object_are_refused(option):
    parts = {"detector": FakeDetector(), "follower": FakeFollower()}
    with pytest.raises(ValueError, match=f"'{option}' would have no effect"):
        get_tracker("grounded_sam", **parts, **{option: "x"})


def test_both_parts_are_released():
    tracker = fake_tracker()
    tracker.release()
    assert tracker.detector.released and tracker.follower.released


@pytest.mark.parametrize("disable", [True, False])
def test_the_progress_bar_can_be_switched_off(capsys, disable):
    fake_tracker(disable_progress_bar=disable).track([random_video(20)] * 2, animal=["cat"] * 2, object=["bench"] * 2)
    assert ("grounded_sam" in capsys.readouterr().err) is not disable


def test_naming_the_tracker_loads_no_heavy_package():
    code = (
        "import sys; from spatialalign_trl.perception.tracks import get_tracker; get_tracker('grounded_sam');"
        "get_tracker('sam3'); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
