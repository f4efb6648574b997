"""The reward DSR-Score: it tracks, estimates depth where needed, logs its components, and checks its prompts."""

import subprocess
import sys

import numpy as np
import pytest
from dsr_clips import frame_boxes, walk

from spatialalign_rewards.dsr_score import DSRScore
from spatialalign_trl.perception.tracks import TRACKERS, Tracks
from spatialalign_trl.prompts import DSR_TYPES, build_prompt
from spatialalign_trl.tiny_world.clips import scene_for
from spatialalign_trl.tiny_world.renderer import render
from spatialalign_trl.video import write_video


class FixedTracker:
    """Return prepared tracks and record the arguments."""

    name = "fixed"

    def __init__(self, tracks):
        self.tracks = tracks
        self.received = None

    def track(self, videos, *, animal, object, attribute=None):
        self.received = {"videos": videos, "animal": animal, "object": object, "attribute": attribute}
        return self.tracks


def two_tracks():
    """Return tracks of a perfect clip and of one with too few frames."""
    frames = frame_boxes(walk("L", "R", 9))
    return [Tracks(frames, num_frames=9), Tracks(frames[:2], num_frames=9)]


COLUMNS = {"type": ["LR", "LR"], "animal": ["fox", "fox"], "object": ["stump", "stump"]}
VIDEOS = [np.zeros((9, 16, 16, 3), dtype=np.uint8), np.ones((9, 16, 16, 3), dtype=np.uint8)]


@pytest.fixture(scope="module")
def scored():
    """Score a perfect and an invalid clip, and return (scores, tracker, logged columns, logged metrics)."""
    tracker, extra, metrics = FixedTracker(two_tracks()), {}, {}
    scores = DSRScore(tracker=tracker)(
        prompts=["p", "p"],
        completions=VIDEOS,
        **COLUMNS,
        attribute=["red", None],
        prompt_id=["a", "b"],
        trainer_state=None,
        log_extra=extra.__setitem__,
        log_metric=metrics.__setitem__,
    )
    return scores, tracker, extra, metrics


def test_a_perfect_clip_scores_one_and_too_few_frames_are_invalid(scored):
    assert scored[0] == [pytest.approx(1.0), None]


def test_the_tracker_receives_a_missing_attribute_as_an_empty_word(scored):
    assert scored[1].received["attribute"] == ["red", ""]


def test_components_and_reasons_are_logged_for_every_video(scored):
    extra = scored[2]
    assert extra["dsr_initial_score"] == [pytest.approx(1.0), None]
    assert extra["dsr_reason"][0] is None
    assert "together in 2 of 9 frames" in extra["dsr_reason"][1]
    assert set(extra) == {f"dsr_{n}" for n in ("initial_score", "initial_gap", "final_score", "final_gap", "reason")}


def test_means_of_the_components_are_logged_as_metrics(scored):
    assert scored[3]["dsr_final_gap"] == pytest.approx(1.0)


def test_the_reward_has_a_name_and_required_columns():
    reward = DSRScore(tracker=FixedTracker([]))
    assert reward.__name__ == "dsr_score"
    assert DSRScore.required_columns == ("type", "animal", "object")


def test_the_columns_that_the_tracker_needs_are_required_too():
    tracker = FixedTracker([])
    tracker.required_columns = ("attribute", "type")
    assert DSRScore(tracker=tracker).required_columns == ("type", "animal", "object", "attribute")


@pytest.mark.parametrize("dsr_type", DSR_TYPES)
def test_obedient_clips_of_the_tiny_world_score_above_reversed_ones(dsr_type):
    words = {"scene": "In a meadow", "animal": "fox", "object": "stump", "verb": "jumps", "attribute": "red"}
    row = build_prompt(**words, type=dsr_type).to_row()
    clip = render(scene_for(row, np.random.default_rng(0))).video
    columns = {name: [row[name]] * 2 for name in ("type", "animal", "object", "attribute")}
    obedient, backwards = DSRScore()([row["prompt"]] * 2, [clip, clip[::-1]], **columns)
    assert obedient > 0.7
    assert backwards < 0.5


def test_min_frames_is_passed_on():
    for min_frames, is_valid in ((2, True), (3, False)):
        scores = DSRScore(FixedTracker(two_tracks()), min_frames=min_frames)(["p"] * 2, VIDEOS, **COLUMNS)
        assert scores[0] == pytest.approx(1) and (scores[1] == pytest.approx(0.5)) == is_valid, scores


