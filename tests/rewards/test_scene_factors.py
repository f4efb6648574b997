"""Each factor of the two scene rewards alone: every other factor is 1, so that none hides the loss of another.

The poses are given (by an estimator that returns them), the pictures are stripes that move by the same step.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from spatialalign_rewards import _scene_scoring, object_grounding, scene_navigation
from spatialalign_rewards._scene_scoring import (
    choose_frames,
    continuity_factor,
    reobserved_factor,
    support_factor,
)
from spatialalign_rewards.object_grounding import ObjectGrounding, depth_factor, visibility
from spatialalign_rewards.scene_navigation import SceneNavigation, pose_factors, step_factors
from spatialalign_trl.perception.camera import diagnosis
from spatialalign_trl.perception.camera.distance import GOOD_DISTANCE
from spatialalign_trl.perception.camera.estimator import CameraEstimate, Sightings
from spatialalign_trl.perception.detections import Detections

FRAMES, SIZE = 9, (32, 48)
CONTEXT_POSES = np.tile(np.eye(4), (4, 1, 1))
CONTEXT_POSES[:, 0, 3] = np.arange(4) / 3  # an extent of 1
TARGET = np.tile(np.eye(4), (FRAMES, 1, 1))
TARGET[:, 2, 3] = np.linspace(0, 2, FRAMES)  # a path of length 2, without turns
ALL_SEEN = Sightings(np.full((10, 2), 20.0), np.ones(10, bool))


def smooth(count: int = FRAMES) -> np.ndarray:
    """Return a video in which every step changes the picture by the same amount."""
    row = np.arange(SIZE[1] + 4 * count) // 4 % 2 * 12
    frames = np.stack([np.tile(row[4 * k : 4 * k + SIZE[1]], (SIZE[0], 1)) for k in range(count)])
    return np.repeat(frames[..., None], 3, axis=3).astype(np.uint8) + 60


def cut() -> np.ndarray:
    """Return the same video with a step to another brightness, eleven times as large as the others."""
    video = smooth()
    video[5:] += 120
    return video


STILL = np.repeat(smooth()[:1], FRAMES, axis=0)


class Given:
    """An estimator that returns a given estimate; the context's cameras are found where they are."""

    name = "given"

    def __init__(self, poses=TARGET, support=1.0, sightings=ALL_SEEN, kind="moving", **more) -> None:
        self.poses, self.support, self.sightings, self.kind, self.more = poses, support, sightings, kind, more

    def estimate(self, context, video, intrinsics, context_poses=None) -> CameraEstimate:
        count = len(video)
        assert count == len(self.poses), "these tests look at every frame"
        sightings = [self.sightings] * count if isinstance(self.sightings, Sightings) else self.sightings
        found = {"reason": "its camera only turns", "distance": None, **self.more}
        return CameraEstimate(
            CONTEXT_POSES.copy(), self.poses.copy(), np.broadcast_to(self.support, count), self.kind,
            sightings=sightings, **found,
        )  # fmt: skip


ROW = {
    "context": np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8),
    "context_poses": CONTEXT_POSES, "camera_poses": TARGET, "intrinsics": (40.0, 40.0, 24.0, 16.0), "object": "chair",
}  # fmt: skip


def navigate(video=None, row=None, **estimate):
    reward = SceneNavigation(pose_estimator=Given(**estimate), frames=FRAMES, context_frames=4)
    return reward.grade(smooth() if video is None else video, {**ROW, **(row or {})})


def moved(poses: np.ndarray, axis: int, by) -> np.ndarray:
    poses = poses.copy()
    poses[:, axis, 3] += by
    return poses


def turned(poses: np.ndarray, degrees) -> np.ndarray:
    """Return poses turned about the vertical axis."""
    poses = poses.copy()
    for pose, angle in zip(poses, np.radians(np.broadcast_to(degrees, len(poses))), strict=True):
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]] @ pose[
            :3, :3
        ]
    return poses


