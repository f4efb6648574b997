"""DSR-Score: the authors' numbers, the properties the score must have, and the mistakes it must reject."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialalign_rewards.dsr_score import DSRScore, required_frames, score_tracks, score_tracks_batch, spatial_offsets
from spatialalign_trl.perception.tracks import TRACKERS, FrameBoxes, Tracks
from spatialalign_trl.prompts import DSR_TYPES, build_prompt
from spatialalign_trl.tiny_world.clips import scene_for
from spatialalign_trl.tiny_world.renderer import render

LABELS = ("fox", "stump")
MIRRORED = str.maketrans("LR", "RL")
STUMP = (100.0, 100.0, 120.0, 120.0)
# Centres of a 20 x 20 fox that is fully left of, right of, and on top of the stump (no overlap, exclusive).
PLACES = {"L": (60.0, 110.0), "R": (160.0, 110.0), "T": (110.0, 60.0)}


def box_at(center, size=20.0):
    x, y = center
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def frames_of(fox_boxes, stump=STUMP):
    return [(k, LABELS, np.array([fox, stump])) for k, fox in enumerate(fox_boxes)]


def walk(start, end, num_frames=24):
    """Return a straight walk that rests for the three frames at each end over which the score averages."""
    start, end = np.array(PLACES[start]), np.array(PLACES[end])
    times = np.clip((np.arange(num_frames) - 2) / max(num_frames - 5, 1), 0, 1)
    return frames_of([box_at(start + (end - start) * t) for t in times])


@st.composite
def tracks(draw, shortest=3, longest=12):
    """Return frames with integer boxes of positive size, so that flips and shifts are exact."""
    size, corner = st.integers(1, 40), st.integers(0, 80)

    def box():
        x, y = draw(corner), draw(corner)
        return [x, y, x + draw(size), y + draw(size)]

    return [(k, LABELS, np.array([box(), box()])) for k in range(draw(st.integers(shortest, longest)))]


def parts(result):
    return [result.score, result.initial_score, result.initial_gap, result.final_score, result.final_gap]


# ---------------------------------------------------------------------------------------------- the authors' numbers


def golden_cases(shared_data):
    return json.loads((shared_data / "dsr_golden.json").read_text())["cases"]


def assert_golden(case, result):
    if case["score"] is None:
        assert result.score is None, case["id"]
        assert result.reason, case["id"]
    else:
        assert result.score == pytest.approx(case["score"], abs=1e-9), case["id"]


def test_golden_scores(shared_data):
    cases = golden_cases(shared_data)
    assert len(cases) == 120
    for case in cases:
        assert_golden(case, score_tracks(case["frames"], case["animal"], case["object"], case["type"]))


def test_golden_scores_in_one_batch(shared_data):
    cases = golden_cases(shared_data)
    columns = [[case[name] for case in cases] for name in ("frames", "animal", "object", "type")]
    for case, result in zip(cases, score_tracks_batch(*columns), strict=True):
        assert_golden(case, result)


# -------------------------------------------------------------------------------------------------------- properties


@given(tracks(), st.sampled_from(DSR_TYPES))
def test_score_and_components_are_in_range(frames, dsr_type):
    result = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    assert 0 <= result.score <= 1
    assert all(-1 <= part <= 1 for part in parts(result)[1:])
    assert np.abs(result.initial_curve).max() <= 1
    assert np.abs(result.final_curve).max() <= 1


@given(tracks(), st.sampled_from(DSR_TYPES))
def test_mirroring_the_picture_swaps_left_and_right(frames, dsr_type):
    width = 200
    mirrored = [
        (k, labels, np.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], axis=1)) for k, labels, b in frames
    ]
    here = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    there = score_tracks(mirrored, *LABELS, dsr_type.translate(MIRRORED), min_frames=1)
    assert parts(there) == parts(here)


@given(tracks(), st.sampled_from(DSR_TYPES), st.randoms(use_true_random=False))
def test_order_of_frames_and_of_boxes_does_not_matter(frames, dsr_type, random):
    shuffled = [
        (k, labels[::-1], boxes[::-1]) if random.random() < 0.5 else (k, labels, boxes) for k, labels, boxes in frames
    ]
    random.shuffle(shuffled)
    here = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    there = score_tracks(shuffled, *LABELS, dsr_type, min_frames=1)
    assert parts(there) == parts(here)
    np.testing.assert_array_equal(there.initial_curve, here.initial_curve)
    np.testing.assert_array_equal(there.frame_indices, np.arange(len(frames)))


@given(tracks(), st.sampled_from(DSR_TYPES), st.floats(-500, 500), st.floats(-500, 500), st.floats(0.1, 10))
def test_shift_and_scale_of_the_picture_do_not_matter(frames, dsr_type, dx, dy, scale):
    moved = [(k, labels, boxes * scale + np.array([dx, dy, dx, dy])) for k, labels, boxes in frames]
    here = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    there = score_tracks(moved, *LABELS, dsr_type, min_frames=1)
    # The direction jumps where the centres coincide. A rounded shift may end on the other side of the jump, at a
    # distance of 1e-13, where the overlap factor is just as small.
    assert parts(there) == pytest.approx(parts(here), abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.tuples(tracks(0, 6), st.sampled_from(DSR_TYPES)), max_size=5))
def test_a_batch_equals_its_videos_one_by_one(videos):
    count = len(videos)
    batch = score_tracks_batch(
        [v[0] for v in videos], ["fox"] * count, ["stump"] * count, [v[1] for v in videos], min_frames=3
    )
    for (frames, dsr_type), result in zip(videos, batch, strict=True):
        single = score_tracks(frames, *LABELS, dsr_type, min_frames=3)
        assert parts(result) == parts(single)
        assert result.reason == single.reason
        np.testing.assert_array_equal(result.initial_curve, single.initial_curve)
        np.testing.assert_array_equal(result.final_curve, single.final_curve)
        np.testing.assert_array_equal(result.frame_indices, single.frame_indices)


@pytest.mark.parametrize(("dsr_type", "best"), [(t, 0.875 if "T" in t else 1.0) for t in DSR_TYPES])
def test_a_perfect_clip(dsr_type, best):
    assert score_tracks(walk(*dsr_type), *LABELS, dsr_type).score == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("place", ["L", "R"])
@pytest.mark.parametrize("dsr_type", ["LR", "RL"])
def test_nothing_happens_scores_a_half(place, dsr_type):
    assert score_tracks(walk(place, place), *LABELS, dsr_type).score == pytest.approx(0.5, abs=1e-12)


def test_a_wrong_final_relation_still_earns_three_quarters():
    assert score_tracks(walk("L", "T"), *LABELS, "LR").score == pytest.approx(0.75, abs=1e-12)


def test_the_opposite_motion_scores_nothing():
    assert score_tracks(walk("R", "L"), *LABELS, "LR").score == pytest.approx(0.0, abs=1e-12)


def test_coinciding_centres_have_no_direction():
    frames = frames_of([STUMP] * 20)
    result = score_tracks(frames, *LABELS, "LT")
    assert result.score == 0.5
    assert not result.initial_curve.any()
    assert not spatial_offsets(np.array([[STUMP, STUMP]])).any()


def test_components_by_hand():
    # Offsets of half the reach: cos = 1, d = 0.5. Curve of L: +.5 +.5 0 -.5 ; of R: the negative.
    xs = (100.0, 100.0, 110.0, 120.0)
    result = score_tracks(frames_of([box_at((x, 110.0)) for x in xs]), *LABELS, "LR", min_frames=4)
    np.testing.assert_allclose(result.initial_curve, [0.5, 0.5, 0.0, -0.5])
    np.testing.assert_allclose(result.final_curve, [-0.5, -0.5, 0.0, 0.5])
    assert parts(result)[1:] == pytest.approx([1 / 3, 0.5, 0.0, 0.5])
    assert result.score == pytest.approx((1 / 3 + 0.5 + 0.0 + 0.5) / 8 + 0.5)


# -------------------------------------------------------------------------------------------------- which frames count


def test_only_frames_with_exactly_both_labels_count():
    frames = walk("L", "R", 30)
    extra = [
        (30, ("fox",), np.array([STUMP])),
        (31, ("fox", "fox"), np.array([STUMP, STUMP])),
        (32, ("fox", "stump", "stump"), np.array([STUMP] * 3)),
        (33, ("fox", "fire hydrant"), np.array([STUMP, STUMP])),
        (34, (), np.empty((0, 4))),
    ]
    result = score_tracks(frames + extra, *LABELS, "LR")
    assert result.score == pytest.approx(1.0)
    assert result.frame_indices.tolist() == list(range(30))


def test_empty_masks_do_not_count_but_one_flat_box_does():
    frames = walk("L", "R", 30)
    frames += [
        (30, LABELS, np.array([(0, 0, 0, 0), STUMP])),  # an empty mask
        (31, LABELS, np.array([(5, 0, 5, 9), STUMP])),  # one pixel wide
        (32, LABELS, np.array([(0, 5, 9, 5), (30, 7, 39, 7)])),  # both flat: mean height 0
        (33, LABELS, np.array([(200, 110, 209, 110), STUMP])),  # one flat box still has a mean height
    ]
    assert score_tracks(frames, *LABELS, "LR").frame_indices.tolist() == [*range(30), 33]


@pytest.mark.parametrize(("num_frames", "needed"), [(1, 3), (9, 3), (13, 4), (33, 9), (49, 13), (81, 20), (121, 30)])
def test_required_frames_scale_with_the_clip(num_frames, needed):
    assert required_frames(num_frames) == needed


def test_too_few_frames_are_invalid_and_say_so():
    frames = walk("L", "R", 19)
    result = score_tracks(frames, *LABELS, "LR", num_frames=81)
    assert parts(result) == [None] * 5
    assert result.reason == (
        "the fox and the stump were found together in 19 of 81 frames (the fox in 19, the stump in 19); "
        "at least 20 are needed"
    )
    assert len(result.initial_curve) == 19  # the curves of an INVALID video are kept for inspection
    assert score_tracks(frames, *LABELS, "LR").score is None
    assert score_tracks(frames, *LABELS, "LR", num_frames=49).score is not None
    assert score_tracks(frames, *LABELS, "LR", min_frames=19).score is not None


def test_the_reason_says_which_of_the_two_was_missing():
    frames = walk("L", "R", 7)
    frames += [(k, ("stump",), np.array([STUMP])) for k in range(7, 60)]
    frames += [(k, LABELS, np.array([(0, 0, 0, 0), STUMP])) for k in range(60, 70)]  # an empty mask: not found
    frames += [(k, ("fox", "fox", "stump"), np.array([STUMP] * 3)) for k in range(70, 75)]
    assert score_tracks(frames, *LABELS, "LR", num_frames=81).reason == (
        "the fox and the stump were found together in 7 of 81 frames (the fox in 12, the stump in 75, "
        "something more beside them in 5); at least 20 are needed"
    )


def test_no_frame_at_all_is_invalid():
    result = score_tracks([], *LABELS, "TR", num_frames=9)
    assert result.score is None
    assert "together in 0 of 9 frames" in result.reason
    assert score_tracks_batch([], [], [], []) == []


def test_tracks_bring_their_length_and_their_reason():
    frames = [FrameBoxes(*frame) for frame in walk("L", "R", 9)]
    assert score_tracks(Tracks(frames, num_frames=9), *LABELS, "LR").score == pytest.approx(1.0)
    refused = score_tracks(Tracks(frames, num_frames=9, reason="17 frames show two foxes"), *LABELS, "LR")
    assert refused.score is None
    assert refused.reason == "17 frames show two foxes"


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("dsr_type", ["LX", "LL", "LTTR", "L", "", "lr"])
def test_unknown_types_are_refused(dsr_type):
    with pytest.raises(ValueError, match=f"video 0: unknown DSR type '{dsr_type}'.*LR, LT"):
        score_tracks(walk("L", "R"), *LABELS, dsr_type)


def test_animal_and_object_must_differ():
    with pytest.raises(ValueError, match="animal and object are both 'cat'"):
        score_tracks([], "cat", "cat", "LR")


@pytest.mark.parametrize(
    ("animal", "thing"), [("cat and dog", "bench"), ("cat", "bench and table"), ("two cats", "box")]
)
def test_more_than_one_animal_or_object_is_refused(animal, thing):
    with pytest.raises(ValueError, match="video 0: .* is more than one .*one animal and one static object"):
        score_tracks([], animal, thing, "LR")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ((0, LABELS, np.array([STUMP])), "2 labels but 1 boxes"),
        ((0, LABELS, np.array([(9, 0, 3, 4), STUMP])), "x1 <= x2"),
        ((0, LABELS, np.array([(0, np.nan, 3, 4), STUMP])), "finite"),
        ((0, LABELS, np.ones((2, 5))), "four numbers"),
        ((0, LABELS, np.ones(2)), "four numbers"),
        ((-1, LABELS, np.array([STUMP, STUMP])), "outside the clip"),
        ((24, LABELS, np.array([STUMP, STUMP])), "outside the clip of 24 frames"),
        ((5, LABELS, np.array([STUMP, STUMP])), "appears twice"),
    ],
)
def test_bad_boxes_are_refused_with_their_place(frame, message):
    with pytest.raises(ValueError, match=f"video 1, frame {frame[0]}.*{message}"):
        score_tracks_batch(
            [[], [*walk("L", "R")[6:], (5, (), ()), frame]], ["fox"] * 2, ["stump"] * 2, ["LR"] * 2, num_frames=24
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_frames": 0}, "min_frames"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": [9, 9]}, "num_frames"),
        ({"animals": "fox"}, "animals"),
        ({"dsr_types": ["LR", "LR"]}, "dsr_types"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    columns = {"tracks": [[]], "animals": ["fox"], "objects": ["stump"], "dsr_types": ["LR"]}
    with pytest.raises(ValueError, match=message):
        score_tracks_batch(**(columns | arguments))


# ---------------------------------------------------------------------------------------------------------- the reward


class FixedTracker:
    """Return prepared tracks and record the arguments."""

    name = "fixed"

    def __init__(self, tracks):
        self.tracks = tracks
        self.asked = None

    def track(self, videos, *, animal, object, attribute=None):
        self.asked = {"videos": videos, "animal": animal, "object": object, "attribute": attribute}
        return self.tracks


def two_tracks():
    frames = [FrameBoxes(*frame) for frame in walk("L", "R", 9)]
    return [Tracks(frames, num_frames=9), Tracks(frames[:2], num_frames=9)]


COLUMNS = {"type": ["LR", "LR"], "animal": ["fox", "fox"], "object": ["stump", "stump"]}
VIDEOS = [np.zeros((9, 16, 16, 3), dtype=np.uint8), np.ones((9, 16, 16, 3), dtype=np.uint8)]


def test_reward_scores_and_logs():
    tracker, extra, metrics = FixedTracker(two_tracks()), {}, {}
    reward = DSRScore(tracker=tracker)
    scores = reward(
        prompts=["p", "p"],
        completions=VIDEOS,
        **COLUMNS,
        attribute=["red", None],
        prompt_id=["a", "b"],
        trainer_state=None,
        log_extra=extra.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert scores == [pytest.approx(1.0), None]
    assert tracker.asked["attribute"] == ["red", ""]
    assert extra["dsr_initial_score"] == [pytest.approx(1.0), None]
    assert extra["dsr_reason"][0] is None
    assert "together in 2 of 9 frames" in extra["dsr_reason"][1]
    assert set(extra) == {f"dsr_{n}" for n in ("initial_score", "initial_gap", "final_score", "final_gap", "reason")}
    assert metrics["dsr_final_gap"] == pytest.approx(1.0)


def test_reward_is_named_and_says_what_it_needs():
    reward = DSRScore(tracker=FixedTracker([]))
    assert reward.__name__ == "dsr_score"
    assert DSRScore.required_columns == ("type", "animal", "object")


def test_reward_needs_what_its_tracker_needs():
    tracker = FixedTracker([])
    tracker.required_columns = ("attribute", "type")
    assert DSRScore(tracker=tracker).required_columns == ("type", "animal", "object", "attribute")


@pytest.mark.parametrize("dsr_type", DSR_TYPES)
def test_reward_tells_obedient_clips_of_the_tiny_world_from_reversed_ones(dsr_type):
    words = {"scene": "In a meadow", "animal": "fox", "object": "stump", "verb": "jumps", "attribute": "red"}
    row = build_prompt(**words, type=dsr_type).to_row()
    clip = render(scene_for(row, np.random.default_rng(0))).video
    columns = {name: [row[name]] * 2 for name in ("type", "animal", "object", "attribute")}
    obedient, backwards = DSRScore()([row["prompt"]] * 2, [clip, clip[::-1]], **columns)
    assert obedient > 0.7
    assert backwards < 0.5


def test_reward_passes_min_frames_on():
    assert DSRScore(FixedTracker(two_tracks()), min_frames=2)(["p"] * 2, VIDEOS, **COLUMNS)[1] is not None


def test_reward_reads_video_files(tmp_path):
    from spatialalign_trl.video import write_video

    paths = [tmp_path / "0.mp4", str(tmp_path / "1.mp4")]
    for path, video in zip(paths, VIDEOS, strict=True):
        write_video(path, video, fps=8, crf=0)
    tracker = FixedTracker(two_tracks())
    DSRScore(tracker)(["p"] * 2, paths, **COLUMNS)
    np.testing.assert_array_equal(tracker.asked["videos"], VIDEOS)


def test_reward_refuses_what_is_no_video():
    with pytest.raises((TypeError, ValueError), match=r"completions\[1\]"):
        DSRScore(FixedTracker(two_tracks()))(["p"] * 2, [VIDEOS[0], VIDEOS[1].astype(float)], **COLUMNS)


def test_reward_notices_a_tracker_that_drops_videos():
    with pytest.raises(ValueError, match="1 tracks for 2 videos"):
        DSRScore(FixedTracker(two_tracks()[:1]))(["p"] * 2, VIDEOS, **COLUMNS)


def test_prompts_that_cannot_be_scored_are_refused_before_sampling():
    reward = DSRScore(tracker="color_segmentation")
    reward.check_prompts(type=["LR"], animal=["fox"], object=["stump"], attribute=["red"], prompt_id=["a"])
    with pytest.raises(ValueError, match="hamster.*another tracker"):
        reward.check_prompts(type=["LR"], animal=["hamster"], object=["stump"], attribute=["red"])
    with pytest.raises(ValueError, match="prompt 1: animal and object are both 'stump'"):
        reward.check_prompts(type=["LR", "LR"], animal=["fox", "stump"], object=["stump"] * 2, attribute=["red"] * 2)
    for change, message in (
        ({"type": ["LX"]}, "prompt 0: unknown DSR type 'LX'"),
        ({"type": ["LTT"]}, "prompt 0: unknown DSR type 'LTT': T comes twice in a row"),
        ({"object": ["stump and crate"]}, "prompt 0: object: 'stump and crate' is more than one object"),
        ({"animal": ["two foxes"]}, "prompt 0: animal: 'two foxes' is more than one animal"),
    ):
        columns = {"type": ["LR"], "animal": ["fox"], "object": ["stump"], "attribute": ["red"]} | change
        with pytest.raises(ValueError, match=message):
            reward.check_prompts(**columns)


class WorkingTracker(FixedTracker):
    """Count how often the models are loaded."""

    def __init__(self, size="small"):
        super().__init__(two_tracks())
        self.size, self.model, self.loaded = size, None, 0

    def track(self, videos, **words):
        if self.model is None:
            self.model, self.loaded = object(), self.loaded + 1
        return super().track(videos, **words)

    def release(self):
        self.model = None


def test_grading_keeps_what_the_score_was_read_from():
    tracker = FixedTracker(two_tracks())
    graded = DSRScore(tracker).grade(VIDEOS, **COLUMNS)
    assert [one.tracks for one in graded] == tracker.tracks
    assert [one.result.score for one in graded] == DSRScore(tracker)(["p"] * 2, VIDEOS, **COLUMNS)
    assert [one.result.reason is None for one in graded] == [True, False]


def test_models_are_loaded_late_once_and_can_be_released():
    tracker = WorkingTracker()
    reward = DSRScore(tracker)
    assert tracker.loaded == 0
    for _ in range(2):
        reward.grade(VIDEOS, **COLUMNS)
    assert tracker.loaded == 1
    reward.release()
    assert tracker.model is None
    reward.grade(VIDEOS, **COLUMNS)
    assert tracker.loaded == 2
    DSRScore(FixedTracker([])).release()  # a tracker without models has nothing to free


def test_a_tracker_is_picked_by_name_with_options(monkeypatch):
    monkeypatch.setitem(TRACKERS, "working", f"{__name__}:WorkingTracker")
    assert DSRScore("working", tracker_options={"size": "large"}).tracker.size == "large"
    with pytest.raises(TypeError, match="no option 'sise'. Did you mean 'size'"):
        DSRScore("working", tracker_options={"sise": "large"})


def test_nothing_is_tracked_for_a_question_that_cannot_be_scored():
    tracker = FixedTracker(two_tracks())
    with pytest.raises(ValueError, match="video 1: animal and object are both 'fox'"):
        DSRScore(tracker).grade(VIDEOS, **{**COLUMNS, "object": ["stump", "fox"]})
    assert tracker.asked is None


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
    """A fox next to the stump, far away and dark at first, near and bright at the end."""
    video = np.full((num_frames, 160, 240, 3), 100, np.uint8)
    video[:, :40], video[:, 140:] = 20, 180
    for k, frame in enumerate(video):
        frame[100:120, 150:170] = 20 if k < num_frames // 2 else 180
    return video, Tracks([FrameBoxes(*frame) for frame in walk("R", "R", num_frames)], num_frames)


def test_depth_is_estimated_only_where_front_or_behind_is_asked_for():
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


def test_depth_of_an_invalid_or_a_measured_clip_is_not_estimated():
    video, tracks = coming_forward()
    refused = Tracks(tracks.frames, 24, reason="two foxes")
    measured = Tracks(tracks.frames, 24, nearness=np.tile([0.75, 0.25], (24, 1)))
    estimator = GrayDepth()
    reward = DSRScore(FixedTracker([refused, measured]), depth_estimator=estimator)
    graded = reward.grade([video] * 2, type=["FB"] * 2, animal=["fox"] * 2, object=["stump"] * 2)
    assert estimator.clips == 0
    assert [one.result.reason for one in graded] == ["two foxes", None]


def test_a_depth_model_that_cannot_be_loaded_is_refused_before_sampling(tmp_path):
    estimator = GrayDepth()
    words = {"animal": ["fox"], "object": ["stump"]}
    reward = DSRScore(FixedTracker([]), depth_estimator=estimator)
    reward.check_prompts(type=["LR"], **words)
    assert estimator.prepared == 0
    reward.check_prompts(type=["LF"], **words)
    assert estimator.prepared == 1
    absent = DSRScore(FixedTracker([]), depth_options={"checkpoint": str(tmp_path / "absent")})
    absent.check_prompts(type=["LR"], **words)
    with pytest.raises(FileNotFoundError, match="absent"):
        absent.check_prompts(type=["FB"], **words)
    with pytest.raises(ValueError, match="no depth estimator named 'depth_anythin'. Did you mean 'depth_anything'"):
        DSRScore(depth_estimator="depth_anythin")


def test_naming_a_depth_estimator_loads_no_model_library(tmp_path):
    code = "import sys; from spatialalign_rewards import DSRScore; DSRScore(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "False\n"


def test_sequences_are_logged_with_their_visits():
    frames = walk("L", "T", 12) + [(k + 12, *rest) for k, *rest in walk("T", "R", 12)]
    crossing = Tracks([FrameBoxes(*frame) for frame in frames], 24)
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