def test_video_files_are_read(tmp_path):
    paths = [tmp_path / "0.mp4", str(tmp_path / "1.mp4")]
    for path, video in zip(paths, VIDEOS, strict=True):
        write_video(path, video, fps=8, crf=0)
    tracker = FixedTracker(two_tracks())
    DSRScore(tracker)(["p"] * 2, paths, **COLUMNS)
    np.testing.assert_array_equal(tracker.received["videos"], VIDEOS)


def test_completions_that_are_no_videos_are_named():
    with pytest.raises((TypeError, ValueError), match=r"completions\[1\]"):
        DSRScore(FixedTracker(two_tracks()))(["p"] * 2, [VIDEOS[0], VIDEOS[1].astype(float)], **COLUMNS)


def test_a_tracker_that_drops_videos_is_refused():
    with pytest.raises(ValueError, match="1 tracks for 2 videos"):
        DSRScore(FixedTracker(two_tracks()[:1]))(["p"] * 2, VIDEOS, **COLUMNS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"animal": ["hamster"]}, "hamster.*another tracker"),
        ({"type": ["LX"]}, "prompt 0: unknown DSR type 'LX'"),
        ({"type": ["LTT"]}, "prompt 0: unknown DSR type 'LTT': T comes twice in a row"),
        ({"object": ["stump and crate"]}, "prompt 0: object: 'stump and crate' is more than one object"),
        ({"animal": ["two foxes"]}, "prompt 0: animal: 'two foxes' is more than one animal"),
        (
            {"type": ["LR"] * 2, "animal": ["fox", "stump"], "object": ["stump"] * 2, "attribute": ["red"] * 2},
            "prompt 1: animal and object are both 'stump'",
        ),
    ],
)
def test_prompts_that_cannot_be_scored_are_refused_before_sampling(change, message):
    columns = {"type": ["LR"], "animal": ["fox"], "object": ["stump"], "attribute": ["red"]}
    reward = DSRScore(tracker="color_segmentation")
    reward.check_prompts(**columns, prompt_id=["a"])
    with pytest.raises(ValueError, match=message):
        reward.check_prompts(**columns | change)


class LoadingTracker(FixedTracker):
    """A tracker that counts how often it loads its model."""

    def __init__(self, size="small"):
        super().__init__(two_tracks())
        self.size, self.model, self.loaded = size, None, 0

    def track(self, videos, **words):
        if self.model is None:
            self.model, self.loaded = object(), self.loaded + 1
        return super().track(videos, **words)

    def release(self):
        self.model = None


def test_a_grade_contains_the_tracks_and_the_score():
    tracker = FixedTracker(two_tracks())
    graded = DSRScore(tracker).grade(VIDEOS, **COLUMNS)
    assert [grade.tracks for grade in graded] == tracker.tracks
    assert [grade.result.score for grade in graded] == DSRScore(tracker)(["p"] * 2, VIDEOS, **COLUMNS)
    assert [grade.result.reason is None for grade in graded] == [True, False]


def test_models_are_loaded_once_on_first_use_and_again_after_a_release():
    tracker = LoadingTracker()
    reward = DSRScore(tracker)
    assert tracker.loaded == 0
    for _ in range(2):
        reward.grade(VIDEOS, **COLUMNS)
    assert tracker.loaded == 1
    reward.release()
    assert tracker.model is None
    reward.grade(VIDEOS, **COLUMNS)
    assert tracker.loaded == 2


def test_a_tracker_without_models_needs_no_release():
    DSRScore(FixedTracker([])).release()


def test_a_tracker_is_picked_by_name_with_options(monkeypatch):
    monkeypatch.setitem(TRACKERS, "working", f"{__name__}:LoadingTracker")
    assert DSRScore("working", tracker_options={"size": "large"}).tracker.size == "large"
    with pytest.raises(TypeError, match="no option 'sise'. Did you mean 'size'"):
        DSRScore("working", tracker_options={"sise": "large"})


def test_nothing_is_tracked_if_one_of_the_questions_cannot_be_scored():
    tracker = FixedTracker(two_tracks())
    with pytest.raises(ValueError, match="video 1: animal and object are both 'fox'"):
        DSRScore(tracker).grade(VIDEOS, **{**COLUMNS, "object": ["stump", "fox"]})
    assert tracker.received is None


# ------------------------------------------------------------------------------------------------- depth and sequences