def test_the_constants_are_those_of_the_formulas():
    assert (_scene_scoring.ANGLE_SCALE, _scene_scoring.REST) == (10.0, 0.05)
    assert (_scene_scoring.GOOD_SUPPORT, _scene_scoring.GOOD_REOBSERVED) == (0.5, 0.3)
    assert (diagnosis.CUT_RATIO, diagnosis.STILL, GOOD_DISTANCE) == (6.0, 0.4, 0.2)
    assert scene_navigation.FORMULA == 2
    assert scene_navigation.DIRECTION_SCALE == 20.0
    assert (scene_navigation.DISTANCE_SHARE, scene_navigation.MIN_LENGTH_SHARE) == (0.1, 0.1)
    assert (object_grounding.GOOD_CONFIDENCE, object_grounding.CENTRED, object_grounding.GOOD_AREA) == (
        0.5,
        0.35,
        0.03,
    )
    assert (object_grounding.SAME_OBJECT, object_grounding.MIN_USUAL) == ((0.2, 0.5), 0.2)
    assert (object_grounding.MIN_BOX_POINTS, object_grounding.UNPROVEN) == (4, 0.3)
    assert (object_grounding.MOVING_SHARE, object_grounding.FLAT) == (0.6, (0.8, 0.95))


# Navigation: R = P * sqrt(C) * O * M * S


def test_a_perfect_video_has_all_factors_one():
    grade = navigate()
    assert grade.reward == pytest.approx(1) and grade.reason is None
    assert {name: grade.factors[name] for name in "PCOMS"} == pytest.approx(dict.fromkeys("PCOMS", 1.0))
    assert grade.factors["registered"] == 1 and grade.factors["reobserved"] == 1


def test_p_of_a_distance_is_relative_to_the_path():
    grade = navigate(poses=moved(TARGET, 0, 0.1))  # slack: a tenth of 2
    assert grade.reward == pytest.approx(np.exp(-0.5)) == pytest.approx(grade.factors["P"])
    assert grade.factors["position_error"] == pytest.approx(0.1) and grade.factors["rotation_error"] < 1e-4


def test_p_of_an_angle_is_relative_to_ten_degrees():
    grade = navigate(poses=turned(TARGET, 5.0))
    assert grade.reward == pytest.approx(np.exp(-0.5), rel=1e-5)
    assert grade.factors["rotation_error"] == pytest.approx(5)


def test_p_of_a_short_path_is_relative_to_a_tenth_of_the_contexts_extent():
    short = TARGET.copy()
    short[:, 2, 3] *= 0.01  # a path of 0.02; the floor is 0.1 * 4
    assert pose_factors(moved(short, 0, 0.2), short, 4.0)["P"] == pytest.approx(np.exp(-0.2 / 0.4))
    longer = TARGET.copy()
    longer[:, 2, 3] *= 0.25  # a path of 0.5
    assert pose_factors(moved(longer, 0, 0.02), longer, 4.0)["P"] == pytest.approx(np.exp(-0.02 / 0.05))


def test_p_of_steps_multiplies_the_angle_and_the_heading():
    turning = turned(TARGET, 10.0 * np.arange(FRAMES))
    factors = step_factors(turned(TARGET, 12.0 * np.arange(FRAMES)), turning)
    # 2 degrees too much in each step, and the heading, seen from the camera before it, 2 degrees more with every step
    headings = np.exp(-2.0 * np.arange(FRAMES - 1) / 20)
    assert factors["P"] == pytest.approx(float((np.exp(-0.2) * headings).mean()), rel=1e-4)
    assert factors["rotation_error"] == pytest.approx(2, rel=1e-4)


def test_p_of_steps_without_a_pose_is_zero_and_a_turn_has_no_heading():
    lost = TARGET.copy()
    lost[4] = np.nan
    assert step_factors(lost, TARGET)["P"] == pytest.approx(6 / 8)
    turn = turned(np.tile(np.eye(4), (FRAMES, 1, 1)), 10.0 * np.arange(FRAMES))
    assert step_factors(moved(turn, 1, np.arange(FRAMES)), turn)["P"] == pytest.approx(1)


@pytest.mark.parametrize("support, factor", [(0.3, 0.6), (0.5, 1.0), (0.9, 1.0), (0.0, 0.0)])
def test_c_enters_as_its_root(support, factor):
    grade = navigate(support=support)
    assert grade.factors["C"] == pytest.approx(factor)
    assert grade.reward == pytest.approx(np.sqrt(factor))


def test_c_is_limited_frame_by_frame():
    estimate = CameraEstimate(CONTEXT_POSES, TARGET[:2], np.array([1.0, 0.25]))
    assert support_factor(estimate) == pytest.approx(0.75)


