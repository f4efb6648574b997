"""The score of tracked boxes: it equals the authors' numbers, has the required properties, and rejects mistakes."""

import json

import numpy as np
import pytest
from dsr_clips import LABELS, STUMP, box_at, frames_of, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialalign_rewards.dsr_score import required_frames, score_tracks, score_tracks_batch, spatial_offsets
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.prompts import DSR_TYPES

MIRRORED = str.maketrans("LR", "RL")


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


@pytest.fixture(scope="module")
def golden_cases(golden_data):
    """Return the cases that the authors' code has scored."""
    return json.loads((golden_data / "dsr_golden.json").read_text())["cases"]


def assert_golden(case, result):
    if case["score"] is None:
        assert result.score is None, case["id"]
        assert result.reason, case["id"]
    else:
        assert result.score == pytest.approx(case["score"], abs=1e-9), case["id"]


def test_every_video_has_the_score_that_the_authors_code_gave_it(golden_cases):
    assert len(golden_cases) == 120
    for case in golden_cases:
        assert_golden(case, score_tracks(case["frames"], case["animal"], case["object"], case["type"]))


def test_a_batch_has_the_scores_that_the_authors_code_gave_its_videos(golden_cases):
    columns = [[case[name] for case in golden_cases] for name in ("frames", "animal", "object", "type")]
    for case, result in zip(golden_cases, score_tracks_batch(*columns), strict=True):
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
    original = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    swapped = score_tracks(mirrored, *LABELS, dsr_type.translate(MIRRORED), min_frames=1)
    assert parts(swapped) == parts(original)


@given(tracks(), st.sampled_from(DSR_TYPES), st.randoms(use_true_random=False))
def test_order_of_frames_and_of_boxes_does_not_matter(frames, dsr_type, random):
    shuffled = [
        (k, labels[::-1], boxes[::-1]) if random.random() < 0.5 else (k, labels, boxes) for k, labels, boxes in frames
    ]
    random.shuffle(shuffled)
    original = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    result = score_tracks(shuffled, *LABELS, dsr_type, min_frames=1)
    assert parts(result) == parts(original)
    np.testing.assert_array_equal(result.initial_curve, original.initial_curve)
    np.testing.assert_array_equal(result.frame_indices, np.arange(len(frames)))


@given(tracks(), st.sampled_from(DSR_TYPES), st.floats(-500, 500), st.floats(-500, 500), st.floats(0.1, 10))
def test_shift_and_scale_of_the_picture_do_not_matter(frames, dsr_type, dx, dy, scale):
    moved = [(k, labels, boxes * scale + np.array([dx, dy, dx, dy])) for k, labels, boxes in frames]
    original = score_tracks(frames, *LABELS, dsr_type, min_frames=1)
    result = score_tracks(moved, *LABELS, dsr_type, min_frames=1)
    # The direction jumps where the centres coincide. A rounded shift may end on the other side of the jump, at a
    # distance of 1e-13, where the overlap factor is just as small.
    assert parts(result) == pytest.approx(parts(original), abs=1e-9)


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


def assert_same(result, single):
    assert parts(result) == parts(single) and result.reason == single.reason
    for name in ("visit_scores", "visit_gaps", "visit_frames"):
        assert getattr(result, name) == getattr(single, name)
    for name in ("initial_curve", "final_curve", "visit_curves", "frame_indices"):
        np.testing.assert_array_equal(getattr(result, name), getattr(single, name))


def reversed_frames(frames):
    return frames[::-1]


def last_frame_first(frames):
    return [*frames[-1:], *frames[:-1]]


def last_two_swapped(frames):
    return [*frames[:-2], frames[-1], frames[-2]]


def with_swapped_labels(frames):
    return [(k, labels[::-1], boxes[::-1]) for k, labels, boxes in frames[::-1]]


@pytest.mark.parametrize("shuffle", [reversed_frames, last_frame_first, last_two_swapped, with_swapped_labels])
@pytest.mark.parametrize("which", range(4))
def test_a_batch_with_one_shuffled_clip_scores_each_as_alone(which, shuffle):
    """A shuffled clip is sorted, and only it: the others keep their frames, whichever lies beside it."""
    types = ["LR", "RL", "TR", "LT"]
    videos = [
        walk(dsr_type[0], dsr_type[1], num_frames)
        for dsr_type, num_frames in zip(types, (24, 30, 21, 27), strict=True)
    ]
    alone = [score_tracks(frames, *LABELS, dsr_type) for frames, dsr_type in zip(videos, types, strict=True)]
    videos[which] = shuffle(videos[which])
    batch = score_tracks_batch(videos, ["fox"] * 4, ["stump"] * 4, types)
    for result, single in zip(batch, alone, strict=True):
        assert single.score > 0.8
        assert_same(result, single)


