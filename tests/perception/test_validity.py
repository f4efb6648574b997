"""Test the rules that decide whether a clip can be scored: the authors' rules, thresholds, and the strict rules."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialalign_trl.perception import strict_rules
from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.perception.validity import (
    PAPER_NUM_FRAMES,
    FrameState,
    StrictRules,
    ValidityRules,
    assess,
    classify_frames,
    distinct_frames,
    strict_reason,
)
from spatialalign_trl.video import encode_video, read_video

LABELS = {
    "v": ("cat", "bench"),
    "w": ("bench", "cat"),  # valid in the other order
    "m": (),
    "c": ("cat",),
    "b": ("bench",),
    "r": ("cat", "cat"),
    "p": ("cat", "hydra"),
    "x": ("cat", "bench", "bench"),
}


def detections_of(letters: str) -> list[Detections]:
    """Return detections with the labels that each letter, one per frame, has in `LABELS`."""
    return [
        Detections(np.zeros((len(LABELS[letter]), 4)), np.ones(len(LABELS[letter])), LABELS[letter])
        for letter in letters
    ]


def plain_rules(clip: list[Detections], animal: str, object: str, redundant=16, valid=20, run=4):
    """Apply the authors' rules in a loop over the frames: `(valid, missed, redundant, usable, prompt frame)`."""
    counts = {"valid": 0, "missed": 0, "redundant": 0}
    streak, first = [], None
    for frame, (_, _, labels) in enumerate(clip):
        if len(labels) < 2:
            state = "missed"
        elif len(labels) == 2 and animal in labels and object in labels:
            state = "valid"
        else:
            state = "redundant"
        counts[state] += 1
        streak = [*streak, frame] if state == "valid" else []
        if len(streak) == run and first is None:
            first = streak[0]
    usable = counts["redundant"] <= redundant and counts["valid"] >= valid and first is not None
    return *counts.values(), usable, first


def summary(validity) -> tuple:
    return validity.valid, validity.missed, validity.redundant, validity.reason is None, validity.prompt_frame


# Draw runs of equal letters: with independent letters, valid clips (twenty valid frames, four in a row) would be rare.
letter_runs = st.lists(st.tuples(st.sampled_from("vvvvwmcbrpx"), st.integers(1, 25)), max_size=12)
letters = letter_runs.map(lambda parts: "".join(letter * count for letter, count in parts))


# The constants, which make the published scores


def test_the_thresholds_are_the_authors():
    assert PAPER_NUM_FRAMES == 81
    assert asdict(ValidityRules()) == {
        "max_redundant": 16, "min_valid": 20, "min_run": 4, "scale_to_length": False, "strict": None,
    }  # fmt: skip
    assert [(state.name, int(state)) for state in FrameState] == [("MISSED", 0), ("VALID", 1), ("REDUNDANT", 2)]


def test_the_strict_rules_are_the_documented_ones():
    assert asdict(StrictRules()) == {
        "end_share": 0.1, "end_frames": 3, "min_change": 2.0, "min_motion": 0.5, "min_frame_motion": 0.02,
        "max_step": 0.5, "max_step_ratio": 4.0, "max_cover": 0.8, "max_area_ratio": 3.0, "max_area_change": 3.0,
        "flood_share": 0.2,
    }  # fmt: skip
    assert (strict_rules.MAX_BRIDGED_FRAMES, strict_rules.BLOCKS_ALONG_SHORTER_SIDE) == (4, 30)


# The authors' rules


@settings(max_examples=300, deadline=None)
@given(letters)
def test_equals_the_authors_loop_on_clips_of_any_length(clip):
    assert summary(assess(detections_of(clip), "cat", "bench")) == plain_rules(detections_of(clip), "cat", "bench")


@settings(max_examples=200, deadline=None)
@given(letters, st.integers(0, 30), st.integers(0, 40), st.integers(1, 8))
def test_equals_the_authors_loop_with_other_thresholds(clip, redundant, valid, run):
    rules = ValidityRules(redundant, valid, run)
    assert summary(assess(detections_of(clip), "cat", "bench", rules)) == plain_rules(
        detections_of(clip), "cat", "bench", redundant, valid, run
    )


@settings(max_examples=100, deadline=None)
@given(letters)
def test_the_two_words_can_be_exchanged(clip):
    assert summary(assess(detections_of(clip), "cat", "bench")) == summary(assess(detections_of(clip), "bench", "cat"))