def seen(share: float, count: int = 20) -> Sightings:
    return Sightings(np.full((count, 2), 20.0), np.arange(count) < share * count)


@pytest.mark.parametrize("share, factor", [(0.15, 0.5), (0.3, 1.0), (0.9, 1.0), (0.0, 0.0)])
def test_o_is_the_share_of_the_context_that_is_seen_again(share, factor):
    grade = navigate(sightings=seen(share))
    assert grade.factors["reobserved"] == pytest.approx(share)
    assert grade.reward == pytest.approx(factor) == pytest.approx(grade.factors["O"])


def test_o_is_a_mean_over_the_frames_that_should_show_a_point():
    nothing = Sightings(np.zeros((0, 2)), np.zeros(0, bool))
    estimate = CameraEstimate(CONTEXT_POSES, TARGET[:3], np.ones(3), sightings=[seen(0.1), nothing, seen(0.2)])
    assert reobserved_factor(estimate) == (pytest.approx(0.15), pytest.approx(0.5))
    estimate.sightings = [nothing] * 3
    assert reobserved_factor(estimate) == (0.0, 0.0)
    estimate.sightings = None
    assert reobserved_factor(estimate) == (None, 1.0)
    assert navigate(sightings=None).reward == pytest.approx(1)


def test_m_counts_the_steps_that_are_made():
    short = TARGET.copy()
    short[:, 2, 3] *= 0.25
    grade = navigate(poses=short)
    assert grade.factors["M"] == pytest.approx(0.5)
    assert grade.reward == pytest.approx(0.5 * grade.factors["P"])


def test_m_of_a_still_picture_is_zero_though_poses_move():
    grade = navigate(video=STILL)
    assert grade.factors["M"] == 0 == grade.reward and grade.factors["P"] == pytest.approx(1)
    assert grade.reason == "nothing moves in the video"


def test_m_of_a_target_at_rest_is_one_even_for_a_still_picture():
    rest = np.repeat(TARGET[:1], FRAMES, axis=0)
    grade = navigate(video=STILL, poses=rest, row={"camera_poses": rest})
    assert grade.reward == pytest.approx(1) and grade.reason is None
    assert "target_moves" not in grade.factors


def leap(by: float) -> np.ndarray:
    """Return the target's poses with a jump to the side and back between frames 3 and 5, which P forgives little."""
    return moved(TARGET, 0, np.where(np.arange(FRAMES) == 4, by, 0.0))


def test_s_of_a_pose_jump_lowers_the_reward_where_the_picture_is_smooth():
    grade = navigate(poses=leap(3.0))
    # A tenth of the context's extent is the unit: steps of 2.5, and two of the root of 30^2 + 2.5^2.
    ratio = np.hypot(30, 2.5) / 2.5
    assert grade.factors["S"] == pytest.approx(np.exp(-(ratio - 6) / 6))
    assert grade.reward == pytest.approx(grade.factors["P"] * grade.factors["M"] * grade.factors["S"])
    assert grade.factors["P"] > 0.8


def test_s_of_a_cut_between_pictures_lowers_the_reward_where_the_poses_are_smooth():
    grade = navigate(video=cut())
    changes = diagnosis.steps(cut())
    ratio = changes.max() / np.median(changes)
    assert ratio > 9
    assert grade.reward == pytest.approx(np.exp(-(ratio - 6) / 6), rel=1e-3) == grade.factors["S"]


def test_s_is_the_lower_of_both_and_not_their_product():
    of_cut, of_jump = (grade.factors["S"] for grade in (navigate(video=cut()), navigate(poses=leap(3.0))))
    assert navigate(video=cut(), poses=leap(3.0)).factors["S"] == pytest.approx(min(of_cut, of_jump))


def test_continuity_is_a_rate_a_frame():
    """Frames far apart may show a longer step; steps at rest and fewer than three steps say nothing."""
    poses = TARGET[[0, 1, 2, 3, 8]]
    estimate = CameraEstimate(CONTEXT_POSES, poses, np.ones(5))
    assert continuity_factor(estimate, np.array([0, 1, 2, 3, 8])) == 1
    far = poses.copy()
    far[4, 2, 3] = far[3, 2, 3] + 0.25 * 50
    estimate = CameraEstimate(CONTEXT_POSES, far, np.ones(5))
    assert continuity_factor(estimate, np.array([0, 1, 2, 3, 8])) == pytest.approx(np.exp(-(50 / 5 - 6) / 6))
    assert continuity_factor(estimate, np.arange(5)) == pytest.approx(np.exp(-(50 - 6) / 6))
    two = CameraEstimate(CONTEXT_POSES, far[2:], np.ones(3))
    assert continuity_factor(two, np.arange(3)) == 1


