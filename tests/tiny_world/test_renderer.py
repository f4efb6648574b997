"""The renderer: boxes are exact, and only the animal moves, as the scene describes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from spatialalign_rewards import score_tracks
from spatialalign_trl.prompts import DSR_TYPES
from spatialalign_trl.tiny_world.clips import OTHER_TYPES, place
from spatialalign_trl.tiny_world.renderer import (
    GRID,
    GROUND,
    HEIGHT,
    MOTIONS,
    NUM_FRAMES,
    WIDTH,
    Scene,
    foreground,
    render,
)
from spatialalign_trl.tiny_world.sprites import SIZES
from spatialalign_trl.tiny_world.vocabulary import ANIMAL_COLORS, ANIMALS, OBJECT_COLORS, OBJECTS, SCENES, VERBS

SCENE = Scene(scene="In a meadow", color="red", animal="fox", object="stump", verb="jumps", type="LR")


def animal_pixels(scene):
    """Find the pixels that the animal covers at least partly: those that change with its colour."""
    other = render(replace(scene, color="blue" if scene.color != "blue" else "red")).video
    return (render(scene).video != other).any(-1)


def pixel_box(mask):
    """Return the box of a mask of one frame as x1, y1, x2, y2."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def inwards(pixels, exact):
    """Return how far each side of a pixel box is inside an exact box; negative where it is outside."""
    return (pixels - exact) * [1, 1, -1, -1]


def inside(box):
    """Return a mask of the pixels that a box touches."""
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return mask


def score(clip, dsr_type):
    boxes = zip(clip.animal_boxes, clip.object_boxes, strict=True)
    frames = [(index, ("animal", "object"), np.stack(pair)) for index, pair in enumerate(boxes)]
    return score_tracks(frames, "animal", "object", dsr_type, num_frames=NUM_FRAMES)


@pytest.mark.parametrize("animal", ANIMALS)
def test_the_animals_box_holds_all_its_pixels_and_touches_them(animal):
    for dsr_type, verb in zip(DSR_TYPES, (*VERBS, *VERBS), strict=False):
        scene = replace(SCENE, animal=animal, type=dsr_type, verb=verb)
        clip = render(scene)
        for mask, box in zip(animal_pixels(scene), clip.animal_boxes, strict=True):
            margins = inwards(pixel_box(mask), box)
            # A partly covered pixel counts in full.
            assert (margins > -1).all(), (dsr_type, box)
            assert (margins <= 1 / 8).all(), (dsr_type, box)


@pytest.mark.parametrize("object", OBJECTS)
def test_the_objects_box_holds_all_its_pixels_and_touches_them(object):
    scene = replace(SCENE, object=object, motion="static")
    clip = render(scene)
    mask = foreground(scene, clip.video)[0] & ~inside(clip.animal_boxes[0])
    margins = inwards(pixel_box(mask), clip.object_boxes[0])
    assert (np.abs(margins) < 1).all()
    left, top, right, bottom = clip.object_boxes[0]
    assert (right - left, bottom - top) == SIZES[object]
    assert abs((left + right) / 2 - scene.object_x) <= GRID / 2 and bottom == GROUND


@pytest.mark.parametrize("color", ANIMAL_COLORS)
def test_the_animal_is_painted_in_its_colour(color):
    scene = replace(SCENE, color=color)
    colors, counts = np.unique(render(scene).video[animal_pixels(scene)], axis=0, return_counts=True)
    assert tuple(colors[counts.argmax()]) == ANIMAL_COLORS[color]


def test_every_type_motion_and_verb_renders_as_a_video():
    for dsr_type, motion, verb in product(DSR_TYPES, MOTIONS, VERBS):
        clip = render(replace(SCENE, type=dsr_type, motion=motion, verb=verb))
        assert clip.video.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3) and clip.video.dtype == np.uint8
        assert clip.animal_boxes.shape == clip.object_boxes.shape == (NUM_FRAMES, 4)
        sizes = clip.animal_boxes[:, 2:] - clip.animal_boxes[:, :2]
        assert np.allclose(sizes, SIZES["fox"])


def test_every_scene_is_its_two_colours_behind_the_sprites():
    for name, (above, ground) in SCENES.items():
        video = render(replace(SCENE, scene=name)).video
        assert (video[:, 0] == above).all() and (video[:, -1] == ground).all()


def test_nothing_but_the_animal_ever_changes():
    for dsr_type, motion, object in product(DSR_TYPES, MOTIONS, OBJECTS):
        clip = render(replace(SCENE, type=dsr_type, motion=motion, object=object))
        assert (clip.object_boxes == clip.object_boxes[0]).all()
        free = [~inside(box) for box in clip.animal_boxes]
        for earlier, later in zip(range(NUM_FRAMES - 1), range(1, NUM_FRAMES), strict=True):
            both = free[earlier] & free[later]
            assert (clip.video[earlier][both] == clip.video[later][both]).all()