@settings(max_examples=100, deadline=None)
@given(letters)
def test_states_and_counts_agree(clip):
    validity = assess(detections_of(clip), "cat", "bench")
    assert validity.states.shape == (len(clip),)
    assert [FrameState(state) for state in validity.states] == [
        FrameState.VALID if letter in "vw" else FrameState.MISSED if letter in "mcb" else FrameState.REDUNDANT
        for letter in clip
    ]
    assert validity.valid + validity.missed + validity.redundant == len(clip)
    assert (validity.states == classify_frames(detections_of(clip), "cat", "bench")).all()


@pytest.mark.parametrize(
    ("clip", "usable"),
    [
        ("v" * 65 + "x" * 16, True),
        ("v" * 64 + "x" * 17, False),
        ("v" * 20 + "m" * 61, True),
        ("v" * 19 + "m" * 62, False),
        ("vvvm" * 20 + "v", False),  # 61 valid frames, but no run of four
        ("vvvm" * 19 + "vvvvv", True),
        ("vvvm" * 6 + "vwvw" + "m" * 53, True),
        ("m" * 77 + "vvvv", False),
        ("v" * 20, True),
        ("v" * 19, False),
        ("v" * 20 + "x" * 16 + "m" * 300, True),
        ("", False),
    ],
)
def test_boundary_values(clip, usable):
    assert (assess(detections_of(clip), "cat", "bench").reason is None) is usable


def test_the_first_run_gives_the_prompt_frame_not_the_longest():
    assert assess(detections_of("m" * 5 + "vvvm" + "vvvv" + "m" * 10 + "v" * 40), "cat", "bench").prompt_frame == 9
    assert assess(detections_of("v" * 40), "cat", "bench").prompt_frame == 0
    assert assess(detections_of("vvvm" * 20 + "vvvv"), "cat", "bench").prompt_frame == 80


def test_labels_must_match_exactly():
    labels = [("cat", "fire hydrant"), ("cat", "hydrant"), ("Cat", "fire hydrant"), ("cat fire", "fire hydrant")]
    clip = [Detections(np.zeros((2, 4)), np.ones(2), pair) for pair in labels]
    assert classify_frames(clip, "cat", "fire hydrant").tolist() == [FrameState.VALID] + [FrameState.REDUNDANT] * 3


def test_equal_words_are_refused():
    with pytest.raises(ValueError, match="both 'cat'"):
        assess(detections_of("vvv"), "cat", "cat")


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (
            "v" * 7 + "c" * 60 + "b" * 4 + "m" * 10,
            "the cat and the bench were found together in 7 of 81 frames (no bench in 70, no cat in 14); "
            "at least 20 are needed",
        ),
        (
            "vvvm" * 20 + "v",
            "the cat and the bench were found together in 61 of 81 frames, but nowhere in 4 consecutive ones",
        ),
        (
            "v" * 51 + "x" * 30,
            "30 of 81 frames show more than one cat and one bench, or other labels; at most 16 may",
        ),
        (
            "v" * 13,
            "the cat and the bench were found together in 13 of 13 frames; at least 20 are needed, more than the clip "
            "has (scale_to_length=True scales the thresholds)",
        ),
        (
            "x" * 81,
            "the cat and the bench were found together in 0 of 81 frames; at least 20 are needed - and "
            "81 of 81 frames show more than one cat and one bench, or other labels; at most 16 may",
        ),
    ],
)
def test_reasons_are_sentences_with_numbers(clip, reason):
    assert assess(detections_of(clip), "cat", "bench").reason == reason


# Thresholds


@pytest.mark.parametrize(
    ("frames", "redundant", "valid"), [(81, 16, 20), (162, 32, 40), (49, 9, 13), (33, 6, 9), (13, 2, 4), (9, 1, 3)]
)
def test_thresholds_scale_with_the_clip_on_request(frames, redundant, valid):
    fixed, scaled = ValidityRules(), ValidityRules(scale_to_length=True).for_length(frames)
    assert fixed.for_length(frames) == fixed
    assert (scaled.max_redundant, scaled.min_valid, scaled.min_run) == (redundant, valid, 4)
    assert scaled.for_length(frames) == scaled