def walk_by(*steps: float) -> np.ndarray:
    """Return poses with steps of these sizes, in tenths of the context's extent."""
    poses = np.tile(np.eye(4), (len(steps) + 1, 1, 1))
    poses[1:, 2, 3] = 0.1 * np.cumsum(steps)
    return poses


def continuity(steps, frames) -> float:
    poses = walk_by(*steps)
    return continuity_factor(CameraEstimate(CONTEXT_POSES, poses, np.ones(len(poses))), np.asarray(frames))


def test_a_slow_step_over_many_frames_is_motion_and_a_small_step_is_none():
    # Steps of 0.08 over two frames are slower than 0.05 a frame, but no rest: the usual rate is 0.04.
    assert continuity([0.08] * 4 + [1.0], [0, 2, 4, 6, 8, 9]) == pytest.approx(np.exp(-(25 - 6) / 6))
    # Jitter of 0.04 is rest: the usual rate is 1, not 0.04.
    assert continuity([1.0] * 3 + [0.04] * 6 + [9.0], np.arange(11)) == pytest.approx(np.exp(-(9 - 6) / 6))
    assert continuity([1.0, 1.0, 9.0], np.arange(4)) == pytest.approx(np.exp(-(9 - 6) / 6))
    assert continuity([0.04] * 8 + [9.0], np.arange(10)) == 1


def test_the_usual_rate_is_a_median():
    assert continuity([1.0, 1.0, 1.0, 8.0, 8.0], np.arange(6)) == pytest.approx(np.exp(-(8 - 6) / 6))


def test_continuity_counts_ten_degrees_as_much_as_a_tenth_of_the_extent():
    turning = turned(TARGET, np.where(np.arange(FRAMES) >= 5, 170.0, 0.0))
    ratio = (17 + 2.5) / 2.5
    estimate = CameraEstimate(CONTEXT_POSES, turning, np.ones(FRAMES))
    assert continuity_factor(estimate, np.arange(FRAMES)) == pytest.approx(np.exp(-(ratio - 6) / 6), rel=1e-4)


def test_continuity_leaves_out_steps_at_rest_and_unknown_ones():
    poses = TARGET.copy()
    poses[5:, 2, 3] = poses[4, 2, 3]
    assert continuity_factor(CameraEstimate(CONTEXT_POSES, poses, np.ones(FRAMES)), np.arange(FRAMES)) == 1
    poses[8, 2, 3] += 0.25 * 12
    expected = np.exp(-(12 - 6) / 6)  # the median is that of the steps that move
    estimate = CameraEstimate(CONTEXT_POSES, poses, np.ones(FRAMES))
    assert continuity_factor(estimate, np.arange(FRAMES)) == pytest.approx(expected)
    lost = TARGET.copy()
    lost[4] = np.nan
    assert continuity_factor(CameraEstimate(CONTEXT_POSES, lost, np.ones(FRAMES)), np.arange(FRAMES)) == 1


def test_a_turning_context_cannot_judge_a_target_that_walks():
    grade = navigate(kind="turning")
    assert grade.reward is None and grade.reason == "the target moves, and its camera only turns"
    turn = turned(np.repeat(TARGET[:1], FRAMES, axis=0), 10.0 * np.arange(FRAMES))
    at_place = moved(turn, 0, 0.5)  # the middle of the context's cameras
    grade = navigate(kind="turning", poses=turn, row={"camera_poses": at_place})
    assert grade.reward == pytest.approx(1, rel=1e-4)
    assert navigate(kind="turning", row={"context_poses": None}).reward == pytest.approx(1)


def test_a_turning_context_tolerates_a_path_of_five_centimetres():
    short = TARGET.copy()
    for length, is_scored in ((0.04, True), (0.06, False)):
        short[:, 2, 3] = np.linspace(0, length, FRAMES)
        assert (navigate(kind="turning", row={"camera_poses": short}).reward is not None) == is_scored


