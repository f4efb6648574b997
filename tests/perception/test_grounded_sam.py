"""Grounded-SAM from clips to tracks: the rules between the two models, the cache, early errors, the reward on top."""

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


def walk(k: int, num_frames: int) -> list[float]:
    """A cat that walks from the left of the bench to its right."""
    x = 4 + 56 * k / (num_frames - 1)
    return [x, 10.0, x + 15, 24]


class MadeUpDetector:
    """Finds a cat and a bench, but on the frames that `labels` names otherwise; the bench comes first."""

    def __init__(self, labels: dict[int, tuple[str, ...]] | None = None):
        self.labels, self.runs, self.released = labels or {}, 0, False

    def detect(self, video, names):
        self.runs += 1
        found = []
        for k in range(len(video)):
            labels = self.labels.get(k, ("bench", "cat"))
            boxes = [BENCH if label == "bench" else walk(k, len(video)) for label in labels]
            found.append(Detections(np.array(boxes).reshape(-1, 4), np.full(len(labels), 0.5), labels))
        return found

    def fingerprint(self):
        return f"made up {sorted(self.labels.items())}"

    def release(self):
        self.released = True


class MadeUpFollower:
    """Knows where the cat walks; on `lost` frames its mask is empty."""

    def __init__(self, lost: tuple[int, ...] = (), boxes=walk):
        self.lost, self.boxes, self.prompts, self.released = lost, boxes, [], False

    def follow(self, video, boxes, frame):
        self.prompts.append((boxes.tolist(), frame))
        followed = np.array([[self.boxes(k, len(video)), BENCH] for k in range(len(video))])
        followed[list(self.lost), 0] = 0
        return followed

    def fingerprint(self):
        return f"made up {self.lost}"

    def release(self):
        self.released = True


def made_up(labels=None, lost=(), boxes=walk, **options) -> GroundedSAMTracker:
    options.setdefault("disable_progress_bar", True)
    return GroundedSAMTracker(MadeUpDetector(labels), MadeUpFollower(lost, boxes), **options)


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
    """What random weights find is not one cat and one bench: the clip is INVALID and says so."""
    one = GroundedSAMTracker(**checkpoints, device="cpu", disable_progress_bar=True)
    (found,) = one.track([random_video(4)], **WORDS)
    assert found.num_frames == 4 and len(found) == 0
    assert "the cat and the bench were found together in 0 of 4 frames" in found.reason
    assert found.details["missed"] + found.details["redundant"] == 4 and found.details["prompt_frame"] is None
    assert one.detector.pretrained.is_loaded and not one.follower.pretrained.is_loaded
    one.release()
    assert not one.detector.pretrained.is_loaded


@pytest.mark.parametrize("label_mode", ["exact", "span"])
def test_real_sam2_follows_what_was_detected(checkpoints, label_mode):
    one = GroundedSAMTracker(**checkpoints, label_mode=label_mode, device="cpu", disable_progress_bar=True)
    assert one.detector.label_mode == label_mode
    one.detector = MadeUpDetector({0: ("cat",)})
    (found,) = one.track([random_video(21)], **WORDS)
    assert found.reason is None
    assert found.details == {"valid": 20, "missed": 1, "redundant": 0, "prompt_frame": 1, "followed": 21}
    prompt = np.array([walk(1, 21), BENCH])
    expected = one.follower.follow(random_video(21), prompt, 1)
    assert np.array_equal(np.stack([frame.boxes for frame in found]), expected)
    json.dumps(found.details)


def test_the_reward_reads_real_tracks(checkpoints):
    one = GroundedSAMTracker(
        MadeUpDetector(),
        follower_checkpoint=checkpoints["follower_checkpoint"],
        device="cpu",
        disable_progress_bar=True,
    )
    reward, reasons = DSRScore(tracker=one), {}
    videos = [random_video(20), random_video(12)]
    words = {name: values * 2 for name, values in {**WORDS, "type": ["LR"]}.items()}
    scores = reward(
        prompts=[""] * 2, completions=videos, **words, log_extra=lambda name, column: reasons.update({name: column})
    )
    assert scores[0] is None or 0 <= scores[0] <= 1
    assert scores[1] is None and "12 of 12 frames" in reasons["dsr_reason"][1]


def test_a_walk_to_the_right_scores_as_one():
    reward = DSRScore(tracker=made_up())
    assert reward([""], [random_video(24)], ["LR"], **WORDS)[0] > 0.9
    assert reward([""], [random_video(24)], ["RL"], **WORDS)[0] < 0.1


# The rules between detector and follower


def test_the_follower_is_prompted_on_the_first_long_run_with_the_animal_first():
    one = made_up({1: ("cat",), 3: (), 8: ("cat", "cat")})
    (found,) = one.track([random_video(30)], **WORDS)
    assert found.details == {"valid": 27, "missed": 2, "redundant": 1, "prompt_frame": 4, "followed": 30}
    assert one.follower.prompts == [([walk(4, 30), BENCH], 4)]
    assert [frame.labels for frame in found] == [("cat", "bench")] * 30