def test_a_static_animal_does_not_move_and_a_half_way_animal_returns():
    for dsr_type in DSR_TYPES:
        static = render(replace(SCENE, type=dsr_type, motion="static"))
        assert (static.video == static.video[0]).all()
        half = render(replace(SCENE, type=dsr_type, motion="half"))
        assert half.animal_boxes[-1] == pytest.approx(half.animal_boxes[0], abs=1e-6)
        assert np.abs(half.animal_boxes - half.animal_boxes[0]).max() > 2


def test_verbs_differ_in_how_high_and_how_fast():
    clips = {verb: render(replace(SCENE, verb=verb)) for verb in VERBS}
    tops = {verb: clip.animal_boxes[:, 1].min() for verb, clip in clips.items()}
    assert tops["leaps"] < tops["jumps"] < tops["hops"]
    moving = {verb: (np.abs(np.diff(clip.animal_boxes[:, 0])) > 0).sum() for verb, clip in clips.items()}
    assert moving["leaps"] < moving["jumps"] < moving["hops"]


def test_a_clip_depends_on_its_scene_only():
    first, second = render(SCENE), render(replace(SCENE))
    assert (first.video == second.video).all()
    assert (first.animal_boxes == second.animal_boxes).all()
    assert render(SCENE, num_frames=9).video.shape[0] == 9
    assert (render(SCENE, num_frames=9).video[-1] == first.video[-1]).all()


def test_drawn_placements_stay_in_the_picture():
    rng = np.random.default_rng(0)
    for animal, object, dsr_type in product(ANIMALS, OBJECTS, DSR_TYPES):
        words = {"scene": "In a desert", "color": "blue", "animal": animal, "object": object, "verb": "leaps"}
        boxes = render(place(words, dsr_type, "complete", rng)).animal_boxes
        # At the widest gap, the widest animal may cross the border by one step of the grid.
        assert boxes[:, :2].min() >= -GRID and boxes[:, 2].max() <= WIDTH + GRID and boxes[:, 3].max() <= HEIGHT


def test_everything_stands_on_the_grid():
    rng = np.random.default_rng(1)
    for animal, object, dsr_type in product(ANIMALS, OBJECTS, DSR_TYPES):
        words = {"scene": "In a desert", "color": "blue", "animal": animal, "object": object, "verb": "jumps"}
        clip = render(place(words, dsr_type, "complete", rng))
        assert (clip.animal_boxes % GRID == 0).all() and (clip.object_boxes % GRID == 0).all()


@pytest.mark.parametrize(("animal", "object"), list(product(ANIMALS, OBJECTS)))
def test_only_obedient_clips_pass_the_threshold(animal, object):
    rng = np.random.default_rng(ANIMALS.index(animal) * 5 + OBJECTS.index(object))
    for dsr_type, verb in product(DSR_TYPES, VERBS):
        words = {"scene": "On a beach", "color": "pink", "animal": animal, "object": object, "verb": verb}
        complete = render(place(words, dsr_type, "complete", rng))
        result = score(complete, dsr_type)
        assert result.score >= 0.7
        assert result.initial_curve[0] > 0.95 and result.final_curve[-1] > 0.95
        for caption_type, others in OTHER_TYPES.items():
            if dsr_type in others:
                assert score(complete, caption_type).score < 0.7, (caption_type, dsr_type)
        for motion in ("static", "half"):
            clip = render(place(words, dsr_type, motion, rng))
            result = score(clip, dsr_type)
            assert result.score < 0.7, (dsr_type, motion)
            assert result.initial_curve[0] > 0.95 and result.initial_curve[-1] > 0.95


def test_every_type_has_wrong_types_and_is_not_among_them():
    assert set(OTHER_TYPES) == set(DSR_TYPES)
    for dsr_type, others in OTHER_TYPES.items():
        assert dsr_type not in others and set(others) < set(DSR_TYPES)


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("scene", "On the moon", "In a meadow"),
        ("color", "green", "red"),
        ("animal", "cow", "fox"),
        ("object", "fox", "stump"),
        ("verb", "flies", "jumps"),
        ("motion", "slow", "half"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(field, value, known):
    with pytest.raises(ValueError, match=f"{field}='{value}' is not in the tiny world. Choose from .*{known}"):
        render(replace(SCENE, **{field: value}))


def test_an_object_is_not_accepted_as_an_animal():
    with pytest.raises(ValueError, match="animal='stump' is not in the tiny world"):
        render(replace(SCENE, animal="stump"))


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="type='LL': the tiny world does not show it. Choose from LR"):
        render(replace(SCENE, type="LL"))


def test_the_foreground_is_the_two_sprites():
    clip = render(SCENE)
    shown = foreground(SCENE, clip.video)
    assert shown.shape == clip.video.shape[:3] and shown.dtype == bool
    for mask, animal, object in zip(shown, clip.animal_boxes, clip.object_boxes, strict=True):
        assert not (mask & ~inside(animal) & ~inside(object)).any()
        assert 0.3 < mask.sum() / (np.prod(SIZES["fox"]) + np.prod(SIZES["stump"])) < 1.0
    assert set(OBJECT_COLORS) == set(OBJECTS)