def test_an_unusable_context_and_one_that_cannot_be_aligned_are_invalid():
    grade = navigate(kind="unusable", reason="it is all the same picture")
    assert grade.reward is None and grade.reason == "the context cannot be used: it is all the same picture"
    grade = navigate(row={"context_poses": np.tile(np.eye(4), (4, 1, 1))})
    assert grade.reward is None and "nothing can be aligned" in grade.reason


def test_frames_without_a_pose_have_no_precision_and_no_motion():
    lost = TARGET.copy()
    lost[6:] = np.nan
    grade = navigate(poses=lost)
    assert grade.factors["registered"] == pytest.approx(6 / 9) == pytest.approx(grade.factors["P"])
    assert grade.factors["M"] == pytest.approx(5 / 8)
    none = navigate(poses=np.full_like(TARGET, np.nan))
    assert none.reward == 0 and none.reason == "no frame was found in the scene of the context"


def test_sd_is_logged_if_the_estimator_measures_it():
    assert "SD" not in navigate().factors
    assert navigate(distance=0.3).factors["SD"] == 0.3
    assert navigate(distance=0.3).reward == pytest.approx(1)


def test_frames_are_chosen_evenly_and_at_both_sides_of_the_largest_change():
    changes = np.array([1.0, 1, 1, 1, 1, 9, 1, 1])
    assert choose_frames(changes, 3).tolist() == [0, 4, 5, 6, 8]
    assert choose_frames(np.zeros(0), 3).tolist() == [0, 0, 0]
    video = smooth()
    video[6:] += 20
    reward = SceneNavigation(pose_estimator=Given(TARGET[[0, 4, 5, 6, 8]]), frames=3, context_frames=4)
    grade = reward.grade(video, ROW)  # the trajectory is read at the chosen frames, too
    assert grade.factors["P"] == pytest.approx(1) == pytest.approx(grade.factors["M"])


def test_a_short_path_is_relative_to_the_extent_of_the_contexts_cameras():
    short = TARGET.copy()
    short[:, 2, 3] *= 0.025  # a path of 0.05, below a tenth of the extent of 1
    grade = navigate(poses=moved(short, 0, 0.05), row={"camera_poses": short})
    assert grade.factors["P"] == pytest.approx(np.exp(-0.05 / 0.1))


# Grounding: R = V * sqrt(C) * S * M * D

LAST = 5
MIDDLE = (18.0, 12.0, 30.0, 20.0)  # 6 % of the frame, in its middle


class Boxes:
    """A detector that finds the same boxes on every frame, or those of each of the last frames."""

    def __init__(self, *boxes, by_frame=None) -> None:
        self.by_frame = [list(boxes)] * LAST if by_frame is None else by_frame

    def detect(self, video, names) -> list[Detections]:
        assert len(video) == LAST and names == ["chair"]
        return [
            Detections(
                np.array([box for box, _, _ in found], float).reshape(-1, 4),
                np.array([score for _, score, _ in found]),
                tuple(label for _, _, label in found),
            )
            for found in self.by_frame
        ]


def chair(box=MIDDLE, score=0.9, label="chair"):
    return box, score, label


def ground(*boxes, video=None, by_frame=None, monkeypatch=None, flat=None, **estimate):
    detector = Boxes(*(boxes or [chair()]), by_frame=by_frame)
    reward = ObjectGrounding(
        detector, pose_estimator=Given(**estimate), frames=FRAMES, last_frames=LAST, context_frames=4
    )
    if monkeypatch is not None:
        monkeypatch.setattr(object_grounding, "flat_share", lambda video, intrinsics: flat)
    return reward.grade(smooth() if video is None else video, ROW)


@pytest.fixture(autouse=True)
def depth(monkeypatch):
    """The stripes are flat, so depth is given: unknown (D = 1), unless a test says otherwise."""
    monkeypatch.setattr(object_grounding, "flat_share", lambda video, intrinsics: None)


def test_a_perfect_clip_is_grounded_with_all_factors_one():
    grade = ground()
    assert grade.reward == pytest.approx(1) and grade.reason is None
    assert {name: grade.factors[name] for name in "VCSMD"} == pytest.approx(dict.fromkeys("VCSMD", 1.0))
    assert grade.factors["visible"] == pytest.approx(1) and "IF" not in grade.factors