def test_an_invalid_clip_is_not_followed():
    one = made_up({k: ("cat",) for k in range(5, 30)})
    (found,) = one.track([random_video(30)], **WORDS)
    assert "in 5 of 30 frames (no bench in 25)" in found.reason
    assert one.follower.prompts == [] and len(found) == 0


def test_an_empty_mask_is_no_box():
    (found,) = made_up(lost=(3, 4)).track([random_video(20)], **WORDS)
    assert [frame.labels for frame in found if len(frame.labels) < 2] == [("bench",)] * 2
    assert found.details["followed"] == 18
    assert all(frame.boxes.any(axis=1).all() for frame in found)


def test_thresholds_scale_with_the_clip_when_asked():
    video = random_video(12)
    assert made_up().track([video], **WORDS)[0].reason is not None
    assert made_up(scale_to_length=True).track([video], **WORDS)[0].reason is None


def test_strict_rules_refuse_a_teleport_that_the_papers_rules_reward():
    def leap(k, num_frames):
        return walk(0 if k < num_frames // 2 else num_frames - 1, num_frames)

    video = random_video(24)
    assert made_up(boxes=leap).track([video], **WORDS)[0].reason is None
    assert "the cat leaps" in made_up(boxes=leap, strict=True).track([video], **WORDS)[0].reason
    assert made_up(strict=True).track([video], **WORDS)[0].reason is None
    lenient = StrictRules(max_step=100)
    assert made_up(boxes=leap, strict=lenient).track([video], **WORDS)[0].reason is None


def test_strictness_and_scaling_keep_the_other_rules():
    rules = ValidityRules(min_valid=7)
    assert made_up(rules=rules, strict=True, scale_to_length=True).rules == replace(
        rules, strict=StrictRules(), scale_to_length=True
    )
    assert made_up().rules == ValidityRules()


# The cache


def test_a_cached_clip_runs_neither_model_whatever_the_rules(tmp_path):
    video = random_video(24)
    first = made_up(cache_dir=tmp_path)
    (before,) = first.track([video], **WORDS)
    again = made_up(cache_dir=tmp_path, rules=ValidityRules(max_redundant=3, min_valid=4), strict=True)
    (after,) = again.track([video], **WORDS)
    assert (first.detector.runs, len(first.follower.prompts)) == (1, 1)
    assert (again.detector.runs, len(again.follower.prompts)) == (0, 0)
    assert all(np.array_equal(one.boxes, other.boxes) for one, other in zip(before, after, strict=True))


def test_rules_that_move_the_prompt_frame_follow_anew_and_detect_no_more(tmp_path):
    labels, video = {2: ("cat",)}, random_video(24)
    made_up(labels, cache_dir=tmp_path).track([video], **WORDS)
    again = made_up(labels, cache_dir=tmp_path, rules=ValidityRules(min_run=2))
    (found,) = again.track([video], **WORDS)
    assert found.details["prompt_frame"] == 0
    assert (again.detector.runs, len(again.follower.prompts)) == (0, 1)


@pytest.mark.parametrize("changed", ["video", "words", "detector", "follower"])
def test_what_the_boxes_depend_on_is_in_the_key(tmp_path, changed):
    video = random_video(24)
    made_up(cache_dir=tmp_path).track([video], **WORDS)
    again = made_up(
        {20: ("cat",)} if changed == "detector" else None, (5,) if changed == "follower" else (), cache_dir=tmp_path
    )
    again.track(
        [random_video(24, seed=1) if changed == "video" else video],
        animal=["cat"],
        object=["stool" if changed == "words" else "bench"],
    )
    assert again.detector.runs == (0 if changed == "follower" else 1)
    # With the detector changed, the boxes it gives on the prompt frame are the same, and so is what follows from them.
    assert len(again.follower.prompts) == (1 if changed in ("video", "follower") else 0)


def test_a_damaged_entry_is_made_again(tmp_path):
    video = random_video(24)
    (before,) = made_up(cache_dir=tmp_path).track([video], **WORDS)
    entries = sorted(tmp_path.glob("*.safetensors"))
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    again = made_up(cache_dir=tmp_path)
    with pytest.warns(UserWarning, match="no usable cache entry"):
        (after,) = again.track([video], **WORDS)
    assert (again.detector.runs, len(again.follower.prompts)) == (1, 1)
    assert all(np.array_equal(one.boxes, other.boxes) for one, other in zip(before, after, strict=True))


def test_a_hit_loads_no_real_model(checkpoints, tmp_path, monkeypatch):
    video, options = random_video(4), {"device": "cpu", "cache_dir": tmp_path, "disable_progress_bar": True}
    GroundedSAMTracker(**checkpoints, **options).track([video], **WORDS)
    again = GroundedSAMTracker(**checkpoints, **options)
    monkeypatch.setattr(again.detector.pretrained, "load", lambda: pytest.fail("a model was loaded"))
    assert again.track([video], **WORDS)[0].reason is not None
    changed = GroundedSAMTracker(**checkpoints, **options, box_threshold=0.3)
    changed.track([video], **WORDS)
    assert changed.detector.pretrained.is_loaded


def test_a_clip_is_hashed_once_for_all_that_is_kept_about_it(tmp_path, monkeypatch):
    hashed, digest = [], DetectionCache.digest
    monkeypatch.setattr(DetectionCache, "digest", lambda self, video: hashed.append(video) or digest(video))
    videos = [random_video(30), random_video(30, seed=1)]
    made_up(cache_dir=tmp_path).track(videos, **{name: values * 2 for name, values in WORDS.items()})
    assert len(hashed) == 2 and len(list(tmp_path.iterdir())) == 4


def test_without_a_cache_no_fingerprint_is_taken(monkeypatch):
    """It reads whole checkpoints."""
    one = made_up()
    monkeypatch.setattr(one.detector, "fingerprint", lambda: pytest.fail("a fingerprint was taken"))
    assert one.track([random_video(20)], **WORDS)[0].reason is None


# Early errors


def test_a_missing_checkpoint_of_either_model_is_named_before_any_work(checkpoints, empty_hub):
    with pytest.raises(ConnectionError, match="hf download IDEA-Research/grounding-dino-tiny"):
        GroundedSAMTracker().check_prompts(**WORDS)
    with pytest.raises(ConnectionError, match="hf download facebook/sam2.1-hiera-large"):
        GroundedSAMTracker(detector_checkpoint=checkpoints["detector_checkpoint"]).prepare()
    with pytest.raises(FileNotFoundError, match="no checkpoint folder '/no/sam2'"):
        GroundedSAMTracker(**{**checkpoints, "follower_checkpoint": "/no/sam2"}).track([random_video(2)], **WORDS)
    with pytest.raises(ValueError, match="of the kind 'sam2_video', but here grounding-dino"):
        GroundedSAMTracker(detector_checkpoint=checkpoints["follower_checkpoint"]).prepare()


def test_missing_torchvision_is_said_before_any_work(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        GroundedSAMTracker(**checkpoints).check_prompts(**WORDS)


def test_the_reward_refuses_before_anything_is_sampled(empty_hub):
    with pytest.raises(ConnectionError, match="hf download"):
        DSRScore(tracker=GroundedSAMTracker()).check_prompts(["LR"], **WORDS)


@pytest.mark.parametrize(
    ("animal", "thing", "message"),
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
def test_words_that_cannot_be_tracked_are_refused(animal, thing, message):
    with pytest.raises(ValueError, match=message):
        made_up().check_prompts(animal=["fox", animal], object=["stump", thing], attribute=None)


def test_usual_nouns_are_taken():
    check_nouns(["hamster", "red panda", "sand cat", "T-rex"], ["fire hydrant", "bandstand", "orange", "box"])


def test_the_adjective_is_not_part_of_the_text():
    one = made_up()
    for attribute in (None, [""], ["red"]):
        assert one.track([random_video(20)], **WORDS, attribute=attribute)[0].reason is None


# Options


def test_it_is_found_by_name_with_flat_options():
    one = get_tracker("grounded_sam", label_mode="span", box_threshold=0.3, batch_size=2, follower_revision="v1")
    assert isinstance(one, GroundedSAMTracker) and isinstance(one, Tracker)
    assert isinstance(one.detector, GroundingDINODetector) and isinstance(one.follower, SAM2Follower)
    assert (one.detector.label_mode, one.detector.box_threshold, one.detector.batch_size) == ("span", 0.3, 2)
    assert one.detector.pretrained.checkpoint == "IDEA-Research/grounding-dino-tiny"
    assert one.follower.pretrained.checkpoint == "facebook/sam2.1-hiera-large"
    assert one.follower.pretrained.revision == "v1"
    with pytest.raises(TypeError, match="'label_mod'. Did you mean 'label_mode'"):
        get_tracker("grounded_sam", label_mod="span")


@pytest.mark.parametrize("option", ["detector_checkpoint", "label_mode", "follower_revision", "device"])
def test_options_of_a_part_that_is_passed_as_an_object_are_refused(option):
    with pytest.raises(ValueError, match=f"'{option}' would have no effect"):
        made_up(**{option: "x"})


def test_both_parts_are_released():
    one = made_up()
    one.release()
    assert one.detector.released and one.follower.released


@pytest.mark.parametrize("disable", [True, False])
def test_the_progress_bar_can_be_switched_off(capsys, disable):
    made_up(disable_progress_bar=disable).track([random_video(20)] * 2, animal=["cat"] * 2, object=["bench"] * 2)
    assert ("grounded_sam" in capsys.readouterr().err) is not disable


def test_naming_the_tracker_loads_no_heavy_package():
    code = (
        "import sys; from spatialalign_trl.perception.tracks import get_tracker; get_tracker('grounded_sam');"
        "get_tracker('sam3'); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