@settings(max_examples=200, deadline=None)
@given(letters)
def test_scaled_rules_are_the_authors_rules_with_other_numbers(clip):
    redundant, valid = 16 * len(clip) // 81, -(-20 * len(clip) // 81)
    assert summary(assess(detections_of(clip), "cat", "bench", ValidityRules(scale_to_length=True))) == plain_rules(
        detections_of(clip), "cat", "bench", redundant, valid
    )


def test_the_scaled_number_of_valid_frames_is_what_the_score_requires():
    from spatialalign_rewards.dsr_score import required_frames

    for frames in range(9, 400):
        assert ValidityRules(scale_to_length=True).for_length(frames).min_valid == required_frames(frames)


@pytest.mark.parametrize(
    "wrong", [{"max_redundant": -1}, {"min_valid": 2.5}, {"min_run": 0}, {"min_run": True}, {"min_valid": "20"}]
)
def test_impossible_thresholds_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* whole number"):
        ValidityRules(**wrong)


@pytest.mark.parametrize("wrong", [{"end_share": 0}, {"end_share": 0.6}, {"max_step": -1}, {"min_motion": np.nan}])
def test_impossible_strict_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        StrictRules(**wrong)


# The strict rules: a clip that passes all of them, and clips that fail only one

FRAMES, HEIGHT, WIDTH = 81, 90, 160
BENCH = (70.0, 50.0, 90.0, 70.0)
STRICT = ValidityRules(strict=StrictRules())
# Distinct frames, for boxes whose own film would have repeated frames.
NOISE = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


def boxes_along(x: np.ndarray, y: np.ndarray | float = 50.0, size: np.ndarray | float = 20.0) -> np.ndarray:
    """Return the boxes `(T, 2, 4)` of a cat whose upper left corner follows `(x, y)`, and of a bench that stays."""
    x, y, size = np.broadcast_arrays(np.asarray(x, float), y, size)
    cat = np.stack([x, y, x + size, y + size], axis=1)
    return np.stack([cat, np.broadcast_to(BENCH, cat.shape)], axis=1)


def film(boxes: np.ndarray) -> np.ndarray:
    """Draw the boxes as filled rectangles in front of a textured wall."""
    wall = np.random.default_rng(0).integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    video = np.repeat(wall[None], len(boxes), axis=0)
    for frame, frame_boxes in zip(video, np.nan_to_num(boxes).astype(int), strict=True):
        for (x1, y1, x2, y2), color in zip(frame_boxes, ((250, 160, 20), (20, 40, 200)), strict=True):
            frame[y1:y2, x1:x2] = color
    return video


def eased(start: float, end: float, frames: int, moving: slice) -> np.ndarray:
    """Return positions that wait at `start`, move smoothly to `end` during `moving`, and wait there."""
    share = np.clip((np.arange(frames) - moving.start) / (moving.stop - moving.start), 0, 1)
    return start + (end - start) * share**2 * (3 - 2 * share)


WALK = boxes_along(eased(5, 130, FRAMES, slice(0, 80)))


def judge(boxes: np.ndarray, video: np.ndarray | None = None, rules: ValidityRules = STRICT) -> str | None:
    return strict_reason(film(boxes) if video is None else video, boxes, rules, animal="cat", object="bench")


def test_a_walk_passes_and_the_authors_rules_require_nothing():
    assert judge(WALK) is None
    assert judge(np.zeros((FRAMES, 2, 4)), rules=ValidityRules()) is None


@pytest.mark.parametrize("frames", [9, 13, 33, 49, 161])
def test_a_walk_passes_at_any_length(frames):
    boxes = boxes_along(np.linspace(5, 130, frames))
    assert judge(boxes, rules=ValidityRules(scale_to_length=True, strict=StrictRules())) is None


@pytest.mark.parametrize("empty", [0.0, np.nan])
@pytest.mark.parametrize("which", [0, 1])
def test_an_object_missing_in_the_last_third_is_refused(empty, which):
    boxes = WALK.copy()
    boxes[54:, which] = empty
    assert judge(boxes) == (
        "the cat and the bench are seen together in 0 of the last 9 frames of 81; strict rules need 3"
    )


def test_an_object_that_appears_late_is_refused():
    boxes = WALK.copy()
    boxes[:7, 0] = 0
    assert "in 2 of the first 9 frames of 81" in judge(boxes)
    boxes[6] = WALK[6]
    assert judge(boxes) is None


