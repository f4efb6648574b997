"""The score of arrays of boxes: the paper's six types bit for bit, and the further relations and sequences."""

import json
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialalign_rewards import score_box_arrays
from spatialalign_rewards.dsr_score import required_frames, score_tracks, score_tracks_batch
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.prompts import DSR_TYPES, RELATIONS

LABELS = ("fox", "stump")
SEQUENCES = ("LTR", "LRL", "FBF", "UTL", "LFR", "LTRL", "FBUT")
ALL_TYPES = ("".join(pair) for pair in product(RELATIONS, repeat=2) if len(set(pair)) == 2)
ALL_TYPES = (*ALL_TYPES, *SEQUENCES)
STUMP = (100.0, 100.0, 120.0, 120.0)
# A 20 x 20 fox and its nearness, with one relation at its maximum and the others at 0; the stump's nearness is 0.5.
PLACES = {"L": (60, 110), "R": (160, 110), "T": (110, 60), "U": (110, 160), "F": (110, 110), "B": (110, 110)}
NEARNESS = {"F": 1.0, "B": 0.0}


@st.composite
def clips(draw, relations=2, longest=14):
    """Return boxes `(T, 2, 4)` with integer corners, so that flips are exact, and nearness in eighths `(T, 2)`."""
    frames = draw(st.integers(3 * relations, longest))
    corners = draw(hnp.arrays(np.int64, (frames, 2, 2), elements=st.integers(0, 80)))
    sides = draw(hnp.arrays(np.int64, (frames, 2, 2), elements=st.integers(1, 40)))
    nearness = draw(hnp.arrays(np.int64, (frames, 2), elements=st.integers(0, 8))) / 8
    return np.concatenate([corners, corners + sides], axis=-1).astype(float), nearness


def score(boxes, dsr_type, nearness=None, **options):
    nearness = None if nearness is None else nearness[None]
    return score_box_arrays(boxes[None], dsr_type, nearness=nearness, **{"min_frames": 1} | options)


def score_clip(clip, dsr_type):
    return score(clip[0], dsr_type, clip[1])


def clip_of(codes, rest=4):
    """Return a clip that stays in each relation for some frames."""
    boxes, nearness = [], []
    for code in codes:
        x, y = PLACES[code]
        boxes += [[(x - 10, y - 10, x + 10, y + 10), STUMP]] * rest
        nearness += [(NEARNESS.get(code, 0.5), 0.5)] * rest
    return np.array(boxes, float), np.array(nearness)


# ------------------------------------------------------------------------------------- the paper's six, bit for bit


def frozen_score(boxes, dsr_type):
    """Compute the formula as it was before relations and sequences were added. Do not change any operation."""
    directions = np.array([{"L": (-1, 0), "R": (1, 0), "T": (0, -1)}[code] for code in dsr_type], dtype=float)
    offset = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2 - (boxes[:, 1, :2] + boxes[:, 1, 2:]) / 2
    reach = (boxes[:, :, 2:] - boxes[:, :, :2]).mean(axis=1)
    distance = np.linalg.norm(offset, axis=1, keepdims=True)
    cosine = np.divide(offset, distance, out=np.zeros_like(offset), where=distance > 0)
    offsets = cosine * np.clip(np.abs(offset) / reach, 0, 1)
    curves = np.einsum("nrd,nd->nr", np.broadcast_to(directions, (len(boxes), 2, 2)), offsets)
    n = min(3, len(boxes))
    share = np.ones((1, n)) / np.full((1, 1), n)
    head, tail = curves[None, :n, 0], curves[None, ::-1, 1][:, :n]
    components = np.stack(
        [
            (head * share).sum(axis=1),
            (curves[:1, 0] - curves[-1:, 0]) / 2,
            (tail * share).sum(axis=1),
            (curves[-1:, 1] - curves[:1, 1]) / 2,
        ],
        axis=1,
    )
    return components.sum(axis=1) / 8 + 0.5, components, curves


def assert_same_bits(actual, expected):
    assert np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("dsr_type", DSR_TYPES)
def test_the_six_types_are_bit_identical_to_the_formula_as_it_stood(dsr_type):
    rng = np.random.default_rng(3)
    corners, sides = rng.uniform(0, 400, (200, 81, 2, 2)), rng.uniform(1, 120, (200, 81, 2, 2))
    corners[:40], sides[:40] = corners[:40].round(), sides[:40].round()  # so that some centres coincide in x or y
    boxes = np.concatenate([corners, corners + sides], axis=-1)
    boxes[:3, :, 0] = boxes[:3, :, 1]
    together = score_box_arrays(boxes, dsr_type)
    scores, components, curves = zip(*(frozen_score(clip, dsr_type) for clip in boxes), strict=True)
    assert_same_bits(together.scores, np.concatenate(scores))
    assert_same_bits(together.components.reshape(200, 4), np.concatenate(components))
    assert_same_bits(together.curves.T, np.concatenate(curves))