class GrayDepth:
    """Treat bright pixels as near, and count the calls."""

    def __init__(self):
        self.clips, self.prepared, self.released = 0, 0, 0

    def prepare(self):
        self.prepared += 1

    def nearness(self, video):
        self.clips += 1
        return video.mean(axis=-1, dtype=np.float32)

    def release(self):
        self.released += 1


def coming_forward(num_frames=24):
    """Return a clip of a fox next to the stump, far away and dark at first, near and bright at the end; its tracks."""
    video = np.full((num_frames, 160, 240, 3), 100, np.uint8)
    video[:, :40], video[:, 140:] = 20, 180
    for k, frame in enumerate(video):
        frame[100:120, 150:170] = 20 if k < num_frames // 2 else 180
    return video, Tracks(frame_boxes(walk("R", "R", num_frames)), num_frames)


def test_depth_is_estimated_only_for_types_with_front_or_behind():
    video, tracks = coming_forward()
    estimator = GrayDepth()
    reward = DSRScore(FixedTracker([tracks] * 3), depth_estimator=estimator)
    columns = {"animal": ["fox"] * 3, "object": ["stump"] * 3}
    flat, forward, back = reward.grade([video] * 3, type=["LR", "BF", "FB"], **columns)
    assert estimator.clips == 2
    assert flat.tracks.nearness is None and tracks.nearness is None
    assert forward.tracks.nearness.shape == (24, 2)
    assert forward.result.score == pytest.approx(0.75)
    assert back.result.score == pytest.approx(0.25)
    reward.release()
    assert estimator.released == 1


def test_depth_is_not_estimated_for_refused_tracks_or_if_the_tracker_measured_it():
    video, tracks = coming_forward()
    refused = Tracks(tracks.frames, 24, reason="two foxes")
    measured = Tracks(tracks.frames, 24, nearness=np.tile([0.75, 0.25], (24, 1)))
    estimator = GrayDepth()
    reward = DSRScore(FixedTracker([refused, measured]), depth_estimator=estimator)
    graded = reward.grade([video] * 2, type=["FB"] * 2, animal=["fox"] * 2, object=["stump"] * 2)
    assert estimator.clips == 0
    assert [grade.result.reason for grade in graded] == ["two foxes", None]


FOX_AND_STUMP = {"animal": ["fox"], "object": ["stump"]}


def test_the_depth_model_is_prepared_before_sampling_if_a_prompt_needs_it():
    estimator = GrayDepth()
    reward = DSRScore(FixedTracker([]), depth_estimator=estimator)
    reward.check_prompts(type=["LR"], **FOX_AND_STUMP)
    assert estimator.prepared == 0
    reward.check_prompts(type=["LF"], **FOX_AND_STUMP)
    assert estimator.prepared == 1


def test_a_missing_depth_checkpoint_is_reported_only_for_prompts_that_need_depth(tmp_path):
    reward = DSRScore(FixedTracker([]), depth_options={"checkpoint": str(tmp_path / "absent")})
    reward.check_prompts(type=["LR"], **FOX_AND_STUMP)
    with pytest.raises(FileNotFoundError, match="absent"):
        reward.check_prompts(type=["FB"], **FOX_AND_STUMP)


def test_an_unknown_depth_estimator_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match="no depth estimator named 'depth_anythin'. Did you mean 'depth_anything'"):
        DSRScore(depth_estimator="depth_anythin")


def test_naming_a_depth_estimator_loads_no_model_library(tmp_path):
    code = "import sys; from spatialalign_rewards import DSRScore; DSRScore(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "False\n"


def test_scores_and_gaps_of_visits_are_logged_for_sequences():
    frames = walk("L", "T", 12) + [(k + 12, *rest) for k, *rest in walk("T", "R", 12)]
    crossing = Tracks(frame_boxes(frames), 24)
    extra, metrics = {}, {}
    scores = DSRScore(FixedTracker([crossing, crossing]))(
        ["p"] * 2,
        VIDEOS,
        **COLUMNS | {"type": ["LTR", "LR"]},
        log_extra=extra.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert scores == [pytest.approx(0.875), pytest.approx(1.0)]
    assert extra["dsr_visit_score"] == [pytest.approx(1.0), None]
    assert extra["dsr_visit_gap"] == [pytest.approx(0.5), None]
    assert metrics["dsr_visit_score"] == pytest.approx(1.0)
