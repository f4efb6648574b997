"""Navigation and grounding: the correct video scores well, no hack half as well, and invalid rows have no score."""

import cv2
import numpy as np
import pytest
from scene_hacks import FRAMES, PerfectDetector, World, build_world
from scipy.spatial.transform import Rotation

from spatialalign_rewards._scene_scoring import SceneGrade, continuity_factor
from spatialalign_rewards.object_grounding import UNPROVEN, ObjectGrounding, get_detector, same_object
from spatialalign_rewards.scene_navigation import SceneNavigation, pose_factors, step_factors
from spatialalign_trl.perception.camera.estimator import CallableEstimator, CameraEstimate, Sightings
from spatialalign_trl.rewards.runner import RewardRunner, load_reward
from spatialalign_trl.tiny_world.rooms import look


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module")
def navigation() -> SceneNavigation:
    return SceneNavigation(frames=7, context_frames=12)


@pytest.fixture(scope="module")
def grounding() -> ObjectGrounding:
    return ObjectGrounding(detector=PerfectDetector(), frames=4, last_frames=3, context_frames=12)


@pytest.fixture(scope="module")
def table(world, navigation, grounding) -> dict[str, tuple[SceneGrade, SceneGrade]]:
    """Grade every case with both rewards; takes a few seconds."""
    return {
        name: (
            navigation.grade(case.video, world.row),
            grounding.grade(case.video, {**world.row, "boxes": case.boxes}),
        )
        for name, case in world.cases.items()
    }


def test_the_correct_video_scores_well(table):
    navigation, grounding = table["correct"]
    assert navigation.reward > 0.6
    assert grounding.reward > 0.6
    assert navigation.factors["rotation_error"] < 1.0
    assert navigation.factors["position_error"] < 0.05


HACKS = (
    "static", "static at the target", "freeze at half", "half motion", "mirrored", "reversed", "jump cut", "2-D zoom",
    "black", "noise", "target pasted in", "other room",
)  # fmt: skip


@pytest.mark.parametrize("hack", HACKS)
@pytest.mark.parametrize("task", [0, 1], ids=["navigation", "grounding"])
def test_no_hack_scores_half_as_well(table, hack, task):
    grade = table[hack][task]
    assert grade.reward is not None, grade.reason
    assert grade.reward <= 0.5 * table["correct"][task].reward, grade


def test_all_hacks_are_tried(world):
    assert {"correct", *HACKS} == set(world.cases)


def test_videos_of_another_scene_score_zero_with_a_reason(table):
    for hack in ("black", "noise", "other room"):
        for grade in table[hack]:
            assert grade.reward == 0
            assert grade.reason == "no frame was found in the scene of the context"


def test_a_motionless_video_has_that_as_its_reason(table):
    assert table["static"][0].reason == "nothing moves in the video"


def test_a_pasted_target_is_visible_but_does_not_belong_to_the_scene(table):
    factors = table["target pasted in"][1].factors
    assert factors["visible"] > 0.6
    assert factors["V"] < 0.3


BOX = np.array([40.0, 40, 60, 60])


def sightings(count_inside: int, share_inside: float, share_outside: float) -> Sightings:
    """Return some points inside the box and 100 outside it, of which the given shares are visible."""
    pixels = np.concatenate([np.tile(BOX[:2] + 5, (count_inside, 1)), np.tile(BOX[2:] + 5, (100, 1))])
    inside = np.arange(count_inside) < share_inside * count_inside
    outside = np.arange(100) < share_outside * 100
    return Sightings(pixels, np.concatenate([inside, outside]))


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_box_must_show_as_many_of_its_points_as_its_frame(share):
    assert same_object(sightings(20, share, share), BOX) == 1
    assert same_object(sightings(20, 0.0, share), BOX) == 0
    assert 0 < same_object(sightings(20, 0.35 * share, share), BOX) < 1


def test_a_box_with_too_few_points_is_unproven():
    assert same_object(sightings(3, 1.0, 0.5), BOX) == UNPROVEN


def test_a_box_without_visible_points_is_another_object_even_if_its_frame_has_none():
    assert same_object(sightings(20, 0.0, 0.0), BOX) == 0


def test_a_box_is_accepted_if_the_estimator_gives_no_points():
    assert same_object(None, BOX) == 1


def test_recompression_and_a_little_noise_cost_little(world, navigation, table):
    video = world.cases["correct"].video.astype(np.int16)
    noisy = np.clip(video + np.random.default_rng(0).normal(0, 4, video.shape), 0, 255).astype(np.uint8)
    jpeg = [cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1) for frame in noisy]
    assert navigation.grade(np.stack(jpeg), world.row).reward > 0.6