@given(clips(relations=1), st.sampled_from(DSR_TYPES))
def test_short_and_odd_clips_are_bit_identical_too(clip, dsr_type):
    result = score(clip[0], dsr_type)
    expected, components, curves = frozen_score(clip[0], dsr_type)
    assert_same_bits(result.scores, expected)
    assert_same_bits(result.components.reshape(1, 4), components)
    assert_same_bits(result.curves.T, curves)


def test_the_golden_cases_are_bit_identical_too(golden_data):
    for case in json.loads((golden_data / "dsr_golden.json").read_text())["cases"]:
        result = score_tracks(case["frames"], case["animal"], case["object"], case["type"])
        if result.score is None:
            continue
        of_frame = {index: (labels, np.array(boxes, float)) for index, labels, boxes in case["frames"]}
        kept = [of_frame[index] for index in result.frame_indices]
        boxes = np.stack([b if names[0] == case["animal"] else b[::-1] for names, b in kept])
        expected, components, _ = frozen_score(boxes, case["type"])
        assert_same_bits(result.score, expected)
        parts = (result.initial_score, result.initial_gap, result.final_score, result.final_gap)
        assert_same_bits(np.array(parts), components)


# --------------------------------------------------------------------------------------------- arrays against frames


def frames_of(boxes):
    return [FrameBoxes(k, LABELS, pair) for k, pair in enumerate(boxes)]


@settings(max_examples=40)
@given(st.lists(st.tuples(clips(relations=1), st.sampled_from(ALL_TYPES)), min_size=1, max_size=5), st.data())
def test_padded_arrays_equal_the_videos_frame_by_frame(videos, data):
    longest = max(len(boxes) for (boxes, _), _ in videos)
    boxes, nearness = np.full((len(videos), longest, 2, 4), np.nan), np.full((len(videos), longest, 2), np.nan)
    counted = data.draw(hnp.arrays(bool, (len(videos), longest)))
    tracks = []
    for k, ((video_boxes, near), _) in enumerate(videos):
        boxes[k, : len(video_boxes)], nearness[k, : len(video_boxes)] = video_boxes, near
        counted_frames = [frame for frame in frames_of(video_boxes) if counted[k, frame.frame_index]]
        tracks.append(Tracks(counted_frames, len(video_boxes), nearness=near))
    types = [dsr_type for _, dsr_type in videos]
    lengths = [len(video_boxes) for (video_boxes, _), _ in videos]
    arrays = score_box_arrays(boxes, types, counted=counted, nearness=nearness, num_frames=lengths)
    results = score_tracks_batch(tracks, ["fox"] * len(videos), ["stump"] * len(videos), types)
    for k, result in enumerate(results):
        start, size = arrays.starts[k], arrays.sizes[k]
        assert result.frame_indices.tolist() == arrays.frame_indices[start : start + size].tolist()
        if np.isnan(arrays.scores[k]):
            assert result.score is None and np.isnan(arrays.components[k]).all() and (arrays.visits[k] == -1).all()
            continue
        assert result.score == arrays.scores[k]
        middle = zip(result.visit_scores, result.visit_gaps, strict=True)
        parts = [(result.initial_score, result.initial_gap), *middle, (result.final_score, result.final_gap)]
        np.testing.assert_array_equal(arrays.components[k, : len(types[k])], parts)
        visits = arrays.visits[k, : len(types[k]) - 2]
        assert result.visit_frames == tuple(result.frame_indices[visits])


def test_the_number_of_needed_frames_depends_on_the_length_of_the_clip():
    boxes = np.stack([clip_of("LR", rest=41)[0]] * 3)
    lengths = [82, 49, 9]
    arrays = score_box_arrays(boxes, "LR", counted=np.arange(82) < [[20], [13], [3]], num_frames=lengths)
    assert arrays.needed.tolist() == [required_frames(n) for n in lengths] == [21, 13, 3]
    assert np.isnan(arrays.scores).tolist() == [True, False, False]