def test_boxes_are_counted_as_in_the_score():
    boxes = WALK.copy()
    boxes[-9:, 0, 2] = boxes[-9:, 0, 0]  # a mask one pixel wide
    assert "last 9 frames" in judge(boxes)
    boxes = WALK.copy()
    boxes[-9:, 0, 1::2] = 60  # the cat has zero height, the bench has not
    assert judge(boxes) is None


def test_a_frozen_clip_whose_frames_repeat_is_refused():
    boxes = WALK[np.arange(FRAMES) // 9 * 9]  # nine different frames, nine times each
    assert judge(boxes) == (
        "only 9 of the 81 frames that show the cat and the bench differ from each other; "
        "strict rules need 20 distinct frames"
    )
    assert "only 9 of the 81" in judge(WALK[np.arange(FRAMES) % 9 * 9])  # a loop
    assert "only 1 of the 81" in judge(WALK, np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8))


def test_lost_frames_are_not_among_the_distinct_ones():
    boxes = WALK.copy()
    boxes[10:71] = 0
    assert "distinct" not in (judge(boxes, NOISE) or "")
    boxes[9] = 0
    assert "only 19 of the 19 frames" in judge(boxes, NOISE)


@pytest.mark.parametrize("crf", [0, 18, 28])
def test_frozen_frames_stay_frozen_in_an_mp4(crf):
    frozen = np.repeat(film(WALK[:1]), 40, axis=0)
    assert distinct_frames(read_video(encode_video(frozen, fps=16, crf=crf))) == 1
    moving = film(WALK)[::2]
    assert distinct_frames(read_video(encode_video(moving, fps=16, crf=crf))) > 30


def test_distinct_frames_of_nothing_and_of_frames_smaller_than_the_grid():
    assert distinct_frames(np.empty((0, 4, 4, 3), np.uint8)) == 0
    assert distinct_frames(np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3) * 9) == 7


def test_a_motionless_animal_is_refused():
    boxes = boxes_along(np.full(FRAMES, 5.0))
    assert judge(boxes, NOISE) == (
        "the cat moves only 0.0 pixels as seen from the bench; strict rules need 10.0 "
        "(0.5 of its size and 0.02 of the frame's diagonal)"
    )
    assert "moves only 8.8 pixels" in judge(boxes_along(np.linspace(5, 14, FRAMES)), NOISE)
    assert judge(boxes_along(np.linspace(5, 16, FRAMES)), NOISE) is None


def test_the_pan_of_a_camera_is_no_motion():
    pan = boxes_along(np.full(FRAMES, 5.0)) + np.linspace(0, 60, FRAMES)[:, None, None] * [1, 0, 1, 0]
    assert "moves only 0.0 pixels" in judge(pan, NOISE)


def test_a_single_wrong_frame_is_no_motion():
    boxes = boxes_along(np.full(FRAMES, 5.0))
    boxes[40, 0] += [8, 8, 8, 8]
    assert "moves only 0.0 pixels" in judge(boxes, NOISE)