BAD_ROWS = {
    "another length": ({"camera_poses": np.tile(np.eye(4), (5, 1, 1))}, "5 poses and the video 13 frames"),
    "poses that are none": ({"camera_poses": np.ones((FRAMES, 4, 4))}, "number 0 is no pose"),
    "no focal length": ({"intrinsics": (0, 1, 2, 3)}, "focal lengths above 0"),
    "too few context poses": ({"context_poses": np.tile(np.eye(4), (3, 1, 1))}, "context_poses must have the shape"),
    "a black context": ({"context": np.zeros((12, 240, 416, 3), np.uint8)}, "no texture"),
    "one frame": ({"context": np.zeros((1, 240, 416, 3), np.uint8), "context_poses": None}, "single frame"),
    "no such file": ({"context": "/nowhere/context.mp4"}, "there is no such video file"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_an_invalid_row_is_invalid_whatever_the_video(world, change, message):
    grade = SceneNavigation(frames=3, context_frames=12).grade(world.cases["correct"].video, {**world.row, **change})
    assert grade.reward is None
    assert message in grade.reason


def test_a_static_context_is_invalid(world):
    static = np.repeat(world.row["context"][:1], 12, axis=0)
    grade = SceneNavigation(frames=2).grade(world.cases["correct"].video, {**world.row, "context": static})
    assert grade.reward is None
    assert "all the same picture" in grade.reason


def test_rows_are_refused_before_anything_is_sampled(navigation, grounding):
    good = {"camera_poses": [np.eye(4)[None]], "intrinsics": [(1, 1, 0, 0)]}
    navigation.check_prompts(**good)
    with pytest.raises(ValueError, match="prompt 0: camera_poses: number 0 is not finite"):
        navigation.check_prompts(**{**good, "camera_poses": [np.full((1, 4, 4), np.nan)]})
    with pytest.raises(ValueError, match="prompt 0: intrinsics must be"):
        navigation.check_prompts(**{**good, "intrinsics": [(1, 1)]})
    with pytest.raises(ValueError, match="prompt 0: object is ''"):
        grounding.check_prompts(object=[""], intrinsics=[(1, 1, 0, 0)])


def follow(estimates):
    """Return an estimator that returns these poses for any frames."""
    return CallableEstimator(lambda frames, intrinsics: estimates, name="given")


def test_the_runner_passes_the_columns_of_a_scene(world):
    exact = np.concatenate([world.row["context_poses"], world.walk_poses])
    reward = SceneNavigation(pose_estimator=follow(exact), frames=FRAMES, context_frames=12)
    runner = RewardRunner([reward])
    columns = {name: [world.row[name]] for name in ("context", "context_poses", "camera_poses", "intrinsics")}
    runner.check_prompts([{"prompt": "walk", **{name: value[0] for name, value in columns.items()}}])
    output = runner(["walk"], [world.cases["correct"].video], columns)
    assert output.errors == {}
    assert output.rewards[0] == pytest.approx(1.0)
    assert output.extra["scene_navigation_P"] == [pytest.approx(1.0)]


def test_a_data_set_without_a_required_column_is_refused():
    with pytest.raises(ValueError, match="needs the prompt column 'camera_poses'"):
        RewardRunner([SceneNavigation(frames=FRAMES)]).check_columns(["prompt", "context", "intrinsics"])


@pytest.mark.parametrize(("share", "expected"), [(1.0, pytest.approx(1.0)), (0.5, None)])
def test_the_scale_is_that_of_the_context_and_not_of_the_generated_cameras(world, share, expected):
    """In other coordinates, seven times as large, the correct motion is correct and half the motion is half."""
    walk = world.walk_poses.copy()
    walk[:, :3, 3] = walk[:1, :3, 3] + share * (walk[:, :3, 3] - walk[:1, :3, 3])
    poses = np.concatenate([world.row["context_poses"], walk])
    poses[:, :3, 3] *= 7.0
    reward = SceneNavigation(pose_estimator=follow(poses), frames=FRAMES, context_frames=12)
    score = reward.grade(world.cases["correct"].video, world.row).reward
    if expected is None:
        assert score < 0.4
    else:
        assert score == expected


PATH = np.stack([look((0.2 * k, -1.4, 0.1 * k), 4 * k) for k in range(9)])


def test_the_correct_poses_have_perfect_factors():
    for factors in (pose_factors(PATH, PATH, 1.0), step_factors(PATH, PATH)):
        assert factors["P"] == pytest.approx(1.0)
        assert factors["M"] == pytest.approx(1.0)


def test_factors_of_steps_do_not_depend_on_the_unit_but_on_the_direction():
    larger = PATH.copy()
    larger[:, :3, 3] *= 3
    assert step_factors(larger, PATH)["P"] == pytest.approx(1.0)
    assert step_factors(PATH[::-1], PATH)["P"] < 0.1


def test_unknown_poses_count_as_wrong_and_motionless():
    lost = PATH.copy()
    lost[4:] = np.nan
    factors = pose_factors(lost, PATH, 1.0)
    assert factors["P"] == pytest.approx(4 / 9)
    assert factors["M"] == pytest.approx(3 / 8)
    assert pose_factors(np.full_like(PATH, np.nan), PATH, 1.0)["P"] == 0


def jittered(poses: np.ndarray, seed: int, metres: float, degrees: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    estimated = poses.copy()
    estimated[:, :3, 3] += rng.normal(0, metres, (len(poses), 3))
    estimated[:, :3, :3] = (
        Rotation.from_rotvec(np.radians(rng.normal(0, degrees, (len(poses), 3)))).as_matrix() @ (poses[:, :3, :3])
    )
    return estimated


def test_the_jitter_of_an_estimator_does_not_hide_motion():
    for factors_of in (lambda poses: pose_factors(poses, PATH, 1.0), lambda poses: step_factors(poses, PATH)):
        motion = [factors_of(jittered(PATH, seed, 0.02, 0.5))["M"] for seed in range(20)]
        assert np.mean(motion) > 0.9


def test_the_jitter_of_an_estimator_is_no_motion():
    motionless = np.repeat(PATH[:1], len(PATH), axis=0)
    motion = [pose_factors(jittered(motionless, seed, 0.05, 1.5), PATH, 1.0)["M"] for seed in range(20)]
    sizes = [np.linalg.norm(np.diff(jittered(motionless, 0, 0.05, 1.5)[:, :3, 3], axis=0), axis=1).mean() / 0.224]
    assert sizes[0] > 0.3, "in size alone the jitter makes a third of the steps"
    assert np.mean(motion) < 0.12


def test_motion_backwards_counts_as_no_motion():
    for factors in (pose_factors(PATH[::-1], PATH, 1.0), step_factors(PATH[::-1], PATH)):
        assert factors["M"] == 0
    there_and_back = np.concatenate([PATH[:5], PATH[3::-1]])
    assert pose_factors(there_and_back, PATH, 1.0)["M"] < 0.05


def test_half_of_every_step_is_full_motion_and_a_quarter_is_half():
    for share, expected in ((0.5, 1.0), (0.25, 0.5)):
        slower = np.stack([look((0.2 * share * k, -1.4, 0.1 * share * k), 4 * share * k) for k in range(9)])
        assert pose_factors(slower, PATH, 1.0)["M"] == pytest.approx(expected, abs=0.02)


def test_a_turn_on_the_spot_tolerates_centimetres_but_not_metres():
    turn = np.stack([look((0, -1.4, 0), 5 * k) for k in range(9)])
    near = turn.copy()
    near[:, 0, 3] += 0.02
    assert pose_factors(near, turn, 2.0)["P"] > 0.85
    away = turn.copy()
    away[:, 0, 3] += np.linspace(0, 2, 9)
    assert pose_factors(away, turn, 2.0)["P"] < 0.3


def test_a_leap_of_the_camera_is_a_cut():
    numbers, support = np.arange(9), np.ones(9)
    assert continuity_factor(CameraEstimate(PATH, PATH, support), numbers) == 1
    leap = PATH.copy()
    leap[5:, :3, 3] += [9.0, 0, 0]
    assert continuity_factor(CameraEstimate(PATH, leap, support), numbers) < 0.2


def test_a_call_without_a_required_column_names_it(navigation):
    with pytest.raises(TypeError, match="'scene_navigation' needs the column 'camera_poses'"):
        navigation(prompts=[], completions=[], context=[], intrinsics=[])


def test_a_camera_that_trembles_on_the_spot_is_no_cut():
    turn = np.stack([look((0, -1.4, 0), 5 * k) for k in range(9)])
    turn[:, :3, 3] += np.random.default_rng(0).normal(0, 0.01, (9, 3))
    assert continuity_factor(CameraEstimate(PATH, turn, np.ones(9)), np.arange(9)) == 1


def test_the_rewards_are_found_by_name_and_describe_their_parts():
    reward = load_reward("scene_navigation", frames=5)
    assert reward.describe()["pose_estimator"] == "sift"
    assert load_reward("object_grounding").describe()["detector"] == "grounding_dino"


def test_an_unknown_pose_estimator_is_named():
    with pytest.raises(ValueError, match="no pose estimator named 'shift'"):
        load_reward("scene_navigation", pose_estimator="shift")


def test_a_detector_without_detect_is_refused():
    with pytest.raises(TypeError, match="needs a method detect"):
        get_detector(object(), {})


def test_named_settings_survive_saving(tmp_path):
    reward = SceneNavigation(frames=5)
    loaded = SceneNavigation.from_pretrained(reward.save_pretrained(tmp_path))
    assert loaded.describe() == reward.describe()


def test_a_detector_that_is_an_object_cannot_be_saved():
    with pytest.raises(ValueError, match="only parts given by name can be saved"):
        ObjectGrounding(detector=PerfectDetector()).settings()


def test_spatial_distance_is_small_in_the_scene_and_maximal_in_another(world):
    """The map is made from the video here, so another room cannot be aligned with the context."""
    reward = ObjectGrounding(
        detector=PerfectDetector(), frames=2, last_frames=1, context_frames=12, distance_estimator="sift"
    )
    graded = {
        name: reward.grade(world.cases[name].video, {**world.row, "boxes": world.cases[name].boxes}).factors
        for name in ("correct", "other room")
    }
    assert graded["correct"]["SD"] < 0.1
    assert graded["correct"]["IF"] > 0.6
    assert graded["other room"]["SD"] == 1.0
    assert graded["other room"]["IF"] == 0.0
