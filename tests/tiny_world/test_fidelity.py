"""The quality measures: each must fall when what it measures is damaged."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import linalg, ndimage

from spatialalign_trl.tiny_world.clips import caption_for, sample_scene
from spatialalign_trl.tiny_world.fidelity import frechet_distance, sprite_fidelity, tiny_world_guard, video_features
from spatialalign_trl.tiny_world.renderer import render
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(5)
    return [sample_scene(rng, obedient=True).scene for _ in range(40)]


@pytest.fixture(scope="module")
def videos(scenes):
    return [render(scene).video for scene in scenes]


def measure(videos, scenes):
    """Measure the animals and colours of `scenes` on `videos`."""
    return [sprite_fidelity(video, scene.animal, scene.color) for video, scene in zip(videos, scenes, strict=True)]


def column(measured, name):
    return np.array([values[name] for values in measured])


def next_of(known, word):
    known = list(known)
    return known[(known.index(word) + 1) % len(known)]


def blurred(video, radius=1.5):
    return ndimage.gaussian_filter(video.astype(float), (0, radius, radius, 0)).astype(np.uint8)


def test_renders_are_of_the_right_kind_shape_and_colour_and_move(videos, scenes):
    measured = measure(videos, scenes)
    assert (column(measured, "sprite_kind") == 1.0).all()
    # Pixels of the outline are blends. A white sprite on a pale scene loses most of them.
    assert column(measured, "sprite_shape").min() > 0.65
    assert column(measured, "sprite_shape").mean() > 0.8
    assert column(measured, "sprite_color").min() > 0.95
    assert column(measured, "motion").min() > 10


def test_another_animal_lowers_kind_and_shape(videos, scenes):
    right = measure(videos, scenes)
    others = [replace(scene, animal=next_of(ANIMALS, scene.animal)) for scene in scenes]
    wrong = measure([render(scene).video for scene in others], scenes)
    assert (column(wrong, "sprite_kind") == 0.0).all()
    assert (column(wrong, "sprite_shape") < column(right, "sprite_shape")).all()
    assert column(wrong, "sprite_color").min() > 0.95


def test_another_colour_is_not_found(videos, scenes):
    others = [replace(scene, color=next_of(ANIMAL_COLORS, scene.color)) for scene in scenes]
    wrong = measure([render(scene).video for scene in others], scenes)
    for name in ("sprite_color", "sprite_shape", "sprite_kind"):
        assert (column(wrong, name) == 0.0).all()


def test_an_off_colour_lowers_the_colour_and_not_the_kind(videos, scenes):
    faded = [(video * 0.95).astype(np.uint8) for video in videos]
    right, off = measure(videos, scenes), measure(faded, scenes)
    lowered = column(right, "sprite_color") - column(off, "sprite_color")
    assert (lowered > 0.02).all()
    assert column(off, "sprite_kind").min() == 1.0


def test_blur_lowers_shape_and_colour(videos, scenes):
    right, soft = measure(videos, scenes), measure([blurred(video) for video in videos], scenes)
    for name in ("sprite_shape", "sprite_color"):
        assert (column(soft, name) < column(right, name)).all()
    assert column(soft, "sprite_shape").mean() < 0.65
    assert column(soft, "sprite_kind").mean() < 0.8


def test_a_static_video_lowers_the_motion_alone(videos, scenes):
    static = measure([render(replace(scene, motion="static")).video for scene in scenes], scenes)
    assert (column(static, "motion") == 0.0).all()
    assert (column(static, "sprite_kind") == 1.0).all()


@pytest.mark.parametrize("level", [0, 255])
def test_a_blank_video_measures_zero(level):
    blank = np.full((17, 32, 48, 3), level, np.uint8)
    assert set(sprite_fidelity(blank, "fox", "red").values()) == {0.0}


def test_features_are_means_and_deviations_of_every_cell_and_colour(videos):
    features = video_features(videos[0])
    assert features.shape == (2 * 4 * 6 * 3,)
    assert np.isfinite(features).all() and features.min() >= 0 and features.max() <= 1
    flat = video_features(np.full((17, 32, 48, 3), 51, np.uint8))
    assert flat[:72] == pytest.approx(0.2) and flat[72:] == pytest.approx(0)
    assert video_features(np.zeros((9, 33, 50, 3), np.uint8)).shape == features.shape


def test_the_distance_of_a_set_to_itself_is_zero():
    features = np.random.default_rng(0).normal(size=(200, 8))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_the_distance_is_symmetric_and_grows_with_a_shift_and_a_spread():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(300, 6)), rng.normal(size=(250, 6)) * 1.5 + 0.3
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    for moved in ([first + step for step in (0, 0.1, 0.5, 2)], [first * scale for scale in (1, 1.2, 1.5, 3)]):
        distances = [frechet_distance(first, features) for features in moved]
        assert distances == sorted(distances) and len(set(distances)) == 4


def test_a_pure_shift_costs_its_square():
    features = np.random.default_rng(2).normal(size=(100, 4))
    assert frechet_distance(features, features + np.array([1.0, 2.0, 0.0, 0.0])) == pytest.approx(5.0)


def test_the_distance_agrees_with_the_plain_formula():
    rng = np.random.default_rng(3)
    first = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5))
    second = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)
    a, b = np.cov(first.T), np.cov(second.T)
    root = linalg.sqrtm(a @ b).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    # In one dimension: (difference of means)^2 + (difference of standard deviations)^2
    x, y = first[:, :2] * [1, 0], second[:, :2] * [1, 0]
    plain = (x[:, 0].mean() - y[:, 0].mean()) ** 2 + (x[:, 0].std(ddof=1) - y[:, 0].std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(plain, rel=1e-6)


def test_the_guard_measures_every_video_and_one_distance(videos, scenes):
    rows = [caption_for(scene).to_row() for scene in scenes]
    measures = tiny_world_guard(videos, rows)
    for name in ("sprite_shape", "sprite_kind", "sprite_color", "motion"):
        assert measures[name] == column(measure(videos, scenes), name).tolist()
    assert isinstance(measures["distance_to_real"], float)
    assert tiny_world_guard(videos, rows) == measures


def test_the_guards_distance_grows_as_videos_leave_the_tiny_world(videos, scenes):
    rows = [caption_for(scene).to_row() for scene in scenes]
    noise = np.random.default_rng(0).integers(0, 256, (len(videos), *videos[0].shape), dtype=np.uint8)
    spoilt = {"renders": videos, "blurred": [blurred(video) for video in videos], "noise": list(noise)}
    distances = {name: tiny_world_guard(group, rows)["distance_to_real"] for name, group in spoilt.items()}
    assert distances["renders"] < 0.5 * distances["blurred"] < 0.1 * distances["noise"]


def test_the_guard_refuses_no_videos_and_gives_no_distance_for_a_single_video(videos, scenes):
    with pytest.raises(ValueError, match="needs at least one video"):
        tiny_world_guard([], [])
    rows = [caption_for(scene).to_row() for scene in scenes]
    for_one = tiny_world_guard(videos[:1], rows[:1])
    assert for_one["distance_to_real"] is None and len(for_one["motion"]) == 1
    for_two = tiny_world_guard(videos[:2], rows[:2])
    assert for_two["distance_to_real"] >= 0
    json.dumps([for_one, for_two], allow_nan=False)


def test_the_guard_names_a_word_that_is_not_in_the_tiny_world(videos, scenes):
    row = caption_for(scenes[0]).to_row() | {"animal": "walrus"}
    with pytest.raises(ValueError, match="'walrus' is not in the tiny world"):
        tiny_world_guard(videos[:1], [row])


@pytest.mark.parametrize("sizes", [(1, 5), (5, 1), (0, 5)])
def test_a_distance_needs_two_rows_on_both_sides(sizes):
    first, second = (np.zeros((size, 3)) for size in sizes)
    with pytest.raises(ValueError, match=f"at least 2 rows on both sides, got {sizes[0]} and {sizes[1]}"):
        frechet_distance(first, second)


def test_prompts_that_the_guard_cannot_render_are_refused_before_sampling():
    known = {"scene": "", "animal": "fox", "object": "stump", "verb": "jumps", "attribute": "red", "type": "LR"}
    tiny_world_guard.check_prompts([known | {"prompt_id": "a"}])  # a place that the prompt does not name is drawn
    for change in ({"verb": "runs"}, {"scene": "On a hill"}, {"attribute": ""}, {"type": "LF"}):
        with pytest.raises(ValueError, match="prompt 'b': .* tiny world.* Leave the guard 'tiny_world'"):
            tiny_world_guard.check_prompts([known | {"prompt_id": "a"}, known | change | {"prompt_id": "b"}])