@pytest.mark.parametrize("score, factor", [(0.25, 0.5), (0.5, 1.0), (0.9, 1.0), (0.0, 0.0)])
def test_v_counts_confidence_up_to_a_half(score, factor):
    assert ground(chair(score=score)).reward == pytest.approx(factor)


def test_v_is_that_of_the_best_box_and_of_the_right_name():
    low, high = chair(score=0.1), chair(score=0.4)
    for boxes in ((low, high), (high, low)):
        assert ground(*boxes).reward == pytest.approx(0.8)
    assert ground(low, chair(score=0.9, label="table")).reward == pytest.approx(0.2)
    assert ground(chair(label="table")).reason == "no chair was found at the end"


def test_the_best_box_is_the_best_that_is_proven():
    """A confident fake does not hide a genuine object beside it, for V; `visible` is that of the best box of all."""
    fake = chair((0.0, 0.0, 48.0, 32.0), 0.5)
    points = Sightings(np.concatenate([np.full((5, 2), 20.0), np.full((95, 2), 2.0)]), np.arange(100) < 5)
    grade = ground(fake, chair(score=0.3), sightings=points)
    assert grade.factors["visible"] == pytest.approx(1)
    # The genuine box holds five points that are all seen; the fake one holds all, of which a twentieth is seen.
    assert grade.factors["V"] == pytest.approx(0.6)


def test_v_is_a_mean_over_the_last_frames():
    found = [[], [chair()], [chair(score=0.25)], [], [chair()]]
    assert ground(by_frame=found).reward == pytest.approx((0 + 1 + 0.5 + 0 + 1) / 5)


@pytest.mark.parametrize(
    ("box", "dx", "dy"),
    [((30.0, 12.0, 42.0, 20.0), 0.5, 0.0), ((6.0, 12.0, 18.0, 20.0), -0.5, 0.0), ((18.0, 20.0, 30.0, 28.0), 0.0, 0.5)],
)
def test_v_falls_with_the_distance_from_the_middle(box, dx, dy):
    assert ground(chair(box), sightings=None).reward == pytest.approx(np.exp(-(dx**2 + dy**2) / (2 * 0.35**2)))


def test_v_falls_with_the_root_of_a_small_area():
    area = 4.0 * 2.88 / (32 * 48)  # 0.75 % of the frame
    grade = ground(chair((22.0, 14.56, 26.0, 17.44)), sightings=None)
    assert grade.reward == pytest.approx(np.sqrt(area / 0.03)) == pytest.approx(0.5)


def test_v_of_a_box_beyond_the_frame_is_that_of_its_visible_part():
    inside, beyond = (ground(chair(box), sightings=None).reward for box in ((36, 8, 48, 24), (36, 8, 80, 24)))
    assert inside == pytest.approx(beyond)


def test_a_box_on_a_frame_without_a_pose_is_visible_but_unplaced():
    lost = TARGET.copy()
    lost[-2:] = np.nan
    grade = ground(poses=lost)
    assert grade.factors["visible"] == pytest.approx(1)
    assert grade.factors["V"] == pytest.approx(3 / 5) == pytest.approx(grade.reward)
    grade = ground(poses=lost, sightings=None)  # an estimator without points does not place it, either
    assert grade.factors["V"] == pytest.approx(3 / 5)


def test_b_of_another_object_lowers_v_but_not_what_is_visible():
    # The frame shows half of its 60 points, and a fifth or a quarter of those in the box.
    for in_box, factor in ((6, 0.0), (9, 1 / 3), (15, 1.0)):
        inside = np.arange(30) < in_box
        others = np.arange(30) < 30 - in_box
        around = np.array([(2.0, 2.0), (46.0, 30.0), (24.0, 2.0), (24.0, 30.0), (2.0, 16.0), (46.0, 16.0)] * 5)
        points = Sightings(np.concatenate([np.full((30, 2), 20.0), around]), np.r_[inside, others])
        grade = ground(sightings=points)
        assert grade.factors["V"] == pytest.approx(np.clip((in_box / 15 - 0.2) / 0.3, 0, 1))
        assert grade.factors["visible"] == pytest.approx(1), factor