def test_no_videos_have_no_scores():
    assert score_box_arrays(np.empty((0, 5, 2, 4)), []).scores.shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": np.zeros((2, 3, 4))}, r"shape \(videos, frames, 2, 4\), got \(2, 3, 4\)"),
        ({"dsr_types": ["LR"]}, "one for each of the 2 videos, got 1"),
        ({"dsr_types": ["LR", "LL"]}, "video 1: unknown DSR type 'LL'"),
        ({"dsr_types": ["LR", "LF"]}, "video 1: the type 'LF' asks for depth"),
        ({"counted": np.ones((2, 9), bool)}, r"counted must have the shape \(2, 8\), got \(2, 9\)"),
        ({"nearness": np.ones((2, 8))}, r"nearness must have the shape \(2, 8, 2\), got \(2, 8\)"),
        ({"num_frames": 9}, r"num_frames must lie in 1 .. 8"),
        ({"num_frames": [0, 8]}, r"num_frames must lie in 1 .. 8"),
        ({"min_frames": 0}, "min_frames must be at least 1, got 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(options, message):
    arguments = {"boxes": np.stack([clip_of("LR")[0]] * 2), "dsr_types": "LR"} | options
    with pytest.raises(ValueError, match=message):
        score_box_arrays(**arguments)


@pytest.mark.parametrize("bad", [(9, 0, 3, 4), (0, 0, np.inf, 4)])
def test_impossible_boxes_are_refused_only_in_frames_that_count(bad):
    boxes = np.stack([clip_of("LR")[0]] * 2)
    boxes[1, 5, 0] = bad
    with pytest.raises(ValueError, match="video 1, frame 5: boxes must be finite with x1 <= x2"):
        score_box_arrays(boxes, "LR")
    counted = np.ones((2, 8), bool)
    counted[1, 5] = False
    assert score_box_arrays(boxes, "LR", counted=counted).sizes.tolist() == [8, 7]


# ------------------------------------------------------------------------------------- relations and sequences, ours


@given(st.data(), st.sampled_from(ALL_TYPES))
def test_scores_components_and_curves_are_in_range(data, dsr_type):
    result = score_clip(data.draw(clips(relations=len(dsr_type))), dsr_type)
    assert 0 <= result.scores[0] <= 1
    assert np.abs(result.components).max() <= 1
    assert np.abs(result.curves).max() <= 1


def flipped(boxes, axis):
    """Return the boxes of the picture flipped left to right (axis 0) or upside down (axis 1)."""
    result = boxes.copy()
    result[..., [axis, axis + 2]] = 200 - boxes[..., [axis + 2, axis]]
    return result


MIRRORS = {
    "LR": lambda boxes, nearness: (flipped(boxes, 0), nearness),
    "TU": lambda boxes, nearness: (flipped(boxes, 1), nearness),
    "FB": lambda boxes, nearness: (boxes, 1 - nearness),
}


@pytest.mark.parametrize("swap", MIRRORS)
@given(data=st.data(), dsr_type=st.sampled_from(ALL_TYPES))
def test_mirroring_an_axis_swaps_its_two_relations(swap, data, dsr_type):
    boxes, nearness = data.draw(clips(relations=len(dsr_type)))
    original = score(boxes, dsr_type, nearness)
    swapped_type = dsr_type.translate(str.maketrans(swap, swap[::-1]))
    mirrored = score_clip(MIRRORS[swap](boxes, nearness), swapped_type)
    np.testing.assert_array_equal(mirrored.components, original.components)
    np.testing.assert_array_equal(mirrored.visits, original.visits)


@given(st.data(), st.sampled_from(ALL_TYPES), st.randoms(use_true_random=False))
def test_order_of_frames_does_not_matter(data, dsr_type, random):
    boxes, nearness = data.draw(clips(relations=len(dsr_type)))
    shuffled = frames_of(boxes)
    random.shuffle(shuffled)
    original = score(boxes, dsr_type, nearness)
    result = score_tracks(Tracks(shuffled, len(boxes), nearness=nearness), *LABELS, dsr_type, min_frames=1)
    assert result.score == original.scores[0]


@given(clips(), st.sampled_from(["LF", "BF", "TF", "FB", "FL", "LRF"]), st.data())
def test_coming_nearer_where_front_is_asked_for_never_lowers_the_score(clip, dsr_type, data):
    boxes, nearness = data.draw(clips(relations=len(dsr_type)))
    nearer = nearness.copy()
    raised = slice(-3, None) if dsr_type.endswith("F") else slice(None, 3)
    nearer[raised, 0] = np.minimum(nearer[raised, 0] + data.draw(st.integers(0, 4)) / 8, 1)
    assert score(boxes, dsr_type, nearer).scores[0] >= score(boxes, dsr_type, nearness).scores[0] - 1e-12


@given(st.data(), st.sampled_from(SEQUENCES))
def test_visits_are_the_best_frames_in_the_order_of_the_sequence(data, dsr_type):
    """Compare with a search over all placements."""
    boxes, nearness = data.draw(clips(relations=len(dsr_type), longest=16))
    result = score(boxes, dsr_type, nearness)
    frames, count = len(boxes), len(dsr_type) - 2
    means = [np.convolve(curve, np.ones(3) / 3, "valid") for curve in result.curves[1:-1]]
    placements = [
        starts
        for starts in product(range(3, frames - 5), repeat=count)
        if all(after - before >= 3 for before, after in pairwise(starts))
    ]
    best = max(sum(mean[start] for mean, start in zip(means, starts, strict=True)) for starts in placements)
    assert result.components[0, 1:-1, 0].sum() == pytest.approx(best)
    assert tuple(result.visits[0]) in placements
    at_visits = [mean[start] for mean, start in zip(means, result.visits[0], strict=True)]
    np.testing.assert_allclose(
        result.components[0, 1:-1, 0], at_visits, atol=1e-12
    )  # thirds of -1, 0 and 1 add up to -0


@pytest.mark.parametrize("dsr_type", SEQUENCES)
def test_a_correct_sequence_scores_above_every_other_order(dsr_type):
    correct = score_clip(clip_of(dsr_type), dsr_type).scores[0]
    assert correct >= 0.75
    others = {other for other in ALL_TYPES if len(other) == len(dsr_type)} - {dsr_type}
    for other in others:
        assert score_clip(clip_of(other), dsr_type).scores[0] < correct


@pytest.mark.parametrize("dsr_type", SEQUENCES)
def test_a_sequence_without_its_visits_scores_less(dsr_type):
    correct = score_clip(clip_of(dsr_type), dsr_type).scores[0]
    without = clip_of(dsr_type[0] + dsr_type[-1], rest=8) if dsr_type[0] != dsr_type[-1] else clip_of(dsr_type[0], 16)
    assert score_clip(without, dsr_type).scores[0] <= correct - 0.0625


def test_a_perfect_left_right_left_scores_one():
    result = score(clip_of("LRL")[0], "LRL")
    assert result.scores[0] == 1.0
    assert result.visits.tolist() == [[4]]
    np.testing.assert_array_equal(result.components[0], np.ones((3, 2)))


def test_components_of_a_sequence_equal_those_computed_by_hand():
    result = score_tracks(frames_of(clip_of("LTR")[0]), *LABELS, "LTR", min_frames=1)
    # Left: 1 at its start, 0 on top. Top: 1 at its visit, 0 on the left and the right. Right: 1 at the end.
    assert (result.initial_score, result.initial_gap) == (1.0, 0.5)
    assert (result.visit_scores, result.visit_gaps, result.visit_frames) == ((1.0,), (0.5,), (4,))
    assert (result.final_score, result.final_gap) == (1.0, 0.5)
    assert result.score == pytest.approx(4.5 / 12 + 0.5)
    np.testing.assert_array_equal(result.visit_curves, [[0.0] * 4 + [1.0] * 4 + [0.0] * 4])


def test_a_sequence_needs_three_frames_for_every_relation():
    boxes = clip_of("LTR", rest=3)[0]
    assert score_tracks(frames_of(boxes), *LABELS, "LTR", min_frames=1).score > 0.8
    short = score_tracks(frames_of(boxes[:8]), *LABELS, "LTR", min_frames=1)
    assert short.score is None
    assert short.reason.endswith("at least 9 are needed for the 3 relations of LTR")
    assert short.visit_scores == () and short.visit_curves.shape == (1, 8)


def test_scores_of_depth_relations_equal_those_computed_by_hand():
    boxes, nearness = clip_of("FB")
    result = score(boxes, "FB", nearness)
    np.testing.assert_array_equal(result.curves[0], [0.5] * 4 + [-0.5] * 4)
    np.testing.assert_array_equal(result.curves[1], -result.curves[0])
    assert result.scores[0] == 0.75
    assert score(boxes, "BF", nearness).scores[0] == 0.25


def test_frames_of_unknown_depth_count_only_for_types_without_depth():
    boxes, nearness = clip_of("FB", rest=12)
    nearness[::2, 1] = np.nan
    assert score(boxes, "FB", nearness).sizes.tolist() == [12]
    assert score(boxes, "LR", nearness).sizes.tolist() == [24]
    result = score_tracks(Tracks(frames_of(boxes), 24, nearness=nearness), *LABELS, "FB", min_frames=13)
    assert result.score is None
    assert "found together in 12 of 24 frames" in result.reason and "depth unknown in 12" in result.reason


def test_depth_relations_of_tracks_without_depth_are_refused():
    for tracks in (frames_of(clip_of("FB")[0]), Tracks(frames_of(clip_of("FB")[0]), 8)):
        with pytest.raises(ValueError, match="video 0: the type 'FB' asks for depth"):
            score_tracks(tracks, *LABELS, "FB")


def test_refused_tracks_need_no_depth():
    refused = Tracks([], 8, reason="no fox")
    assert score_tracks(refused, *LABELS, "FB").reason == "no fox"