def test_the_jitter_of_a_small_box_is_no_motion():
    assert "0.02 of the frame's diagonal" in judge(boxes_along(np.arange(FRAMES) // 20 % 4 * 1.0, size=4.0), NOISE)


def test_an_approaching_animal_moves():
    size = np.linspace(10, 40, FRAMES)
    assert judge(boxes_along(40 - size / 2, 60 - size / 2, size)) is None


def teleport(frame: int = 40, frames: int = FRAMES) -> np.ndarray:
    """Return boxes of a cat that jumps from the left of the bench to the right, with a little motion on both sides."""
    x = np.where(np.arange(frames) < frame, 5.0, 130.0) + np.arange(frames) % frame * 0.2
    return boxes_along(x)


@pytest.mark.parametrize("frame", [2, 40, 79])
def test_a_one_frame_teleport_is_refused(frame):
    reason = judge(teleport(frame), NOISE)
    assert reason.startswith("the cat leaps ") and f"between frames {frame - 1} and {frame}," in reason


def test_a_teleport_is_refused_where_the_score_is_nearly_perfect():
    """This is the clip that the rule is for. A motionless cat would score 0.5, a walk scores 1."""
    from spatialalign_rewards.dsr_score import score_tracks

    frames = [(k, ("cat", "bench"), pair) for k, pair in enumerate(teleport())]
    assert score_tracks(frames, "cat", "bench", "LR", num_frames=FRAMES).score > 0.99
    assert "leaps" in judge(teleport(), NOISE)


def test_a_teleport_behind_a_gap_or_of_the_object_is_refused():
    hidden = teleport()
    hidden[33:48, 0] = 0
    assert "the cat leaps" in judge(hidden, NOISE)
    swapped = boxes_along(np.linspace(5, 50, FRAMES))
    swapped[50:, 1] -= [60, 0, 60, 0]
    assert judge(swapped).startswith("the bench leaps 3.00 times its own size a frame between frames 49 and 50")


def test_there_and_back_again_is_refused():
    boxes = WALK.copy()
    boxes[30, 0] = boxes[70, 0]
    assert "between frames 29 and 30" in judge(boxes)


@pytest.mark.parametrize("moving", [slice(36, 46), slice(30, 45), slice(0, 12), slice(69, 80)])
def test_a_smooth_fast_run_is_accepted(moving):
    boxes = boxes_along(eased(5, 130, FRAMES, moving))
    steps = np.abs(np.diff(boxes[:, 0, 0])) / 20
    assert steps.max() > 0.5  # above the threshold, but similar to the steps around
    assert judge(boxes, NOISE) is None


@settings(max_examples=12, deadline=None)
@given(st.floats(0.25, 4))
def test_steps_are_measured_in_sizes_of_the_object(zoom):
    assert "leaps" in judge(zoom * teleport(), NOISE)
    assert judge(zoom * WALK, NOISE) is None


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_a_jittering_box_is_no_leap(jitter):
    shake = np.random.default_rng(0).normal(0, jitter, WALK.shape)
    assert judge(WALK + shake, film(WALK)) is None


def test_boxes_must_fit_the_clip():
    with pytest.raises(ValueError, match=r"\(80, 2, 4\).*81 frames needs \(81, 2, 4\)"):
        judge(WALK[1:], film(WALK))


# Masks that flood the frame

FRAME = (0.0, 0.0, WIDTH - 1.0, HEIGHT - 1.0)
STRAY = boxes_along(eased(5, 25, FRAMES, slice(0, 40)))  # a cat that never leaves the left of the bench


def area_reason(boxes: np.ndarray, size: tuple[int, int] = (HEIGHT, WIDTH)) -> str | None:
    """Return the reason if it is about areas. Those rules come before the ones that read the pixels, here black."""
    reason = judge(boxes, np.zeros((len(boxes), *size, 3), np.uint8))
    return reason if reason and ("covers" in reason or "jumps" in reason) else None


def score_of(boxes: np.ndarray) -> float:
    from spatialalign_rewards.dsr_score import score_tracks

    frames = [(k, ("cat", "bench"), pair) for k, pair in enumerate(boxes) if (boxes[k, :, 2] > 0).all()]
    return score_tracks(frames, "cat", "bench", "LR", num_frames=len(boxes)).score


def test_a_mask_that_floods_the_last_frames_scores_well_and_is_refused():
    boxes = STRAY.copy()
    boxes[-5:, 0] = FRAME
    assert score_of(STRAY) == pytest.approx(0.5, abs=0.01) and score_of(boxes) >= 0.7
    assert judge(STRAY, NOISE) is None
    assert judge(boxes, NOISE) == "the box of the cat covers 100% of frame 76; strict rules allow 80%"


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "flooded", [slice(-1, None), slice(-30, None), slice(0, 3), slice(0, 60), slice(40, 41), slice(None)]
)
def test_a_flood_of_any_object_at_any_time_is_refused(which, flooded):
    boxes = WALK.copy()
    boxes[flooded, which] = FRAME
    name = ("cat", "bench")[which]
    assert judge(boxes, NOISE).startswith(
        f"the box of the {name} covers 100% of frame {np.arange(FRAMES)[flooded][0]}"
    )


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("flooded", [slice(-1, None), slice(-5, None), slice(0, 3), slice(-60, None), slice(0, 60)])
@pytest.mark.parametrize(
    "flood", [(0, 0, 79, 89), (80, 0, 159, 89), (0, 45, 159, 89), (0, 0, 159, 40), (20, 10, 139, 79)]
)
def test_a_flood_of_a_part_of_the_frame_is_a_jump_of_the_area(which, flooded, flood):
    boxes = WALK.copy()
    boxes[flooded, which] = flood
    assert f"the box of the {('cat', 'bench')[which]} jumps from " in judge(boxes, NOISE)


def test_a_flood_that_takes_a_few_frames_or_follows_a_gap_is_a_jump():
    boxes = STRAY.copy()
    for k, side in enumerate((30, 45, 65, 85)):
        boxes[-4 + k, 0] = (5, 0, 5 + side, side)
    assert judge(boxes, NOISE) == (
        "the box of the cat jumps from 441 to 2116 pixels of area between frames 76 and 78; strict rules refuse "
        "changes by more than a factor of 3 unless it comes into sight or goes out of it"
    )
    boxes = STRAY.copy()
    boxes[60:70, 0] = 0
    boxes[70:, 0] = (0, 0, 80, 80)
    assert "jumps from 441 to 6561 pixels of area between frames 59 and 70" in judge(boxes, NOISE)


def test_a_large_box_that_stays_is_accepted():
    boxes = WALK.copy()
    boxes[:, 1] = (10, 10, 150, 85)  # a sofa that fills 74 % of the frame
    assert judge(boxes, NOISE) is None
    boxes[:, 1] = (2, 2, 157, 87)
    assert judge(boxes, NOISE) == "the box of the bench covers 93% of frame 0; strict rules allow 80%"


@pytest.mark.parametrize("speed", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("size", [12, 20, 60, 80])
def test_coming_into_sight_and_going_out_of_it_are_no_jumps(speed, size):
    """A cat enters at the left edge of the frame and leaves at the right one, first two pixels wide."""
    x = 2 - size + speed * size * np.arange(FRAMES)
    x = x[x < WIDTH - 3]
    boxes = boxes_along(x, 5.0, size)
    boxes[:, 0, 0] = np.maximum(boxes[:, 0, 0], 0)
    boxes[:, 0, 2] = np.minimum(boxes[:, 0, 2], WIDTH - 1)
    assert area_reason(boxes) is None


def test_an_animal_behind_the_object_is_no_jump():
    """Its mask is what can be seen: to the left of the bench first, then nothing, then to the right."""
    boxes = WALK.copy()
    left, right = boxes[:, 0, 0].copy(), boxes[:, 0, 2].copy()
    boxes[:, 0, 2] = np.where(left < 70, np.minimum(right, 70), right)
    boxes[:, 0, 0] = np.where(left >= 70, np.maximum(left, 90), left)
    boxes[(boxes[:, 0, 2] - boxes[:, 0, 0]) <= 1, 0] = 0
    assert (boxes[:, 0] == 0).all(axis=1).any() and area_reason(boxes) is None


@settings(max_examples=8)
@given(st.floats(0.25, 4))
def test_areas_are_compared_with_the_frame_and_with_each_other(zoom):
    size = tuple(round(zoom * side) for side in (HEIGHT, WIDTH))
    boxes = STRAY.copy()
    boxes[-5:, 0] = (10, 10, 100, 80)
    assert "jumps" in area_reason(zoom * boxes, size)
    boxes[-5:, 0] = FRAME
    assert "covers" in area_reason(zoom * boxes, size)
    assert area_reason(zoom * WALK, size) is None


@settings(max_examples=20)
@given(st.floats(0, 0.03), st.integers(0, 1000))
def test_a_noisy_box_of_a_growing_animal_does_not_jump(growth, seed):
    """By 3 % a frame an animal becomes eleven times as wide in 81 frames; each edge is wrong by 10 % of its size."""
    size = 8 * np.exp(growth * np.arange(FRAMES))
    boxes = boxes_along(40 + 0 * size, 0.0, size)
    boxes[:, 0] += np.random.default_rng(seed).normal(0, 0.1, (FRAMES, 4)).clip(-0.2, 0.2) * size[:, None]
    assert area_reason(boxes) is None


@pytest.mark.parametrize(
    ("flood", "raised"),
    [
        (FRAME, ["max_cover", "max_area_ratio"]),
        ((0, 0, 100, 80), ["max_area_ratio"]),
        ((0, 0, 100, 80), ["max_area_change", "flood_share"]),
        ((0, 0, 50, 40), ["max_area_change"]),
    ],
)
def test_each_limit_can_be_raised(flood, raised):
    flooded = STRAY.copy()
    flooded[-5:, 0] = flood
    video = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for count in range(len(raised) + 1):
        rules = ValidityRules(strict=StrictRules(**dict.fromkeys(raised[:count], 1e9)))
        reason = judge(flooded, video, rules)
        assert ("covers" in reason or "jumps" in reason) == (count < len(raised))