def test_a_box_with_three_points_is_unproven_and_one_with_four_is_not():
    for count, factor in ((3, 0.3), (4, 1.0)):
        points = Sightings(
            np.concatenate([np.full((count, 2), 20.0), np.full((20, 2), 2.0)]), np.ones(count + 20, bool)
        )
        assert ground(sightings=points).reward == pytest.approx(factor)


def test_each_frame_is_judged_by_its_own_points():
    """The last frames' sightings, not the first ones': the first four frames show nothing of the context."""
    sightings = [seen(0.0)] * (FRAMES - LAST) + [ALL_SEEN] * LAST
    assert ground(sightings=sightings).reward == pytest.approx(1)
    sightings[-1] = seen(0.0)
    assert ground(sightings=sightings).reward == pytest.approx(4 / 5)


def test_visibility_takes_the_frames_that_it_is_told():
    estimate = CameraEstimate(CONTEXT_POSES, TARGET, np.ones(FRAMES), sightings=[seen(0.0)] * 8 + [ALL_SEEN])
    found = Boxes(chair()).detect(range(LAST), ["chair"])[:1]
    assert visibility(found, "chair", estimate, np.array([8]), SIZE) == (pytest.approx(1), pytest.approx(1))
    assert visibility(found, "chair", estimate, np.array([7]), SIZE) == (pytest.approx(1), 0.0)


@pytest.mark.parametrize("support, factor", [(0.3, 0.6), (0.9, 1.0), (0.0, 0.0)])
def test_c_of_grounding_enters_as_its_root(support, factor):
    assert ground(support=support).reward == pytest.approx(np.sqrt(factor))


def test_s_of_grounding_is_lowered_by_a_pose_jump_and_by_a_cut():
    ratio = np.hypot(30, 2.5) / 2.5
    assert ground(poses=leap(3.0)).reward == pytest.approx(np.exp(-(ratio - 6) / 6))
    assert ground(video=cut()).reward == pytest.approx(navigate(video=cut()).factors["S"])
    assert ground(video=cut()).reward < 0.6


@pytest.mark.parametrize("moving, factor", [(8, 1.0), (4, 4 / 8 / 0.6), (2, 2 / 8 / 0.6), (0, 0.0)])
def test_m_of_grounding_is_the_share_of_moving_steps_up_to_a_floor(moving, factor):
    video = smooth()
    video[moving:] = video[moving]
    grade = ground(video=video)
    assert grade.factors["M"] == pytest.approx(factor) == pytest.approx(grade.reward)
    assert (grade.reason == "nothing moves in the video") == (moving == 0)


@pytest.mark.parametrize("flat, factor", [(None, 1.0), (0.5, 1.0), (0.8, 1.0), (0.875, 0.5), (0.95, 0.0), (1.0, 0.0)])
def test_d_lowers_the_reward_of_a_zoom_into_a_picture(monkeypatch, flat, factor):
    grade = ground(monkeypatch=monkeypatch, flat=flat)
    assert (
        grade.factors["D"] == pytest.approx(factor) == pytest.approx(grade.reward) == pytest.approx(depth_factor(flat))
    )


@pytest.mark.parametrize("distance, followed", [(0.1, 1.0), (0.2, 0.0), (0.9, 0.0)])
def test_if_is_the_visibility_of_videos_in_the_scene(distance, followed):
    grade = ground(distance=distance, sightings=seen(0.0))
    assert grade.factors["SD"] == distance and grade.factors["IF"] == pytest.approx(followed)
    assert grade.factors["V"] == 0 == grade.reward


def test_a_detector_that_knows_the_scene_gets_the_poses_of_the_last_frames():
    asked = []

    def detect_at(video, names, poses, intrinsics):
        asked.append((len(video), names, poses, intrinsics))
        return Boxes(chair()).detect(video, names)

    detector = SimpleNamespace(detect_at=detect_at)
    reward = ObjectGrounding(detector, pose_estimator=Given(), frames=FRAMES, last_frames=LAST, context_frames=4)
    assert reward.grade(smooth(), ROW).reward == pytest.approx(1)
    ((count, names, poses, intrinsics),) = asked
    assert count == LAST and names == ["chair"]
    np.testing.assert_allclose(poses, TARGET[-LAST:], atol=1e-9)
    np.testing.assert_allclose(intrinsics, [[40, 0, 24], [0, 40, 16], [0, 0, 1]])