@pytest.mark.parametrize("which", range(3))
def test_a_batch_with_a_shuffled_clip_of_another_kind_scores_each_as_alone(which):
    """The kinds: with depth, a sequence of three relations, and an empty clip between them."""
    rng, types = np.random.default_rng(which), ["FB", "LR", "LRL"]
    nearness = np.stack([np.linspace(0.9, 0.1, 24), np.full(24, 0.5)], axis=1)
    sequence = frames_of([box[0] for _, _, box in walk("L", "R", 12) + walk("R", "L", 12)])

    def tracks_of(dsr_type, frames):
        return Tracks(frames, 24, nearness=nearness if dsr_type == "FB" else None)

    videos = [walk("L", "R"), [], sequence]
    alone = [score_tracks(tracks_of(t, frames), *LABELS, t) for t, frames in zip(types, videos, strict=True)]
    assert [single.score is None for single in alone] == [False, True, False]
    videos[which] = [videos[which][k] for k in rng.permutation(len(videos[which]))]
    batch = score_tracks_batch(
        [tracks_of(t, frames) for t, frames in zip(types, videos, strict=True)], ["fox"] * 3, ["stump"] * 3, types
    )
    for result, single in zip(batch, alone, strict=True):
        assert_same(result, single)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(tracks(0, 6), st.sampled_from(DSR_TYPES), st.booleans()), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_clips_of_a_batch_may_be_shuffled(videos, random):
    frames = [random.sample(frames, len(frames)) if shuffled else frames for frames, _, shuffled in videos]
    types, count = [dsr_type for _, dsr_type, _ in videos], len(videos)
    batch = score_tracks_batch(frames, ["fox"] * count, ["stump"] * count, types, min_frames=3)
    for (in_order, dsr_type, _), result in zip(videos, batch, strict=True):
        assert_same(result, score_tracks(in_order, *LABELS, dsr_type, min_frames=3))


@pytest.mark.parametrize("dsr_type", ["LR", "LTR", "LRLR", "LRLRL"])
@pytest.mark.parametrize(("num_frames", "needed"), [(81, 20), (None, 20), (161, 40), (49, 13), (33, 9)])
def test_sequences_keep_the_rule_of_20_frames_in_81(dsr_type, num_frames, needed):
    needed = max(needed, 3 * len(dsr_type) if len(dsr_type) > 2 else 0)
    for count in (needed - 1, needed):
        frames = walk(dsr_type[0], dsr_type[-1] if dsr_type[-1] != dsr_type[0] else "R", count)
        result = score_tracks(frames, *LABELS, dsr_type, num_frames=num_frames)
        assert (result.score is not None) == (count >= needed)
        if count < needed:
            assert f"at least {needed} are needed" in result.reason


@pytest.mark.parametrize(("dsr_type", "best"), [(t, 0.875 if "T" in t else 1.0) for t in DSR_TYPES])
def test_a_perfect_clip_has_the_best_score_of_its_type(dsr_type, best):
    assert score_tracks(walk(*dsr_type), *LABELS, dsr_type).score == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("place", ["L", "R"])
@pytest.mark.parametrize("dsr_type", ["LR", "RL"])
def test_a_motionless_clip_scores_a_half(place, dsr_type):
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


def test_components_equal_those_computed_by_hand():
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


def test_too_few_frames_are_invalid_with_a_reason():
    result = score_tracks(walk("L", "R", 19), *LABELS, "LR", num_frames=81)
    assert parts(result) == [None] * 5
    assert result.reason == (
        "the fox and the stump were found together in 19 of 81 frames (the fox in 19, the stump in 19); "
        "at least 20 are needed"
    )
    assert len(result.initial_curve) == 19  # the curves of an INVALID video are kept for inspection


def test_what_too_few_frames_are_depends_on_the_length_of_the_clip_and_on_min_frames():
    frames = walk("L", "R", 19)
    assert score_tracks(frames, *LABELS, "LR").score is None
    assert score_tracks(frames, *LABELS, "LR", num_frames=49).score == pytest.approx(1)
    assert score_tracks(frames, *LABELS, "LR", min_frames=19).score == pytest.approx(1)


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


def test_a_batch_of_no_videos_has_no_results():
    assert score_tracks_batch([], [], [], []) == []


def test_the_length_of_the_clip_is_that_of_its_tracks():
    frames = [FrameBoxes(*frame) for frame in walk("L", "R", 9)]
    assert score_tracks(Tracks(frames, num_frames=9), *LABELS, "LR").score == pytest.approx(1.0)


def test_the_reason_of_refused_tracks_is_that_of_the_score():
    frames = [FrameBoxes(*frame) for frame in walk("L", "R", 9)]
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
